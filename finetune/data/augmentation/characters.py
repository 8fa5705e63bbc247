"""Augmenters that change characters: `keyboard`, `ocr`, `case`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Annotated, Literal

from pydantic import Field

from finetune.data.augmentation.choices import Rate, draw, how_many, is_code, is_mask, replaced
from finetune.data.augmentation.text import ADDRESS, Piece, is_word
from finetune.registry import augmenters

PerWord = Annotated[int, Field(ge=1, le=10)]

# The rows of a QWERTY keyboard, and how far each is shifted to the right, in keys
_ROWS = (("1234567890", 0.0), ("qwertyuiop", 0.5), ("asdfghjkl", 0.75), ("zxcvbnm", 1.25))
_REACH = 1.3  # the distance of neighbouring keys is at most this, in keys

# What a scanner takes for each other, both ways
_LOOK_ALIKES = (
    *(("o", "0"), ("O", "0"), ("l", "1"), ("I", "1"), ("l", "I"), ("i", "l"), ("S", "5"), ("B", "8"), ("Z", "2")),
    *(("g", "9"), ("q", "9"), ("G", "6"), ("b", "6"), ("D", "O"), ("Q", "O"), ("e", "c"), ("h", "b"), ("u", "v")),
    *(("rn", "m"), ("cl", "d"), ("vv", "w"), ("ri", "n"), ("nn", "m"), ("li", "h"), ("f", "t"), ("E", "F")),
)


@functools.cache
def neighbouring_keys() -> Mapping[str, str]:
    """Return the keys around each letter or digit of a QWERTY keyboard: letters of letters, digits of digits."""
    places = {
        key: (column + shift, float(line))
        for line, (keys, shift) in enumerate(_ROWS)
        for column, key in enumerate(keys)
    }
    near: dict[str, str] = {}
    for key, (x, y) in places.items():
        others = (
            other
            for other, (column, line) in places.items()
            if other != key and other.isdigit() == key.isdigit() and (column - x) ** 2 + (line - y) ** 2 <= _REACH**2
        )
        near[key] = "".join(others)
    return near


@functools.cache
def look_alikes() -> Mapping[str, tuple[str, ...]]:
    """Return what one or two characters may be read as, for each that may be misread."""
    found: dict[str, list[str]] = {}
    for one, other in _LOOK_ALIKES:
        found.setdefault(one, []).append(other)
        found.setdefault(other, []).append(one)
    return {shape: tuple(others) for shape, others in found.items()}


@augmenters.register("keyboard", level="words", tokens=True)
def keyboard(
    words: Sequence[str], random: Random, *, rate: Rate = 0.1, per_word: PerWord = 1, codes: bool = False
) -> list[Piece]:
    """Strike a neighbouring key of a QWERTY keyboard in words of three letters or more.

    `per_word` is how many characters of a word change. Numbers, addresses, masks and words in capitals are left alone
    unless `codes` is set.
    """

    def places(word: str) -> list[tuple[int, str]]:
        if len(word) < 3:
            return []
        return [(place, key) for place, key in enumerate(word) if key.lower() in neighbouring_keys()]

    def strike(shape: str, random: Random) -> str:
        key = random.choice(neighbouring_keys()[shape.lower()])
        return key.upper() if shape.isupper() else key

    return _with_noise(words, random, rate, per_word, codes, places, strike)


@augmenters.register("ocr", level="words", tokens=True)
def ocr(
    words: Sequence[str], random: Random, *, rate: Rate = 0.1, per_word: PerWord = 1, codes: bool = False
) -> list[Piece]:
    """Misread characters as others that look like them: `o` and `0`, `l` and `1`, `rn` and `m`.

    `per_word` is how many places of a word change. Numbers, addresses, masks and words in capitals are left alone
    unless `codes` is set.
    """

    def places(word: str) -> list[tuple[int, str]]:
        shapes = [(place, word[place : place + size]) for place in range(len(word)) for size in (1, 2)]
        return [(place, shape) for place, shape in dict.fromkeys(shapes) if shape in look_alikes()]

    def misread(shape: str, random: Random) -> str:
        return random.choice(look_alikes()[shape])

    return _with_noise(words, random, rate, per_word, codes, places, misread)


def _with_noise(
    words: Sequence[str],
    random: Random,
    rate: float,
    per_word: int,
    codes: bool,
    places: Callable[[str], list[tuple[int, str]]],
    change: Callable[[str, Random], str],
) -> list[Piece]:
    """Draw words that have places to change, and in each of them places that do not overlap."""
    possible = [
        position
        for position, word in enumerate(words)
        if is_word(word) and (codes or not is_code(word)) and places(word)
    ]
    new: dict[int, str] = {}
    for position in draw(possible, how_many(words, rate), random):
        word = words[position]
        found = places(word)
        free = len(word)  # from the end to the start, so that what is still to change keeps its place
        for place, shape in sorted(random.sample(found, min(per_word, len(found))), reverse=True):
            if place + len(shape) <= free:
                word = word[:place] + change(shape, random) + word[place + len(shape) :]
                free = place
        new[position] = word
    return replaced(words, new)


@augmenters.register("case", level="words", tokens=True)
def case(
    words: Sequence[str],
    random: Random,
    *,
    style: Literal["lower", "upper", "title", "random"] = "lower",
    rate: Rate = 1.0,
) -> list[Piece]:
    """Write words in small letters, in capitals, with a capital at the head, or each letter in either at random.

    Masks and web addresses are left alone.
    """
    free = [position for position, word in enumerate(words) if not is_mask(word) and not ADDRESS.match(word)]
    written = {position: _write(words[position], style, random) for position in free}
    changed = [position for position in free if written[position] != words[position]]
    chosen = draw(changed, how_many(words, rate), random)
    return replaced(words, {position: written[position] for position in chosen})


def _write(word: str, style: str, random: Random) -> str:
    if style == "random":
        return "".join(random.choice((letter.lower(), letter.upper())) for letter in word)
    if style == "title":
        return word[:1].upper() + word[1:].lower()
    return word.lower() if style == "lower" else word.upper()
