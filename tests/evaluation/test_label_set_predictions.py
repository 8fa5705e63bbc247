"""Sets of labels, and the thresholds that are fitted for them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from finetune.errors import FinetuneError
from finetune.evaluation.predictions.label_sets import (
    LabelSetPredictions,
    best_threshold,
    fit_thresholds,
    label_matrix,
)

LABELS = ("a", "b", "c")


def predictions_of(targets: object, said: object) -> LabelSetPredictions:
    return LabelSetPredictions(LABELS, np.asarray(targets), np.asarray(said, dtype=float), np.full(3, 0.5))


def table(seed: int, rows: int = 25, digits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    targets = (generator.random((rows, 3)) < [0.1, 0.3, 0.6]).astype(int)
    return targets, np.round(0.3 * targets + 0.7 * generator.random((rows, 3)), digits)


def test_a_label_is_said_where_its_probability_reaches_its_own_threshold() -> None:
    predictions = LabelSetPredictions(
        LABELS, np.zeros((0, 3)), np.array([[0.3, 0.3, 0.3], [0.2, 0.9, 0.5]]), np.array([0.3, 0.31, 0.5])
    )
    assert predictions.predicted.tolist() == [[1, 0, 0], [0, 1, 1]]
    assert (len(predictions), predictions.rows.tolist()) == (2, [0, 1])


def test_two_models_agree_on_a_row_when_they_say_the_same_set() -> None:
    first = predictions_of(np.zeros((3, 3)), [[0.9, 0.1, 0.6], [0.1, 0.1, 0.1], [0.9, 0.9, 0.9]])
    second = predictions_of(np.zeros((3, 3)), [[0.6, 0.4, 0.9], [0.1, 0.1, 0.6], [0.8, 0.8, 0.8]])
    assert first.agrees(second).tolist() == [True, False, True]


def test_rows_taken_twice_count_twice() -> None:
    predictions = predictions_of([[1, 0, 0], [0, 1, 0]], [[0.9, 0.1, 0.1], [0.9, 0.1, 0.1]])
    taken = predictions.take(np.array([1, 1, 0]))
    assert taken.targets.tolist() == [[0, 1, 0], [0, 1, 0], [1, 0, 0]]
    by_take, by_weights = taken.label_counts(np.ones((1, 3))), predictions.label_counts(np.array([[1.0, 2.0]]))
    assert [part.tolist() for part in by_take[:3]] == [part.tolist() for part in by_weights[:3]]
    assert [part.tolist() for part in by_weights[:3]] == [[[1, 0, 0]], [[3, 0, 0]], [[1, 2, 0]]]


def test_the_confusion_tells_found_missed_and_mixed_up_labels_apart() -> None:
    predictions = predictions_of(
        [[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]],
        [[0.9, 0.1, 0.1], [0.1, 0.9, 0.9], [0.1, 0.9, 0.9], [0.1, 0.1, 0.1], [0.9, 0.1, 0.1]],
    )
    assert predictions.confusion().tolist() == [
        [1, 1, 1, 0],  # a: found in row 0; missed in row 1, where b and c are wrong
        [0, 1, 0, 1],  # b: missed in row 0, where nothing is wrong
        [0, 0, 0, 0],
        [1, 0, 1, 1],  # nothing missed: a wrong in row 4, c in row 2; row 3 is rightly empty
    ]


@pytest.mark.parametrize("digits", [8, 1])
@pytest.mark.parametrize("seed", range(8))
def test_no_threshold_has_a_better_f1_than_the_fitted_one(seed: int, digits: int) -> None:
    targets, probabilities = table(seed, digits=digits)
    found = fit_thresholds(targets, probabilities, "per-label")
    for column in range(3):
        truth, said = targets[:, column], probabilities[:, column]
        scores = [f1_score(truth, said >= cut, zero_division=0) for cut in [*said, *(said + 1e-9), 0.0, 1.1]]
        assert f1_score(truth, said >= found[column], zero_division=0) == pytest.approx(max(scores), abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_one_threshold_for_all_labels_is_the_best_for_micro_f1(seed: int) -> None:
    targets, probabilities = table(seed)
    found = fit_thresholds(targets, probabilities, "global")
    assert len(set(found)) == 1
    best = max(f1_score(targets, probabilities >= cut, average="micro") for cut in probabilities.ravel())
    assert f1_score(targets, probabilities >= found, average="micro") == pytest.approx(best, abs=1e-12)


def test_a_threshold_lies_midway_between_neighbours_and_near_a_half_if_several_are_best() -> None:
    assert best_threshold(np.array([1, 1, 0, 0]), np.array([0.9, 0.8, 0.4, 0.1])) == pytest.approx(0.6)
    assert best_threshold(np.array([1, 0, 1]), np.array([0.9, 0.2, 0.1])) == pytest.approx(0.05)
    # two cuts have an F1 of 2/3: behind the first, midway at 0.55, and behind the last at 0.05
    assert best_threshold(np.array([1, 0, 0, 1]), np.array([0.9, 0.2, 0.15, 0.1])) == pytest.approx(0.55)
    # and here at 0.985 and 0.4
    assert best_threshold(np.array([1, 0, 0, 1]), np.array([0.99, 0.98, 0.9, 0.8])) == pytest.approx(0.4)


def test_a_label_that_no_row_has_keeps_a_half_and_one_that_all_have_is_said_of_all() -> None:
    probabilities = np.array([[0.9, 0.2], [0.7, 0.3]])
    found = fit_thresholds(np.array([[0, 1], [0, 1]]), probabilities, "per-label")
    assert found.tolist() == [0.5, 0.1]


def test_equal_probabilities_are_never_parted() -> None:
    found = best_threshold(np.array([1, 0, 0, 0]), np.array([0.6, 0.6, 0.3, 0.3]))
    assert found == pytest.approx(0.45)
    assert best_threshold(np.array([1, 0]), np.array([1.0, 1.0])) == pytest.approx(0.5)
    assert best_threshold(np.array([1, 0]), np.array([0.0, 0.0])) == 0.0


def test_a_number_is_taken_as_the_threshold_of_every_label() -> None:
    assert fit_thresholds(*table(1), rule=0.35).tolist() == [0.35, 0.35, 0.35]


def test_an_unknown_label_is_named_with_its_row_and_the_nearest_one() -> None:
    assert label_matrix([["b"], [], ["c", "a", "a"]], LABELS).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert label_matrix([], LABELS).shape == (0, 3)
    with pytest.raises(FinetuneError, match=r"row 2: expected labels that the model knows .*'noize'.*noise"):
        label_matrix([["heat"], ["noize"]], ["heat", "noise"])
