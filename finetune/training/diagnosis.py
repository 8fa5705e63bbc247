"""What learning curves show, and what to change: rules over the numbers of a log, as docs/training.md has them."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any, Literal

from finetune.recipe import Part, Recipe
from finetune.tasks import Frequencies
from finetune.training.advice import calmer, evaluate_more, fit_more, less_fit, longer, surer_than_right
from finetune.training.curves import LOSS, Curve, Mean, Scores

Name = Literal["underfitting", "overfitting", "still-improving", "unstable", "fine", "cannot-tell"]


@dataclass(frozen=True)
class Thresholds:
    """Where the rules draw their lines; docs/training.md says what each is for, and a test that both agree."""

    evaluations: int = 4
    noise: float = 4.0
    visible: float = 0.01
    evaluations_after: int = 4
    evaluations_after_large: int = 2
    large_rise: float = 0.2
    fallen: float = 0.05
    far_below: float = 0.5
    metric_noise: float = 3.0
    improving: float = 0.05
    unstable_rise: float = 0.2
    unstable_scale: float = 0.05
    unstable_noise: float = 6.0
    chance: float = 0.9


LIMITS = Thresholds()


@dataclass(frozen=True)
class Finding:
    """What a rule found: since which step it holds if it has one, the numbers, and what to change, in sentences."""

    name: Name
    evidence: str
    change: tuple[str, ...] = ()
    step: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the finding as manifests and reports hold it."""
        return {**asdict(self), "change": list(self.change)}


def diagnose(curve: Curve, recipe: Recipe, chance: float | None = None) -> list[Finding]:
    """Return what the curves of a training show, at least one finding.

    `chance` is the training loss of one who knows nothing but how frequent each label is (`chance_loss`); without it
    nothing is said of underfitting.
    """
    loss, decisive = curve.scores.get(LOSS), curve.scores.get(curve.decisive)
    found = [_unstable(curve, recipe), _underfitting(curve, recipe, chance)]
    if loss is not None and loss.values and decisive is not None:
        found.append(_overfitting(curve, loss, recipe) or _still_improving(loss, decisive, curve, recipe))
    findings = [finding for finding in found if finding is not None]
    evaluations = len(decisive.values) if decisive is not None else 0
    few = evaluations < LIMITS.evaluations or curve.smoothed is None
    if few and not any(finding.name in {"overfitting", "still-improving"} for finding in findings):
        findings.append(_cannot_tell(curve, evaluations, recipe))
    elif not findings:
        assert decisive is not None
        findings.append(_fine(decisive))
    return findings


def chance_loss(default: str | None, chosen: Part | None, frequencies: Frequencies | None) -> float | None:
    """Return the training loss of one who knows nothing but how frequent each label is, if that is known.

    `default` is the loss of the task, `chosen` the recipe's: with weights, smoothing or another loss it is not known.
    For `cross-entropy` it is the entropy of the labels, for `binary-cross-entropy` that of each label's being there,
    on average over labels, and for `mse` 1, since targets are standardized.
    """
    if chosen is not None and (chosen.name != default or any(chosen.options.values())):
        return None
    if default == "mse":
        return 1.0
    if default not in {"cross-entropy", "binary-cross-entropy"} or frequencies is None or not frequencies.decisions:
        return None
    shares = [count / frequencies.decisions for count in frequencies.counts.values()]
    if default == "cross-entropy":
        return sum(map(_surprise, shares))
    return statistics.fmean(_surprise(share) + _surprise(1 - share) for share in shares)


def _surprise(share: float) -> float:
    return -share * math.log(share) if share > 0 else 0.0


def _overfitting(curve: Curve, loss: Scores, recipe: Recipe) -> Finding | None:
    """Validation loss has turned and rises, while training loss falls on or is far below it already."""
    step, lowest, after = loss.steps[loss.best], loss.values[loss.best], loss.values[loss.best + 1 :]
    trained = curve.means_around(step)
    if trained is None or not _has_risen(loss) or not _fits_on(*trained, lowest):
        return None
    evidence = (
        f"validation loss was lowest at step {step:,} ({lowest:.4g}) and {statistics.median(after):.4g} at the median "
        f"of the {len(after)} evaluations since, while training loss went from {trained[0].value:.4g} to "
        f"{trained[1].value:.4g}"
    )
    metric = _metric_beside(curve)
    course = _course_since(metric, step) if metric else None
    if metric and course:
        at, words = metric.steps.index(step), {"rose": "improved all the same", "fell": "got worse too"}
        evidence += (
            f"; {metric.name} {words.get(course, 'did not clearly change')} ({metric.values[at]:.4g} at step {step:,}, "
            f"{statistics.median(metric.values[at + 1 :]):.4g} at the median since)"
        )
    if metric and course == "rose":
        return Finding("overfitting", evidence, surer_than_right(curve, metric), step)
    return Finding("overfitting", evidence, less_fit(curve, recipe, step), step)


def _has_risen(loss: Scores) -> bool:
    """Tell whether the validation losses after the lowest are above it by more than noise explains.

    The lowest of several is low by chance too: what they are held against is the median of it and its neighbours.
    """
    values, after = loss.values, loss.values[loss.best + 1 :]
    if len(after) < LIMITS.evaluations_after_large:
        return False
    base = statistics.median(values[max(0, loss.best - 1) : loss.best + 2])
    visible = LIMITS.visible * loss.spread
    if len(after) >= LIMITS.evaluations_after:
        rise = statistics.median(after[1:]) - base
        if rise > 0 and rise >= max(LIMITS.noise * loss.noise, visible):
            return True
    rise = statistics.median(after) - base
    return rise > 0 and rise >= max(LIMITS.large_rise * base, loss.noise, visible)


