"""Optimizers: which parameters decay, and the same steps as torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from finetune import registry
from finetune.training.optimizers import adamw, give_rates


def test_biases_and_norms_do_not_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    groups = adamw(model.named_parameters(), 0.1, weight_decay=0.3).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] == 0.3 for p in group["params"]}
    spared = {id(p) for group in groups if group["weight_decay"] == 0.0 for p in group["params"]}
    assert decayed == {id(model[0].weight)}
    assert spared == {id(model[0].bias), id(model[1].weight), id(model[1].bias)}


def test_frozen_parameters_are_left_out() -> None:
    model = torch.nn.Linear(4, 4)
    model.weight.requires_grad_(False)
    groups = adamw(model.named_parameters(), 0.1).param_groups
    assert [id(p) for group in groups for p in group["params"]] == [id(model.bias)]


def test_steps_are_those_of_torch() -> None:
    ours, theirs = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    optimizer = adamw(ours.named_parameters(), 0.05, weight_decay=0.0, betas=[0.8, 0.95], eps=1e-7)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.05, weight_decay=0.0, betas=(0.8, 0.95), eps=1e-7)
    for step in range(4):
        for model, stepper in ((ours, optimizer), (theirs, reference)):
            stepper.zero_grad()
            (model(torch.full((2, 3), 1.0 + step)) ** 2).sum().backward()
            stepper.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


# Each optimizer of ours with options, and torch's own with the same
REFERENCES: dict[str, tuple[dict[str, Any], Any]] = {
    "adamw": ({"betas": [0.8, 0.95], "eps": 1e-7},
              lambda groups: torch.optim.AdamW(groups, lr=0.05, betas=(0.8, 0.95), eps=1e-7)),
    "adam": ({"betas": [0.8, 0.95], "eps": 1e-7},
             lambda groups: torch.optim.Adam(groups, lr=0.05, betas=(0.8, 0.95), eps=1e-7)),
    "sgd": ({"momentum": 0.7, "nesterov": True},
            lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.7, nesterov=True)),
    "rmsprop": ({"alpha": 0.9, "momentum": 0.5, "centered": True},
                lambda groups: torch.optim.RMSprop(groups, lr=0.05, alpha=0.9, momentum=0.5, centered=True)),
    "adagrad": ({"eps": 1e-9}, lambda groups: torch.optim.Adagrad(groups, lr=0.05, eps=1e-9)),
    "adafactor": ({"beta2_decay": -0.7, "clip": 1.5},
                  lambda groups: torch.optim.Adafactor(groups, lr=0.05, beta2_decay=-0.7, d=1.5)),
}  # fmt: skip


def test_every_optimizer_has_its_reference() -> None:
    assert set(REFERENCES) == set(registry.optimizers.names())


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_each_optimizers_first_steps_are_those_of_torch(name: str, weight_decay: float) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    before = ours.weight.clone()
    options, reference = REFERENCES[name]
    make = registry.optimizers.get(name).build({**options, "weight_decay": weight_decay})
    groups = [
        {"params": [theirs.weight], "weight_decay": weight_decay},
        {"params": [theirs.bias], "weight_decay": 0.0},
    ]
    steppers = [(ours, make(ours.named_parameters(), 0.05)), (theirs, reference(groups))]
    for step in range(6):
        for model, stepper in steppers:
            stepper.zero_grad()
            (model(torch.full((2, 3), 1.0 + step)) ** 2).sum().backward()
            stepper.step()
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(ours.weight, before)


def test_nesterov_without_momentum_is_refused() -> None:
    check = registry.optimizers.get("sgd").attributes["check"]
    check({"momentum": 0.5, "nesterov": True})
    with pytest.raises(ValueError, match="momentum above 0"):
        check({"momentum": 0.0, "nesterov": True})


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_parameters_learn_at_their_own_rates(name: str) -> None:
    """The same step as with two optimizers of torch's, each with its own learning rate."""
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    rates = {key: 0.25 for key, _ in ours.named_parameters() if key.startswith("0.")}
    make = registry.optimizers.get(name).build({})
    optimizer = make(ours.named_parameters(), 0.1)
    give_rates(optimizer, ours, rates)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4
    slow, fast = make(theirs[0].named_parameters(), 0.025), make(theirs[1].named_parameters(), 0.1)
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * group.get("factor", 1.0)
        for model, steppers in ((ours, [optimizer]), (theirs, [slow, fast])):
            model.zero_grad()
            (model(torch.full((2, 3), 1.0 + step)) ** 2).sum().backward()
            for stepper in steppers:
                stepper.step()
    for (key, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(mine, other, msg=key)
