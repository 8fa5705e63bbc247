"""Checks of texts: much shorter or longer than the rest, or damaged by a wrong encoding."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from finetune.data.checks.columns_in_bulk import matching_rows
from finetune.data.checks.inputs import EXAMPLES_KEPT, CheckInput, Outcome, amount
from finetune.registry import checks

if TYPE_CHECKING:
    from numpy.typing import NDArray

Spread = Annotated[float, Field(gt=0)]
Words = Annotated[int, Field(ge=1)]

# What UTF-8 looks like when it was read as Latin-1 or Windows-1252: the first byte of a character, then what its
# other bytes (0x80 to 0xBF) become. Letters that are words of their own somewhere (Ã, Â, Ð) need such a follower.
_LATIN_1 = "\u0080-\u00bf"
_WINDOWS_1252 = bytes(range(0x80, 0xA0)).decode("cp1252", "ignore")
_FOLLOWER = f"[{_LATIN_1}{_WINDOWS_1252}]"
# What may stand behind a word that ends in such a letter: blanks, quotes, dashes, signs
_NO_QUOTE = re.sub("[\xa0«»\u2019\u201d\u203a]", "", _FOLLOWER)
_NO_SIGN = re.sub("[\xa0«»\u2018-\u201d\u2039\u203a\u2013\u2014\u2026\xa9\xae\u2122°²³€£]", "", _FOLLOWER)
MOJIBAKE = "|".join(
    [
        f"[ÃÂ][{_LATIN_1}]",  # é as Ã©, £ as Â£
        f"Ã{_NO_QUOTE}",  # É as Ã‰
        f"â{_NO_QUOTE}{_FOLLOWER}",  # a curly quote as â€™
        f"[ã-í]{_NO_SIGN}{_NO_SIGN}",  # Chinese, Japanese, Korean
        f"ð[\u0178\u009f]{_FOLLOWER}{_FOLLOWER}",  # emoji
        f"(?:[ÐÑ]{_FOLLOWER}){{2}}",  # Cyrillic
        "ï»¿",  # the byte-order mark
    ]
)


@checks.register("short-rows", severity="note")
def short_rows(rows: CheckInput, *, words: Words = 2, spread: Spread = 10.0) -> list[Outcome]:
    """Find rows with suspiciously few words (a Chinese or Japanese character counts as one).

    Few are fewer than `words` where most rows have at least twice as many, or fewer than the median less `spread`
    interquartile ranges.
    """
    import numpy as np

    counts = rows.word_counts
    if not len(counts):
        return []
    median, width = _middle(rows)
    bound = max(words if median >= 2 * words else 0.0, median - spread * width)
    short = np.flatnonzero(counts < bound)
    if not len(short):
        return []
    message = (
        f"{amount(len(short), 'row has', 'rows have')} "
        f"fewer than {bound:.4g} words, where the median is {median:g}; see whether "
        "that says enough to be labelled."
    )
    return [Outcome(len(short), message, _with_words(rows, short[np.argsort(counts[short], kind="stable")]))]


@checks.register("long-rows", severity="warning")
def long_rows(rows: CheckInput, *, words: Words = 50, spread: Spread = 10.0) -> list[Outcome]:
    """Find rows with more words than the median and `spread` interquartile ranges, and more than `words`."""
    import numpy as np

    counts = rows.word_counts
    if not len(counts):
        return []
    median, width = _middle(rows)
    bound = max(float(words), median + spread * width)
    long = np.flatnonzero(counts > bound)
    if not len(long):
        return []
    message = (
        f"{amount(len(long), 'row has', 'rows have')} "
        f"more than {bound:.4g} words, where the median is {median:g}; see whether "
        "several rows have run together there, for instance by a quote that is not closed."
    )
    return [Outcome(len(long), message, _with_words(rows, long[np.argsort(-counts[long], kind="stable")]))]


def _middle(rows: CheckInput) -> tuple[float, float]:
    """Return the median and the interquartile range of the rows' words; the range is at least one word."""
    import numpy as np

    lower, median, upper = np.quantile(rows.word_counts, [0.25, 0.5, 0.75])
    return float(median), max(float(upper - lower), 1.0)


def _with_words(rows: CheckInput, found: NDArray[Any]) -> list[dict[str, Any]]:
    return [rows.example(row, words=int(rows.word_counts[row])) for row in found[:EXAMPLES_KEPT]]


@checks.register("encoding-damage", severity="warning")
def encoding_damage(rows: CheckInput) -> list[Outcome]:
    """Find texts with characters that a wrong encoding has replaced (U+FFFD) or garbled (`Ã©`, `â€™`)."""
    lost = _rows_with("\ufffd", rows)
    garbled = _rows_with(MOJIBAKE, rows)
    outcomes = []
    if lost:
        message = (
            f"{amount(len(lost), 'row has', 'rows have')} "
            "the replacement character U+FFFD, which stands for what a wrong encoding "
            "has lost; export the data anew as UTF-8, or name the file's encoding in data.format."
        )
        outcomes.append(Outcome(len(lost), message, rows.examples(lost)))
    if garbled:
        message = (
            f"{amount(len(garbled), 'row has', 'rows have')} "
            "characters that were read in a wrong encoding, such as `Ã©` for "
            "`é`; repair that with data.clean: [unicode]."
        )
        outcomes.append(Outcome(len(garbled), message, rows.examples(garbled)))
    return outcomes


def _rows_with(pattern: str, rows: CheckInput) -> list[int]:
    found = {int(row) for role in rows.text_roles for row in matching_rows(rows.values[role], pattern)}
    return sorted(found)
