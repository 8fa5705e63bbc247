"""Losses that a recipe chooses, in whole trainings: what is fitted on which rows, and gradients that add up."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from finetune import registry
from finetune.data.tokenization import NO_TARGET
from finetune.errors import FinetuneError, RecipeError
from finetune.learners import open_learner
from finetune.progress import Silent
from finetune.tasks import open_task
from finetune.training.batching import Batches, step_groups
from finetune.training.loop import Learner, optimizer_steps, training_batch
from tests.planning.world import CPU, Plans

CHOSEN: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "text-classification": [
        ("cross-entropy", {"class_weights": "balanced", "label_smoothing": 0.1}),
        ("focal", {"class_weights": {"fruit": 4.0}}),
        ("logit-adjustment", {}),
    ],
    "token-classification": [
        ("cross-entropy", {"class_weights": "balanced"}),
        ("focal", {"gamma": 1.0}),
        ("logit-adjustment", {"strength": 0.5}),
    ],
    "multi-label": [
        ("binary-cross-entropy", {"positive_weights": "balanced", "label_smoothing": 0.05}),
        ("binary-focal", {"positive_weights": {"tool": 2.0}}),
    ],
    "regression": [("mae", {}), ("huber", {"delta": 0.5})],
}
PAIRS = [(task, *loss) for task, some in CHOSEN.items() for loss in some]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    return Plans(tmp_path_factory.mktemp("losses"))


def opened(plans: Plans, task: str, loss: str, options: dict[str, Any]) -> tuple[Learner, Any]:
    """Return a learner without dropout, whose loss is the chosen one, and its training rows."""
    recipe = plans.recipe(task, model={"dropout": 0.0}, train={"loss": {"name": loss, **options}})
    data = plans.data(recipe)
    return open_learner(recipe, data, CPU, Silent())[0], data.split("train")


def test_every_loss_is_tried_in_a_training() -> None:
    assert {loss for _, loss, _ in PAIRS} | {"mse"} == set(registry.losses.names())


@pytest.mark.parametrize(("task", "loss", "options"), PAIRS)
def test_micro_batches_of_any_size_give_the_same_gradients(
    plans: Plans, task: str, loss: str, options: dict[str, Any]
) -> None:
    norms = []
    for size, accumulation in ((8, 1), (3, 3), (1, 8)):
        learner, split = opened(plans, task, loss, options)
        groups = step_groups(list(range(8)), batch_size=size, accumulation=accumulation, seed=1, epoch=0)
        (step,) = optimizer_steps(
            learner, split.features, lambda _, groups=groups: groups, learning_rate=0.0, schedule=lambda *_: 1.0,
            total_steps=1, max_gradient_norm=None, seed=1,
        )  # fmt: skip
        norms.append((step.loss, step.gradient_norm))
    for found in norms[1:]:
        assert found == pytest.approx(norms[0], rel=1e-4)


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_balanced_weights_are_of_what_training_learns_from(plans: Plans, task: str) -> None:
    learner, split = opened(plans, task, "cross-entropy", {"class_weights": "balanced"})
    weights = learner.fitted["class_weights"]
    if task == "text-classification":
        given = [row["label"] for row in split.rows]
    else:
        names = list(weights)
        given = [names[tag] for window in split.features for tag in window["label_ids"] if tag != NO_TARGET]
    present = sorted(set(given))
    expected = compute_class_weight("balanced", classes=np.array(present), y=np.array(given))
    assert {label: weights[label] for label in present} == pytest.approx(dict(zip(present, expected, strict=True)))
    batch = training_batch(learner, split.features, [0, 1, 2], None)
    outputs = learner.task.forward(learner.model, batch.inputs).detach()
    labels = batch.targets["labels"].flatten()
    vector = torch.tensor(list(weights.values()))
    reference = torch.nn.CrossEntropyLoss(weight=vector, ignore_index=NO_TARGET)(
        outputs.reshape(len(labels), -1), labels
    )
    total, count = learner.task.loss(outputs, batch, learner.fitted)
    assert float(total / count) == pytest.approx(float(reference), rel=1e-5)


def test_positives_are_weighed_by_the_rows_that_have_them(plans: Plans) -> None:
    learner, split = opened(plans, "multi-label", "binary-cross-entropy", {"positive_weights": "balanced"})
    having = Counter(label for row in split.rows for label in row["labels"])
    expected = {label: (len(split.rows) - count) / count for label, count in having.items()}
    assert learner.fitted["positive_weights"] == pytest.approx(expected)


def test_a_row_in_windows_counts_as_one_row_whatever_its_class_weighs(plans: Plans) -> None:
    windows = {"max_length": 5, "overflow": "window", "stride": 1, "dropout": 0.0}
    loss = {"name": "cross-entropy", "class_weights": {"fruit": 4.0}}
    recipe = plans.recipe("text-classification", model=windows, train={"loss": loss})
    split = plans.data(recipe).split("train")
    learner = open_learner(recipe, plans.data(recipe), CPU, Silent())[0]
    row = next(number for number, row in enumerate(split.rows) if row["label"] == "fruit")
    own = [window for window, owner in enumerate(split.features.row_ids.tolist()) if owner == row]
    assert len(own) > 1
    batch = training_batch(learner, split.features, own, None)
    _, count = learner.task.loss(learner.task.forward(learner.model, batch.inputs), batch, learner.fitted)
    assert float(count) == pytest.approx(4.0)


def test_a_weight_for_a_label_that_the_data_lack_is_refused_before_training(plans: Plans) -> None:
    with pytest.raises(FinetuneError, match=r"train.loss.class_weights: expected labels of the data, found 'friut'"):
        opened(plans, "text-classification", "cross-entropy", {"class_weights": {"friut": 2.0}})


def test_the_default_needs_nothing_to_be_fitted(plans: Plans) -> None:
    recipe = plans.recipe("text-classification")
    assert recipe.resolved()["train"].get("loss") is None
    assert open_learner(recipe, plans.data(recipe), CPU, Silent())[0].fitted == {}


def test_what_was_fitted_is_kept_with_the_run_and_shown_by_its_files(plans: Plans, tmp_path: Path) -> None:
    import json

    from finetune.artifacts import FITTED
    from finetune.train import train

    recipe = plans.recipe(
        "text-classification", train={"epochs": 1, "loss": {"name": "focal", "class_weights": "balanced"}}
    )
    run = train(recipe, plans.data(recipe), tmp_path / "run", runtime=CPU)
    stored = json.loads((run.folder / FITTED).read_text())
    assert set(stored["class_weights"]) == set(plans.data(recipe).labels)
    assert run.recipe.train.loss == recipe.train.loss


def test_balanced_sampling_is_of_the_labels_of_the_training_rows(plans: Plans) -> None:
    recipe = plans.recipe("text-classification", train={"sampling": "balanced"})
    split = plans.data(recipe).split("train")
    _, spec = open_task("text-classification", {})
    rows = [row for step in Batches.of(recipe, split.features, spec, "cpu").epoch(0) for part in step for row in part]
    labels = [row["label"] for row in split.rows]
    drawn = Counter(labels[row] for row in rows)
    assert len(rows) == len(labels)
    assert max(drawn.values()) - min(drawn.values()) <= 1
    assert max(Counter(labels).values()) - min(Counter(labels).values()) > 1


@pytest.mark.parametrize(
    ("task", "model", "message"),
    [
        ("multi-label", {}, "balanced is for tasks with one label a row, and multi-label has none"),
        ("text-classification", {"overflow": "window"}, "would draw the windows of a row apart"),
    ],
)
def test_balanced_sampling_is_refused_where_it_has_no_meaning(
    plans: Plans, task: str, model: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        plans.recipe(task, model=model, train={"sampling": "balanced"})
