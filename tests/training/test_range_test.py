"""The range test on curves whose shape is known: what is named, what is not, and what the noise may not do."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable

import pytest

from finetune.errors import FinetuneError
from finetune.training.range_test import FEWEST_POINTS, Advice, Explosion, Sweep, read_curve

Shape = Callable[[float], float]  # from log10 of the rate to the loss


def rates_of(sweep: Sweep) -> list[float]:
    return [sweep.lowest * sweep.factor(step, sweep.steps) for step in range(sweep.steps)]


def advise(
    shape: Shape, *, noise: float = 0.0, seed: int = 0, sweep: Sweep | None = None, cut_short: bool = False
) -> Advice:
    generator = random.Random(seed)
    rates = rates_of(sweep or Sweep())
    losses = [shape(math.log10(rate)) + generator.gauss(0, noise) for rate in rates]
    return read_curve(rates, losses, [8] * len(rates), cut_short=cut_short).advice


def fall(place: float, centre: float = -4.0, *, start: float = 2.0, by: float = 1.0) -> float:
    """An even fall about `centre`, steepest there."""
    return start - by / (1 + math.exp(-5 * (place - centre)))


def fall_and_rise(place: float) -> float:
    """As `fall`, and a rise behind the lowest point, at 10^-3."""
    return fall(place) + max(0.0, place + 3) * 3


# --- the sweep -------------------------------------------------------------------------------------------------------


def test_the_rates_rise_by_one_factor_from_the_lowest_to_the_highest() -> None:
    rates = rates_of(Sweep(1e-6, 1e-1, 51))
    assert (rates[0], rates[-1]) == (pytest.approx(1e-6), pytest.approx(1e-1))
    assert {round(after / before, 6) for before, after in itertools.pairwise(rates)} == {round(10**0.1, 6)}
    assert Sweep() == Sweep(1e-7, 1e-2, 100)


@pytest.mark.parametrize(
    ("lowest", "highest"), [(0.0, 1.0), (1e-2, 1e-2), (1e-2, 1e-7), (1e-7, 11.0), (math.nan, 1.0), (1e-7, math.inf)]
)
def test_rates_that_do_not_rise_or_are_none_are_refused(lowest: float, highest: float) -> None:
    with pytest.raises(FinetuneError, match=r"expected 0 < --from < --to <= 10, found --from .* and --to"):
        Sweep(lowest, highest)


def test_too_few_steps_for_a_curve_are_refused() -> None:
    with pytest.raises(FinetuneError, match="--steps of at least 20, found 19"):
        Sweep(steps=19)


# --- what is named ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("steps", [50, 100, 400])
def test_the_steepest_fall_and_a_tenth_of_the_lowest_are_named(noise: float, steps: int) -> None:
    advice = advise(fall_and_rise, noise=noise, sweep=Sweep(steps=steps))
    assert advice.verdict == "falls"
    assert advice.steepest == pytest.approx(1e-4, rel=0.5)
    assert advice.lowest == pytest.approx(1e-3, rel=0.5)
    assert advice.tenth_of_lowest == pytest.approx((advice.lowest or 0) / 10, rel=0.05)
    assert advice.falls_from is not None
    assert 1e-5 < advice.falls_from < 8e-5


def test_smoothing_does_not_lag_behind() -> None:
    """A running mean over as many steps finds both too late."""
    advice = advise(lambda place: 2 - math.exp(-(((place + 4) / 0.8) ** 2)), sweep=Sweep(steps=200))
    assert advice.lowest == pytest.approx(1e-4, rel=0.06)
    assert advice.steepest == pytest.approx(10 ** (-4 - 0.8 / math.sqrt(2)), rel=0.15)


def test_rates_have_two_digits() -> None:
    advice = advise(fall_and_rise, noise=0.03)
    for rate in (advice.steepest, advice.lowest, advice.tenth_of_lowest, advice.falls_from):
        assert rate is not None
        assert rate == float(f"{rate:.1e}")


def test_a_steeper_fall_behind_a_rise_is_another_story() -> None:
    """A model that was thrown off its course falls back, from 7 to 1.8, more steeply than it ever learned."""

    def thrown_off(place: float) -> float:
        return fall(place, by=0.3) + (5 * math.exp(-(((place + 2.7) / 0.15) ** 2)) if place > -3.3 else 0.0)

    advice = advise(thrown_off, noise=0.005, sweep=Sweep(1e-7, 1e-1, 120))
    assert advice.verdict == "falls"
    assert advice.steepest == pytest.approx(1e-4, rel=0.5)
    assert advice.lowest is not None
    assert advice.lowest < 1e-3


def test_one_enormous_loss_does_not_bend_the_curve_before_it() -> None:
    def enormous(place: float) -> float:
        return 1e9 if place > -2.9 else fall(place)

    expected = advise(fall, noise=0.01, sweep=Sweep(1e-7, 10**-2.9))
    found = advise(enormous, noise=0.01)
    assert found.steepest == pytest.approx(expected.steepest, rel=0.3)
    assert found.lowest is not None
    assert 3e-4 < found.lowest < 10**-2.9


def test_a_batch_of_few_rows_counts_less() -> None:
    rates = rates_of(Sweep())
    losses = [2.0] * len(rates)
    losses[50] = 4.0
    usual, short = ([32] * 100, [32] * 50 + [1] + [32] * 49)
    heights = [read_curve(rates, losses, rows, cut_short=False).smoothed[50] - 2.0 for rows in (usual, short)]
    assert heights[1] < 0.1 * heights[0]


def test_a_curve_that_levels_off_has_a_steepest_point_and_no_lowest() -> None:
    advice = advise(fall, noise=0.01, sweep=Sweep(1e-7, 10**-3.3))
    assert advice.verdict == "falls"
    assert advice.steepest == pytest.approx(1e-4, rel=0.5)
    assert advice.as_json().keys() == {"verdict", "steepest", "falls_from"}


def test_a_fall_that_breaks_off_has_a_lowest_point_and_no_steepest() -> None:
    """What comes next is not finite: the rate before it is none to train at, a tenth of it may be."""
    advice = advise(lambda place: fall(place, centre=-2.0), noise=0.01, cut_short=True)
    assert advice.as_json().keys() == {"verdict", "lowest", "tenth_of_lowest", "falls_from"}
    assert advice.lowest == pytest.approx(1e-2, rel=0.3)


# --- what is not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [20, 100])
@pytest.mark.parametrize(("noise", "verdict"), [(0.0, "flat"), (0.02, "flat"), (0.5, "noisy")])
def test_noise_alone_names_a_rate_once_in_a_hundred_times_at_most(steps: int, noise: float, verdict: str) -> None:
    sweep = Sweep(steps=steps)
    found = Counter(advise(lambda _: 2.0, noise=noise, seed=seed, sweep=sweep).verdict for seed in range(200))
    assert found["falls"] + found["still-falling"] <= 2
    assert found[verdict] >= 195


def test_a_fall_far_below_the_noise_names_no_rate() -> None:
    assert advise(lambda place: fall(place, by=0.2), noise=0.5).as_json() == {"verdict": "noisy"}


def test_a_fall_that_only_begins_where_the_sweep_ends_names_no_rate() -> None:
    advice = advise(lambda place: fall(place, centre=-1.5), noise=0.002)
    assert advice.as_json().keys() == {"verdict", "falls_from"}
    assert advice.verdict == "still-falling"


@pytest.mark.parametrize("cut_short", [True, False])
def test_a_loss_that_only_rises_names_no_rate(cut_short: bool) -> None:
    advice = advise(lambda place: 2.0 + max(0.0, place + 3) * 4, noise=0.02, cut_short=cut_short)
    assert advice.as_json() == {"verdict": "rises"}


def test_a_handful_of_losses_is_no_curve() -> None:
    losses = [2.0, 1.9, 1.0, 0.5, 0.2, 0.1, 0.05]
    assert len(losses) < FEWEST_POINTS
    curve = read_curve(rates_of(Sweep())[:7], losses, [8] * 7, cut_short=True)
    assert (curve.smoothed, curve.advice.as_json()) == (losses, {"verdict": "rises"})


# --- explosions ------------------------------------------------------------------------------------------------------


def explodes_at(losses: list[float]) -> int | None:
    explosion = Explosion()
    return next((step for step, loss in enumerate(losses) if explosion.update(loss)), None)


def test_a_running_mean_over_four_times_its_lowest_is_an_explosion() -> None:
    assert explodes_at([2.0] * 20 + [1.0] * 40 + [3.9] * 40) is None
    exploded = explodes_at([2.0] * 20 + [1.0] * 40 + [8.0] * 40)
    assert exploded is not None
    assert 62 <= exploded <= 72


def test_a_single_wild_loss_is_no_explosion() -> None:
    assert explodes_at([2.0] * 30 + [12.0] + [2.0] * 30) is None


def test_a_loss_that_nearly_vanished_does_not_explode_below_where_it_began() -> None:
    """Four times 0.01 is still next to nothing, when it began at 2."""
    assert explodes_at([2.0] * 10 + [0.01] * 100 + [0.3] * 50) is None
