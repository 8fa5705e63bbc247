"""Smoothing, noise and the reading of logs, against numbers worked out by other means."""

from __future__ import annotations

import random
import statistics

import pytest

from finetune.training.curves import Curve, Scores, mean, smooth


def scores(*values: float, higher_is_better: bool = False) -> Scores:
    return Scores("score", tuple(range(1, len(values) + 1)), values, higher_is_better)


def test_a_curve_is_read_from_the_lines_of_a_log() -> None:
    curve = Curve.of(
        [
            {"step": 1, "loss": 2.0, "gradient_norm": 3.0, "learning_rate": 0.1},
            {"step": 2, "loss": 1.0, "gradient_norm": 4.0, "learning_rate": 0.2},
            {"step": 2, "validation": {"loss": 1.5, "accuracy": None}, "best": True},
            {"step": 3, "validation": {"loss": 1.25, "accuracy": 0.5}, "best": False},
            {"step": 3, "restored_step": 2, "because": "all epochs done"},
        ],
        "accuracy",
    )
    assert (curve.steps, curve.losses, curve.learning_rates) == ((1, 2), (2.0, 1.0), (0.1, 0.2))
    assert (curve.gradient_norms, curve.best_step, curve.because) == ((3.0, 4.0), 2, "all epochs done")
    assert curve.scores == {
        "loss": Scores("loss", (2, 3), (1.5, 1.25), higher_is_better=False),
        "accuracy": Scores("accuracy", (3,), (0.5,), higher_is_better=True),
    }


def test_smoothed_values_are_the_means_of_the_windows_around_them() -> None:
    generator = random.Random(0)
    values = [generator.random() for _ in range(30)]
    smoothed = smooth(values, 10)
    for index in range(30):
        first = min(max(0, index - 5), 20)
        expected = mean(values[first : first + 10])
        assert smoothed.means[index] == pytest.approx(expected.value)
        assert smoothed.errors[index] == pytest.approx(expected.error)


def test_the_uncertainty_of_a_mean_is_that_of_independent_values_and_no_slow_trend_adds_to_it() -> None:
    generator = random.Random(1)
    drawn = [[0.01 * place + generator.gauss(0, 0.5) for place in range(100)] for _ in range(200)]
    assert statistics.fmean(mean(values).error for values in drawn) == pytest.approx(0.05, rel=0.03)
    assert statistics.stdev(mean(values).value for values in drawn) == pytest.approx(0.05, rel=0.15)


def test_too_few_steps_are_not_smoothed() -> None:
    def curve(steps: int) -> Curve:
        return Curve.of({"step": n, "loss": 1.0, "gradient_norm": 1.0, "learning_rate": 1.0} for n in range(1, steps))

    assert curve(20).smoothed is None
    assert curve(20).means_around(10) is None
    assert curve(21).smoothed is not None
    assert curve(21).means_around(10) is not None
    assert curve(21).means_around(11) is None
    assert curve(1001).window == 50


def test_the_means_around_a_step_have_as_many_steps_each_and_share_none() -> None:
    lines = [{"step": n, "loss": float(n), "gradient_norm": 1.0, "learning_rate": 1.0} for n in range(1, 101)]
    around = Curve.of(lines).means_around(60)
    assert around is not None
    assert [found.value for found in around] == [statistics.fmean(range(41, 61)), statistics.fmean(range(81, 101))]


def test_the_noise_of_normal_values_is_their_deviation() -> None:
    generator = random.Random(2)
    values = [generator.gauss(1.0, 0.2) for _ in range(4000)]
    assert scores(*values).noise == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("values", [(5, 4, 2, 1), (1, 2, 3), (5, 3, 1, 2, 4, 5), (1,), (1, 2)])
def test_a_curve_that_goes_steadily_down_and_up_has_no_noise(values: tuple[float, ...]) -> None:
    assert scores(*values).noise == 0


def test_the_best_value_is_the_first_of_the_best() -> None:
    assert scores(3, 1, 2, 1).best == 1
    assert scores(3, 1, 3, 1, higher_is_better=True).best == 0
    assert scores(3, 1, 2).spread == 2
