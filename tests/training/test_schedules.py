"""Schedules against transformers' own, and at the points that matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import get_scheduler

from finetune import registry

WARMUP, TOTAL = 10, 100
# Our options, and how transformers' schedule of the same steps is called and set
TRANSFORMERS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "constant": ({}, "constant_with_warmup", {}),
    "linear": ({}, "linear", {}),
    "cosine": ({}, "cosine", {}),
    "cosine-restarts": ({"cycles": 3}, "cosine_with_restarts", {"num_cycles": 3}),
    "polynomial": ({"power": 3.0, "end": 0.1}, "polynomial", {"power": 3.0, "lr_end": 0.1}),
    "inverse-square-root": ({"timescale": 25}, "inverse_sqrt", {"timescale": 25}),
    "warmup-stable-decay": (
        {"decay_ratio": 0.3, "shape": "1-sqrt", "end": 0.1}, "warmup_stable_decay",
        {"num_decay_steps": 30, "decay_type": "1-sqrt", "min_lr_ratio": 0.1},
    ),
}  # fmt: skip
TORCH = {"exponential": {"end": 0.05}, "step": {"every": 20, "factor": 0.5}}


def plain_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def rates(scheduler: Any, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def test_every_schedule_has_its_reference() -> None:
    assert {*TRANSFORMERS, *TORCH} == set(registry.schedules.names())


@pytest.mark.parametrize("name", sorted(TRANSFORMERS))
def test_after_the_warm_up_the_factor_is_that_of_transformers(name: str) -> None:
    options, theirs, settings = TRANSFORMERS[name]
    optimizer = plain_optimizer()
    reference = get_scheduler(
        theirs, optimizer, num_warmup_steps=WARMUP, num_training_steps=TOTAL, scheduler_specific_kwargs=settings
    )
    expected = rates(reference, optimizer, TOTAL)
    schedule = registry.schedules.get(name).build({"warmup_steps": WARMUP, **options})
    assert [schedule(step, TOTAL) for step in range(WARMUP, TOTAL)] == pytest.approx(expected[WARMUP:])


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
def test_the_shapes_of_the_last_decay_are_those_of_transformers(shape: str) -> None:
    optimizer = plain_optimizer()
    settings = {"num_decay_steps": 40, "decay_type": shape}
    reference = get_scheduler(
        "warmup_stable_decay", optimizer, num_warmup_steps=0, num_training_steps=TOTAL,
        scheduler_specific_kwargs=settings,
    )  # fmt: skip
    schedule = registry.schedules.get("warmup-stable-decay").build({"decay_ratio": 0.4, "shape": shape})
    assert [schedule(step, TOTAL) for step in range(TOTAL)] == pytest.approx(rates(reference, optimizer, TOTAL))


def test_exponential_and_step_are_those_of_torch() -> None:
    optimizer = plain_optimizer()
    falling = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.05 ** (1 / TOTAL))
    schedule = registry.schedules.get("exponential").build(TORCH["exponential"])
    assert [schedule(step, TOTAL) for step in range(TOTAL)] == pytest.approx(rates(falling, optimizer, TOTAL))
    optimizer = plain_optimizer()
    stairs = torch.optim.lr_scheduler.StepLR(optimizer, step_size=20, gamma=0.5)
    schedule = registry.schedules.get("step").build(TORCH["step"])
    assert [schedule(step, TOTAL) for step in range(TOTAL)] == pytest.approx(rates(stairs, optimizer, TOTAL))


def test_the_stairs_begin_behind_the_warm_up() -> None:
    schedule = registry.schedules.get("step").build({"every": 5, "factor": 0.5, "warmup_steps": 3})
    assert [schedule(step, 20) for step in range(3, 14)] == [1.0] * 5 + [0.5] * 5 + [0.25]


@pytest.mark.parametrize("name", registry.schedules.names())
def test_the_warm_up_rises_evenly_and_never_starts_at_zero(name: str) -> None:
    """A first step at rate zero, as the usual schedules take it, is a step thrown away."""
    schedule = registry.schedules.get(name).build({"warmup_ratio": 0.04, **TORCH.get(name, {})})
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
