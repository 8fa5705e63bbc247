"""The baseline of answers: the words nearest to those of the question."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from finetune.evaluation.baselines import BaselineInput
from finetune.registry import baselines

if TYPE_CHECKING:
    from finetune.evaluation.predictions.answers import AnswerPredictions

_WORD = re.compile(r"\w+(?:[.,:'\u2019-]\w+)*|[^\w\s]")
_SENTENCE = re.compile(r"\S.*?[.!?](?=\s|$)|\S.+$", re.DOTALL)
COMMON, AT_LEAST = 0.05, 3  # a word in more of the sentences, and in so many, is a function word


class _Word(NamedTuple):
    key: str  # in lower case; a mark of punctuation is a word too
    start: int
    end: int


@baselines.register("nearest-words", of=("answers",), title="nearest words to the question's")
def nearest_words(given: BaselineInput) -> AnswerPredictions:
    """Answer with a run of words of the sentence that shares most with the question, the run nearest to the shared.

    A run holds neither a word of the question nor punctuation, and no function word at its ends. Words count by their
    rarity among the sentences of the training contexts. It never says that there is no answer. After the
    sliding-window and distance baselines of Richardson et al. 2013 (MCTest) and Rajpurkar et al. 2016 (SQuAD).
    """
    import numpy as np

    rarity = _Rarity(row["context"] for row in given.train)
    found = [_best_run(row, rarity) for row in given.rows]
    starts, ends = np.array(found, dtype=np.int64).reshape(-1, 2).T
    texts = [row["context"][start:end] for row, (start, end) in zip(given.rows, found, strict=True)]
    return replace(
        cast("AnswerPredictions", given.like),
        texts=np.array(texts, dtype=object),
        starts=starts,
        ends=ends,
        probabilities=np.ones(len(texts)),
        no_answer=np.zeros(len(texts)),
        threshold=None,
    )


class _Rarity:
    """How much a word tells: the logarithm of how many sentences there are for each that has it."""

    def __init__(self, contexts: Iterable[str]) -> None:
        sentences = [set(_keys(words)) for context in dict.fromkeys(contexts) for words in _sentences(context)]
        self._counts = Counter(key for sentence in sentences for key in sentence)
        self._sentences = len(sentences)

    def __getitem__(self, key: str) -> float:
        return math.log((1 + self._sentences) / (1 + self._counts[key]))

    def is_common(self, key: str) -> bool:
        """Tell whether a word is a function word."""
        return self._counts[key] > max(COMMON * self._sentences, AT_LEAST - 1)


def _sentences(context: str) -> Iterator[list[_Word]]:
    for sentence in _SENTENCE.finditer(context):
        yield [
            _Word(word.group().lower(), sentence.start() + word.start(), sentence.start() + word.end())
            for word in _WORD.finditer(sentence.group())
        ]


def _keys(words: Iterable[_Word]) -> Iterator[str]:
    return (word.key for word in words if word.key[0].isalnum())


def _best_run(row: Mapping[str, Any], rarity: _Rarity) -> tuple[int, int]:
    """Return the first character of the best run and the one behind its last; without any run it is the context."""
    asked = {word.group().lower() for word in _WORD.finditer(row["question"])}
    asked = {key for key in asked if key[0].isalnum() and not rarity.is_common(key)}
    # the sentence that shares most comes first; of equals the earlier one
    ranked = sorted(
        _sentences(row["context"]), key=lambda words: -sum(map(rarity.__getitem__, asked & {*_keys(words)}))
    )
    for words in ranked:
        shared = [(place, rarity[word.key]) for place, word in enumerate(words) if word.key in asked]
        runs = list(_runs(words, asked, rarity))
        if runs:
            first, last = max(runs, key=lambda run: _nearness(run, shared))
            return words[first].start, words[last].end
    return 0, len(row["context"])


def _runs(words: list[_Word], asked: set[str], rarity: _Rarity) -> Iterator[tuple[int, int]]:
    """Yield the first and last word of the longest runs without words of the question and punctuation."""
    run: list[int] = []
    for place in range(len(words) + 1):
        key = words[place].key if place < len(words) else ""
        if key and key[0].isalnum() and key not in asked:
            run.append(place)
            continue
        telling = [member for member in run if not rarity.is_common(words[member].key)]
        if telling:
            yield telling[0], telling[-1]
        run = []


def _nearness(run: tuple[int, int], shared: list[tuple[int, float]]) -> float:
    """Return how near the rare words that a sentence shares with the question are to a run of its words."""
    return sum(weight / min(abs(place - run[0]), abs(place - run[1])) for place, weight in shared)
