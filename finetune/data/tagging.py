"""Tagged words: schemes of tags, the entities that tags mark, and tags from spans of characters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

from finetune.data.cleaning.markup import markup_spans
from finetune.data.cleaning.masking import address_spans

Scheme = Literal["iob1", "iob2", "iobes"]

OUTSIDE = "O"
_TOKEN = re.compile(r"\w+|[^\w\s]")
# IOBES and BILOU name the same positions by different letters
_IOBES_LETTERS = {"B": "B", "I": "I", "E": "I", "L": "I", "S": "B", "U": "B"}


def _letter_and_type(tag: str) -> tuple[str, str]:
    """Return a tag's letter and entity type, `B` and `PER` for `B-PER`; both empty when it is no tag of an entity."""
    letter, dash, kind = tag[:1], tag[1:2], tag[2:]
    return (letter, kind) if letter in _IOBES_LETTERS and dash == "-" and kind else ("", "")


def to_iob2(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """Return a row's tags as IOB2, in which every entity starts with B-.

    `iob1` has B- only between two entities of one type (Ramshaw and Marcus, 1995); `iobes` also names the last word
    (E-) and the only word (S-) of an entity, and stands for BILOU as well (L-, U-). What is no tag of the scheme is
    left as it is, for `invalid_positions` to find.
    """
    if scheme == "iob2":
        return list(tags)
    if scheme == "iobes":
        return [_from_iobes(tag) for tag in tags]
    found = []
    previous = ""
    for tag in tags:
        letter, kind = _letter_and_type(tag)
        found.append(f"B-{kind}" if letter == "I" and kind != previous else tag)
        previous = kind
    return found


def _from_iobes(tag: str) -> str:
    letter, kind = _letter_and_type(tag)
    return f"{_IOBES_LETTERS[letter]}-{kind}" if letter else tag


def guess_scheme(tag_rows: Iterable[Sequence[str]]) -> Scheme:
    """Return the scheme in which rows of tags are written, by how most of their entities start.

    Without any entity it is `iob2`. A few broken tags do not turn the guess.
    """
    starts = {"B": 0, "I": 0}
    last = 0
    for tags in tag_rows:
        previous = ""
        for tag in tags:
            letter, kind = _letter_and_type(tag)
            last += letter in {"E", "S", "L", "U"}
            if letter in starts and kind != previous:  # here IOB1 would have I-, and IOB2 has B-
                starts[letter] += 1
            previous = kind
    if 2 * last > starts["B"] + starts["I"]:  # IOBES marks the last word of every entity
        return "iobes"
    return "iob1" if starts["I"] > starts["B"] else "iob2"


def entities(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return the entities of a row of IOB2 tags: first word, word behind the last, type.

    An I- that continues nothing starts an entity, as in seqeval's `get_entities`; what is no tag is outside.
    """
    found: list[tuple[int, int, str]] = []
    start, current = 0, None
    for position, tag in enumerate((*tags, OUTSIDE)):
        inside = tag[:1] in {"B", "I"} and tag[1:2] in {"", "-"}
        kind = (tag[2:] or "_") if inside else None
        if current is not None and (kind != current or tag.startswith("B")):
            found.append((start, position, current))
            current = None
        if kind is not None and current is None:
            start, current = position, kind
    return found


def invalid_positions(tags: Sequence[str]) -> list[int]:
    """Return the positions at which a row breaks IOB2: an I- that continues no entity of its type, or no tag at all."""
    found = []
    for position, (previous, tag) in enumerate(pairwise((OUTSIDE, *tags))):
        letter, kind = _letter_and_type(tag)
        if letter == "I":
            before, kind_before = _letter_and_type(previous)
            valid = before in {"B", "I"} and kind_before == kind
        else:
            valid = letter == "B" or tag == OUTSIDE
        if not valid:
            found.append(position)
    return found


SpanReason = Literal["invalid_spans", "span_out_of_text", "empty_span", "overlapping_spans"]


class SpanError(ValueError):
    """Spans of characters that cannot become tags; `reason` is a short name of what is wrong with them."""

    def __init__(self, reason: SpanReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def spans_to_iob2(text: str, spans: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Return a text's words and punctuation marks, and their IOB2 tags, from spans of characters.

    Addresses (web, e-mail, Internet Protocol), HTML tags, comments and entities are one token each, blanks within
    included, so that cleaners of single tokens find them. A span has `start`, `end` (behind its last character) and
    `label`. Where a span starts or ends inside a word or an address, it is split there, so that the entity is exact.
    Raise SpanError, a ValueError with its `reason`, for spans that are incomplete (`invalid_spans`), out of the text
    (`span_out_of_text`), empty or blank (`empty_span`), or overlapping (`overlapping_spans`).
    """
    marked = sorted(_checked_span(text, span) for span in spans)
    for (_, end, label), (start, _, other) in pairwise(marked):
        if start < end:
            raise SpanError("overlapping_spans", f"spans overlap at character {start} ({label} and {other})")
    tokens: list[str] = []
    tags: list[str] = []
    place = 0
    for start, end, label in (*marked, (len(text), len(text), "")):
        outside, inside = _cut(text[place:start]), _cut(text[start:end])
        tokens += outside + inside
        tags += [OUTSIDE] * len(outside) + [f"{'I' if index else 'B'}-{label}" for index in range(len(inside))]
        place = end
    return tokens, tags


def blank_bounded(text: str, spans: Sequence[Mapping[str, Any]]) -> int:
    """Return how many spans, all of which `spans_to_iob2` takes, start or end with blanks that their entity lacks."""
    marked = [text[span["start"] : span["end"]] for span in spans]
    return sum(words != words.strip() for words in marked)


def _cut(text: str) -> list[str]:
    """Return the words and punctuation marks of a text, and what stays in one piece."""
    tokens: list[str] = []
    done = 0
    for start, end in _whole_spans(text):
        tokens += [*_TOKEN.findall(text[done:start]), text[start:end]]
        done = end
    return tokens + _TOKEN.findall(text[done:])


def _whole_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield what stays in one piece, the longer of two that start together: an address in a tag is the tag's."""
    done = 0
    for start, end in sorted((*markup_spans(text), *address_spans(text)), key=lambda span: (span[0], -span[1])):
        if start >= done:
            yield start, end
            done = end


def _checked_span(text: str, span: Mapping[str, Any]) -> tuple[int, int, str]:
    expected = "expected a span {start, end, label}"
    if not isinstance(span, Mapping):
        raise SpanError("invalid_spans", f"{expected}, found {span!r}")
    start, end, label = span.get("start"), span.get("end"), span.get("label")
    if type(start) is not int or type(end) is not int or not isinstance(label, str) or not label:
        raise SpanError("invalid_spans", f"{expected} of two whole numbers and a text, found {dict(span)}")
    if not 0 <= start <= end <= len(text):
        message = f"span {start} to {end} is out of the text, which has {len(text)} characters"
        raise SpanError("span_out_of_text", message)
    if not text[start:end].strip():
        raise SpanError("empty_span", f"span {start} to {end} is empty")
    return start, end, label


def fits(tokens: Any, tags: Any) -> bool:
    """Tell whether tokens and tags are two lists of texts of one length."""
    return (
        isinstance(tokens, list)
        and isinstance(tags, list)
        and len(tokens) == len(tags)
        and all(type(item) is str for item in (*tokens, *tags))
    )
