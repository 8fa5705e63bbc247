"""What experiment trackers are told of a training: its recipe, each step, each evaluation, and how it ended."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from finetune.errors import FinetuneError, Terminated
from finetune.processes import on_main
from finetune.progress import Progress
from finetune.recipe import Part, Recipe
from finetune.registry import trackers
from finetune.training.trackers import OpenTracker, Outcome, TrackedTraining, Value
from finetune.urls import details_of

FOLDER = "trackers"
# MLflow takes 6,000, and the settings that are longer are lists of labels
MAX_CHARACTERS = 1000


def check_installed(parts: Iterable[Part]) -> None:
    """Raise FinetuneError for trackers whose packages are not installed, all at once."""
    missing = {}
    for part in parts:
        attributes = trackers.get(part.name).attributes
        needs = attributes["needs"](part.options) if callable(attributes["needs"]) else attributes["needs"]
        if lacking := [name for name in needs if importlib.util.find_spec(name) is None]:
            missing[f"{part.name} (lacks {', '.join(lacking)})"] = attributes["install"]
    if missing:
        raise FinetuneError(
            f"train.trackers: expected installed packages, found none for {', '.join(missing)}. Install them with: "
            f"pip install {' '.join(missing.values())}; or remove them from the recipe"
        )


def configuration(recipe: Recipe) -> dict[str, Value]:
    """Return the resolved recipe, without secrets, as names such as `train.optimizer.name` and plain values.

    Lists, and mappings whose keys come from data, are JSON; trackers themselves are left out.
    """
    plain = recipe.resolved()
    del plain["train"]["trackers"]
    return dict(_flat(plain, ""))


def _flat(value: Any, name: str) -> Iterator[tuple[str, Value]]:
    if isinstance(value, dict) and value and all(re.fullmatch(r"[A-Za-z0-9_.-]+", key) for key in value):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else key)
    elif isinstance(value, (bool, int, float)):
        yield name, value
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield name, text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 1]}…"


def values_of(line: Mapping[str, Any]) -> dict[str, float]:
    """Return what trackers are told of a line of `log.jsonl`; a score that is not defined is left out."""
    if "loss" in line:
        step = {name: line[name] for name in ("loss", "learning_rate", "gradient_norm")}
        return _named("train", {**step, "tokens_per_second": line["tokens"] / max(line["seconds"], 1e-4)})
    if "restored_step" in line:
        return {"restored_step": line["restored_step"]}
    average = "average_best" if "averaged_steps" in line else "average"
    return {**_named("validation", line.get("validation", {})), **_named(average, line.get("average", {}))}


def _named(group: str, values: Mapping[str, float | None]) -> dict[str, float]:
    """Return values under names that every tracker takes: `validation/ndcg_10` for ndcg@10."""
    return {
        f"{group}/{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}": value for name, value in values.items() if value is not None
    }


class Trackers:
    """The trackers of a training while it runs; only the main process has them.

    One that cannot start ends the training before its first step. One that fails later is left out from there on, and
    training goes on: `log.jsonl` has all that it would have been told.
    """

    def __init__(self, recipe: Recipe, folder: Path, done_steps: int, progress: Progress) -> None:
        """Take the folder in which the run grows, and how many steps it has taken already."""
        self._recipe, self._folder, self._done_steps, self._progress = recipe, folder, done_steps, progress
        self._open: dict[str, OpenTracker] = {}
        self._failed: set[str] = set()

    def __enter__(self) -> Trackers:
        on_main(self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and issubclass(kind, (KeyboardInterrupt, Terminated))
        self._end("interrupted" if interrupted else "failed" if kind else "finished")

    def log(self, line: Mapping[str, Any]) -> None:
        """Tell all trackers what a line of the log says."""
        values = values_of(line)
        for name in [name for name in self._open if name not in self._failed and values]:
            try:
                self._open[name].log(values, line["step"])
            except Exception as error:  # noqa: BLE001 -- each has exceptions of its own, and none may end a training
                self._failed.add(name)
                self._progress.note(
                    f"the tracker {name} failed at step {line['step']} ({details_of(error, '')}); it is told nothing "
                    "more, and training goes on (log.jsonl has all of it)"
                )

    def _start(self) -> None:
        settings = configuration(self._recipe)
        for part in self._recipe.train.trackers:
            training = TrackedTraining(
                self._recipe.name, self._recipe.seed, self._folder / FOLDER / part.name, self._done_steps, settings
            )
            try:
                self._open[part.name] = trackers.get(part.name).build(part.options)(training)
            except BaseException as error:
                self._end("failed")
                if not isinstance(error, Exception) or isinstance(error, FinetuneError):
                    raise
                raise FinetuneError(
                    f"train.trackers: {part.name} could not start ({details_of(error, '')}). Correct its settings, or "
                    "remove it: `--set train.trackers=[]`"
                ) from error

    def _end(self, outcome: Outcome) -> None:
        for name, tracker in self._open.items():
            try:
                tracker.end(outcome)
            except Exception as error:  # noqa: BLE001 -- as above
                if name not in self._failed:
                    self._progress.note(f"the tracker {name} could not end its run ({details_of(error, '')})")
        self._open = {}
