"""How several models of one task answer as one: what is averaged of their raw outputs, and of what was fitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    import torch

Fitted = Mapping[str, Any]
# From the raw outputs of each model for the same windows, and what was fitted beside each, to those of one model
Average = Callable[[Sequence["torch.Tensor"], Sequence[Fitted]], "torch.Tensor"]


@dataclass(frozen=True)
class Voting:
    """How raw outputs of several models become those of one, and what of them is averaged, as people read it."""

    averages: str
    average: Average


class Member(Protocol):
    """A model that votes: a `Predictor`."""

    @property
    def forward(self) -> Callable[[Mapping[str, torch.Tensor]], torch.Tensor]:
        """What gives the task's raw outputs for the inputs of a batch."""

    @property
    def fitted(self) -> Fitted:
        """What was fitted beside its weights."""

    def in_threads(self, threads: int) -> Self:
        """Return the same for another number of threads."""


@dataclass(frozen=True)
class Ensemble:
    """Several models as one, which says the average of what they say."""

    members: Sequence[Member]
    voting: Voting

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the average of the members' raw outputs for a batch."""
        outputs = [member.forward(inputs).float() for member in self.members]
        return self.voting.average(outputs, [member.fitted for member in self.members])

    def in_threads(self, threads: int) -> Ensemble:
        """Return the same for another number of threads."""
        return replace(self, members=[member.in_threads(threads) for member in self.members])


def mean_of_probabilities(outputs: Sequence[torch.Tensor], fitted: Sequence[Fitted]) -> torch.Tensor:  # noqa: ARG001
    """Return logits, shape (..., classes), whose softmax is the mean of the softmax of each model's logits."""
    import torch

    return torch.stack([part.log_softmax(dim=-1) for part in outputs]).logsumexp(dim=0) - math.log(len(outputs))


def mean_of_label_probabilities(outputs: Sequence[torch.Tensor], fitted: Sequence[Fitted]) -> torch.Tensor:  # noqa: ARG001
    """Return logits, shape (..., labels), whose sigmoid is the mean of the sigmoid of each model's logits."""
    import torch
    from torch.nn.functional import logsigmoid

    given = torch.stack(list(outputs))
    return logsigmoid(given).logsumexp(dim=0) - logsigmoid(-given).logsumexp(dim=0)


def mean_of_scores(outputs: Sequence[torch.Tensor], fitted: Sequence[Fitted]) -> torch.Tensor:  # noqa: ARG001
    """Return the mean of each model's outputs."""
    import torch

    return torch.stack(list(outputs)).mean(dim=0)


def mean_of_fitted(fitted: Sequence[Fitted]) -> dict[str, Any]:
    """Return the mean of each number that was fitted beside several models, over those that have it; any of truths."""
    names = dict.fromkeys(name for one in fitted for name in one)
    return {name: _mean([one[name] for one in fitted if name in one]) for name in names}


def _mean(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return mean_of_fitted(values)
    return any(values) if isinstance(values[0], bool) else sum(values) / len(values)
