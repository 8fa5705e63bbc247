"""Experiment trackers: functions that open one of Accelerate's for a training, by name, with its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

Outcome = Literal["finished", "interrupted", "failed"]
Value = str | int | float | bool


@dataclass(frozen=True)
class TrackedTraining:
    """What a tracker has to know of a training.

    `folder` is its own in the folder in which the run grows. `done_steps` above 0: it goes on from a checkpoint.
    """

    name: str
    seed: int
    folder: Path
    done_steps: int
    configuration: Mapping[str, Value]


@dataclass(frozen=True)
class OpenTracker:
    """A tracker of Accelerate's that takes values; `logged` says for each up to which step they are there already."""

    tracker: GeneralTracker
    logged: Mapping[str, int] = field(default_factory=dict)
    end_with: Callable[[Outcome], None] | None = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log what is new of these values."""
        new = {name: value for name, value in values.items() if step > self.logged.get(name, -1)}
        if new:
            self.tracker.log(new, step=step)

    def end(self, outcome: Outcome) -> None:
        """End the tracker's run."""
        if self.end_with is not None:
            self.end_with(outcome)
        self.tracker.finish()


def start(tracker: GeneralTracker, configuration: Mapping[str, Value] | None) -> None:
    """Start a tracker, and store the training's configuration in a run that is new."""
    tracker.start()
    if configuration is not None:
        tracker.store_init_configuration(dict(configuration))
