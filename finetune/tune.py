"""The search: trains a recipe with other values of some settings, many times, and writes the best ones down."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune import registry
from finetune.artifacts import (
    PreparedData,
    Run,
    fingerprint,
    has_manifest,
    locked,
    partial_folder,
    versions,
    write_json,
    write_text,
)
from finetune.errors import FinetuneError, Terminated
from finetune.evaluation.metrics import check_code
from finetune.fingerprints import differences, matches, run_inputs, tokens_inputs
from finetune.models.loading import read_json
from finetune.prepare import prepare
from finetune.progress import Hushed, Progress, Silent
from finetune.recipe import Recipe
from finetune.reports.tuning import best_recipe, draw_study, scored, shown, tuning_report
from finetune.reports.wording import many
from finetune.runtime import Runtime
from finetune.train import train
from finetune.tuning.study import Outcome, Study, Trial, import_optuna

INPUTS = "inputs.json"
REPORT = "report"
Launch = Callable[[], None]


def tune(
    recipe: Recipe,
    data: PreparedData,
    folder: Path,
    *,
    launch: Launch | None = None,
    runtime: Runtime | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Search for the best values of `recipe.tune`; go on with the search that is in `folder`; return its report.

    `launch` starts processes that each call `work`, and waits for them; without it the work is done here. With `force`
    the trials that are there are thrown away. Raises FinetuneError if they belong to another search, or if no trial
    could be finished.
    """
    import_optuna()
    search = Search(recipe, data, folder, runtime or Runtime(), progress or Silent())
    with locked(folder):
        search.open(force=force)
        if launch is None:
            search.work()
        else:
            launch()
        return search.conclude()


def work(
    recipe: Recipe, data: PreparedData, folder: Path, *, runtime: Runtime, progress: Progress | None = None
) -> None:
    """Train trials of the search that another process opened in `folder`, until all have been begun."""
    import_optuna()
    search = Search(recipe, data, folder, runtime, progress or Silent())
    if read_json(folder / INPUTS).get("fingerprint") != fingerprint(search.inputs):
        raise FinetuneError(f"{folder}: the recipe was changed while the search began; run the command again")
    search.work()


