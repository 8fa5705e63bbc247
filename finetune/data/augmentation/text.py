"""Texts taken apart into words and white space, and put together again without stray blanks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

# A new word, and the position of the word that it stands for; None for a word that was inserted
Piece = tuple[str, int | None]

# What is one word although there are marks at its ends: masks such as [URL] and <mask>, and web addresses
MASK = re.compile(r"\[[A-Z][A-Z0-9_]*\]|<[A-Za-z][\w-]*>")
ADDRESS = re.compile(r"(?:https?://|www\.)[^\s<>\"']*[^\s<>\"'.,;:!?)\]}]", re.IGNORECASE)
_WHOLE = re.compile(f"{MASK.pattern}|(?i:{ADDRESS.pattern})")
_ATTACHED = frozenset("#@&%_")  # these belong to the word: #topic, @name, 5%
_CLOSING = frozenset(".,;:!?)]}%…\u201d\u2019»")  # no blank stands before these


def split(text: str) -> tuple[list[str], list[str]]:
    """Return a text's words and punctuation marks, and the white space before each and, as the last, behind all.

    A word keeps the marks inside it (`don't`, `3.14`, `and/or`); marks at its ends are words of their own. A text
    that is written without blanks between its words, such as Chinese, is one word.
    """
    words: list[str] = []
    gaps: list[str] = []
    end = 0
    for start, stop in _word_places(text):
        gaps.append(text[end:start])
        words.append(text[start:stop])
        end = stop
    return words, [*gaps, text[end:]]


def _word_places(text: str) -> Iterator[tuple[int, int]]:
    for chunk in re.finditer(r"\S+", text):
        start, end = chunk.span()
        for whole in _WHOLE.finditer(text, start, end):
            yield from _without_marks(text, start, whole.start())
            yield whole.span()
            start = whole.end()
        yield from _without_marks(text, start, end)


def _without_marks(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the marks before a word, the word, and the marks behind it, as far as there are any."""
    first, last = start, end
    while first < end and _is_mark(text[first]) and not text[first : first + 2].lstrip("-").isdigit():
        first += 1
    while last > first and _is_mark(text[last - 1]):
        last -= 1
    places = ((start, first), (first, last), (last, end))
    yield from (place for place in places if place[0] < place[1])


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("P") and character not in _ATTACHED


def is_word(word: str) -> bool:
    """Return whether there is a letter or a digit in it; else it is punctuation or a symbol."""
    return any(character.isalnum() for character in word)


def join(pieces: Sequence[Piece], words: Sequence[str], gaps: Sequence[str]) -> str:
    """Put a changed list of words together with the white space of the original text.

    Words that stay side by side keep the white space between them, words that changed places take over that of the
    place, an inserted word brings one blank, and a deleted word takes one white space with it. No blank comes before a
    closing mark or to the ends where there was none. An unchanged list gives the text byte for byte.
    """
    if not words:
        return gaps[0]
    slots = _slots(pieces)
    parts = [gaps[0]]
    anchor: int | None = None  # the slot of the last word of the original
    for number, (word, slot) in enumerate(zip((word for word, _ in pieces), slots, strict=True)):
        if number:
            following = next((later for later in slots[number:] if later is not None), None)
            inside = slots[number - 1] is not None and slot is not None
            gap = _gap(words, gaps, anchor, following)
            parts.append(gap if inside else _gap_at_inserted(pieces, number, gap))
        parts.append(word)
        anchor = anchor if slot is None else slot
    return "".join([*parts, gaps[-1]])


def _slots(pieces: Sequence[Piece]) -> list[int | None]:
    """Return each piece's place among the words that are left; words that changed places do not move the places."""
    order = list(dict.fromkeys(position for _, position in pieces if position is not None))
    slot_of = dict(zip(order, sorted(order), strict=True))
    return [None if position is None else slot_of[position] for _, position in pieces]


def _gap(words: Sequence[str], gaps: Sequence[str], before: int | None, after: int | None) -> str:
    """Return the white space between two places of the original, what stood between them being gone."""
    if before is None or after is None:
        return ""
    if after == before + 1:  # the rule, and quick
        return gaps[after]
    if before == after:  # one word became several
        return " "
    between = gaps[before + 1 : after + 1]
    blanks = [gap for gap in between if gap]
    marks = not (is_word(words[before]) and is_word(words[after]))
    if not blanks or (marks and len(blanks) < len(between)):
        return ""
    return next((gap for gap in blanks if "\n" in gap), min(blanks, key=len))


def _gap_at_inserted(pieces: Sequence[Piece], number: int, gap: str) -> str:
    """Return the white space before a piece that was inserted or follows one that was; `gap` is what was there.

    It stays before the inserted words, so that what is inserted at the head of a line stands in that line.
    """
    (before, place_before), (word, place) = pieces[number - 1], pieces[number]
    if word[0] in _CLOSING and not (gap and place is not None):
        return ""
    if place is not None or place_before is None:
        return " "
    following = next((later for later, position in pieces[number:] if position is not None), "")
    opens = not gap and not is_word(before) and is_word(following)
    return "" if opens else gap or " "
