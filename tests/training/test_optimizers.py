"""Optimizers: which parameters decay, and the same steps as torch's own."""

from __future__ import annotations

import torch

from finetune.training.optimizers import adamw


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
