"""The learning-rate range test of a recipe: its own training with a rate that rises; only the curve is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.artifacts import PreparedData, versions, write_json
from finetune.errors import FinetuneError, NotFinite
from finetune.learners import open_learner
from finetune.progress import Progress, Silent
from finetune.recipe import Recipe
from finetune.reports.range_test import plot_range_test
from finetune.runtime import Runtime
from finetune.training.batching import Batches
from finetune.training.loop import Step, optimizer_steps
from finetune.training.range_test import Explosion, Sweep, read_curve

NAME = "lr-find"


def lr_find(
    recipe: Recipe,
    data: PreparedData,
    folder: Path,
    *,
    sweep: Sweep | None = None,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return how a recipe's loss goes while the learning rate rises, and which rates that speaks for.

    Written into `folder` as JSON and a picture; the recipe stays as it is, and of the model nothing is kept. A loss
    that explodes ends the test and is a result. Raises FinetuneError where training would before its first step, and
    for a loss that is not finite in the first one.
    """
    runtime, progress, sweep = runtime or Runtime(), progress or Silent(), sweep or Sweep()
    learner, spec = open_learner(recipe, data, runtime, progress)
    features = data.split("train").features
    batches = Batches.of(recipe, features, spec, learner.accelerator.device.type)
    steps = optimizer_steps(
        learner,
        features,
        batches.epoch,
        learning_rate=sweep.lowest,
        schedule=sweep.factor,
        total_steps=sweep.steps,
        max_gradient_norm=recipe.train.max_gradient_norm,
        seed=recipe.seed,
        steps_per_epoch=batches.steps_per_epoch,
    )
    taken, because = _take(steps, sweep, progress)
    rates, losses = [step.learning_rate for step in taken], [step.loss for step in taken]
    curve = read_curve(rates, losses, [step.rows for step in taken], cut_short=because is not None)
    report: dict[str, Any] = {
        "name": recipe.name,
        "task": recipe.task.name,
        "model": recipe.model.title,
        "device": learner.accelerator.device.type,
        "optimizer": recipe.train.optimizer.name,
        "learning_rate": recipe.train.peak_learning_rate,
        "rates_differ": bool(learner.freezing.rates),
        "sweep": {"from": sweep.lowest, "to": sweep.highest, "steps": sweep.steps},
        "epochs": round(len(taken) / batches.steps_per_epoch, 2),
        "advice": curve.advice.as_json(),
        "points": [
            {"learning_rate": rate, "loss": loss, "smoothed": round(smoothed, 6)}
            for rate, loss, smoothed in zip(rates, losses, curve.smoothed, strict=True)
        ],
        "versions": versions(),
    }
    if because is not None:
        report["ended_early"] = {"because": because, "learning_rate": rates[-1]}
    plot_range_test(report, folder / f"{NAME}.png")
    write_json(folder / f"{NAME}.json", report)
    return report


def _take(steps: Any, sweep: Sweep, progress: Progress) -> tuple[list[Step], str | None]:
    """Take the steps until all are done or the loss has exploded; return them, and why they ended early if they did."""
    taken: list[Step] = []
    explosion = Explosion()
    with progress.bar("range test", sweep.steps) as bar:
        try:
            for step in steps:
                taken.append(step)
                bar.advance(1, f"loss {step.loss:.4f}  lr {step.learning_rate:.2e}")
                if explosion.update(step.loss):
                    return taken, "the loss exploded"
        except NotFinite as error:
            if not taken:
                raise FinetuneError(
                    f"lr-find: the loss or its gradient is not finite before anything was learned, at whatever "
                    f"learning rate. Look at the data and at train.precision ({error})"
                ) from None
            return taken, "the loss or its gradient was not finite"
    return taken, None
