"""Every metric of numbers is scipy's or scikit-learn's number, and every fast way to it gives the same number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from finetune import registry
from finetune.evaluation import statistics
from finetune.evaluation.metrics.numbers import weighted_ranks
from finetune.evaluation.predictions.numbers import NumberPredictions
from finetune.evaluation.statistics import bootstrap, paired_bootstrap, point

NAMES = ("pearson", "spearman", "r2", "rmse", "mae")
Numbers = NDArray[np.float64]


def predictions_of(targets: object, values: object) -> NumberPredictions:
    truth, said = (np.asarray(numbers, dtype=np.float64) for numbers in (targets, values))
    if truth.ndim == 1:
        truth, said = truth[:, None], said[:, None]
    names = tuple(f"target {number}" for number in range(truth.shape[1]))
    return NumberPredictions(names, truth, said, np.ones(len(names)))


def random_predictions(rows: int, targets: int = 1, digits: int = 9, offset: float = 0.0) -> NumberPredictions:
    """Better than chance; few digits make many ties, an offset far from 0 costs the careless their digits."""
    generator = np.random.default_rng([rows, targets, digits])
    truth = generator.normal(size=(rows, targets))
    said = 0.6 * truth + 0.8 * generator.normal(size=(rows, targets))
    return predictions_of(np.round(truth, digits) + offset, np.round(said, digits) + offset)


def expected(name: str, truth: Numbers, said: Numbers) -> float:
    """The reference library's number for one target."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in {"pearson", "spearman"}:
            return float((pearsonr if name == "pearson" else spearmanr)(truth, said).statistic)
        score = {"r2": r2_score, "rmse": root_mean_squared_error, "mae": mean_absolute_error}[name]
        return float(score(truth, said))


