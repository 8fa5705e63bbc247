"""Metrics of answers: means over questions of the scores of `evaluation.answer_scores`, which are SQuAD's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune.evaluation.predictions.texts import TextPredictions
from finetune.registry import metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.answers import AnswerPredictions


def exact_matches(predictions: AnswerPredictions | TextPredictions) -> NDArray[Any]:
    """Return for each answer whether it is a true one, shape (answers,)."""
    return predictions.exact if isinstance(predictions, TextPredictions) else predictions.scores[:, 0]


@metrics.register("exact-match", of=("answers", "texts"), higher_is_better=True, from_rows=exact_matches)
def exact_match(predictions: AnswerPredictions | TextPredictions) -> float:
    """Share of answers that are true: spans but for capitals, punctuation and articles, texts but for white space.

    In a generated text any run of white space counts as one blank, at the ends as none; nothing else is made equal.
    """
    return float(exact_matches(predictions).mean())


def overlaps(predictions: AnswerPredictions) -> NDArray[Any]:
    """Return for each answer the F1 of its words, shape (answers,)."""
    return predictions.scores[:, 1]


@metrics.register("answer-f1", of=("answers",), higher_is_better=True, from_rows=overlaps)
def answer_f1(predictions: AnswerPredictions) -> float:
    """Mean over questions of the F1 of the words of the answer and of the true one that is most like it."""
    return float(overlaps(predictions).mean())


def shares(sums: NDArray[Any]) -> NDArray[Any]:
    """Return scores by the number of questions, given sums of both of shape (..., 2); NaN where there is none."""
    import numpy as np

    return np.divide(sums[..., 0], sums[..., 1], out=np.full(sums.shape[:-1], np.nan), where=sums[..., 1] > 0)  # type: ignore[no-any-return]


def of_some(scores: NDArray[Any], chosen: NDArray[Any]) -> NDArray[Any]:
    """Return what sums to the mean score of some questions: score and 1, or twice 0, shape (answers, 2)."""
    import numpy as np

    return np.column_stack([scores * chosen, chosen]).astype(np.float64)


def _answerable(predictions: AnswerPredictions) -> NDArray[Any]:
    return of_some(overlaps(predictions), predictions.answerable)


@metrics.register("has-answer-f1", of=("answers",), higher_is_better=True, from_sums=(_answerable, shares))
def has_answer_f1(predictions: AnswerPredictions) -> float:
    """F1 over the questions that have an answer (`HasAns_f1`); not defined without any."""
    return float(shares(_answerable(predictions).sum(axis=0)))


def _unanswerable(predictions: AnswerPredictions) -> NDArray[Any]:
    return of_some(exact_matches(predictions), ~predictions.answerable)


@metrics.register("no-answer-accuracy", of=("answers",), higher_is_better=True, from_sums=(_unanswerable, shares))
def no_answer_accuracy(predictions: AnswerPredictions) -> float:
    """Share of the questions without an answer that get none (`NoAns_exact`); not defined without any."""
    return float(shares(_unanswerable(predictions).sum(axis=0)))
