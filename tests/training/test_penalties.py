"""Penalties: their gradients are those of the terms that they stand for, for weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.recipe import PenaltySection, Recipe
from finetune.training.penalties import Penalty
from tests.training.test_loop import make_features, make_learner, take_steps


def model_of(*, frozen: bool = False) -> torch.nn.Module:
    torch.manual_seed(2)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 2)).double()
    model[0].requires_grad_(not frozen)
    return model


@pytest.mark.parametrize("around", ["zero", "start"])
@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.3), (0.02, 0.0), (0.02, 0.3)])
def test_the_gradients_are_those_of_the_terms(l1: float, l2: float, around: str) -> None:
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double()
    ours, theirs = model_of(), model_of()
    penalty = Penalty(ours, PenaltySection.model_validate({"l1": l1, "l2": l2, "around": around}))
    start = [p.detach().clone() for p in theirs.parameters()]
    for model in (ours, theirs):  # away from where it began
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.3).add_(0.05)
    (ours(inputs) ** 2).mean().backward()
    penalty.add_gradients()
    loss = (theirs(inputs) ** 2).mean()
    for parameter, began in zip(theirs.parameters(), start, strict=True):
        if parameter.ndim >= 2:
            away = parameter - began if around == "start" else parameter
            loss = loss + l1 * away.abs().sum() + l2 / 2 * (away**2).sum()
    loss.backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-14)


def test_what_is_frozen_has_no_term() -> None:
    model = model_of(frozen=True)
    penalty = Penalty(model, PenaltySection(l2=1.0))
    model(torch.ones(1, 4).double()).sum().backward()
    penalty.add_gradients()
    assert model[0].weight.grad is None


def test_training_with_a_penalty_leaves_smaller_weights(still_model: Path) -> None:
    features = make_features(still_model, 16)
    norms = []
    for section in (None, PenaltySection(l2=0.5)):
        learner = make_learner(still_model)
        learner.penalty = Penalty(learner.model, section) if section else None
        take_steps(learner, features, steps=10)
        norms.append(sum(float(p.detach().norm()) for p in learner.model.parameters() if p.ndim >= 2))
    assert norms[1] < 0.99 * norms[0]


@pytest.mark.parametrize(
    ("penalty", "message"),
    [({}, "expected `l1` or `l2` above 0"), ({"l2": -1}, "greater than or equal to 0"), ({"l3": 1}, "l3")],
)
def test_a_penalty_that_is_none_is_refused(penalty: dict[str, Any], message: str) -> None:
    values = {"name": "x", "task": "regression", "data": {"source": "x"}, "model": {"id": "x"}}
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate({**values, "train": {"penalty": penalty}})
