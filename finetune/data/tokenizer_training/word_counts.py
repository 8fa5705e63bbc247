"""Words and their counts, in one order however the texts were cut into batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

WordCounts = list[tuple[str, int]]


def count_words(backend: Any, texts: Iterable[Sequence[str]]) -> WordCounts:
    """Return the distinct words that the backend's normalizer and pre-tokenizer make of the texts, sorted.

    Only the distinct words are held, never the texts.
    """
    counts: Counter[str] = Counter()
    normalize = backend.normalizer.normalize_str if backend.normalizer else str
    split = backend.pre_tokenizer.pre_tokenize_str
    for batch in texts:
        for text in batch:
            counts.update(word for word, _ in split(normalize(text)) if word)
    return sorted(counts.items())


def most_frequent_characters(counts: WordCounts, most: int | None) -> set[str]:
    """Return the characters of the words, or the `most` frequent of them; of equally frequent ones the first."""
    frequencies: Counter[str] = Counter()
    for word, count in counts:
        for character in word:
            frequencies[character] += count
    ranked = sorted(frequencies, key=lambda character: (-frequencies[character], character))
    return set(ranked[:most])


def drop_words(counts: WordCounts, characters: set[str]) -> WordCounts:
    """Return the words that have no other characters than these."""
    return [(word, count) for word, count in counts if characters.issuperset(word)]


def split_words(counts: WordCounts, characters: set[str]) -> WordCounts:
    """Return the stretches of the words between other characters than these, counted and sorted."""
    stretches: Counter[str] = Counter()
    for word, count in counts:
        for known, stretch in groupby(word, key=characters.__contains__):
            if known:
                stretches["".join(stretch)] += count
    return sorted(stretches.items())
