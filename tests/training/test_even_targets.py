"""Targets of rows of any length count the same, though batches hold rows of like length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.data.tokenization import NO_TARGET
from finetune.learners import open_learner
from finetune.progress import Silent
from finetune.tasks import Batch
from finetune.training.loop import Learner, optimizer_steps
from tests.planning.world import CPU, Plans

KINDS = ["seq2seq", "causal-lm", "causal-lm packed", "causal-lm answers"]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    return Plans(tmp_path_factory.mktemp("even"))


def opened(plans: Plans, kind: str) -> tuple[Learner, Any]:
    recipe = plans.recipe(kind, model={"dropout": 0.0})
    data = plans.data(recipe)
    return open_learner(recipe, data, CPU, Silent())[0], data.split("train").features


def gradients(learner: Learner, features: Any, groups: list[list[list[int]]]) -> list[dict[str, torch.Tensor]]:
    """Return the gradients of each step, the model staying as it is."""
    found: list[dict[str, torch.Tensor]] = []

    class Standing:
        param_groups: list[Any] = []  # noqa: RUF012 -- no learning rate to set

        def step(self) -> None:
            found.append({n: p.grad.clone() for n, p in learner.model.named_parameters() if p.grad is not None})

        def zero_grad(self) -> None:
            learner.model.zero_grad()

    learner.optimizer = Standing()  # type: ignore[assignment]
    steps = optimizer_steps(
        learner, features, lambda _: groups, learning_rate=1.0, schedule=lambda *_: 1.0, total_steps=len(groups),
        max_gradient_norm=None, seed=1,
    )  # fmt: skip
    assert len(list(steps)) == len(groups)
    return found


def by_length(features: Any, size: int) -> list[list[list[int]]]:
    order = sorted(range(len(features)), key=lambda window: len(features[window]["label_ids"]))
    order = order[: len(order) // size * size]
    return [[order[start : start + size]] for start in range(0, len(order), size)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_number_of_targets_is_that_of_the_training_windows(plans: Plans, kind: str) -> None:
    learner, features = opened(plans, kind)
    counts = [sum(label != NO_TARGET for label in features[window]["label_ids"]) for window in range(len(features))]
    assert learner.targets_per_window == pytest.approx(sum(counts) / len(counts))
    assert len(set(counts)) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_over_an_epoch_of_rows_of_like_length_each_target_counts_the_same(plans: Plans, kind: str) -> None:
    """The mean gradient of steps by length is that of one step with all rows; with their own divisors it is not."""
    learner, features = opened(plans, kind)
    steps = by_length(features, 6)
    together = [[[window for step in steps for window in step[0]]]]
    [whole] = gradients(learner, features, together)
    parts = gradients(learner, features, steps)
    for name, expected in whole.items():
        mean = torch.stack([part[name] for part in parts]).mean(dim=0)
        torch.testing.assert_close(mean, expected, rtol=2e-3, atol=1e-5, msg=name)
    learner.targets_per_window = None
    [whole] = gradients(learner, features, together)
    parts = gradients(learner, features, steps)
    far = [torch.stack([part[name] for part in parts]).mean(dim=0) - one for name, one in whole.items()]
    norm = torch.nn.utils.get_total_norm(list(whole.values()))
    assert torch.nn.utils.get_total_norm(far) > 0.01 * norm


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_of_any_size_give_the_same_gradients(plans: Plans, kind: str) -> None:
    learner, features = opened(plans, kind)
    windows = list(range(8))
    found = [
        gradients(learner, features, [[windows[start : start + size] for start in range(0, 8, size)]])[0]
        for size in (8, 2, 1)
    ]
    for name, expected in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(other[name], expected, rtol=1e-3, atol=1e-5, msg=name)


def test_the_loss_that_is_told_is_still_the_mean_over_the_steps_own_targets(plans: Plans) -> None:
    learner, features = opened(plans, "seq2seq")
    steps = by_length(features, 6)
    taken = optimizer_steps(
        learner, features, lambda _: steps, learning_rate=0.0, schedule=lambda *_: 1.0, total_steps=2,
        max_gradient_norm=None, seed=1,
    )  # fmt: skip
    losses = [step.loss for step in taken]
    for loss, step in zip(losses, steps, strict=False):
        batch: Batch = learner.task.collate([features[window] for window in step[0]], learner.tokenizer)
        with torch.no_grad():
            total, count = learner.task.loss(learner.task.forward(learner.model, batch.inputs), batch, {})
        assert loss == pytest.approx(float(total / count), rel=1e-5)


def test_where_a_row_has_one_target_nothing_changes(tmp_path: Path) -> None:
    plans = Plans(tmp_path)
    recipe = plans.recipe("text-classification")
    assert open_learner(recipe, plans.data(recipe), CPU, Silent())[0].targets_per_window is None
