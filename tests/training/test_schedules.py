"""Schedules against transformers' own, and at the points that matter."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from finetune import registry


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_after_the_warm_up_the_factor_is_that_of_transformers(name: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_scheduler(name, optimizer, num_warmup_steps=10, num_training_steps=100)
    schedule = registry.schedules.get(name).build({"warmup_steps": 10})
    for step in range(100):
        if step >= 10:
            assert schedule(step, 100) == pytest.approx(reference.get_last_lr()[0]), step
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_the_warm_up_rises_evenly_and_never_starts_at_zero(name: str) -> None:
    """A first step at rate zero, as the usual schedules take it, is a step thrown away."""
    schedule = registry.schedules.get(name).build({"warmup_ratio": 0.04})
    factors = [schedule(step, 100) for step in range(5)]
    assert factors[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factors[4] == pytest.approx(1.0)


def test_warm_up_steps_win_over_the_ratio() -> None:
    schedule = registry.schedules.get("constant").build({"warmup_steps": 1, "warmup_ratio": 0.5})
    assert schedule(1, 100) == 1.0


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_rate_falls_to_almost_nothing_and_is_never_negative(name: str) -> None:
    schedule = registry.schedules.get(name).build({})
    factors = [schedule(step, 50) for step in range(50)]
    assert factors[0] == 1.0
    assert factors == sorted(factors, reverse=True)
    assert 0 < factors[-1] < 0.05
