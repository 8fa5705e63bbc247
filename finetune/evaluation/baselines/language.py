"""Baselines for language models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from finetune.data.ownership import NO_WORD
from finetune.data.tokenization import NO_TARGET
from finetune.evaluation.baselines import BaselineInput
from finetune.registry import baselines

if TYPE_CHECKING:
    from finetune.evaluation.predictions.language import LanguagePredictions


@baselines.register("unigram", of=("language",), title="unigram model")
def unigram(given: BaselineInput) -> LanguagePredictions:
    """Give each token its frequency among those of the training rows, with one added for each of the vocabulary.

    It knows the words and no order (Jurafsky & Martin, Speech and Language Processing, 3rd ed., ch. 3).
    """
    import numpy as np

    like = cast("LanguagePredictions", given.like)
    counts = np.ones(given.vocabulary)
    for window in given.train_features:
        np.add.at(counts, learned_tokens(window), 1)
    losses = -np.log(counts / counts.sum())
    return like.losing((losses[row.targets] for row in like.guesses), [int(counts.argmax())] * len(like))


def learned_tokens(window: Mapping[str, Any]) -> list[int]:
    """Return the tokens of a window that are learned: those with a target, or those that may be masked."""
    if "label_ids" in window:
        return [token for token in window["label_ids"] if token != NO_TARGET]
    pairs = zip(window["input_ids"], window["word_ids"], strict=True)
    return [token for token, word in pairs if word != NO_WORD]
