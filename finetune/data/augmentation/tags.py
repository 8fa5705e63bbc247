"""The tags of changed tokens: every entity stays, in its order and with its type."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.data.augmentation.text import Piece

OUTSIDE = "O"


def carry_tags(pieces: Sequence[Piece], words: Sequence[str], tags: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the new tokens and an IOB2 tag for each, with the same entities as before.

    Words stay in their entity, or in their run of words between two entities: exchanges over such a border are taken
    back. A word of an entity that was deleted comes back. A word inserted between two words of one entity belongs to
    it, every other inserted word is outside. A word that became several becomes several tokens.
    """
    segments = _segments(tags)
    places: dict[int, list[int]] = {0: []}
    for place, segment in enumerate(segments):
        places.setdefault(segment, []).append(place)
    parts: dict[int, list[Piece]] = {segment: [] for segment in places}
    here = 0  # an inserted word stays behind the word that it follows
    for word, position in pieces:
        if position is not None:
            here = segments[position]
        is_changed = position is None or word != words[position]
        parts[here].extend((token, position) for token in (word.split() if is_changed else [word]))
    new_tokens: list[str] = []
    new_tags: list[str] = []
    for segment, part in parts.items():
        tag = tags[places[segment][0]] if places[segment] else OUTSIDE
        whole = part if tag == OUTSIDE else _with_deleted(part, words, places[segment])
        new_tokens.extend(token for token, _ in whole)
        new_tags.extend([OUTSIDE] * len(whole) if tag == OUTSIDE else _tags_of_entity(whole, tag[2:]))
    return new_tokens, new_tags


def _segments(tags: Sequence[str]) -> list[int]:
    """Number the entities and the runs between them: for each position the number of what it belongs to."""
    numbers: list[int] = []
    previous = OUTSIDE
    for tag in tags:
        goes_on = tag == OUTSIDE == previous or (tag.startswith("I-") and tag[2:] == previous[2:])
        numbers.append((numbers[-1] + (not goes_on)) if numbers else 0)
        previous = tag
    return numbers


def _with_deleted(part: Sequence[Piece], words: Sequence[str], places: Sequence[int]) -> list[Piece]:
    """Put the words of an entity that are missing back in front of the first of those that followed them."""
    whole = list(part)
    for place in places:
        if all(position != place for _, position in whole):
            later = (number for number, (_, position) in enumerate(whole) if position is not None and position > place)
            whole.insert(next(later, len(whole)), (words[place], place))
    return whole


def _tags_of_entity(part: Sequence[Piece], kind: str) -> list[str]:
    own = [number for number, (_, position) in enumerate(part) if position is not None]
    first, last = own[0], own[-1]
    tags = [f"{'B' if number == first else 'I'}-{kind}" for number in range(first, last + 1)]
    return [OUTSIDE] * first + tags + [OUTSIDE] * (len(part) - last - 1)