def _fits_on(before: Mean, end: Mean, lowest: float) -> bool:
    """Tell whether the training rows are fitted better and better, or far better than the others, from then on."""
    fall = before.value - end.value
    falls = fall >= max(LIMITS.noise * math.hypot(before.error, end.error), LIMITS.fallen * before.value)
    return falls or end.value <= LIMITS.far_below * lowest


def _metric_beside(curve: Curve) -> Scores | None:
    """Return the metric beside the loss: that of early stopping, or the first that is defined at every evaluation."""
    count = len(curve.scores[LOSS].values)
    names = [curve.decisive, *curve.scores]
    full = (curve.scores[name] for name in names if name != LOSS and name in curve.scores)
    return next((scores for scores in full if len(scores.values) == count), None)


def _course_since(metric: Scores, step: int) -> Literal["rose", "held", "fell"]:
    """Tell whether a metric got better, stayed or got worse after a step, by more than noise explains.

    What came later has to be on one side of the value at the step, and clearly of its median with its neighbours.
    """
    at, gains = metric.steps.index(step), metric.gains
    since = statistics.median(gains[at + 1 :])
    change = since - statistics.median(gains[max(0, at - 1) : at + 2])
    clear = abs(change) > max(LIMITS.visible * metric.spread, LIMITS.metric_noise * metric.noise)
    if not clear or change * (since - gains[at]) <= 0:
        return "held"
    return "rose" if change > 0 else "fell"


def _still_improving(loss: Scores, decisive: Scores, curve: Curve, recipe: Recipe) -> Finding | None:
    """In the last third the decisive score has gained a good part of all it gained, and the loss did not rise."""
    count = len(decisive.values)
    if count < LIMITS.evaluations or len(loss.values) != count:
        return None
    last, gains = count // 3, decisive.gains
    gain, whole = _late_gain(gains, last), max(gains) - gains[0]
    uncertain = decisive.noise * math.sqrt(1 + 1 / last)
    before = max(range(count - last), key=gains.__getitem__)
    enough = max(LIMITS.improving * whole, LIMITS.noise * uncertain, LIMITS.visible * abs(gains[before]))
    loss_rises = _late_gain(loss.gains, last) < -LIMITS.noise * loss.noise
    if gain <= 0 or gain < enough or loss_rises:
        return None
    evidence = (
        f"validation {decisive.name} went from {decisive.values[before]:.4g} (step {decisive.steps[before]:,}) to "
        f"{decisive.values[-1]:.4g} (step {decisive.steps[-1]:,}): the last {last} of {count} evaluations brought "
        f"{gain / whole:.0%} of all that was gained"
    )
    return Finding("still-improving", evidence, longer(curve, recipe), decisive.steps[before])


def _late_gain(gains: list[float], last: int) -> float:
    """Return by how much the last values are better on average than the best before them."""
    return statistics.fmean(gains[-last:]) - max(gains[:-last])


def _unstable(curve: Curve, recipe: Recipe) -> Finding | None:
    """The smoothed training loss rises, by more than noise and far above what it had reached."""
    smoothed = curve.smoothed
    if smoothed is None:
        return None
    means, low, worst = smoothed.means, 0, (0, 0)
    for index, mean in enumerate(means):
        low = index if mean < means[low] else low
        rise = mean - means[low]
        needed = max(
            LIMITS.unstable_rise * means[low],
            LIMITS.unstable_scale * means[0],
            LIMITS.unstable_noise * math.hypot(smoothed.errors[low], smoothed.errors[index]),
        )
        if rise > max(needed, means[worst[1]] - means[worst[0]]):
            worst = (low, index)
    if worst == (0, 0):
        return None
    low, high = worst
    evidence = (
        f"training loss rose from {means[low]:.4g} around step {curve.steps[low]:,} to {means[high]:.4g} around step "
        f"{curve.steps[high]:,}, and is {means[-1]:.4g} at the end; the largest gradient norm on the way was "
        f"{max(curve.gradient_norms[low : high + 1]):.3g}, where {statistics.median(curve.gradient_norms):.3g} is usual"
    )
    return Finding("unstable", evidence, calmer(curve, recipe, low, high), curve.steps[low])


def _underfitting(curve: Curve, recipe: Recipe, chance: float | None) -> Finding | None:
    """Neither loss is clearly below what the frequencies of the labels alone give."""
    loss, last = curve.scores.get(LOSS), curve.losses[-curve.window :]
    if len(last) < curve.window or loss is None or not loss.values or not chance:
        return None
    trained, lowest = statistics.fmean(last), min(loss.values)
    if min(trained, lowest) < LIMITS.chance * chance:
        return None
    evidence = (
        f"training loss is {trained:.4g} at the end and validation loss {lowest:.4g} at its lowest; "
        f"guessing by the targets' frequencies alone gives {chance:.4g}"
    )
    return Finding("underfitting", evidence, fit_more(recipe))


def _cannot_tell(curve: Curve, evaluations: int, recipe: Recipe) -> Finding:
    evidence = (
        f"{evaluations} evaluation{'s' * (evaluations != 1)} in {curve.steps[-1] if curve.steps else 0:,} steps cannot "
        "show whether validation still improves or gets worse"
    )
    return Finding("cannot-tell", evidence, evaluate_more(curve, recipe, too_few=evaluations < LIMITS.evaluations))


def _fine(decisive: Scores) -> Finding:
    return Finding(
        "fine",
        f"validation {decisive.name} was best at step {decisive.steps[decisive.best]:,} "
        f"({decisive.values[decisive.best]:.4g}) of {decisive.steps[-1]:,}, and none of the other rules holds in "
        f"{len(decisive.values)} evaluations",
    )
