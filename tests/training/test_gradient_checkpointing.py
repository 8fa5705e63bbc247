"""Activations that are computed twice: the same losses and gradients, dropout and all, with every layer run twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from finetune.errors import FinetuneError
from finetune.learners import open_learner
from finetune.pipeline import Job
from finetune.progress import Silent
from finetune.training.batching import Batches
from finetune.training.loop import Step, optimizer_steps
from tests.planning.world import CPU, Plans, old_model


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    return Plans(tmp_path_factory.mktemp("twice"))


def trained(plans: Plans, kind: str, *, twice: bool, **sections: Any) -> tuple[list[Step], int]:
    """Return four steps of a training, and how often its last layer was run."""
    settings = {"gradient_checkpointing": twice, "learning_rate": 5e-3}
    recipe = plans.recipe(kind, train={**settings, "batch_size": 4, "gradient_accumulation": 2}, **sections)
    data = plans.data(recipe)
    learner, spec = open_learner(recipe, data, CPU, Silent())
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    names = ("encoder.layer.1", "model.layers.1", "decoder.block.1")
    layer = next(module for name, module in learner.model.named_modules() if name.endswith(names))
    next(module for module in layer.modules() if isinstance(module, torch.nn.Linear)).register_forward_hook(count)
    features = data.split("train").features
    steps = optimizer_steps(
        learner,
        features,
        Batches.of(recipe, features, spec, "cpu").epoch,
        learning_rate=5e-3,
        schedule=lambda *_: 1.0,
        total_steps=4,
        max_gradient_norm=1.0,
        seed=recipe.seed,
    )
    return list(steps), calls


@pytest.mark.parametrize(
    ("kind", "sections"),
    [
        pytest.param("text-classification", {"model": {"dropout": 0.3}}, id="bert"),
        pytest.param("causal-lm", {"model": {"dropout": 0.3}}, id="llama"),
        pytest.param("causal-lm packed", {"model": {"dropout": 0.3}}, id="llama, packed"),
        pytest.param("seq2seq", {"model": {"dropout": 0.3}}, id="t5"),
        pytest.param("text-classification", {"adapter": "lora"}, id="adapters"),
        pytest.param("text-classification", {"freeze": {"name": "first-layers", "count": 1}}, id="frozen layers"),
    ],
)
def test_losses_and_gradients_are_the_same_with_dropout(plans: Plans, kind: str, sections: dict[str, Any]) -> None:
    (once, calls), (again, _), (twice, doubled) = (
        trained(plans, kind, twice=twice, **sections) for twice in (False, False, True)
    )
    assert [step.loss for step in once] == [step.loss for step in again], "dropout is drawn from seed and step"
    assert [step.loss for step in twice] == pytest.approx([step.loss for step in once], abs=1e-6)
    assert [step.gradient_norm for step in twice] == pytest.approx([step.gradient_norm for step in once], abs=1e-6)
    assert (calls, doubled) == (8, 16), "micro-batches, and all of them a second time"


def test_dropout_is_on_in_these_losses(plans: Plans) -> None:
    """Otherwise the test above would say nothing of it."""
    with_it, without = (
        trained(plans, kind, twice=True, model={"dropout": rate})[0]
        for kind, rate in (("causal-lm", 0.3), ("causal-lm", 0.0))
    )
    assert abs(with_it[0].loss - without[0].loss) > 1e-4


def test_a_family_that_cannot_do_it_is_refused(plans: Plans) -> None:
    folder = old_model(plans.folder / "old")
    recipe = plans.recipe("text-classification", model={"id": str(folder)}, train={"gradient_checkpointing": True})
    with pytest.raises(FinetuneError) as caught:
        Job(recipe, plans.folder / "out", CPU).run(asked=True)
    assert str(caught.value) == (
        "train.gradient_checkpointing: models of the family openai-gpt cannot do it; remove it"
    )
    with pytest.raises(FinetuneError, match="train.gradient_checkpointing: .* openai-gpt cannot do it"):
        Job(recipe, plans.folder / "out", CPU).plan()
    assert not (plans.folder / "out" / "run").exists()
    assert not (plans.folder / "out" / "plan").exists()
