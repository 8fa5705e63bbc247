"""Losses: functions from a model's scores and their targets to the loss of each, and what it counts as in a mean.

A loss is for one kind of targets or several (`of`): `classes`, one out of several, scores of shape (n, classes) and
targets of shape (n,); `label sets`, any number of labels, both of shape (n, labels), targets 0 or 1; `numbers`, both of
shape (n, numbers). Losses and counts have the targets' shape. What has to be known of the training rows first is
`fit` from how often each label is there, under the labels' names; it is stored with the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from finetune.errors import FinetuneError, suggestion
from finetune.registry import losses
from finetune.tasks import Fitted, Frequencies

if TYPE_CHECKING:
    import torch

Smoothing = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weights = Literal["balanced"] | dict[str, Positive] | None
Pair = tuple["torch.Tensor", "torch.Tensor"]

CLASS_WEIGHTS, POSITIVE_WEIGHTS, LOG_PRIORS = "class_weights", "positive_weights", "log_priors"


def fit_class_weights(frequencies: Frequencies, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return each class's weight: what the recipe gives, 1 where it is silent; or, balanced, scikit-learn's.

    That is n / (classes × n of the class), of the classes that have rows; one without any has no target to weigh.
    """
    given = options["class_weights"]
    if given is None:
        return {}
    if given != "balanced":
        return {CLASS_WEIGHTS: _given("class_weights", given, frequencies)}
    there = sum(count > 0 for count in frequencies.counts.values())
    return {
        CLASS_WEIGHTS: {
            label: frequencies.decisions / (there * count) if count else 1.0
            for label, count in frequencies.counts.items()
        }
    }


