"""Bootstrap intervals: how far a number would move if the test rows had been drawn again (Efron 1979, percentiles).

What is drawn are units: rows, or whole documents or queries where rows of one belong together (a cluster bootstrap).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune import registry
from finetune.evaluation.metrics import filled
from finetune.evaluation.metrics.labels import label_scores
from finetune.evaluation.predictions import Predictions
from finetune.evaluation.predictions.counts import LabelCounts

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 1000
# A metric known only as a function is called once per resample; some take long, so they get fewer.
RESAMPLES_OF_SLOW_METRICS = 200
CHUNK_CELLS = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """Return it as reports hold it, null where it is not defined."""
        return {
            name: None if math.isnan(number) else number
            for name, number in (("value", self.value), ("low", self.low), ("high", self.high))
        }


def point(name: str, predictions: Predictions) -> float:
    """Return a metric's value."""
    return float(registry.metrics.get(name).build({})(predictions))


@dataclass(frozen=True)
class Scores:
    """Each metric's value, and its values over resamples of shape (resamples,), the same ones for every system."""

    values: dict[str, float]
    draws: dict[str, NDArray[Any]]

    def intervals(self) -> dict[str, Interval]:
        """Return each metric with its interval."""
        return {name: _interval(value, self.draws[name]) for name, value in self.values.items()}

    def lead(self, other: Scores) -> dict[str, Interval]:
        """Return how much better these are than others on the same rows; positive is better."""
        leads = {}
        for name, value in self.values.items():
            sign = 1.0 if registry.metrics.get(name).attributes["higher_is_better"] else -1.0
            draws = sign * (self.draws[name] - other.draws[name])
            leads[name] = _interval(sign * (value - other.values[name]), draws)
        return leads


def score(names: Iterable[str], predictions: Predictions, seed: int, units: NDArray[Any] | None = None) -> Scores:
    """Return each metric of predictions; `units` of shape (answers,) number the unit that each answer belongs to."""
    names = list(names)
    values = {name: point(name, predictions) for name in names}
    return Scores(values, _resampled(names, predictions, seed, units))


def bootstrap(
    names: Iterable[str], predictions: Predictions, seed: int, units: NDArray[Any] | None = None
) -> dict[str, Interval]:
    """Return each metric with its interval."""
    return score(names, predictions, seed, units).intervals()


def paired_bootstrap(
    names: Iterable[str], before: Predictions, after: Predictions, seed: int, units: NDArray[Any] | None = None
) -> dict[str, Interval]:
    """Return how much worse `after` is than `before`, both judged on the same resampled units; positive is worse."""
    names = list(names)
    return score(names, before, seed, units).lead(score(names, after, seed, units))


def interval_of_sums(
    per_answer: NDArray[Any],
    combine: Callable[[NDArray[Any]], NDArray[Any]],
    seed: int,
    units: NDArray[Any] | None = None,
) -> Interval:
    """Return a function of statistics summed over answers, of shape (answers, k), with its interval.

    `combine` takes sums of shape (..., k); resamples in which it is not defined (NaN) say nothing.
    """
    import numpy as np

    draws = [combine(weights @ per_answer) for weights in _weights(len(per_answer), RESAMPLES, seed, units)]
    return _interval(float(combine(per_answer.sum(axis=0))), np.concatenate(draws))


def per_label(predictions: Any, seed: int, units: NDArray[Any] | None = None) -> dict[str, dict[str, Any]]:
    """Return precision, recall and F1 of each label with intervals, and the number of its rows.

    `predictions` are of labels or of label sets. Intervals are over the resamples in which the score is defined.
    """
    import numpy as np

    kinds = ("precision", "recall", "f1")
    whole: LabelCounts = predictions.label_counts(np.ones((1, len(predictions))))
    values = {kind: label_scores(kind, whole)[0] for kind in kinds}
    draws: dict[str, list[NDArray[Any]]] = {kind: [] for kind in kinds}
    for weights in _weights(len(predictions), RESAMPLES, seed, units):
        counts = predictions.label_counts(weights)
        for kind in kinds:
            # a resample without the label says nothing about its recall
            draws[kind].append(label_scores(kind, counts, undefined=np.nan))
    return {
        label: {
            **{kind: _interval(float(values[kind][i]), np.concatenate(draws[kind])[:, i]).as_json() for kind in kinds},
            "rows": int(whole.actual[0, i]),
        }
        for i, label in enumerate(predictions.labels)
    }


def _resampled(
    names: list[str], predictions: Predictions, seed: int, units: NDArray[Any] | None
) -> dict[str, NDArray[Any]]:
    """Return the values of each metric over the same resamples, shape (resamples,)."""
    import numpy as np

    fast = {name: way for name in names if (way := _fast_way(name, predictions)) is not None}
    slow = [name for name in names if name not in fast]
    values: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for weights in _weights(len(predictions), RESAMPLES if fast else 0, seed, units):
        counts: LabelCounts | None = None
        for name, way in fast.items():
            if way.needs_label_counts and counts is None:
                counts = predictions.label_counts(weights)  # type: ignore[attr-defined]
            values[name].append(way.of(counts if way.needs_label_counts else weights))
    for weights in _weights(len(predictions), RESAMPLES_OF_SLOW_METRICS if slow else 0, seed, units):
        for name in slow:
            resamples = (predictions.take(np.repeat(np.arange(len(row)), row.astype(np.int64))) for row in weights)
            values[name].append(np.array([point(name, resample) for resample in resamples]))
    return {name: np.concatenate(chunks) for name, chunks in values.items()}


@dataclass(frozen=True)
class _FastWay:
    """How a metric follows, for all resamples at once, from the weights of the answers or from counts of labels."""

    of: Callable[[Any], NDArray[Any]]
    needs_label_counts: bool = False


def _fast_way(name: str, predictions: Predictions) -> _FastWay | None:
    entry = registry.metrics.get(name)
    if "from_label_counts" in entry.attributes:
        return _FastWay(filled(entry, entry.attributes["from_label_counts"]), needs_label_counts=True)
    if "from_weights" in entry.attributes:
        return _FastWay(filled(entry, entry.attributes["from_weights"])(predictions))
    if "from_rows" in entry.attributes:
        values = filled(entry, entry.attributes["from_rows"])(predictions)
        return _FastWay(lambda weights: (weights @ values) / weights.sum(axis=-1))
    if "from_sums" in entry.attributes:
        per_answer, combine = (filled(entry, function) for function in entry.attributes["from_sums"])
        statistics = per_answer(predictions)
        return _FastWay(lambda weights: combine(weights @ statistics))
    return None


def _weights(answers: int, resamples: int, seed: int, units: NDArray[Any] | None) -> Iterator[NDArray[Any]]:
    """Yield how often each answer is drawn, shape (resamples of this chunk, answers), as float64.

    The same for the same seed, whatever the chunks.
    """
    import numpy as np

    count = answers if units is None else int(units.max(initial=-1)) + 1
    generator = np.random.default_rng([seed, 0xB007])
    chunk = max(1, CHUNK_CELLS // max(answers, 1))
    for start in range(0, resamples, chunk):
        drawn = [
            np.bincount(generator.integers(0, count, count, dtype=np.int32), minlength=count)
            for _ in range(min(chunk, resamples - start))
        ]
        weights = np.stack(drawn).astype(np.float64)
        yield weights if units is None else weights[:, units]


def _interval(value: float, draws: NDArray[Any]) -> Interval:
    import numpy as np

    if math.isnan(value) or np.isnan(draws).all():
        return Interval(value, value, value)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
