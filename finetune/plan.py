"""What a training will need, told before it begins: parameters, memory, work, disk, time, and warnings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import registry
from finetune.artifacts import PreparedData, versions, write_json, write_text
from finetune.planning.advice import Planned, find_warnings
from finetune.planning.memory import available_bytes, estimate_memory
from finetune.planning.work import count_disk, count_work, evenly
from finetune.progress import Progress, Silent
from finetune.recipe import Recipe
from finetune.reports.plan import plan_report, plot_schedule
from finetune.runtime import Runtime

if TYPE_CHECKING:
    from finetune.models.freezing import Freezing

NAME = "plan"
SHOWN_STEPS = 200  # of the schedule, in the report's picture and JSON


def plan(
    recipe: Recipe,
    data: PreparedData,
    folder: Path,
    *,
    measure: bool = False,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return what training a recipe on its prepared data needs; write it into `folder` as JSON, Markdown and a picture.

    Nothing is allocated and nothing is trained, unless `measure` asks for a few steps, of which nothing is kept.
    Raises FinetuneError where training would before its first step, but for what only the weights can tell.
    """
    runtime, progress = runtime or Runtime(), progress or Silent()
    estimate = estimate_memory(recipe, data, runtime, progress)
    work = count_work(recipe, data, estimate)
    disk = count_disk(recipe, estimate, folder)
    available = available_bytes(runtime)
    timing = None
    if measure:
        from finetune.planning.timing import measure as measure_steps

        timing = measure_steps(recipe, data, estimate, work, runtime)
    warnings = find_warnings(Planned(recipe, data, runtime, estimate, work, disk, available, timing))
    report: dict[str, Any] = {
        "name": recipe.name,
        "task": recipe.task.name,
        "model": recipe.model.title,
        "device": runtime.torch_device().type,
        "parameters": _parameters(estimate.freezing),
        "memory": {**estimate.memory.as_json(), "available": available},
        "work": work.as_json(),
        "disk": disk.as_json(),
        "schedule": _schedule(recipe, work.steps),
        "warnings": [warned.as_json() for warned in warnings],
        "versions": versions(),
    }
    if timing is not None:
        report["time"] = timing.as_json()
    write_json(folder / f"{NAME}.json", report)
    plot_schedule(report["schedule"], folder / "schedule.png")
    write_text(folder / f"{NAME}.md", plan_report(report, "schedule.png"))
    return report


def _parameters(freezing: Freezing) -> dict[str, Any]:
    groups = [{"group": row.group, "total": row.parameters, "trainable": row.trainable} for row in freezing.table]
    return {"total": freezing.total, "trainable": freezing.trainable, "groups": groups}


def _schedule(recipe: Recipe, steps: int) -> list[dict[str, float]]:
    """Return the learning rate at steps from all over the training, the first, the last and the highest among them."""
    settings = recipe.train
    factor = registry.schedules.get(settings.schedule.name).build(settings.schedule.options)
    highest = max(range(steps), key=lambda step: factor(step, steps))
    shown = sorted({0, *evenly(range(steps), SHOWN_STEPS), highest, steps - 1})
    return [{"step": step + 1, "learning_rate": settings.peak_learning_rate * factor(step, steps)} for step in shown]