def fit_positive_weights(frequencies: Frequencies, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a label that is there counts as; balanced, as much as all rows together that do not have it."""
    given = options["positive_weights"]
    if given is None:
        return {}
    if given != "balanced":
        return {POSITIVE_WEIGHTS: _given("positive_weights", given, frequencies)}
    return {
        POSITIVE_WEIGHTS: {
            label: (frequencies.decisions - count) / count if 0 < count < frequencies.decisions else 1.0
            for label, count in frequencies.counts.items()
        }
    }


def fit_log_priors(frequencies: Frequencies, options: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """Return the logarithm of each class's share of the targets, one more row being given to each: none is 0."""
    import math

    total = frequencies.decisions + len(frequencies.counts)
    return {LOG_PRIORS: {label: math.log((count + 1) / total) for label, count in frequencies.counts.items()}}


def _given(setting: str, weights: Mapping[str, float], frequencies: Frequencies) -> dict[str, float]:
    unknown = [label for label in weights if label not in frequencies.counts]
    if unknown:
        raise FinetuneError(
            f"train.loss.{setting}: expected labels of the data, found {unknown[0]!r}"
            f"{suggestion(unknown[0], frequencies.counts)}"
        )
    return {label: float(weights.get(label, 1.0)) for label in frequencies.counts}


@losses.register("cross-entropy", of=("classes",), fit=fit_class_weights)
def cross_entropy(
    scores: torch.Tensor,
    targets: torch.Tensor,
    fitted: Fitted,
    *,
    label_smoothing: Smoothing = 0.0,
    class_weights: Weights = None,  # noqa: ARG001 -- fitted
) -> Pair:
    """Cross-entropy; with weights its mean is divided by their sum, as in `torch.nn.CrossEntropyLoss`.

    With smoothing so much of each target's probability is spread evenly over all classes (Szegedy et al. 2016).
    """
    import torch

    weights = _vector(fitted, CLASS_WEIGHTS, scores)
    found = torch.nn.functional.cross_entropy(
        scores, targets, weight=weights, reduction="none", label_smoothing=label_smoothing
    )
    return found, _counts(weights, targets, found)


@losses.register("focal", of=("classes",), fit=fit_class_weights)
def focal(
    scores: torch.Tensor,
    targets: torch.Tensor,
    fitted: Fitted,
    *,
    gamma: Annotated[float, Field(ge=0, le=10)] = 2.0,
    class_weights: Weights = None,  # noqa: ARG001 -- fitted
) -> Pair:
    """Cross-entropy times (1 - p)^gamma, p being the probability of the truth: what is easy counts little.

    Lin et al. 2017, https://arxiv.org/abs/1708.02002; with weights a mean is divided by their sum.
    """
    weights = _vector(fitted, CLASS_WEIGHTS, scores)
    everything = scores.log_softmax(dim=-1)
    logs = everything.gather(1, targets[:, None]).squeeze(1)
    # 1 - p as the sum of the others: rounding would leave nothing of it for a p near 1
    rest = everything.exp().scatter(1, targets[:, None], 0.0).sum(dim=-1)
    counts = _counts(weights, targets, logs)
    return -counts * _power(rest, gamma) * logs, counts


@losses.register("logit-adjustment", of=("classes",), fit=fit_log_priors)
def logit_adjustment(
    scores: torch.Tensor,
    targets: torch.Tensor,
    fitted: Fitted,
    *,
    strength: Annotated[float, Field(gt=0, le=5)] = 1.0,
    label_smoothing: Smoothing = 0.0,
) -> Pair:
    """Cross-entropy of scores to which each class's log share is added: the model need not learn what is frequent.

    Menon et al. 2021, https://arxiv.org/abs/2007.07314 (`strength` is its tau). It is added in training alone, so that
    what the model then says is balanced over classes; its probabilities are those of equally frequent ones.
    """
    import torch

    priors = _vector(fitted, LOG_PRIORS, scores)
    adjusted = scores if priors is None else scores + strength * priors
    found = torch.nn.functional.cross_entropy(adjusted, targets, reduction="none", label_smoothing=label_smoothing)
    return found, torch.ones_like(found)


@losses.register("binary-cross-entropy", of=("label sets",), fit=fit_positive_weights)
def binary_cross_entropy(
    scores: torch.Tensor,
    targets: torch.Tensor,
    fitted: Fitted,
    *,
    label_smoothing: Smoothing = 0.0,
    positive_weights: Weights = None,  # noqa: ARG001 -- fitted
) -> Pair:
    """Binary cross-entropy of each label; a mean is over decisions, as in `torch.nn.BCEWithLogitsLoss`.

    With smoothing a target is not 0 or 1 but half of it away from there.
    """
    import torch

    smooth = targets * (1 - label_smoothing) + label_smoothing / 2
    weights = _vector(fitted, POSITIVE_WEIGHTS, scores)
    found = torch.nn.functional.binary_cross_entropy_with_logits(scores, smooth, pos_weight=weights, reduction="none")
    return found, torch.ones_like(found)


@losses.register("binary-focal", of=("label sets",), fit=fit_positive_weights)
def binary_focal(
    scores: torch.Tensor,
    targets: torch.Tensor,
    fitted: Fitted,
    *,
    gamma: Annotated[float, Field(ge=0, le=10)] = 2.0,
    positive_weights: Weights = None,  # noqa: ARG001 -- fitted
) -> Pair:
    """Binary cross-entropy of each label times (1 - p)^gamma (Lin et al. 2017); a mean is over decisions."""
    import torch

    sign = 2 * targets - 1
    found = -_power(torch.sigmoid(-sign * scores), gamma) * torch.nn.functional.logsigmoid(sign * scores)
    weights = _vector(fitted, POSITIVE_WEIGHTS, scores)
    return found if weights is None else found * (1 + targets * (weights - 1)), torch.ones_like(found)


@losses.register("mse", of=("numbers",))
def mse(scores: torch.Tensor, targets: torch.Tensor, fitted: Fitted) -> Pair:  # noqa: ARG001
    """Return the squared error."""
    found = (scores - targets) ** 2
    return found, found.new_ones(found.shape)


@losses.register("mae", of=("numbers",))
def mae(scores: torch.Tensor, targets: torch.Tensor, fitted: Fitted) -> Pair:  # noqa: ARG001
    """Return the absolute error, which outliers move less."""
    found = (scores - targets).abs()
    return found, found.new_ones(found.shape)


@losses.register("huber", of=("numbers",))
def huber(
    scores: torch.Tensor,
    targets: torch.Tensor,
    fitted: Fitted,  # noqa: ARG001
    *,
    delta: Positive = 1.0,
) -> Pair:
    """Half the squared error up to `delta` standard deviations, linear beyond (Huber 1964, `torch.nn.HuberLoss`)."""
    import torch

    found = torch.nn.functional.huber_loss(scores, targets, reduction="none", delta=delta)
    return found, torch.ones_like(found)


def _vector(fitted: Fitted, name: str, scores: torch.Tensor) -> torch.Tensor | None:
    """Return what was fitted under a name, one number for each of the model's outputs."""
    values = fitted.get(name)
    return scores.new_tensor(list(values.values())) if values else None


def _power(rest: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return rest^gamma; below 1 its slope at 0 is infinite, and a loss that is 0 would have no gradient."""
    import torch

    return rest.clamp_min(torch.finfo(rest.dtype).tiny).pow(gamma)


def _counts(weights: torch.Tensor | None, targets: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return like.new_ones(like.shape) if weights is None else weights[targets]
