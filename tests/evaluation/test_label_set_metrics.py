"""Every metric of label sets is scikit-learn's number, and every fast way to it gives the same number."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as reference

from finetune import registry
from finetune.evaluation.predictions.label_sets import LabelSetPredictions
from finetune.evaluation.statistics import bootstrap, paired_bootstrap, per_label, point

COMPLETE = [name for name in registry.metrics.names() if name[-1] not in ":@"]
NAMES = [name for name in COMPLETE if "labels" in registry.metrics.get(name).attributes["of"]]
Matrix = NDArray[np.int64]


def predictions_of(targets: object, probabilities: object, threshold: float = 0.5) -> LabelSetPredictions:
    truth, said = np.asarray(targets, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    labels = tuple(f"label {number}" for number in range(truth.shape[1]))
    return LabelSetPredictions(labels, truth, said, np.full(len(labels), threshold))


def random_predictions(rows: int, labels: int, share: float, digits: int, seed: int) -> LabelSetPredictions:
    """Better than chance; few digits make many ties."""
    generator = np.random.default_rng([seed, rows, labels])
    targets = (generator.random((rows, labels)) < share).astype(np.int64)
    noise = generator.random((rows, labels))
    return predictions_of(targets, np.round(0.35 * targets + 0.65 * noise, digits))


EDGES = {
    "nothing-true": predictions_of(np.zeros((4, 3)), np.linspace(0, 1, 12).reshape(4, 3)),
    "nothing-said": predictions_of(np.eye(3), np.full((3, 3), 0.1)),
    "nothing-at-all": predictions_of(np.zeros((2, 3)), np.zeros((2, 3))),
    "everything-true-and-said": predictions_of(np.ones((3, 2)), np.ones((3, 2))),
    "all-tied": predictions_of([[1, 0, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0]], np.full((4, 3), 0.5)),
    "a-label-never-true": predictions_of([[1, 0], [0, 0], [1, 0]], [[0.9, 0.8], [0.2, 0.1], [0.4, 0.3]]),
    "a-label-on-all-rows": predictions_of([[1, 0], [1, 1], [1, 0]], [[0.9, 0.8], [0.2, 0.1], [0.4, 0.3]]),
    "one-row": predictions_of([[1, 0, 0, 1]], [[0.9, 0.6, 0.2, 0.6]]),
    "one-label": predictions_of([[1], [0], [1], [0]], [[0.9], [0.6], [0.2], [0.1]]),
    "one-label-never-true": predictions_of([[0], [0]], [[0.9], [0.1]]),
}
RANDOM = {
    f"random-{rows}x{labels}-{share}-{digits}": random_predictions(rows, labels, share, digits, seed)
    for seed, (rows, labels, share, digits) in enumerate(
        [(60, 7, 0.2, 8), (60, 7, 0.2, 1), (300, 28, 0.04, 3), (5, 12, 0.3, 2), (80, 2, 0.5, 8), (40, 3, 0.9, 1)]
    )
}
CASES = {**EDGES, **RANDOM}


def scikit_learn_says(name: str, predictions: LabelSetPredictions) -> float:
    """What scikit-learn gives, called here in the plainest way."""
    truth, scores = predictions.targets, predictions.probabilities
    said = (scores >= predictions.thresholds).astype(int)
    head, _, average = name.rpartition("-")
    if head in {"f1", "precision", "recall"}:
        function = {"f1": reference.f1_score, "precision": reference.precision_score, "recall": reference.recall_score}[
            head
        ]
        if truth.shape[1] == 1:  # scikit-learn would take one column for two classes
            return float(function(truth[:, 0], said[:, 0], zero_division=0))
        return float(function(truth, said, average=average, zero_division=0))
    if name == "label-ranking-average-precision" and truth.shape[1] == 1:
        return 1.0  # it refuses one column; with one label to rank every row is right
    if name == "jaccard-samples":
        return jaccard(truth, said)
    if name in {"subset-accuracy", "hamming-loss"}:
        return float(
            {"subset-accuracy": reference.accuracy_score, "hamming-loss": reference.hamming_loss}[name](truth, said)
        )
    if name == "label-ranking-average-precision":
        return float(reference.label_ranking_average_precision_score(truth, scores))
    ranked = {"average-precision-macro": reference.average_precision_score, "roc-auc-macro": reference.roc_auc_score}
    return float(ranked[name](truth, scores, average="macro"))


def jaccard(truth: Matrix, said: Matrix) -> float:
    if truth.shape[1] == 1:  # scikit-learn has no samples in one column
        return float(np.where((truth | said) == 1, truth & said, 1).mean())
    return float(reference.jaccard_score(truth, said, average="samples", zero_division=1.0))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Scikit-learn warns of what it takes for undefined."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="sklearn")
        yield


def test_there_are_metrics_of_decisions_of_sets_and_of_rankings() -> None:
    assert {"f1-micro", "f1-macro", "subset-accuracy", "hamming-loss", "roc-auc-macro"} <= set(NAMES)
    assert len(NAMES) == 15


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_a_metric_is_scikit_learns_number(name: str, case: str) -> None:
    expected = scikit_learn_says(name, CASES[case])
    assert point(name, CASES[case]) == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_rankings_agree_on_many_small_random_tables_with_ties() -> None:
    for seed in range(60):
        rows, labels = np.random.default_rng(seed).integers(2, 8, 2).tolist()
        predictions = random_predictions(rows, labels, share=0.35, digits=1, seed=seed)
        for name in ("label-ranking-average-precision", "average-precision-macro", "roc-auc-macro"):
            expected = scikit_learn_says(name, predictions)
            assert point(name, predictions) == pytest.approx(expected, abs=1e-9, nan_ok=True), (seed, name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "case",
    ["nothing-true", "everything-true-and-said", "one-label", "one-row", "a-label-on-all-rows", "all-tied", *RANDOM],
)
def test_resamples_are_scored_as_if_scikit_learn_scored_each(name: str, case: str) -> None:
    predictions = CASES[case]
    entry = registry.metrics.get(name)
    weights = np.random.default_rng(3).multinomial(len(predictions), np.full(len(predictions), 1 / len(predictions)), 8)
    resamples = [predictions.take(np.repeat(np.arange(len(predictions)), row)) for row in weights]
    if "from_label_counts" in entry.attributes:
        fast = entry.attributes["from_label_counts"](predictions.label_counts(weights.astype(float)))
    elif "from_rows" in entry.attributes:
        fast = weights @ entry.attributes["from_rows"](predictions) / len(predictions)
    elif "from_weights" in entry.attributes:
        fast = entry.attributes["from_weights"](predictions)(weights.astype(float))
    else:
        fast = np.array([point(name, resample) for resample in resamples])
    expected = [scikit_learn_says(name, resample) for resample in resamples]
    assert fast == pytest.approx(np.array(expected), abs=1e-9, nan_ok=True)


def test_no_metric_of_label_sets_is_called_for_each_resample() -> None:
    fast = {"from_label_counts", "from_rows", "from_weights"}
    assert all(fast & registry.metrics.get(name).attributes.keys() for name in NAMES)


def test_intervals_hold_their_values_and_an_undefined_area_has_none() -> None:
    found = bootstrap(NAMES, CASES["random-60x7-0.2-8"], seed=1)
    assert all(interval.low <= interval.value <= interval.high for interval in found.values())
    undefined = bootstrap(["roc-auc-macro"], CASES["a-label-never-true"], seed=1)["roc-auc-macro"]
    assert undefined.as_json() == {"value": None, "low": None, "high": None}


def test_a_worse_model_has_a_positive_drop_whatever_the_metrics_direction() -> None:
    good, bad = (random_predictions(60, 7, 0.2, 8, seed=0) for _ in range(2))
    bad = predictions_of(bad.targets, bad.probabilities[:, ::-1])
    assert all(drop.value > 0 for drop in paired_bootstrap(NAMES, good, bad, seed=2).values())


def test_the_scores_of_each_label_are_scikit_learns() -> None:
    predictions = CASES["random-60x7-0.2-8"]
    found = per_label(predictions, seed=5)
    scores = reference.precision_recall_fscore_support(predictions.targets, predictions.predicted, zero_division=0)
    for column, label in enumerate(predictions.labels):
        expected = [values[column] for values in scores]
        assert [found[label][kind]["value"] for kind in ("precision", "recall", "f1")] == pytest.approx(expected[:3])
        assert found[label]["rows"] == expected[3]
        assert found[label]["f1"]["low"] <= found[label]["f1"]["value"] <= found[label]["f1"]["high"]
