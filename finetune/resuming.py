"""Where a run grows, and whether an interrupted one may go on with the recipe of today."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune import registry
from finetune.artifacts import fingerprint, partial_folder, write_json
from finetune.errors import FinetuneError
from finetune.fingerprints import differences
from finetune.models.loading import read_json
from finetune.progress import Progress
from finetune.training.checkpoints import TrainingState, latest_checkpoint, read_state

INPUTS = "inputs.json"
# What does not change the steps that were taken: a longer patience finds the same model, where it had not run out
HARMLESS = {"train.early_stopping.patience"}
LENGTHS = {"train.epochs", "train.max_steps"}
# What makes other tensors of a model, or other steps of its optimizer's state: nothing could go on from a checkpoint
CHANGEABLE = ("train.", "seed", "generation")
FIXED = ("data_fingerprint", "task", "model.", "freeze", "adapter", "train.optimizer.name", "train.ema")


def open_growing(
    folder: Path, inputs: dict[str, Any], progress: Progress, *, resume: bool = False, force: bool = False
) -> Path:
    """Return the folder in which the run grows: the one of an interrupted run that may go on, or an empty one.

    With `resume` there has to be one; with `force` it is thrown away, and with both it goes on whatever has changed of
    its training. Raises FinetuneError where it may not, naming what has changed.
    """
    growing = partial_folder(folder)
    checkpoint = latest_checkpoint(growing / "checkpoints") if resume or not force else None
    if resume and checkpoint is None:
        raise FinetuneError(f"--resume: expected an unfinished run with a checkpoint in {growing}, found none")
    if checkpoint is None:
        shutil.rmtree(growing, ignore_errors=True)
        (growing / "checkpoints").mkdir(parents=True)
    elif changed := _changes(read_json(growing / INPUTS), inputs):
        _check_changes(growing, changed, inputs, read_state(checkpoint), insisted=resume and force)
        progress.note(f"going on with a changed recipe: {', '.join(changed)}")
    write_json(growing / INPUTS, {"fingerprint": fingerprint(inputs), "inputs": inputs})
    return growing


def _changes(stored: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[str]:
    if stored.get("fingerprint") == fingerprint(inputs):
        return []
    return differences(stored.get("inputs", {}), inputs) or ["the format of checkpoints"]


def _check_changes(
    growing: Path, changed: Sequence[str], inputs: Mapping[str, Any], state: TrainingState, *, insisted: bool
) -> None:
    """Raise FinetuneError unless the steps taken are those of the recipe of today, or the user insists."""
    harmless = set() if state.stopped_because else _harmless(inputs["train"])
    breaking = [path for path in changed if path not in harmless]
    fixed = [path for path in changed if path.startswith(FIXED) or not path.startswith(CHANGEABLE)]
    if not breaking or (insisted and not fixed):
        return
    if insisted:
        raise FinetuneError(
            f"{growing}: its checkpoint cannot go on with another {', '.join(fixed)}. Undo the change, or give --force "
            "without --resume to start again."
        )
    other = "" if fixed else ", add --resume --force to go on with other steps from here on"
    raise FinetuneError(
        f"{growing}: holds an unfinished run of another recipe (changed: {', '.join(breaking)}), at step {state.step}. "
        f"Undo the change to go on with it{other}, or add --force to throw it away."
    )


def _harmless(train: Mapping[str, Any]) -> set[str]:
    """Return the settings whose change leaves the steps that were taken as they are.

    The length of a training is one of them where the schedule does not look at it.
    """
    schedule = train["schedule"]
    options = {} if isinstance(schedule, str) else schedule
    name = schedule if isinstance(schedule, str) else schedule["name"]
    endless = bool(registry.schedules.get(name).attributes.get("endless")) and not options.get("warmup_ratio")
    return HARMLESS | (LENGTHS if endless else set())
