"""TensorBoard: event files that it draws."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from finetune.artifacts import write_json
from finetune.registry import trackers
from finetune.training.trackers import OpenTracker, TrackedTraining, start


@trackers.register("tensorboard", needs=("tensorboard",), install="'finetune-toolkit[tensorboard]'")
def tensorboard(training: TrackedTraining, *, folder: Annotated[str, Field(min_length=1)] | None = None) -> OpenTracker:
    """Write event files into the run's folder, or for each training into a new folder of `folder`."""
    from accelerate.tracking import TensorBoardTracker

    place, goes_on = _place(training, folder), training.done_steps > 0
    # TensorBoard hides what an interrupted training logged after its checkpoint: those steps are taken again
    options = {"purge_step": training.done_steps + 1} if goes_on else {}
    tracker = TensorBoardTracker(place.name, place.parent, **options)
    start(tracker, None if goes_on else training.configuration)
    return OpenTracker(tracker)


def _place(training: TrackedTraining, folder: str | None) -> Path:
    """Return where this training's event files are; one that goes on stays where it was."""
    if folder is None:
        return training.folder
    stored = training.folder / "place.json"
    if training.done_steps and stored.is_file():
        place = Path(json.loads(stored.read_text(encoding="utf-8"))["folder"])
        if place.parent == Path(folder):
            return place
    place = Path(folder) / f"{training.name}-seed-{training.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    write_json(stored, {"folder": str(place)})
    return place
