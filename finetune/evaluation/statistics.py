"""Bootstrap intervals: how far a number would move if the test rows had been drawn again (Efron 1979, percentiles)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune import registry
from finetune.evaluation.metrics import label_scores
from finetune.evaluation.predictions import Predictions

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 1000
# A metric known only as a function is called once per resample; some take long, so they get fewer.
RESAMPLES_OF_SLOW_METRICS = 200
CHUNK_CELLS = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """Return it as reports hold it."""
        return {"value": self.value, "low": self.low, "high": self.high}


def point(name: str, predictions: Predictions) -> float:
    """Return a metric's value."""
    return float(registry.metrics.get(name).build({})(predictions))


def bootstrap(names: Iterable[str], predictions: Predictions, seed: int) -> dict[str, Interval]:
    """Return each metric with its interval over resampled rows."""
    draws = _resampled(list(names), predictions, seed)
    return {name: _interval(point(name, predictions), values) for name, values in draws.items()}


def paired_bootstrap(names: Iterable[str], before: Predictions, after: Predictions, seed: int) -> dict[str, Interval]:
    """Return how much worse `after` is than `before`, both judged on the same resampled rows; positive is worse."""
    names = list(names)
    draws_before, draws_after = _resampled(names, before, seed), _resampled(names, after, seed)
    drops = {}
    for name in names:
        sign = 1.0 if registry.metrics.get(name).attributes["higher_is_better"] else -1.0
        value = sign * (point(name, before) - point(name, after))
        drops[name] = _interval(value, sign * (draws_before[name] - draws_after[name]))
    return drops


def per_label(predictions: Predictions, seed: int) -> dict[str, dict[str, Any]]:
    """Return precision, recall and F1 of each label with intervals, and the number of its rows.

    Intervals are over the resamples in which the score is defined.
    """
    import numpy as np

    kinds = ("precision", "recall", "f1")
    confusion = _confusions(predictions, np.arange(len(predictions))[None])
    values = {kind: label_scores(kind, confusion)[0] for kind in kinds}
    draws: dict[str, list[NDArray[Any]]] = {kind: [] for kind in kinds}
    for rows in _draws(len(predictions), RESAMPLES, seed, len(predictions.labels) ** 2):
        confusions = _confusions(predictions, rows)
        for kind in kinds:
            # a resample without the label says nothing about its recall
            draws[kind].append(label_scores(kind, confusions, undefined=np.nan))
    support = confusion[0].sum(axis=-1)
    return {
        label: {
            **{kind: _interval(float(values[kind][i]), np.concatenate(draws[kind])[:, i]).as_json() for kind in kinds},
            "rows": int(support[i]),
        }
        for i, label in enumerate(predictions.labels)
    }


def confusion_matrix(predictions: Predictions) -> list[list[int]]:
    """Return the counts by true label (rows) and predicted label (columns)."""
    import numpy as np

    matrix = _confusions(predictions, np.arange(len(predictions))[None])[0]
    return [[int(count) for count in row] for row in matrix]


def _resampled(names: list[str], predictions: Predictions, seed: int) -> dict[str, NDArray[Any]]:
    """Return the values of each metric over the same resamples, shape (resamples,)."""
    import numpy as np

    attributes = {name: registry.metrics.get(name).attributes for name in names}
    fast = {name: a["from_confusions"] for name, a in attributes.items() if "from_confusions" in a}
    by_row = {name: a["from_rows"](predictions) for name, a in attributes.items() if "from_rows" in a}
    slow = [name for name in names if name not in fast and name not in by_row]
    values: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for rows in _draws(len(predictions), RESAMPLES, seed, len(predictions.labels) ** 2 if fast else 1):
        _add_fast(values, predictions, rows, fast, by_row)
    for rows in _draws(len(predictions), RESAMPLES_OF_SLOW_METRICS if slow else 0, seed, 1):
        for name in slow:
            values[name].append(np.array([point(name, predictions.take(row)) for row in rows]))
    return {name: np.concatenate(chunks) for name, chunks in values.items()}


def _add_fast(
    values: dict[str, list[NDArray[Any]]],
    predictions: Predictions,
    rows: NDArray[Any],
    fast: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]],
    by_row: Mapping[str, NDArray[Any]],
) -> None:
    confusions = _confusions(predictions, rows) if fast else None
    for name, metric in fast.items():
        assert confusions is not None
        values[name].append(metric(confusions))
    for name, losses in by_row.items():
        values[name].append(losses[rows].mean(axis=1))


def _draws(rows: int, resamples: int, seed: int, cells: int) -> Iterator[NDArray[Any]]:
    """Yield row indices, shape (resamples of this chunk, rows); the same for the same seed, whatever the chunks."""
    import numpy as np

    generator = np.random.default_rng([seed, 0xB007])
    chunk = max(1, CHUNK_CELLS // max(rows, cells))
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        yield np.stack([generator.integers(0, rows, rows, dtype=np.int32) for _ in range(count)])


def _confusions(predictions: Predictions, rows: NDArray[Any]) -> NDArray[Any]:
    """Return the confusion matrix of each resample, shape (resamples, true, predicted)."""
    import numpy as np

    size = len(predictions.labels)
    cells = predictions.targets * size + predictions.predicted
    counts = np.stack([np.bincount(cells[row], minlength=size * size) for row in rows])
    return counts.reshape(-1, size, size)


def _interval(value: float, draws: NDArray[Any]) -> Interval:
    import numpy as np

    if np.isnan(draws).all():
        return Interval(value, value, value)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
