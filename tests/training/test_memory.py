"""A step that does not fit into the device's memory is computed in smaller parts, with the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.errors import FinetuneError
from finetune.learners import open_learner
from finetune.prepare import prepare
from finetune.progress import Silent
from finetune.recipe import load_recipe
from finetune.runtime import Runtime
from finetune.train import train
from finetune.training import loop
from finetune.training.batching import Batches
from finetune.training.loop import Learner
from tests.conftest import RecipeMaker
from tests.planning.world import CPU, Plans
from tests.training.test_loop import make_features, make_learner, take_steps

Backward = Callable[..., Any]


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a backward pass of more than three rows run out of memory when it is half done; returns what was tried."""
    true, tried = loop._backward, []

    def backward(learner: Learner, batch: Any, share: int) -> Any:
        rows = len(batch.inputs["input_ids"])
        tried.append(rows)
        found = true(learner, batch, share)
        if rows > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(loop, "_backward", backward)
    return tried


def test_the_gradients_are_those_of_a_memory_that_is_large_enough(
    still_model: Path, small_memory: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = make_features(still_model, 24)
    cramped = make_learner(still_model)
    found = take_steps(cramped, features, steps=6, batch_size=12, accumulation=1)
    assert cramped.rows_that_fit == 3
    assert small_memory[:3] == [12, 6, 3], "halved until it fits"
    assert max(small_memory[3:]) == 3, "and not tried again"
    monkeypatch.undo()
    expected = take_steps(make_learner(still_model), features, steps=6, batch_size=12)
    assert [step.gradient_norm for step in found] == pytest.approx([s.gradient_norm for s in expected], rel=1e-4)
    assert [step.loss for step in found] == pytest.approx([s.loss for s in expected], rel=1e-4)


def test_a_row_that_does_not_fit_by_itself_is_one_message(still_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(loop, "_backward", full)
    with pytest.raises(FinetuneError, match=r"1 rows at a time do not fit into the memory of cpu\. Lower train"):
        take_steps(make_learner(still_model), make_features(still_model, 8), steps=1)


def test_rows_that_are_compared_with_each_other_are_not_divided(tmp_path: Path, small_memory: list[int]) -> None:
    plans = Plans(tmp_path)
    recipe = plans.recipe("embedding")
    learner, spec = open_learner(recipe, plans.data(recipe), CPU, Silent())
    assert not learner.divisible
    features = plans.data(recipe).split("train").features
    with pytest.raises(FinetuneError, match="16 rows at a time do not fit"):
        next(
            loop.optimizer_steps(
                learner, features, Batches.of(recipe, features, spec, "cpu").epoch, learning_rate=1e-3,
                schedule=lambda *_: 1.0, total_steps=1, max_gradient_norm=None, seed=1,
            )
        )  # fmt: skip
    assert small_memory == [16], "eight pairs"


def test_training_says_once_how_many_rows_fit(
    make_recipe: RecipeMaker, tmp_path: Path, small_memory: list[int]
) -> None:
    said: list[str] = []

    class Telling(Silent):
        def note(self, message: str) -> None:
            said.append(message)

    recipe = load_recipe(make_recipe(train={"max_steps": 3}))
    data = prepare(recipe, tmp_path / "data")
    train(recipe, data, tmp_path / "run", runtime=Runtime("cpu", threads=1), progress=Telling())
    assert [one for one in said if "memory holds" in one] == [
        "memory holds 2 rows at a time from here on; the gradients are the same"
    ]
    assert 8 in small_memory
