"""Learning-rate schedules: pure functions from the step to the factor that the learning rate is multiplied by.

All begin with a warm-up, if one is asked for, which rises evenly and never takes a step at rate zero. Behind it those
that transformers has are its own (`get_scheduler`), and `exponential` and `step` are torch's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune.registry import schedules

Steps = Annotated[int, Field(ge=0)]
SomeSteps = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]


def check_warmup(options: Mapping[str, Any]) -> None:
    """Raise ValueError if the warm-up is given twice."""
    if options["warmup_steps"] and options["warmup_ratio"]:
        raise ValueError("expected warmup_steps or warmup_ratio, found both; remove one")


def warmup_of(total_steps: int, warmup_steps: int, warmup_ratio: float) -> int:
    """Return how many steps the warm-up has."""
    return min(warmup_steps or math.ceil(warmup_ratio * total_steps), total_steps)


def _warmup(step: int, total_steps: int, warmup_steps: int, warmup_ratio: float) -> tuple[float, float]:
    """Return the factor of the warm-up (1 once it is over) and how much of the rest is done, from 0 to 1."""
    warmup = warmup_of(total_steps, warmup_steps, warmup_ratio)
    if step < warmup:
        return (step + 1) / (warmup + 1), 0.0
    return 1.0, (step - warmup) / max(1, total_steps - warmup)


@schedules.register("constant", check=check_warmup, endless=True)
def constant(step: int, total_steps: int, *, warmup_steps: Steps = 0, warmup_ratio: Ratio = 0.0) -> float:
    """Stay at the learning rate after the warm-up."""
    return _warmup(step, total_steps, warmup_steps, warmup_ratio)[0]


@schedules.register("linear", check=check_warmup)
def linear(step: int, total_steps: int, *, warmup_steps: Steps = 0, warmup_ratio: Ratio = 0.0) -> float:
    """Fall in a straight line to zero after the warm-up."""
    factor, done = _warmup(step, total_steps, warmup_steps, warmup_ratio)
    return factor * (1 - done)


@schedules.register("cosine", check=check_warmup)
def cosine(step: int, total_steps: int, *, warmup_steps: Steps = 0, warmup_ratio: Ratio = 0.0) -> float:
    """Fall along half a cosine to zero after the warm-up (Loshchilov and Hutter 2017, without restarts)."""
    factor, done = _warmup(step, total_steps, warmup_steps, warmup_ratio)
    return factor * _half_cosine(done)


@schedules.register("cosine-restarts", check=check_warmup)
def cosine_restarts(
    step: int, total_steps: int, *, cycles: SomeSteps = 2, warmup_steps: Steps = 0, warmup_ratio: Ratio = 0.0
) -> float:
    """Fall along half a cosine `cycles` times, each time from the whole learning rate (Loshchilov and Hutter 2017)."""
    factor, done = _warmup(step, total_steps, warmup_steps, warmup_ratio)
    return factor * _half_cosine((cycles * done) % 1.0)


@schedules.register("polynomial", check=check_warmup)
def polynomial(
    step: int,
    total_steps: int,
    *,
    power: Annotated[float, Field(gt=0)] = 2.0,
    end: Ratio = 0.0,
    warmup_steps: Steps = 0,
    warmup_ratio: Ratio = 0.0,
) -> float:
    """Fall with a power of what is left, to the share `end` of the learning rate."""
    factor, done = _warmup(step, total_steps, warmup_steps, warmup_ratio)
    return factor * ((1 - end) * math.pow(1 - done, power) + end)


@schedules.register("exponential", check=check_warmup)
def exponential(
    step: int, total_steps: int, *, end: Share = 0.01, warmup_steps: Steps = 0, warmup_ratio: Ratio = 0.0
) -> float:
    """Fall by the same share in every step, so that training would end at the share `end` of the learning rate."""
    factor, done = _warmup(step, total_steps, warmup_steps, warmup_ratio)
    return factor * math.pow(end, done)


@schedules.register("step", check=check_warmup, endless=True)
def step_decay(
    step: int,
    total_steps: int,
    *,
    every: SomeSteps,
    factor: Share = 0.1,
    warmup_steps: Steps = 0,
    warmup_ratio: Ratio = 0.0,
) -> float:
    """Multiply the learning rate by `factor` after every so many optimizer steps behind the warm-up."""
    warmup = warmup_of(total_steps, warmup_steps, warmup_ratio)
    return _warmup(step, total_steps, warmup_steps, warmup_ratio)[0] * factor ** (max(0, step - warmup) // every)


@schedules.register("inverse-square-root", check=check_warmup, endless=True)
def inverse_square_root(
    step: int,
    total_steps: int,
    *,
    timescale: SomeSteps | None = None,
    warmup_steps: Steps = 0,
    warmup_ratio: Ratio = 0.0,
) -> float:
    """Fall with the inverse square root of the step (Vaswani et al. 2017).

    After `timescale` steps behind the warm-up half of the rate would be left after three times as many; it is the
    length of the warm-up, or 10,000 without one, if it is not given.
    """
    warmup = warmup_of(total_steps, warmup_steps, warmup_ratio)
    scale = timescale or warmup or 10_000
    return _warmup(step, total_steps, warmup_steps, warmup_ratio)[0] / math.sqrt(1 + max(0, step - warmup) / scale)


@schedules.register("warmup-stable-decay", check=check_warmup)
def warmup_stable_decay(
    step: int,
    total_steps: int,
    *,
    decay_ratio: Share = 0.2,
    shape: Literal["linear", "cosine", "1-sqrt"] = "1-sqrt",
    end: Ratio = 0.0,
    warmup_steps: Steps = 0,
    warmup_ratio: Ratio = 0.0,
) -> float:
    """Stay at the learning rate, and fall to the share `end` of it over the last `decay_ratio` of all steps.

    Hägele et al. 2024, https://arxiv.org/abs/2405.18392, who recommend the shape 1-sqrt.
    """
    warmup = warmup_of(total_steps, warmup_steps, warmup_ratio)
    decay = min(math.ceil(decay_ratio * total_steps), total_steps - warmup)
    rising = _warmup(step, total_steps, warmup_steps, warmup_ratio)[0]
    fallen = max(0, step - (total_steps - decay)) / max(1, decay)
    shapes = {"linear": 1 - fallen, "cosine": _half_cosine(fallen), "1-sqrt": 1 - math.sqrt(fallen)}
    return rising * ((1 - end) * shapes[shape] + end)


def _half_cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))
