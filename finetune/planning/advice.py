"""Warnings before a training is begun, each with what to change and what the change would bring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.errors import FinetuneError
from finetune.planning.memory import estimate_memory
from finetune.recipe import Adapter
from finetune.reports.plan import duration, size
from finetune.reports.wording import many

if TYPE_CHECKING:
    from finetune.artifacts import PreparedData
    from finetune.planning.memory import Estimate
    from finetune.planning.timing import Timing
    from finetune.planning.work import Disk, Work
    from finetune.recipe import Recipe
    from finetune.runtime import Runtime

# A training is too large when its peak is over this share of the memory that there is: estimates err by up to 15 %
NEARLY_ALL = 0.85
MUCH_PADDING = 0.3
FEW_STEPS = 50
LONG_ROWS = 0.95  # the share of windows that a shorter length would leave whole
MUCH_SHORTER = 0.8


@dataclass(frozen=True)
class Warned:
    """What is wrong, and settings that would help, each with the peak in bytes that it would bring if that is known."""

    check: str
    message: str
    advice: tuple[tuple[str, int | None], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it as a report has it."""
        advice = [{"set": setting, **({"peak": peak} if peak else {})} for setting, peak in self.advice]
        return {"check": self.check, "message": self.message, "advice": advice}


@dataclass(frozen=True)
class Planned:
    """Everything that is known of a training before it begins; `available` are the bytes of memory that there are."""

    recipe: Recipe
    data: PreparedData
    runtime: Runtime
    estimate: Estimate
    work: Work
    disk: Disk
    available: int
    timing: Timing | None


def find_warnings(planned: Planned) -> list[Warned]:
    """Return what speaks against beginning a training as it is, the most serious first."""
    return [*_too_large(planned), *_badly_read(planned), *_badly_spent(planned)]


def _too_large(planned: Planned) -> Iterator[Warned]:
    """Yield what there is too little of: memory, disk."""
    memory, disk = planned.estimate.memory, planned.disk
    if memory.peak > NEARLY_ALL * planned.available:
        message = f"training needs {size(memory.peak)} at its peak, and there are {size(planned.available)}"
        yield Warned("memory", message, tuple(_smaller(planned)))
    written = disk.model + disk.checkpoints
    if written > disk.free:
        message = f"training writes up to {size(written)}, and {size(disk.free)} are free there"
        yield _without_peaks("disk", message, ["--output DIR on another disk"])


def _badly_read(planned: Planned) -> Iterator[Warned]:
    """Yield what is wrong with how rows become batches: cut, or mostly padding."""
    recipe, data, work = planned.recipe, planned.data, planned.work
    cut = data.report["truncated"].get("train", {}).get("rows", 0)
    if cut:
        most = data.limits["max_length"]
        message = f"{cut:,} of {work.rows:,} training rows are cut at model.max_length ({most} tokens)"
        settings = ["a larger model.max_length", *(["model.overflow=window"] if planned.estimate.spec.windows else [])]
        yield _without_peaks("length", message, settings)
    if work.padding > MUCH_PADDING:
        settings = ["a smaller train.batch_size"] if recipe.train.bucket_by_length else ["train.bucket_by_length=true"]
        settings += ["task.pack=true"] if recipe.task.options.get("pack") is False else []
        yield _without_peaks("padding", f"{work.padding:.0%} of what the model is given is padding", settings)


def _badly_spent(planned: Planned) -> Iterator[Warned]:
    """Yield what is wrong with how the time is spent: on few steps, or mostly on evaluations."""
    work, timing = planned.work, planned.timing
    if work.steps < FEW_STEPS:
        message = f"training takes {many(work.steps, 'optimizer step')}, which is little to learn from"
        yield _without_peaks("steps", message, ["a smaller train.batch_size", "more train.epochs"])
    if timing is not None and timing.scoring + timing.writing > timing.training:
        seconds = timing.scoring + timing.writing
        message = f"evaluations may take {duration(seconds)}, training itself {duration(timing.training)}"
        settings = ["a larger train.eval_every", *(["fewer generation.validation_rows"] if work.writes else [])]
        yield _without_peaks("evaluations", message, settings)


def _without_peaks(check: str, message: str, settings: list[str]) -> Warned:
    return Warned(check, message, tuple((setting, None) for setting in settings))


def _smaller(planned: Planned) -> Iterator[tuple[str, int]]:
    """Yield settings that need less memory, each with the peak that it would bring."""
    memory = planned.estimate.memory
    for setting, changed, longest in _changes(planned.recipe, planned.data, planned.estimate):
        try:
            estimate = estimate_memory(changed, planned.data, planned.runtime, longest=longest, process=memory.process)
        except FinetuneError:  # this model cannot do it, or a library is missing
            continue
        if estimate.memory.peak < memory.peak:
            yield setting, estimate.memory.peak


def _changes(recipe: Recipe, data: PreparedData, estimate: Estimate) -> Iterator[tuple[str, Recipe, int | None]]:
    """Yield settings, the recipe that has them, and how long windows may be then."""
    settings = recipe.train
    half, twice = settings.batch_size // 2, settings.gradient_accumulation * 2
    if half and estimate.spec.adds_up:
        smaller = _with(recipe, batch_size=half, gradient_accumulation=twice)
        yield f"train.batch_size={half} train.gradient_accumulation={twice}", smaller, None
    if not settings.gradient_checkpointing:
        yield "train.gradient_checkpointing=true", _with(recipe, gradient_checkpointing=True), None
    if settings.eval_batch_size > settings.batch_size and estimate.memory.scoring > estimate.memory.activations:
        fewer = settings.batch_size
        yield f"train.eval_batch_size={fewer}", _with(recipe, eval_batch_size=fewer), None
    if recipe.adapter is None and recipe.model.scratch is None and recipe.freeze.name == "none":
        merged = recipe.quantize is not None  # what is quantized is a whole model
        adapted = recipe.model_copy(update={"adapter": Adapter(merge=merged)})
        yield "adapter.name=lora adapter.merge=true" if merged else "adapter=lora", adapted, None
    features = data.split("train").features
    lengths, sizes = sorted(features.lengths), sorted(features.lengths_of(estimate.spec.sized_by))
    place = int(LONG_ROWS * (len(lengths) - 1))
    if lengths[place] < MUCH_SHORTER * lengths[-1]:
        cut = sum(length > lengths[place] for length in lengths)
        yield f"model.max_length={lengths[place]}, which cuts {many(cut, 'window')}", recipe, sizes[place]


def _with(recipe: Recipe, **settings: Any) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=settings)})
