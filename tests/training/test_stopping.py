"""A loss that is lost: what counts as exploded, and what does not."""

from __future__ import annotations

import math

import pytest

from finetune.training.stopping import STREAK, Explosion


def fall(steps: int) -> list[float]:
    return [0.1 + 2.0 * math.exp(-step / 30) for step in range(steps)]


def test_a_loss_far_above_that_of_the_first_steps_for_long_has_exploded() -> None:
    watch = Explosion().see(fall(100)).see([50.0] * (STREAK - 1))
    assert watch.found == ""
    watch.see([50.0])
    assert "the loss has been above 18.3 for 20 steps, 10 times that of the first 10 (1.83)" in watch.found


@pytest.mark.parametrize(
    "losses",
    [
        fall(200),
        fall(50) + [40.0] * (STREAK - 1) + fall(50) + [40.0] * (STREAK - 1),  # odd batches
        [3.0] * 10 + [25.0] * 100,  # bad, but not lost
        [0.0] * 200,
        [2.0],
    ],
    ids=["a fall", "two bumps", "eight times as high", "nothing to learn", "one step"],
)
def test_other_losses_have_not(losses: list[float]) -> None:
    assert Explosion().see(losses).found == ""


def test_what_was_seen_before_a_resumption_counts() -> None:
    losses = fall(30) + [90.0] * STREAK
    assert Explosion().see(losses[:40]).see(losses[40:]).found == Explosion().see(losses).found != ""