@dataclass
class Search:
    """A search and all that its trials share."""

    recipe: Recipe
    data: PreparedData
    folder: Path
    runtime: Runtime
    progress: Progress

    def __post_init__(self) -> None:
        assert self.recipe.tune is not None, "the pipeline asks for the section first"
        self.settings = self.recipe.tune
        self.metric = self.settings.metric or self.recipe.train.early_stopping.metric
        self.seed = self.recipe.seed if self.settings.seed is None else self.settings.seed
        check_code([self.metric], allow_code=self.runtime.allow_code)

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher score is a better one."""
        return self.metric != "loss" and bool(registry.metrics.get(self.metric).attributes["higher_is_better"])

    @property
    def inputs(self) -> dict[str, Any]:
        """What decides the trials, all but how many there are."""
        asked = self.recipe.resolved()["tune"]
        untuned = run_inputs(self.recipe.trial({}), self.data.fingerprint, allow_code=self.runtime.allow_code)
        decisive = {name: asked[name] for name in ("search", "pruning", "space")}
        return {**untuned, "tune": {**decisive, "seed": self.seed}}

    def open(self, *, force: bool) -> None:
        """Make the folder of the search, or check that what is in it belongs to this one."""
        inputs, path = self.inputs, self.folder / INPUTS
        if path.is_file() and not force:
            stored = read_json(path)
            if stored.get("fingerprint") == fingerprint(inputs):
                return
            changed = differences(stored.get("inputs", {}), inputs) or ["the format of artifacts"]
            raise FinetuneError(
                f"{self.folder}: holds the trials of another search (changed: {', '.join(changed)}). Undo the change "
                "to go on with them, choose another --output, or add --force to throw them away."
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        write_json(path, {"fingerprint": fingerprint(inputs), "inputs": inputs})

    def study(self) -> Study:
        """Open the trials."""
        return Study(self.folder, self.settings, seed=self.seed, higher_is_better=self.higher_is_better)

    def work(self) -> None:
        """Begin trials, or go on with interrupted ones, until none is left."""
        study = self.study()
        while trial := study.begin():
            self._say_what_begins(trial)
            started = time.perf_counter()
            try:
                self._try(study, trial, started)
            except (KeyboardInterrupt, Terminated):
                study.interrupt(trial, time.perf_counter() - started)
                raise
            self._say_what_came_of(study, trial)
            self._tidy(study)

    def _try(self, study: Study, trial: Trial, started: float) -> None:
        """Train a trial and record how it ended; a mistake in its values ends only the trial."""
        import torch

        run, failure = None, ""
        try:
            run = self._run(study, trial)
        except (FinetuneError, MemoryError, torch.OutOfMemoryError) as error:
            failure = str(error) or "out of memory"
        seconds = time.perf_counter() - started
        if run is None:
            study.end(trial, score=None, steps=0, seconds=seconds, failure=failure)
            return
        pruned = study.pruned_at(trial) is not None
        score = None if pruned else run.manifest["metrics"][self.metric]
        study.end(trial, score=score, steps=run.manifest["last_step"], seconds=seconds)

    def _run(self, study: Study, trial: Trial) -> Run:
        recipe, folder = self.recipe.trial(trial.values), study.trial_folder(trial.number)
        # the study knows all of it; a tracker would be started anew for each trial
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"trackers": ()})})
        write_text(folder / "recipe.yaml", recipe.to_yaml())
        if has_manifest(folder / "run"):  # it was killed when all but the record was done
            return Run(folder / "run")
        return train(
            recipe,
            self._data(recipe),
            folder / "run",
            runtime=self.runtime,
            progress=Hushed(self.progress),
            judge=lambda step, score: study.goes_on(trial, step, score),
        )

    def _data(self, recipe: Recipe) -> PreparedData:
        """Return the data of a trial: those of the recipe, unless its values make other tokens or rows of them."""
        from filelock import FileLock

        inputs = tokens_inputs(recipe, allow_code=self.runtime.allow_code)
        if matches(self.data.manifest, inputs):
            return self.data
        folder = self.folder / "data" / fingerprint(inputs)[:12]
        folder.parent.mkdir(exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.wait")):  # another worker may be making the same
            if has_manifest(folder):
                return PreparedData(folder)
            return prepare(
                recipe,
                folder,
                allow_code=self.runtime.allow_code,
                inputs=inputs,
                progress=Hushed(self.progress),
            )

    def _say_what_begins(self, trial: Trial) -> None:
        place = f"trial {trial.number} ({trial.number + 1} of {self.settings.planned})"
        values = ", ".join(f"{name} {shown(value)}" for name, value in trial.values.items())
        self.progress.note(f"{place}{' goes on' if trial.resumed else ''}: {values}")

    def _say_what_came_of(self, study: Study, trial: Trial) -> None:
        found, best = study.outcomes()[trial.number], study.best()
        if found.state == "failed":
            self.progress.note(f"trial {found.number} failed: {found.failure}")
            return
        said = f"pruned after {many(found.evaluations, 'evaluation')}, " if found.state == "pruned" else ""
        leads = " (the best so far)" if best is not None and best.number == found.number else ""
        self.progress.note(
            f"trial {found.number}: {said}{self.metric} {scored(found.score)}{leads}, {found.steps} steps in "
            f"{found.seconds:.1f} s"
        )

    def _tidy(self, study: Study) -> None:
        """Keep of ended trials the recipe and the log, and of the best the whole run."""
        with study.locked():
            best = study.best()
            for found in study.outcomes():
                if found.state != "unfinished":
                    whole = best is not None and best.number == found.number
                    _keep(study.trial_folder(found.number), whole=whole)

    def conclude(self) -> dict[str, Any]:
        """Write the report, its pictures and the best recipe; raise FinetuneError if no trial could be finished."""
        study = self.study()
        self._tidy(study)
        outcomes, best = study.outcomes(), study.best()
        report = self._report(outcomes, best)
        report["pictures"] = draw_study(study.study, self.metric, self.folder)
        report["best_recipe"] = str(self.folder / "best.yaml") if best else None
        write_json(self.folder / f"{REPORT}.json", report)
        write_text(self.folder / f"{REPORT}.md", tuning_report(report))
        if best is None:
            failures = [found for found in outcomes if found.failure]
            first = f" Trial {failures[0].number}: {failures[0].failure}" if failures else ""
            raise FinetuneError(f"tune: none of {len(outcomes)} trials could be finished.{first}")
        tuned = self.recipe.trial(best.values)
        tuned = tuned.model_copy(update={"name": f"{self.recipe.name}-tuned"})
        write_text(self.folder / "best.yaml", best_recipe(tuned, report))
        return report

    def _report(self, outcomes: list[Outcome], best: Outcome | None) -> dict[str, Any]:
        return {
            "name": self.recipe.name,
            "task": self.recipe.task.name,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "search": self.settings.search,
            "pruning": self.settings.pruning.model_dump(),
            "seed": self.seed,
            "planned": self.settings.planned,
            "space": self.recipe.resolved()["tune"]["space"],
            "best": best.as_json() if best else None,
            "trials": [found.as_json() for found in outcomes],
            "versions": versions("optuna"),
        }


def _keep(folder: Path, *, whole: bool) -> None:
    """Take the log out of a trial's run, and remove the run unless it is wanted whole."""
    run = folder / "run"
    for place in (run, partial_folder(run)):
        if (place / "log.jsonl").is_file():
            shutil.copyfile(place / "log.jsonl", folder / "log.jsonl")
    shutil.rmtree(partial_folder(run), ignore_errors=True)
    if not whole:
        shutil.rmtree(run, ignore_errors=True)
