"""What augmenters share: which words may be touched, how many of them, and how a new word is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Annotated

from pydantic import Field

from finetune.data.augmentation.text import ADDRESS, MASK, Piece, is_word

# The share of a text's words that an augmenter touches; at least one word
Rate = Annotated[float, Field(gt=0, le=1)]

# A text without one of these, or with it elsewhere, may say the opposite and would not deserve its label
_NEGATIONS = """
no not never none nobody nothing neither nor nowhere cannot without hardly barely scarcely
aint arent cant couldnt didnt doesnt dont hadnt hasnt havent isnt mustnt neednt shouldnt wasnt werent wont wouldnt
nicht nichts nie niemals niemand kein keine keinen keinem keiner keines ohne weder
ne pas jamais rien personne aucun aucune sans ni nunca nada nadie ningún ninguna sin tampoco
non mai niente nessuno nessuna senza não nem ninguém nenhum nenhuma sem niet nooit geen niets zonder
"""
NEGATIONS = frozenset(_NEGATIONS.split())


def is_negation(word: str) -> bool:
    """Return whether a word negates: one of `NEGATIONS`, or one that ends in `n't`."""
    plain = word.lower().replace("\u2019", "'")
    return plain in NEGATIONS or plain.endswith("n't")


def is_number(word: str) -> bool:
    """Return whether there is a digit in the word: `5`, `3.14`, `2nd`, `B-12`."""
    return any(character.isdigit() for character in word)


def is_mask(word: str) -> bool:
    """Return whether the word stands for something that was taken out: `[MASK]`, `[URL]`, `<mask>`."""
    return MASK.fullmatch(word) is not None


def is_code(word: str) -> bool:
    """Return whether a change of one character would make it something else.

    So it is for numbers, masks, web and mail addresses, names in a network and words in capitals, such as `IBM`.
    """
    in_capitals = len(word) > 1 and word.isupper()
    return in_capitals or "@" in word or is_number(word) or is_mask(word) or ADDRESS.match(word) is not None


def unchanged(words: Sequence[str]) -> list[Piece]:
    """Return the words as they are."""
    return [(word, position) for position, word in enumerate(words)]


def replaced(words: Sequence[str], new: Mapping[int, str]) -> list[Piece]:
    """Return the words, those at some positions replaced."""
    return [(new.get(position, word), position) for position, word in enumerate(words)]


def how_many(words: Sequence[str], rate: float) -> int:
    """Return how many words make this share of the words, punctuation not counted; at least 1."""
    return max(1, round(rate * sum(map(is_word, words))))


def draw(positions: Sequence[int], count: int, random: Random) -> list[int]:
    """Draw so many of the positions, or all of them where there are fewer; in their order."""
    return sorted(random.sample(positions, min(count, len(positions))))


def in_case_of(new: str, word: str) -> str:
    """Write a new word in capitals, or with one at its head, as the old word is written."""
    if len(word) > 1 and word.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if word[:1].isupper() else new
