"""Learning curves: the losses, rates and scores of a `log.jsonl` by optimizer step, and how noisy they are."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from finetune import registry

LOSS = "loss"
SMALLEST_WINDOW, WINDOW_SHARE = 10, 20
# How far, in standard deviations, one of three independent normal values is on average from their median
MEDIAN_OF_THREE = 1 / math.sqrt(math.pi)


def higher_is_better(name: str) -> bool:
    """Tell which way a validation score improves: the loss falls, a metric goes as it is registered."""
    return name != LOSS and bool(registry.metrics.get(name).attributes["higher_is_better"])


@dataclass(frozen=True)
class Scores:
    """One validation score by step: the steps at which it is defined, and its values."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    higher_is_better: bool

    @property
    def gains(self) -> list[float]:
        """The values with a sign such that more is better."""
        return [value if self.higher_is_better else -value for value in self.values]

    @property
    def best(self) -> int:
        """Where in the values the first of the best is."""
        gains = self.gains
        return gains.index(max(gains))

    @property
    def spread(self) -> float:
        """How far the best and the worst value are apart."""
        return max(self.values) - min(self.values)

    @property
    def noise(self) -> float:
        """How far a value lies from the curve, in standard deviations' terms; 0 where there are too few to tell.

        It is the mean distance of values from the median of themselves and their neighbours (running medians of three,
        Tukey 1977), which a curve that rises or falls steadily does not have, divided by what it is for independent
        normal values. The best value is left out: a curve that turns is not noisy for that.
        """
        found = [
            abs(values[1] - statistics.median(values))
            for middle, values in enumerate(zip(self.values, self.values[1:], self.values[2:], strict=False), start=1)
            if middle != self.best
        ]
        return sum(found) / max(1, len(found) - 1) / MEDIAN_OF_THREE


@dataclass(frozen=True)
class Mean:
    """A mean of successive values, and what it is uncertain by."""

    value: float
    error: float


@dataclass(frozen=True)
class Smoothed:
    """A curve's means over `window` neighbouring steps, and what such a mean is uncertain by."""

    window: int
    means: tuple[float, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """What a training logged: by optimizer step, and the validation scores by name, the loss first.

    `decisive` is the score that chooses the best model, `best_step` the step of that model, 0 if there is none yet.
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    gradient_norms: tuple[float, ...]
    learning_rates: tuple[float, ...]
    scores: Mapping[str, Scores]
    decisive: str = LOSS
    best_step: int = 0
    because: str = ""

    @classmethod
    def of(cls, lines: Iterable[Mapping[str, Any]], decisive: str = LOSS) -> Curve:
        """Return the curve that the lines of a log tell of."""
        lines = list(lines)
        steps = [line for line in lines if "loss" in line]
        evaluations = [line for line in lines if "validation" in line]
        end: Mapping[str, Any] = next((line for line in reversed(lines) if "restored_step" in line), {})
        names = dict.fromkeys(name for line in evaluations for name in line["validation"])
        return cls(
            steps=tuple(line["step"] for line in steps),
            losses=tuple(line["loss"] for line in steps),
            gradient_norms=tuple(line["gradient_norm"] for line in steps),
            learning_rates=tuple(line["learning_rate"] for line in steps),
            scores={name: _scores(name, evaluations) for name in names},
            decisive=decisive,
            best_step=end.get("restored_step", 0),
            because=end.get("because", ""),
        )

    @property
    def window(self) -> int:
        """Over how many steps the training loss is smoothed: a twentieth of all, and ten at least."""
        return max(SMALLEST_WINDOW, round(len(self.losses) / WINDOW_SHARE))

    @property
    def smoothed(self) -> Smoothed | None:
        """The training loss, smoothed; None where two windows would not fit side by side."""
        return smooth(self.losses, self.window) if len(self.losses) >= 2 * self.window else None

    def means_around(self, step: int) -> tuple[Mean, Mean] | None:
        """Return the mean training loss of the steps up to a step, and of the last ones, as many and not the same.

        They are half of those that are there, and a window at least; None if there are not so many.
        """
        before = bisect_right(self.steps, step)
        count = max(self.window, min(before, len(self.losses) - before) // 2)
        if min(before, len(self.losses) - before) < count:
            return None
        return mean(self.losses[before - count : before]), mean(self.losses[-count:])


def _scores(name: str, evaluations: Sequence[Mapping[str, Any]]) -> Scores:
    """Return one score of the evaluations at which it is defined."""
    pairs = [(line["step"], line["validation"].get(name)) for line in evaluations]
    defined = [(step, value) for step, value in pairs if value is not None and math.isfinite(value)]
    steps, values = tuple(step for step, _ in defined), tuple(value for _, value in defined)
    return Scores(name, steps, values, higher_is_better(name))


def mean(values: Sequence[float]) -> Mean:
    """Return the mean of successive values, and their noise over the square root of their number.

    The noise is the root mean square of successive differences over the square root of two (von Neumann 1941), to
    which a slow trend adds next to nothing.
    """
    variance = sum((after - before) ** 2 for before, after in pairwise(values)) / (2 * (len(values) - 1))
    return Mean(statistics.fmean(values), math.sqrt(variance / len(values)))


def smooth(values: Sequence[float], window: int) -> Smoothed:
    """Return `mean` of the `window` values around each, at the ends of the first and the last so many."""
    sums = [0.0, *accumulate(values)]
    squares = [0.0, *accumulate((after - before) ** 2 for before, after in pairwise(values))]
    means, errors = [], []
    for index in range(len(values)):
        first = min(max(0, index - window // 2), len(values) - window)
        means.append((sums[first + window] - sums[first]) / window)
        variance = max(0.0, squares[first + window - 1] - squares[first]) / (2 * (window - 1))
        errors.append(math.sqrt(variance / window))
    return Smoothed(window, tuple(means), tuple(errors))
