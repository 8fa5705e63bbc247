"""Accelerate's other trackers, by their names: most need an account, and read its keys from their own settings."""

from __future__ import annotations

import functools

from finetune.registry import trackers
from finetune.training.trackers import OpenTracker, TrackedTraining, start

NAMES = ("aim", "clearml", "comet_ml", "dvclive", "swanlab", "trackio", "wandb")


def by_name(name: str, training: TrackedTraining) -> OpenTracker:
    """Open a tracker with the recipe's name as its project; a training that goes on begins a run of its own."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    make = LOGGER_TYPE_TO_CLASS[name]
    if make.requires_logging_directory:
        training.folder.mkdir(parents=True, exist_ok=True)
        tracker = make(training.name, training.folder)
    else:
        tracker = make(training.name)
    start(tracker, training.configuration)
    return OpenTracker(tracker)


for _name in NAMES:
    trackers.register(_name, needs=(_name,), install=_name)(functools.partial(by_name, _name))
