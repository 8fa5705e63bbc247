"""Augmenters that move, delete or hide words: `swap`, `delete`, `mask`.

Deletion and exchange at random are two of the four operations of Wei and Zou, EDA: Easy Data Augmentation Techniques
for Boosting Performance on Text Classification Tasks, 2019, https://aclanthology.org/D19-1670; the other two are
`synonyms` and `insert`. Unlike there, negations are left alone, since without them a label may be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Annotated

from pydantic import Field

from finetune.data.augmentation.choices import Rate, draw, how_many, is_mask, is_negation, replaced, unchanged
from finetune.data.augmentation.text import Piece, is_word
from finetune.registry import augmenters


@augmenters.register("swap", level="words", tokens=True)
def swap(words: Sequence[str], random: Random, *, rate: Rate = 0.1) -> list[Piece]:
    """Exchange neighbouring words; no word moves twice, none over a punctuation mark, and negations stay.

    Each exchange touches two words.
    """
    movable = [is_word(word) and not is_negation(word) for word in words]
    pairs = [
        first
        for first in range(len(words) - 1)
        if movable[first] and movable[first + 1] and words[first] != words[first + 1]
    ]
    pieces = unchanged(words)
    touched: set[int] = set()
    for first in random.sample(pairs, len(pairs)):
        if len(touched) + 2 > max(2, how_many(words, rate)):
            break
        if touched.isdisjoint((first, first + 1)):
            touched.update((first, first + 1))
            pieces[first], pieces[first + 1] = pieces[first + 1], pieces[first]
    return pieces


@augmenters.register("delete", level="words", tokens=True)
def delete(words: Sequence[str], random: Random, *, rate: Rate = 0.1) -> list[Piece]:
    """Delete words, but no negation, no punctuation and never all words."""
    possible = [position for position, word in enumerate(words) if is_word(word) and not is_negation(word)]
    most = sum(map(is_word, words)) - 1
    gone = set(draw(possible, min(how_many(words, rate), most), random)) if most > 0 else set()
    return [piece for piece in unchanged(words) if piece[1] not in gone]


@augmenters.register("mask", level="words", tokens=True)
def mask(
    words: Sequence[str],
    random: Random,
    *,
    rate: Rate = 0.15,
    token: Annotated[str, Field(pattern=r"^\S+$")] = "[MASK]",  # noqa: S107 -- no password
) -> list[Piece]:
    """Replace words by a mask, such as that of the model's tokenizer; negations and masks are left alone."""
    possible = [
        position
        for position, word in enumerate(words)
        if is_word(word) and not is_negation(word) and not is_mask(word) and word != token
    ]
    return replaced(words, dict.fromkeys(draw(possible, how_many(words, rate), random), token))
