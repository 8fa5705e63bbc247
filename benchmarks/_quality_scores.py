"""One scorer for both systems of `quality.py`, apart from the package's own metrics, and the paired bootstrap.

A metric is a value of sums over rows: `per_row` gives what is summed, `combine` makes the value of the sums, so that
resamples of thousands of rows are matrix products. Each point value is held against scikit-learn, seqeval or scipy.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
RESAMPLES = 5000


@dataclass(frozen=True)
class Scored:
    """What a metric sums, shape (rows, sums), and the value of sums of shape (..., sums)."""

    per_row: Array
    combine: Callable[[Array], Array]

    @property
    def value(self) -> float:
        return float(self.combine(self.per_row.sum(axis=0)))


def score(kind: str, true: Sequence[Any], predicted: Sequence[Any]) -> dict[str, Scored]:
    """Return the metrics of one kind of predictions, the one that counts first."""
    assert len(true) == len(predicted), "every row of the test file has to be answered"
    found = _BY_KIND[kind](true, predicted)
    for name, (scored, expected) in found.items():
        assert abs(scored.value - expected) < 1e-9, f"{name}: {scored.value} against the library's {expected}"
    return {name: scored for name, (scored, _) in found.items()}


def differences(
    ours: Sequence[Scored], theirs: Sequence[Scored], units: Sequence[Any], seed: int = 0
) -> tuple[float, float, float]:
    """Return the mean difference over pairs of runs and its 95 % interval; `units` (rows,) are drawn as one."""
    _, unit = np.unique(np.asarray(units), return_inverse=True)
    count = int(unit.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)

    def resampled(scored: Scored) -> Array:
        sums = np.zeros((count, scored.per_row.shape[1]))
        np.add.at(sums, unit, scored.per_row)
        return scored.combine(drawn @ sums)

    pairs = list(zip(ours, theirs, strict=True))
    values = np.mean([resampled(our) - resampled(their) for our, their in pairs], axis=0)
    low, high = np.percentile(values, [2.5, 97.5])
    return float(np.mean([our.value - their.value for our, their in pairs])), float(low), float(high)


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=np.asarray(below) > 0)


def _f1_of_counts(sums: Array) -> Array:
    """F1 of sums (hits, predicted, true)."""
    return _ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2])


def _micro(counts: Array) -> Scored:
    """Micro F1 of counts of shape (rows, 3, labels)."""
    return Scored(counts.sum(axis=2).astype(float), _f1_of_counts)


def _macro(counts: Array) -> Scored:
    """Macro F1 of the same, over the labels that are true or predicted somewhere in the rows."""

    def combine(sums: Array) -> Array:
        by_label = sums.reshape(*sums.shape[:-1], 3, -1)
        below = by_label[..., 1, :] + by_label[..., 2, :]
        return _ratio(_ratio(2 * by_label[..., 0, :], below).sum(axis=-1), (below > 0).sum(axis=-1))

    return Scored(counts.reshape(len(counts), -1).astype(float), combine)


def _counts(true: Array, predicted: Array) -> Array:
    """Hits, predicted and true labels, shape (rows, 3, labels), of two 0/1 matrices."""
    return np.stack([true & predicted, predicted, true], axis=1)


def _mean(values: Array) -> Scored:
    columns = np.stack([values, np.ones(len(values))], axis=1).astype(float)
    return Scored(columns, lambda sums: sums[..., 0] / sums[..., 1])


def _labels(true: Sequence[str], predicted: Sequence[str]) -> dict[str, tuple[Scored, float]]:
    from sklearn.metrics import accuracy_score, f1_score

    names = sorted({*true, *predicted})
    right = np.array([one == other for one, other in zip(true, predicted, strict=True)])
    matrices = [np.array([[name == label for name in names] for label in labels]) for labels in (true, predicted)]
    return {
        "accuracy": (_mean(right), accuracy_score(true, predicted)),
        "f1-macro": (_macro(_counts(*matrices)), f1_score(true, predicted, average="macro", zero_division=0)),
    }


def _label_sets(true: Sequence[list[str]], predicted: Sequence[list[str]]) -> dict[str, tuple[Scored, float]]:
    from sklearn.metrics import f1_score

    names = sorted({label for labels in (*true, *predicted) for label in labels})
    matrices = [np.array([[name in labels for name in names] for labels in sets]) for sets in (true, predicted)]
    counts = _counts(*matrices)
    return {
        f"f1-{average}": (scored, f1_score(*matrices, average=average, zero_division=0))
        for average, scored in (("micro", _micro(counts)), ("macro", _macro(counts)))
    }


def _numbers(true: Sequence[float], predicted: Sequence[float]) -> dict[str, tuple[Scored, float]]:
    from scipy.stats import pearsonr

    x, y = np.asarray(true, dtype=float), np.asarray(predicted, dtype=float)
    x, y = x - x.mean(), y - y.mean()  # a correlation stays the same, and squares do not cancel
    moments = np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)

    def correlation(sums: Array) -> Array:
        mean = sums / sums[..., :1]
        covariance = mean[..., 5] - mean[..., 1] * mean[..., 2]
        variances = (mean[..., 3] - mean[..., 1] ** 2) * (mean[..., 4] - mean[..., 2] ** 2)
        return _ratio(covariance, np.sqrt(variances))

    def negative_error(sums: Array) -> Array:
        return -np.sqrt(sums[..., 0] / sums[..., 1])

    errors = (np.asarray(true) - np.asarray(predicted)) ** 2
    squared = np.stack([errors, np.ones(len(x))], axis=1)
    return {
        "pearson": (Scored(moments, correlation), float(np.nan_to_num(pearsonr(true, predicted).statistic))),
        "-rmse": (Scored(squared, negative_error), -float(np.sqrt(errors.mean()))),
    }


def _tags(true: Sequence[list[str]], predicted: Sequence[list[str]]) -> dict[str, tuple[Scored, float]]:
    from seqeval.metrics import f1_score
    from seqeval.metrics.sequence_labeling import get_entities
    from seqeval.scheme import IOB2, Entities

    def strict(tags: list[str]) -> set[Any]:
        return {entity.to_tuple()[1:] for entity in Entities([tags], IOB2).entities[0]}

    def lenient(tags: list[str]) -> set[Any]:
        return set(get_entities(tags))

    def scored(entities: Callable[[list[str]], set[Any]]) -> Scored:
        pairs = [(entities(one), entities(other)) for one, other in zip(true, predicted, strict=True)]
        return Scored(
            np.array([[len(one & other), len(other), len(one)] for one, other in pairs], float), _f1_of_counts
        )

    y_true, y_predicted = list(true), list(predicted)
    return {
        "entity-f1": (scored(strict), float(f1_score(y_true, y_predicted, mode="strict", scheme=IOB2))),
        "entity-f1-lenient": (scored(lenient), float(f1_score(y_true, y_predicted))),
    }


def _answers(true: Sequence[list[str]], predicted: Sequence[str]) -> dict[str, tuple[Scored, float]]:
    """SQuAD's F1 and exact match (Rajpurkar et al. 2016), as its evaluation script defines them."""
    pairs = list(zip(true, predicted, strict=True))
    f1 = np.array([max(answer_f1(said, answer) for answer in answers) for answers, said in pairs])
    exact = np.array([max(float(_plain(said) == _plain(answer)) for answer in answers) for answers, said in pairs])
    return {"answer-f1": (_mean(f1), float(f1.mean())), "exact-match": (_mean(exact), float(exact.mean()))}


def _plain(text: str) -> str:
    without_marks = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", without_marks).split())


def answer_f1(said: str, answer: str) -> float:
    """Return the F1 of the words of two answers."""
    words, true_words = _plain(said).split(), _plain(answer).split()
    shared = (collections.Counter(words) & collections.Counter(true_words)).total()
    if not words or not true_words:
        return float(words == true_words)
    return 2 * shared / (len(words) + len(true_words))


_BY_KIND: dict[str, Callable[[Any, Any], dict[str, tuple[Scored, float]]]] = {
    "label": _labels,
    "labels": _label_sets,
    "number": _numbers,
    "tags": _tags,
    "answer": _answers,
}
