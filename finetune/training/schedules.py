"""Learning-rate schedules: pure functions from the step to the factor that the learning rate is multiplied by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from finetune.registry import schedules

Steps = Annotated[int, Field(ge=0)]
Ratio = Annotated[float, Field(ge=0, lt=1)]


def check_warmup(options: Mapping[str, Any]) -> None:
    """Raise ValueError if the warm-up is given twice."""
    if options["warmup_steps"] and options["warmup_ratio"]:
        raise ValueError("expected warmup_steps or warmup_ratio, found both; remove one")


def _warmup(step: int, total_steps: int, warmup_steps: int, warmup_ratio: float) -> tuple[float, float]:
    """Return the factor of the warm-up (1 once it is over) and how much of the rest is done, from 0 to 1."""
    warmup = min(warmup_steps or math.ceil(warmup_ratio * total_steps), total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1), 0.0
    return 1.0, (step - warmup) / max(1, total_steps - warmup)


@schedules.register("constant", check=check_warmup)
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
    return factor * 0.5 * (1 + math.cos(math.pi * done))
