"""The work that a training is: steps, tokens, padding, evaluations, and what it leaves on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from finetune.training.loop import training_batch

if TYPE_CHECKING:
    from finetune.artifacts import PreparedData
    from finetune.planning.memory import Estimate
    from finetune.recipe import Recipe

T = TypeVar("T")

# Padding is counted in so many micro-batches of the first epoch, or in all if there are no more
COUNTED_BATCHES = 256


@dataclass(frozen=True)
class Work:
    """What a training does if nothing stops it early.

    `tokens` are those that the model reads over the whole training, without padding; `padding` is the share of ids
    that are padding (0 to 1), counted in micro-batches as training makes them. `writes` is how many validation rows
    are answered by writing in each of the `evaluations`.
    """

    rows: int
    windows: int
    steps: int
    steps_per_epoch: int
    epochs: float
    tokens: int
    tokens_per_epoch: int
    padding: float
    evaluations: int
    validation_rows: int
    writes: int

    def as_json(self) -> dict[str, float]:
        """Return it as a report has it."""
        return asdict(self)


def count_work(recipe: Recipe, data: PreparedData, estimate: Estimate) -> Work:
    """Return the steps, tokens and evaluations of a training on prepared data."""
    train, batches, spec = data.split("train"), estimate.batches, estimate.spec
    features = train.features
    validation = len(data.split("validation").rows)
    epochs = batches.total_steps / batches.steps_per_epoch
    tokens = sum(features.lengths_of(spec.sized_by))
    every = recipe.train.eval_every or batches.steps_per_epoch
    return Work(
        rows=len(train.rows),
        windows=len(features),
        steps=batches.total_steps,
        steps_per_epoch=batches.steps_per_epoch,
        epochs=round(epochs, 3),
        tokens=round(tokens * epochs),
        tokens_per_epoch=tokens,
        padding=_padding(recipe, data, estimate),
        evaluations=-(-batches.total_steps // every),
        validation_rows=validation,
        writes=min(recipe.generation.validation_rows, validation) if spec.judged_by_text else 0,
    )


def evenly(items: Sequence[T], count: int) -> list[T]:
    """Return so many items from all over a sequence, in their order; all of them if there are no more."""
    if len(items) <= count:
        return list(items)
    return [items[(2 * place + 1) * len(items) // (2 * count)] for place in range(count)]


def _padding(recipe: Recipe, data: PreparedData, estimate: Estimate) -> float:
    """Return the share of padding in what the model is given, targets of a decoder among it."""
    features, learner = data.split("train").features, estimate.learner
    draw = (recipe.seed, 0) if estimate.spec.draws else None
    micro_batches = [micro_batch for step in estimate.batches.epoch(0) for micro_batch in step]
    given, read = 0, 0
    for micro_batch in evenly(micro_batches, COUNTED_BATCHES):
        inputs = training_batch(learner, features, micro_batch, draw).inputs
        given += inputs["input_ids"].numel()
        read += int(inputs["attention_mask"].sum())
        if "labels" in inputs:  # what a decoder is given
            given += inputs["labels"].numel()
            read += sum(len(features[window]["label_ids"]) for window in micro_batch)
    return round(1 - read / given, 4)


@dataclass(frozen=True)
class Disk:
    """Bytes that a training writes: the finished model, its checkpoints on the way, and what is free there now."""

    model: int
    checkpoints: int
    free: int

    def as_json(self) -> dict[str, int]:
        """Return it as a report has it."""
        return asdict(self)


def count_disk(recipe: Recipe, estimate: Estimate, folder: Path) -> Disk:
    """Return what a training needs on the disk that a folder is, or will be, on.

    While a checkpoint is saved those before are there still, and beside them the best models and those that they mean.
    """
    memory, settings = estimate.memory, recipe.train
    trained = memory.gradients
    with_adapters = recipe.adapter is not None and not recipe.adapter.merge
    whole = trained if with_adapters else memory.weights
    one = trained + memory.optimizer + (trained if settings.ema else 0)
    checkpoints = (settings.keep_checkpoints + 1) * one
    best = ((settings.average_best or 1) + settings.keep_checkpoints) * trained
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return Disk(whole, checkpoints + best, shutil.disk_usage(existing).free)
