"""The learning-rate range test: rates that rise from step to step, and what the curve of the loss says of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from finetune.errors import FinetuneError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[Any]

HIGHEST_RATE = 10.0
FEWEST_STEPS = 20
FEWEST_POINTS = 8  # fewer than these are no curve

EXPLODED = 4.0  # times the lowest: the rule of fastai's finder
MEMORY = 0.9  # of the running mean that this is asked of

WIDTH_DECADES = 0.15  # standard deviation of the smoothing's kernel
# A fall or a rise counts when it is so many times its standard error: one in a hundred curves of noise alone has one
CERTAIN = 4.0
CAP = 2.0  # times the first losses: what is above bends the curve no further
LEAST_NOISE = 1e-3  # of the first losses, where they differ by less
TOO_NOISY = 0.05  # of the first losses: noise that may well hide a fall
BEGUN = 0.1  # of the whole fall

Verdict = Literal["falls", "still-falling", "flat", "noisy", "rises"]


@dataclass(frozen=True)
class Sweep:
    """Learning rates that rise by the same factor in every step, as in Gugger's form of the test.

    The test is Smith's (2017, https://arxiv.org/abs/1506.01186), the exponential form that of fastai's `lr_find`.
    Raises FinetuneError for rates that do not rise, are no learning rates, or are too few.
    """

    lowest: float = 1e-7
    highest: float = 1e-2
    steps: int = 100

    def __post_init__(self) -> None:
        """Check the rates and their number."""
        if not 0 < self.lowest < self.highest <= HIGHEST_RATE:
            raise FinetuneError(
                f"lr-find: expected 0 < --from < --to <= {HIGHEST_RATE:g}, found --from {self.lowest:g} and "
                f"--to {self.highest:g}"
            )
        if self.steps < FEWEST_STEPS:
            raise FinetuneError(f"lr-find: expected --steps of at least {FEWEST_STEPS}, found {self.steps}")

    def factor(self, step: int, total_steps: int) -> float:
        """Return how many times the lowest rate a step has, counted from 0: the schedule of the test."""
        return float((self.highest / self.lowest) ** (step / (total_steps - 1)))


@dataclass
class Explosion:
    """Whether the running mean of the losses is over 4 times its lowest, and over the first loss."""

    mean: float = 0.0
    weight: float = 0.0
    first: float = math.nan
    lowest: float = math.inf

    def update(self, loss: float) -> bool:
        """Take the loss of one more step."""
        self.first = loss if math.isnan(self.first) else self.first
        self.weight = MEMORY * self.weight + 1 - MEMORY
        self.mean = MEMORY * self.mean + (1 - MEMORY) * loss
        mean = self.mean / self.weight
        self.lowest = min(self.lowest, mean)
        return mean > max(EXPLODED * self.lowest, self.first)


@dataclass(frozen=True)
class Advice:
    """What a curve says, in rates of two digits; a rate that it does not tell is None.

    `steepest` is where the smoothed loss falls fastest by the logarithm of the rate, `lowest` where it is lowest before
    it rises, `tenth_of_lowest` a tenth of that, `falls_from` where a tenth of the whole fall is done. Verdicts: it
    "falls" and names a rate; is "still-falling" fastest where it ends; is "flat"; is too "noisy" to show a fall;
    "rises" without having fallen.
    """

    verdict: Verdict
    steepest: float | None = None
    lowest: float | None = None
    tenth_of_lowest: float | None = None
    falls_from: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it as a report has it, without what it does not tell."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Curve:
    """The smoothed losses, and the advice that they give."""

    smoothed: list[float]
    advice: Advice


@dataclass(frozen=True)
class _Fit:
    """Smoothed losses and their slopes by log10 of the rate, each with its standard error; arrays of shape (points).

    `highest_noise` is the standard deviation of a loss where it is largest.
    """

    losses: Numbers
    slopes: Numbers
    loss_errors: Numbers
    slope_errors: Numbers
    highest_noise: float
    width_points: float


def read_curve(rates: Sequence[float], losses: Sequence[float], rows: Sequence[int], *, cut_short: bool) -> Curve:
    """Return what the losses of a range test say of its rates; `rows` are those of each step, which weigh its loss.

    The losses are smoothed by local linear regression (Cleveland 1979, with a Gaussian kernel), which looks at both
    sides and does not lag behind, as a running mean does. `cut_short`: it ended because the loss exploded, or was not
    finite any more. A step's loss is that before its update, so that rates come out one step too high at most.
    """
    import numpy as np

    if len(losses) < FEWEST_POINTS:
        return Curve([float(loss) for loss in losses], Advice("rises"))
    found = np.asarray(losses, dtype=float)
    level = float(np.median(found[: max(3, len(found) // 10)]))
    fit = _smooth(np.log10(rates), np.minimum(found, CAP * level), np.asarray(rows, dtype=float), LEAST_NOISE * level)
    return Curve(fit.losses.tolist(), _advise(rates, fit, level, cut_short=cut_short))


def _smooth(places: Numbers, losses: Numbers, weights: Numbers, least_noise: float) -> _Fit:
    """Fit a line about each place, near points counting most.

    The noise is that of normal losses whose second differences, which know no slope, are as large: over the whole curve
    by their median, and near the place by their mean, since losses at high rates are wilder.
    """
    import numpy as np

    bends = np.abs(np.diff(losses, 2)) / math.sqrt(6)
    usual = max(float(np.median(bends)) / 0.6745, least_noise)
    span, spacing = float(places[-1] - places[0]), float(places[1] - places[0])
    width = max(spacing, min(WIDTH_DECADES, span / 10))
    fitted = np.empty((5, len(places)))
    for number, place in enumerate(places):
        away = places - place
        near = weights * np.exp(-0.5 * (away / width) ** 2)
        moments = [float((near * away**power).sum()) for power in range(3)]
        scale = moments[0] * moments[2] - moments[1] ** 2
        for_loss = near * (moments[2] - moments[1] * away) / scale
        for_slope = near * (moments[0] * away - moments[1]) / scale
        noise = max(usual, float(np.average(bends, weights=near[1:-1])) / math.sqrt(2 / math.pi))
        errors = [noise * float(np.linalg.norm(one)) for one in (for_loss, for_slope)]
        fitted[:, number] = (for_loss @ losses, for_slope @ losses, *errors, noise)
    return _Fit(fitted[0], fitted[1], fitted[2], fitted[3], float(fitted[4].max()), width / spacing)


def _advise(rates: Sequence[float], fit: _Fit, level: float, *, cut_short: bool) -> Advice:
    import numpy as np

    points = len(fit.losses)
    end = _before_rise(fit, level)
    lowest = int(fit.losses[:end].argmin())
    slopes = np.where(fit.slopes < -CERTAIN * fit.slope_errors, fit.slopes, 0.0)[: lowest + 1]
    if not slopes.any():
        if end < points or cut_short:
            return Advice("rises")
        return Advice("noisy" if fit.highest_noise > TOO_NOISY * abs(level) else "flat")
    steepest = int(slopes.argmin())
    last = points - 1 - max(1, round(fit.width_points))  # behind it the curve does not show how it goes on
    named = end < points or steepest < last
    unfinished = end == points and lowest >= last and not cut_short
    return Advice(
        "falls" if named or not unfinished else "still-falling",
        steepest=_two_digits(rates[steepest]) if named else None,
        lowest=None if unfinished else _two_digits(rates[lowest]),
        tenth_of_lowest=None if unfinished else _two_digits(rates[lowest] / 10),
        falls_from=_two_digits(rates[_begin_of_fall(fit.losses, steepest, lowest)]),
    )


def _before_rise(fit: _Fit, level: float) -> int:
    """Return how many points there are before the loss has lost half of what it had won, and more than by chance.

    What comes behind is another story: a model that was thrown off its course may fall steeply, and say nothing of
    where training would go well.
    """
    import numpy as np

    lowest = np.minimum.accumulate(fit.losses)
    errors = np.maximum.accumulate(fit.loss_errors)  # at the ends of a curve they are largest
    enough = np.maximum(0.5 * (level - lowest), math.sqrt(2) * CERTAIN * errors)
    risen = np.flatnonzero(fit.losses - lowest > enough)
    return int(risen[0]) if len(risen) else len(fit.losses)


def _begin_of_fall(losses: Numbers, steepest: int, lowest: int) -> int:
    """Return the point from which a tenth of the whole fall is done for good."""
    import numpy as np

    top, bottom = float(losses[: steepest + 1].max()), float(losses[lowest])
    above = np.flatnonzero(losses[: lowest + 1] > top - BEGUN * (top - bottom))
    return min(int(above[-1]) + 1, steepest) if len(above) else 0


def _two_digits(rate: float) -> float:
    """Round a rate to what such a curve can tell."""
    return float(f"{rate:.1e}")