CASES = {
    "five rows": random_predictions(5),
    "two rows": predictions_of([1.0, 2.0], [0.3, 0.1]),
    "two equal targets": predictions_of([2.0, 2.0], [0.3, 0.1]),
    "many": random_predictions(400),
    "ties": random_predictions(90, digits=0),
    "far from zero": random_predictions(200, offset=1e6),
    "tiny": predictions_of([1e-7, 3e-7, 2e-7], [2e-7, 3e-7, 3e-7]),
    "constant predictions": predictions_of([1.0, 2.0, 4.0], [0.1, 0.1, 0.1]),
    "constant targets": predictions_of([0.5, 0.5, 0.5], [1.0, 2.0, 3.0]),
    "constant and right": predictions_of([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    "perfect": predictions_of([3.0, 1.0, 2.0, 5.0], [3.0, 1.0, 2.0, 5.0]),
    "the wrong way round": predictions_of([3.0, 1.0, 2.0, 5.0], [-3.0, -1.0, -2.0, -5.0]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_a_metric_is_the_reference_librarys_number(name: str, case: str) -> None:
    predictions = CASES[case]
    wanted = expected(name, predictions.targets[:, 0], predictions.values[:, 0])
    assert point(name, predictions) == pytest.approx(wanted, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("name", NAMES)
def test_with_several_targets_a_metric_is_the_mean_over_them(name: str) -> None:
    predictions = random_predictions(60, targets=3)
    each = [expected(name, predictions.targets[:, n], predictions.values[:, n]) for n in range(3)]
    assert point(name, predictions) == pytest.approx(sum(each) / 3, abs=1e-9)


def test_a_correlation_with_a_constant_is_not_defined_and_never_zero() -> None:
    for case in ("constant predictions", "constant targets", "two equal targets"):
        for name in ("pearson", "spearman"):
            found = bootstrap([name], CASES[case], seed=1)[name]
            assert [math.isnan(number) for number in vars(found).values()] == [True] * 3


def test_one_row_has_errors_and_nothing_else() -> None:
    found = {name: point(name, predictions_of([2.0], [5.0])) for name in NAMES}
    assert (found["rmse"], found["mae"]) == (3.0, 3.0)
    assert all(math.isnan(found[name]) for name in ("pearson", "spearman", "r2"))


def test_one_target_without_a_correlation_leaves_the_mean_undefined() -> None:
    predictions = predictions_of([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]], [[1.0, 7.0], [2.5, 7.0], [2.0, 7.0]])
    assert math.isnan(point("pearson", predictions))
    assert not math.isnan(point("mae", predictions))


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(statistics, "RESAMPLES", 80)
    return iter([80])


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "predictions",
    [*CASES.values(), random_predictions(30, targets=2, digits=1)],
    ids=[*CASES, "two targets with ties"],
)
def test_resampling_at_once_gives_what_the_metric_gives_of_each_resample(
    predictions: NumberPredictions, name: str
) -> None:
    generator = np.random.default_rng([5, 0xB007])
    rows = len(predictions)
    drawn = [generator.integers(0, rows, rows, dtype=np.int32) for _ in range(80)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slow = [point(name, predictions.take(each)) for each in drawn]
    fast = statistics._resampled([name], predictions, 5, None)[name]
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-9)


def test_no_metric_of_numbers_is_left_to_the_slow_way() -> None:
    ways = {"from_sums", "from_rows", "from_weights"}
    assert [name for name in NAMES if not ways & set(registry.metrics.get(name).attributes)] == []


def test_paired_gains_have_the_sign_of_the_metric() -> None:
    good, bad = random_predictions(80), random_predictions(80).saying(np.zeros((80, 1)))
    gains = paired_bootstrap(["rmse", "mae", "r2"], good, bad, seed=3)
    assert all(gain.value > 0 for gain in gains.values())
    assert math.isnan(paired_bootstrap(["pearson"], good, bad, seed=3)["pearson"].value)


def test_ranks_of_drawn_rows_are_those_of_the_rows_written_out() -> None:
    generator = np.random.default_rng(8)
    values = generator.integers(0, 6, 25).astype(np.float64)
    weights = generator.integers(0, 4, (10, 25)).astype(np.float64)
    ranks = weighted_ranks(values, weights)
    for found, counts in zip(ranks, weights.astype(int), strict=True):
        written_out = np.repeat(values, counts)
        np.testing.assert_allclose(np.repeat(found, counts), rankdata(written_out))


def test_two_models_agree_within_a_twentieth_of_the_deviation_of_every_target() -> None:
    before = NumberPredictions(("a", "b"), np.zeros((0, 2)), np.zeros((4, 2)), np.array([1.0, 10.0]))
    after = before.saying(np.array([[0.049, 0.49], [0.051, 0.0], [0.0, -0.51], [-0.05, -0.5]]))
    assert before.agrees(after).tolist() == [True, False, False, True]


def test_rows_may_be_taken_twice_and_targets_may_be_unknown() -> None:
    predictions = predictions_of([1.0, 2.0, 3.0], [1.5, 2.5, 3.5])
    taken = predictions.take(np.array([2, 0, 2]))
    assert (taken.targets[:, 0].tolist(), taken.values[:, 0].tolist()) == ([3.0, 1.0, 3.0], [3.5, 1.5, 3.5])
    asked = NumberPredictions(("a",), np.zeros((0, 1)), np.ones((2, 1)), np.ones(1))
    assert (len(asked.take(np.array([1]))), asked.rows.tolist()) == (1, [0, 1])


def test_what_is_said_stays_within_a_declared_range_and_is_free_without_one() -> None:
    free = predictions_of([1.0, 2.0], [0.0, 0.0])
    assert free.saying(np.array([[-50.0], [50.0]])).values[:, 0].tolist() == [-50.0, 50.0]
    held = NumberPredictions(("a",), free.targets, free.values, np.ones(1), minimum=0.0, maximum=10.0)
    assert held.saying(np.array([[-50.0], [50.0]])).values[:, 0].tolist() == [0.0, 10.0]
