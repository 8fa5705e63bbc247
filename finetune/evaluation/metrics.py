"""Metrics: pure functions of predictions, computed by scikit-learn.

A metric may also declare how it follows from confusion matrices, or from one value a row; the bootstrap then computes
thousands of resamples at once instead of calling scikit-learn for each. Tests hold both ways to the same numbers.
"""

from __future__ import annotations

import importlib
import numbers
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from finetune.errors import FinetuneError
from finetune.registry import metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions import Predictions

AVERAGES = ("macro", "micro", "weighted")


def true_false_counts(confusions: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return true positives, predicted and actual counts, each of shape (..., labels), of (..., true, predicted)."""
    import numpy as np

    return np.diagonal(confusions, axis1=-2, axis2=-1), confusions.sum(axis=-2), confusions.sum(axis=-1)


def label_scores(kind: str, confusions: NDArray[Any], undefined: float = 0.0) -> NDArray[Any]:
    """Return precision, recall or F1 per label, shape (..., labels); `undefined` where the denominator is 0."""
    import numpy as np

    hits, predicted, actual = true_false_counts(confusions)
    numerator, denominator = {
        "precision": (hits, predicted),
        "recall": (hits, actual),
        "f1": (2 * hits, predicted + actual),
    }[kind]
    return np.divide(numerator, denominator, out=np.full(hits.shape, undefined), where=denominator > 0)  # type: ignore[no-any-return]


def averaged_scores(kind: str, average: str, confusions: NDArray[Any]) -> NDArray[Any]:
    """Return precision, recall or F1 over all labels, shape (...), as scikit-learn averages them.

    Macro is the mean over the labels that occur in the truth or in the predictions.
    """
    hits, predicted, actual = true_false_counts(confusions)
    if average == "micro":
        return hits.sum(-1) / actual.sum(-1)  # type: ignore[no-any-return]
    weights = actual if average == "weighted" else (predicted + actual > 0)
    return (label_scores(kind, confusions) * weights).sum(-1) / weights.sum(-1)  # type: ignore[no-any-return]


def accuracies(confusions: NDArray[Any]) -> NDArray[Any]:
    """Return the share of rows on the diagonal, shape (...)."""
    return averaged_scores("recall", "micro", confusions)


def check_code(names: Iterable[str], *, allow_code: bool) -> None:
    """Raise FinetuneError if a metric would run code that nobody on this command line allowed."""
    for name in names:
        if name != "loss" and metrics.get(name).attributes.get("needs_code") and not allow_code:
            raise FinetuneError(
                f"metrics: {name} runs code from outside this package. If you trust it, add --allow-code to the "
                "command; no recipe can switch this on."
            )


@metrics.register("accuracy", higher_is_better=True, from_confusions=accuracies)
def accuracy(predictions: Predictions) -> float:
    """Share of rows whose most probable label is the true one."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(predictions.targets, predictions.predicted))


def _averaged(predictions: Predictions, kind: str, average: str) -> float:
    from sklearn import metrics as reference

    score = {"precision": reference.precision_score, "recall": reference.recall_score, "f1": reference.f1_score}[kind]
    return float(score(predictions.targets, predictions.predicted, average=average, zero_division=0))


def _register_averages() -> None:
    for kind in ("precision", "recall", "f1"):
        for average in AVERAGES:
            name = f"{kind}-{average}"
            fast: Callable[[Any], Any] = partial(averaged_scores, kind, average)
            metrics.register(name, higher_is_better=True, from_confusions=fast)(_averaged_metric(kind, average))


def _averaged_metric(kind: str, average: str) -> Callable[[Predictions], float]:
    def metric(predictions: Predictions) -> float:
        return _averaged(predictions, kind, average)

    metric.__doc__ = f"{kind.capitalize()}, {average} average; 0 for a label where it is not defined."
    return metric


_register_averages()


def row_log_losses(predictions: Predictions) -> NDArray[Any]:
    """Return each row's negative log probability of its true label, clipped as scikit-learn clips it."""
    import numpy as np

    tiny = np.finfo(predictions.probabilities.dtype).eps
    true = predictions.probabilities[np.arange(len(predictions)), predictions.targets]
    return -np.log(np.clip(true, tiny, 1 - tiny))  # type: ignore[no-any-return]


@metrics.register("log-loss", higher_is_better=False, from_rows=row_log_losses)
def log_loss(predictions: Predictions) -> float:
    """Mean negative log probability of the true label, in nats."""
    from sklearn.metrics import log_loss as reference

    return float(reference(predictions.targets, predictions.probabilities, labels=range(len(predictions.labels))))


@metrics.register("evaluate:", higher_is_better=True, needs_code=True)
def from_evaluate(argument: str, predictions: Predictions) -> float:
    """Any metric of the evaluate library that takes predictions and references, by its name or a local module's path.

    Its module is code, so it runs only under `--allow-code`. The first number that it returns counts, and higher is
    taken to be better.
    """
    try:
        import evaluate
    except ImportError:
        raise FinetuneError(
            f"evaluate:{argument} needs the evaluate library: pip install 'finetune-toolkit[evaluate]'"
        ) from None
    try:
        try:
            module = evaluate.load(argument)
        except ModuleNotFoundError:  # it copies the module to a folder that Python believes to know already
            importlib.invalidate_caches()
            module = evaluate.load(argument)
        result = module.compute(predictions=predictions.predicted.tolist(), references=predictions.targets.tolist())
    except Exception as error:  # the module is somebody's code: anything may come out of it
        raise FinetuneError(f"evaluate:{argument} cannot be computed: {type(error).__name__}: {error}") from error
    found = [value for value in (result or {}).values() if isinstance(value, numbers.Real)]
    if not found:
        raise FinetuneError(f"evaluate:{argument}: expected a result with a number, found {result!r}")
    return float(found[0])
