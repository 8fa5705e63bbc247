"""Metrics of labels, one or several a row, computed by scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from finetune.evaluation.predictions.counts import LabelCounts
from finetune.registry import metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.labels import LabelPredictions

AVERAGES = ("macro", "micro", "weighted")


def label_scores(kind: str, counts: LabelCounts, undefined: float = 0.0) -> NDArray[Any]:
    """Return precision, recall or F1 per label, shape (..., labels); `undefined` where the denominator is 0."""
    numerator, denominator = _fraction(kind, counts.hits, counts.predicted, counts.actual)
    return _divided(numerator, denominator, undefined)


def averaged_scores(kind: str, average: str, counts: LabelCounts) -> NDArray[Any]:
    """Return precision, recall or F1 over all labels, shape (...), as scikit-learn averages them."""
    import numpy as np

    if average == "micro":
        numerator, denominator = _fraction(kind, *(array.sum(-1) for array in counts[:3]))
        return _divided(numerator, denominator, 0.0)
    if average == "weighted":
        weights = counts.actual
    else:
        occurs = counts.predicted + counts.actual > 0
        weights = np.ones_like(occurs) if counts.every_label else occurs
    return _divided((label_scores(kind, counts) * weights).sum(-1), weights.sum(-1), 0.0)


def _fraction(
    kind: str, hits: NDArray[Any], predicted: NDArray[Any], actual: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    return {"precision": (hits, predicted), "recall": (hits, actual), "f1": (2 * hits, predicted + actual)}[kind]


def _divided(numerator: NDArray[Any], denominator: NDArray[Any], undefined: float) -> NDArray[Any]:
    import numpy as np

    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), undefined), where=denominator > 0)  # type: ignore[no-any-return]


def accuracies(counts: LabelCounts) -> NDArray[Any]:
    """Return the share of rows whose label was found, shape (...)."""
    return averaged_scores("recall", "micro", counts)


@metrics.register("accuracy", of=("label",), higher_is_better=True, from_label_counts=accuracies)
def accuracy(predictions: LabelPredictions) -> float:
    """Share of rows whose most probable label is the true one."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(predictions.targets, predictions.predicted))


def _averaged(predictions: Any, kind: str, average: str) -> float:
    from sklearn import metrics as reference

    score = {"precision": reference.precision_score, "recall": reference.recall_score, "f1": reference.f1_score}[kind]
    targets, predicted, only = predictions.targets, predictions.predicted, None
    if targets.shape[1:] == (1,):  # scikit-learn would take one column for two classes, 0 and 1
        targets, predicted, only = targets[:, 0], predicted[:, 0], [1]
    return float(score(targets, predicted, labels=only, average=average, zero_division=0))


def _register_averages() -> None:
    for kind in ("precision", "recall", "f1"):
        for average in AVERAGES:
            fast: Callable[[LabelCounts], NDArray[Any]] = partial(averaged_scores, kind, average)
            metrics.register(
                f"{kind}-{average}", of=("label", "labels"), higher_is_better=True, from_label_counts=fast
            )(_averaged_metric(kind, average))


def _averaged_metric(kind: str, average: str) -> Callable[[Any], float]:
    def metric(predictions: Any) -> float:
        return _averaged(predictions, kind, average)

    metric.__doc__ = f"{kind.capitalize()}, {average} average; 0 for a label where it is not defined."
    return metric


_register_averages()


def row_log_losses(predictions: LabelPredictions) -> NDArray[Any]:
    """Return each row's negative log probability of its true label, clipped as scikit-learn clips it."""
    import numpy as np

    tiny = np.finfo(predictions.probabilities.dtype).eps
    true = predictions.probabilities[np.arange(len(predictions)), predictions.targets]
    return -np.log(np.clip(true, tiny, 1 - tiny))  # type: ignore[no-any-return]


@metrics.register("log-loss", of=("label",), higher_is_better=False, from_rows=row_log_losses)
def log_loss(predictions: LabelPredictions) -> float:
    """Mean negative log probability of the true label, in nats."""
    from sklearn.metrics import log_loss as reference

    return float(reference(predictions.targets, predictions.probabilities, labels=range(len(predictions.labels))))
