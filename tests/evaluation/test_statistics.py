"""Bootstrap intervals are right, repeatable, and the same however the work is cut up."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from finetune.evaluation import statistics
from finetune.evaluation.predictions.labels import LabelPredictions
from finetune.evaluation.statistics import bootstrap, interval_of_sums, paired_bootstrap, per_label, point

NAMES = ["accuracy", "f1-macro", "precision-weighted", "log-loss"]


def classifier(rows: int, *, labels: int = 3, skill: float = 0.5, seed: int = 0) -> LabelPredictions:
    """Return predictions that are right with about the probability `skill`; the truth depends on the size alone."""
    targets = np.random.default_rng([rows, labels]).integers(0, labels, rows)
    generator = np.random.default_rng([seed, rows, labels, 1])
    right = generator.random(rows) < skill
    favoured = np.where(right, targets, (targets + generator.integers(1, labels, rows)) % labels)
    probabilities = generator.dirichlet(np.ones(labels), rows)
    probabilities[np.arange(rows), favoured] += 1.0
    return LabelPredictions(
        tuple(f"label {n}" for n in range(labels)), targets, probabilities / probabilities.sum(axis=1, keepdims=True)
    )


def drawn_rows(rows: int, seed: int) -> list[np.ndarray]:
    """The indices of the resamples, one call of the documented generator for each."""
    generator = np.random.default_rng([seed, 0xB007])
    return [generator.integers(0, rows, rows, dtype=np.int32) for _ in range(statistics.RESAMPLES)]


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 60)


@pytest.mark.usefixtures("few_resamples")
def test_an_interval_equals_a_plain_implementation_on_the_same_resamples() -> None:
    predictions = classifier(70)
    found = bootstrap(NAMES, predictions, seed=5)
    for name in NAMES:
        draws = [point(name, predictions.take(rows)) for rows in drawn_rows(70, 5)]
        assert found[name].value == point(name, predictions)
        assert [found[name].low, found[name].high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=1e-12)


@pytest.mark.usefixtures("few_resamples")
def test_a_paired_interval_equals_a_plain_implementation_on_the_same_resamples() -> None:
    before, after = classifier(70, skill=0.8), classifier(70, skill=0.4, seed=1)
    found = paired_bootstrap(NAMES, before, after, seed=5)
    for name in NAMES:
        sign = -1 if name == "log-loss" else 1
        draws = [sign * (point(name, before.take(r)) - point(name, after.take(r))) for r in drawn_rows(70, 5)]
        assert found[name].value == pytest.approx(sign * (point(name, before) - point(name, after)))
        assert [found[name].low, found[name].high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=1e-12)


@pytest.mark.usefixtures("few_resamples")
def test_a_metric_without_a_fast_path_is_resampled_over_the_first_of_the_same_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES_OF_SLOW_METRICS", 25)
    entry = statistics.registry.metrics.get("f1-macro")
    slow = type(entry)("slow", entry.target, entry.options, {"higher_is_better": True, "of": ("label",)})
    monkeypatch.setitem(statistics.registry.metrics._entries, "slow", slow)
    predictions = classifier(50)
    found = bootstrap(["slow"], predictions, seed=2)["slow"]
    draws = [point("f1-macro", predictions.take(rows)) for rows in drawn_rows(50, 2)[:25]]
    assert [found.low, found.high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=1e-12)


@pytest.mark.usefixtures("few_resamples")
def test_units_are_drawn_whole_with_all_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, units = classifier(70), np.random.default_rng(4).permutation(np.arange(70) % 9)
    members = [np.flatnonzero(units == unit) for unit in range(9)]
    draws = [np.concatenate([members[unit] for unit in drawn]) for drawn in drawn_rows(9, 5)]
    assert len({len(rows) for rows in draws}) > 1, "units of several sizes give resamples of several sizes"
    found = bootstrap(NAMES, predictions, 5, units)
    by_label = per_label(predictions, 5, units)
    for name in NAMES:
        scores = [point(name, predictions.take(rows)) for rows in draws]
        assert [found[name].low, found[name].high] == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=1e-12)
    for label, name in enumerate(predictions.labels):
        recalls = [(predictions.predicted[rows] == label)[predictions.targets[rows] == label].mean() for rows in draws]
        low, high = np.quantile(recalls, [0.025, 0.975])
        assert [by_label[name]["recall"][key] for key in ("low", "high")] == pytest.approx([low, high], abs=1e-12)
    right = (predictions.predicted == predictions.targets).astype(float)
    sums = np.stack([right, np.ones(70)], axis=1)
    interval = interval_of_sums(sums, lambda sums: sums[..., 0] / sums[..., 1], 5, units)
    assert (interval.low, interval.high) == pytest.approx((found["accuracy"].low, found["accuracy"].high), abs=1e-12)


def test_rows_of_one_unit_that_say_the_same_make_the_interval_wider() -> None:
    """Ten copies of each row are no new evidence: the interval is that of the rows, and not a third as wide."""
    rows = classifier(60, skill=0.7)
    copies = rows.take(np.repeat(np.arange(60), 10))
    (alone,) = bootstrap(["accuracy"], rows, 1).values()
    (as_units,) = bootstrap(["accuracy"], copies, 1, np.repeat(np.arange(60), 10)).values()
    (as_rows,) = bootstrap(["accuracy"], copies, 1).values()
    assert (as_units.low, as_units.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
    assert as_rows.high - as_rows.low < 0.5 * (alone.high - alone.low)


def test_an_interval_agrees_with_scipys_percentile_bootstrap() -> None:
    predictions = classifier(200, skill=0.7)
    right = (predictions.predicted == predictions.targets).astype(float)
    losses = -np.log(predictions.probabilities[np.arange(200), predictions.targets])
    found = bootstrap(["accuracy", "log-loss"], predictions, seed=1)
    for name, values in (("accuracy", right), ("log-loss", losses)):
        theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=2)
        noise = 0.25 * theirs.standard_error  # the quantile of 1,000 resamples wobbles by about a tenth of it
        assert found[name].low == pytest.approx(theirs.confidence_interval.low, abs=noise)
        assert found[name].high == pytest.approx(theirs.confidence_interval.high, abs=noise)


def test_an_interval_covers_the_true_accuracy_in_95_of_100_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    generator = np.random.default_rng(12)
    covered, worlds, rows, truth = 0, 300, 200, 0.8
    for world in range(worlds):
        targets = generator.integers(0, 2, rows)
        predicted = np.where(generator.random(rows) < truth, targets, 1 - targets)
        interval = bootstrap(["accuracy"], LabelPredictions(("a", "b"), targets, np.eye(2)[predicted]), world)[
            "accuracy"
        ]
        covered += interval.low <= truth <= interval.high
    assert 0.92 <= covered / worlds <= 0.98


@pytest.mark.usefixtures("few_resamples")
def test_the_seed_decides_the_interval_and_nothing_else_does() -> None:
    predictions = classifier(60)
    first, again, other = (bootstrap(NAMES, predictions, seed) for seed in (3, 3, 4))
    assert first == again
    assert all(first[name] != other[name] for name in NAMES)
    assert all(first[name].value == other[name].value for name in NAMES)
    np.random.seed(1)
    assert bootstrap(["f1-macro"], predictions, 3)["f1-macro"] == first["f1-macro"]


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("cells", [1, 7 * 60, 59 * 60, 10**9])
def test_the_size_of_the_chunks_changes_no_number(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    before, after = classifier(60), classifier(60, seed=1)
    expected = bootstrap(NAMES, before, 3), paired_bootstrap(NAMES, before, after, 3), per_label(before, 3)
    monkeypatch.setattr(statistics, "CHUNK_CELLS", cells)
    found = bootstrap(NAMES, before, 3), paired_bootstrap(NAMES, before, after, 3), per_label(before, 3)
    for here, there in zip(found[:2], expected[:2], strict=True):  # sums may be added in another order
        assert {name: interval.as_json() for name, interval in here.items()} == {
            name: pytest.approx(interval.as_json(), abs=1e-12) for name, interval in there.items()
        }
    assert found[2] == expected[2]


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("name", NAMES)
def test_a_drop_is_positive_when_the_second_system_is_worse(name: str) -> None:
    good, bad = classifier(120, skill=0.9), classifier(120, skill=0.3, seed=1)
    drop, gain = (paired_bootstrap([name], *pair, seed=1)[name] for pair in ((good, bad), (bad, good)))
    assert 0 < drop.low < drop.value < drop.high
    assert (gain.low, gain.value, gain.high) == pytest.approx((-drop.high, -drop.value, -drop.low))


@pytest.mark.usefixtures("few_resamples")
def test_equal_systems_differ_by_exactly_0() -> None:
    predictions = classifier(50)
    twin = LabelPredictions(predictions.labels, predictions.targets.copy(), predictions.probabilities.copy())
    for drop in paired_bootstrap(NAMES, predictions, twin, seed=1).values():
        assert drop.as_json() == {"value": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.usefixtures("few_resamples")
def test_pairing_makes_the_interval_of_a_difference_narrower_than_two_separate_ones() -> None:
    before = classifier(200, skill=0.7)
    probabilities = before.probabilities.copy()
    probabilities[:4] = np.eye(3)[(before.targets[:4] + 1) % 3]  # the second system is worse on 4 rows only
    after = LabelPredictions(before.labels, before.targets, probabilities)
    drop = paired_bootstrap(["accuracy"], before, after, seed=1)["accuracy"]
    alone = bootstrap(["accuracy"], before, seed=1)["accuracy"]
    assert 0 <= drop.low <= drop.value <= drop.high
    assert drop.high - drop.low < 0.5 * (alone.high - alone.low)


@pytest.mark.usefixtures("few_resamples")
def test_scores_by_label_have_the_labels_in_order_their_rows_and_plain_intervals() -> None:
    predictions = classifier(80, labels=4)
    found = per_label(predictions, seed=9)
    assert list(found) == ["label 0", "label 1", "label 2", "label 3"]
    for index, scores in enumerate(found.values()):
        assert scores["rows"] == int((predictions.targets == index).sum())

        def recall(rows: np.ndarray, index: int = index) -> float:
            of_label = rows[predictions.targets[rows] == index]
            return float((predictions.predicted[of_label] == index).mean())

        low, high = np.quantile([recall(rows) for rows in drawn_rows(80, 9)], [0.025, 0.975])
        assert scores["recall"] == pytest.approx({"value": recall(np.arange(80)), "low": low, "high": high})


def test_a_resample_without_the_label_says_nothing_about_its_recall() -> None:
    targets = np.array([0] * 40 + [1, 1])  # one resample in eight has no row of the second label
    predictions = LabelPredictions(("often", "rare"), targets, np.eye(2)[targets])
    assert per_label(predictions, seed=1)["rare"]["recall"] == {"value": 1.0, "low": 1.0, "high": 1.0}


@pytest.mark.usefixtures("few_resamples")
def test_a_label_without_rows_scores_0_on_0_rows() -> None:
    predictions = LabelPredictions(("a", "b", "c"), np.array([0, 1, 1]), np.eye(3)[[0, 1, 0]])
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert per_label(predictions, seed=1)["c"] == {"precision": nothing, "recall": nothing, "f1": nothing, "rows": 0}
