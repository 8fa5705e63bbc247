"""Cleaners: functions from text to text, run in the order of the recipe, each counted and shown by example."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from typing import Any, Literal

from finetune.registry import cleaners

EXAMPLES_KEPT = 3
Clean = Callable[[str], str]


@dataclass
class CleanerReport:
    """What one cleaner did: how many rows it changed, and the first few before and after."""

    name: str
    rows_touched: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)

    def count(self, before: str, after: str) -> None:
        """Count one text if the cleaner changed it."""
        if before == after:
            return
        self.rows_touched += 1
        if len(self.examples) < EXAMPLES_KEPT:
            self.examples.append({"before": before[:300], "after": after[:300]})


class Pipeline:
    """The recipe's cleaners in their order; the same ones run in `prepare`, `eval --data` and `predict`."""

    def __init__(self, parts: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        self._steps: list[tuple[Clean, CleanerReport]] = [
            (cleaners.get(name).build(options), CleanerReport(name)) for name, options in parts
        ]

    def __call__(self, text: str) -> str:
        """Return the cleaned text."""
        for clean, report in self._steps:
            cleaned = clean(text)
            report.count(text, cleaned)
            text = cleaned
        return text

    @property
    def reports(self) -> list[CleanerReport]:
        """What each cleaner did so far."""
        return [report for _, report in self._steps]


# C0 and C1 control characters, zero-width characters, soft hyphens, marks of direction, byte-order marks
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)


@cleaners.register("unicode")
def unicode(text: str, *, form: Literal["NFC", "NFKC"] = "NFC", straight_quotes: bool = True) -> str:
    """Repair mojibake (`donâ€™t`), drop invisible characters and bring the text to one normal form.

    The repair is ftfy's, see https://ftfy.readthedocs.io; markup and entities are left to the `html` cleaner.
    """
    import ftfy

    fixed = ftfy.fix_text(text, unescape_html=False, uncurl_quotes=straight_quotes, normalization=None)
    return unicodedata.normalize(form, _INVISIBLE.sub("", fixed))


@cleaners.register("whitespace")
def whitespace(text: str, *, keep_lines: bool = False) -> str:
    """Turn every run of white space into one blank and strip both ends; `keep_lines` keeps single line breaks."""
    if not keep_lines:
        return " ".join(text.split())
    return "\n".join(line for line in (" ".join(line.split()) for line in text.splitlines()) if line)


_MARKUP = re.compile(r"<[a-zA-Z/!]|&[#a-zA-Z]")
_BREAKING = re.compile(
    "address|article|aside|blockquote|br|caption|dd|div|dl|dt|fieldset|figcaption|figure|footer|form|h[1-6]|header|hr"
    "|li|main|nav|ol|option|p|pre|section|table|td|th|tr|ul"
)
_HIDDEN = {"script", "style", "head", "title", "template"}


@cleaners.register("html")
def html(text: str, *, keep_links: bool = False) -> str:
    """Remove HTML tags, comments, scripts and styles and decode entities; text without markup is left alone.

    `keep_links` writes the address of a link in brackets behind its words.
    """
    if not _MARKUP.search(text):
        return text
    extractor = _TextExtractor(keep_links)
    extractor.feed(text)
    if extractor.rawdata.startswith("<"):  # "5 apples <b and more": a tag without an end is text; Pythons differ here
        extractor.parts.append(unescape(extractor.rawdata))
    else:
        extractor.close()
    return "".join(extractor.parts)


class _TextExtractor(HTMLParser):
    def __init__(self, keep_links: bool) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._keep_links = keep_links
        self._hidden: list[str] = []
        self._links: list[str] = []

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """Take `<![word[` for a comment, as browsers do; the library's own parser fails on it."""
        if self.rawdata.startswith("<![CDATA[", i):
            return super().parse_marked_section(i, report)
        return self.parse_bogus_comment(i, report)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _HIDDEN:
            self._hidden.append(tag)
        if _BREAKING.fullmatch(tag):
            self.parts.append("\n")
        if tag == "a":
            self._links.append(dict(attrs).get("href") or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        if _BREAKING.fullmatch(tag):
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if self._hidden and tag == self._hidden[-1]:
            self._hidden.pop()
        if _BREAKING.fullmatch(tag):
            self.parts.append("\n")
        if tag == "a" and self._links:
            address = self._links.pop()
            if self._keep_links and address:
                self.parts.append(f" [{address}]")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


_URL = re.compile(r"(?:https?://|www\.)[^\s<>\"']+[^\s<>\"'.,;:!?)\]}]", re.IGNORECASE)


@cleaners.register("urls")
def urls(text: str, *, action: Literal["mask", "remove"] = "mask", mask: str = "[URL]") -> str:
    """Replace web addresses by a mask, or remove them."""
    return _URL.sub(lambda _: mask if action == "mask" else "", text)
