"""Cleaners of characters: encoding, control characters, white space, case, repeats and punctuation."""

from __future__ import annotations

import functools
import re
import string
import sys
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune.registry import cleaners

# C0 and C1 control characters, zero-width characters, soft hyphens, marks of direction, invisible operators, marks of
# interlinear notes, place holders of objects, byte-order marks. Joiners and variation selectors stay: emoji and some
# scripts need them
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffc]"
)


@cleaners.register("unicode", tokens="each")
def unicode(text: str, *, form: Literal["NFC", "NFKC"] = "NFC", straight_quotes: bool = True) -> str:
    """Repair mojibake (`donâ€™t`), drop invisible characters and bring the text to one normal form.

    The repair is ftfy's, see https://ftfy.readthedocs.io; markup and entities are left to the `html` cleaner.
    """
    if text.isascii() and (text.isprintable() or not ("\r" in text or _INVISIBLE.search(text))):
        return text
    import ftfy

    while True:
        repaired = ftfy.fix_text(text, _repair_settings(straight_quotes))
        text = unicodedata.normalize(form, control(repaired))
        if text == repaired:  # otherwise dropping what is invisible may have brought new mojibake together
            return text


@functools.cache
def _repair_settings(straight_quotes: bool) -> Any:
    import ftfy

    return ftfy.TextFixerConfig(
        unescape_html=False,
        uncurl_quotes=straight_quotes,
        remove_control_chars=False,  # `control` does it, and does not glue the words around a separator together
        normalization=None,
        explain=False,
    )


@cleaners.register("control", tokens="each")
def control(text: str) -> str:
    """Drop control and invisible characters; those that separate (form feed, unit separator) become a blank.

    Tabs and line breaks stay: they are the `whitespace` cleaner's. Nothing else of the text is repaired.
    """
    if text.isascii() and text.isprintable():
        return text
    return _INVISIBLE.sub(lambda found: " " if found[0].isspace() else "", text)


@cleaners.register("whitespace", tokens="each")
def whitespace(text: str, *, keep_lines: bool = False) -> str:
    """Turn every run of white space into one blank and strip both ends; `keep_lines` keeps single line breaks."""
    if not keep_lines:
        return " ".join(text.split())
    return "\n".join(line for line in (" ".join(line.split()) for line in text.splitlines()) if line)


@cleaners.register("lowercase", tokens="each")
def lowercase(text: str, *, casefold: bool = False) -> str:
    """Turn capitals into small letters; `casefold` also unites letters that differ in writing only (`ß` and `ss`)."""
    return text.casefold() if casefold else text.lower()


@cleaners.register("repeats", tokens="each")
def repeats(text: str, *, most: Annotated[int, Field(ge=1)] = 2) -> str:
    """Shorten runs of one character to `most` of them (`soooo` to `soo`, `!!!!` to `!!`).

    Digits and white space are left alone, and so are words that are written that way: `www`, Roman numerals and
    other words of up to three capitals (`III`, `AAA`).
    """
    pattern = _repeat(most)
    return pattern.sub(_shorten(most), text) if pattern.search(text) else text


@functools.cache
def _repeat(most: int) -> re.Pattern[str]:
    return re.compile(rf"\b(?:[IVXLCDM]+|[A-Z]{{1,3}}|www)\b|([^\d\s])\1{{{most},}}")


@functools.cache
def _shorten(most: int) -> Any:
    return lambda found: found[1] * most if found[1] else found[0]


@cleaners.register("punctuation", tokens="each")
def punctuation(text: str, *, keep_inside: bool = True, keep: str = "") -> str:
    """Remove punctuation: ASCII's, and every character of Unicode's categories P.

    `keep_inside` keeps a single mark between two letters or digits (`don't`, `3.5`, `well-known`); without it, an
    apostrophe there disappears and any other mark becomes a blank. A run of several between two words always becomes
    a blank. `keep` names characters to leave alone. Masks in brackets and capitals, such as `[URL]`, stay.
    """
    marks, run_of_marks, run_or_mask = _punctuation(keep)

    def replace(found: re.Match[str]) -> str:
        run, start, end = found[0], found.start(), found.end()
        if len(run) > 3 and _MASK.fullmatch(run):
            return run
        if start == 0 or end == len(text) or text[start - 1] in marks or text[end] in marks:
            return ""
        if text[start - 1].isspace() or text[end].isspace():
            return ""
        if len(run) == 1 and keep_inside:
            return run
        return "" if run in {"'", "\u2019"} else " "

    return (run_or_mask if "[" in text else run_of_marks).sub(replace, text)


_MASK = re.compile(r"\[[A-Z]{2,}\]")


@functools.cache
def _punctuation(keep: str) -> tuple[frozenset[str], re.Pattern[str], re.Pattern[str]]:
    """Return the marks, a pattern of their runs, and one of masks too; looking through Unicode takes 0.1 s, once."""
    found = {mark for mark in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(mark).startswith("P")}
    marks = (found | set(string.punctuation)) - set(keep)
    any_mark = f"[{re.escape(''.join(sorted(marks)))}]"
    run_or_mask = rf"{_MASK.pattern}|(?:(?!{_MASK.pattern}){any_mark})+"
    return frozenset(marks), re.compile(f"{any_mark}+"), re.compile(run_or_mask)
