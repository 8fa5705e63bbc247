"""Which stages have to be done: what is missing is built, what did not change is skipped, what is stale is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from finetune import evaluate as evaluation
from finetune import quantize as quantization
from finetune.artifacts import (
    ENSEMBLE,
    MANIFEST,
    QUANTIZATION_REPORT,
    PreparedData,
    Run,
    damages,
    has_manifest,
    has_scratch,
    locked,
    partial_folder,
    write_text,
)
from finetune.ensembles import make_ensemble, quantize_ensemble
from finetune.errors import FinetuneError
from finetune.evaluate import evaluate, metric_names, own_data, read_report, report_name
from finetune.evaluation.metrics import check_code
from finetune.fingerprints import (
    differences,
    ensemble_inputs,
    matches,
    quantization_report_inputs,
    quantized_inputs,
    report_inputs,
    run_inputs,
    tokens_inputs,
)
from finetune.lr_find import lr_find
from finetune.plan import plan
from finetune.prepare import prepare
from finetune.processes import count, is_main, on_main
from finetune.progress import Progress, Silent
from finetune.recipe import Part, Recipe
from finetune.registry import backends
from finetune.runtime import Runtime
from finetune.train import train
from finetune.training.range_test import Sweep
from finetune.training.tracking import check_installed
from finetune.tune import tune, work

Result = TypeVar("Result")
Name = Literal["prepare", "train", "ensemble", "eval", "quantize"]


@dataclass(frozen=True)
class Stage:
    """One stage of a job: whether it was done or skipped, and how long that took."""

    name: Name
    status: Literal["done", "skipped"]
    seconds: float
    of: str = ""  # which of several trainings it belongs to

    def as_json(self) -> dict[str, Any]:
        """Return it as `finetune run --json` prints it."""
        found = {"name": self.name, "status": self.status, "seconds": round(self.seconds, 2)}
        return {**found, "of": self.of} if self.of else found


@dataclass
class Job:
    """A recipe, the folder of its artifacts, and how far stale ones may be replaced.

    The stage that was asked for replaces its own artifact when that is stale. The artifacts before it are replaced only
    with `rebuild_stale`; otherwise the user is told which command to run. `force` does the asked-for stage again even
    if nothing changed.
    """

    recipe: Recipe
    root: Path
    runtime: Runtime = field(default_factory=Runtime)
    progress: Progress = field(default_factory=Silent)
    rebuild_stale: bool = False
    force: bool = False
    resume: bool = False
    recipe_name: str = "RECIPE"
    stages: list[Stage] = field(default_factory=list)
    _data: PreparedData | None = None

    def data(self, *, asked: bool = False) -> PreparedData:
        """Return the prepared data, made now if need be."""
        if self._data is not None:
            return self._data
        folder = self.root / "data"
        if not is_main():
            self._data = PreparedData(folder)
            return self._data
        inputs = tokens_inputs(self.recipe, allow_code=self.runtime.allow_code)
        fresh = self._is_fresh("prepare", folder, inputs, asked)
        self._data = self._stage(
            "prepare",
            fresh,
            lambda: PreparedData(folder),
            lambda: prepare(
                self.recipe,
                folder,
                allow_code=self.runtime.allow_code,
                inputs=inputs,
                reuse_rows=not (asked and self.force),
                progress=self.progress,
            ),
        )
        return self._data

    @property
    def plan_folder(self) -> Path:
        """Where the plan is written."""
        return self.root / "plan"

    def plan(self, *, measure: bool = False) -> dict[str, Any]:
        """Return what training will need, on data that is made if need be."""
        check_code([self.recipe.train.early_stopping.metric], allow_code=self.runtime.allow_code)
        self.require_training()
        self._say_of_which()
        data = self.data()
        return plan(self.recipe, data, self.plan_folder, measure=measure, runtime=self.runtime, progress=self.progress)

    @property
    def lr_find_folder(self) -> Path:
        """Where the learning-rate range test is written."""
        return self.root / "lr-find"

    def lr_find(self, sweep: Sweep) -> dict[str, Any]:
        """Return the learning-rate range test of the recipe, on data that is made if need be."""
        self.require_training()
        self._say_of_which()
        data = self.data()
        return lr_find(
            self.recipe, data, self.lr_find_folder, sweep=sweep, runtime=self.runtime, progress=self.progress
        )

    @property
    def tune_folder(self) -> Path:
        """Where the trials of a search are, and what came of them."""
        return self.root / "tune"

    def tune(self, launch: Callable[[], None] | None = None) -> dict[str, Any]:
        """Return the report of a search for better settings, done here or by the processes that `launch` starts."""
        self._say_of_which()
        data = self._data_to_tune_on()
        return tune(
            self.recipe,
            data,
            self.tune_folder,
            launch=launch,
            runtime=self.runtime,
            force=self.force,
            progress=self.progress,
        )

    def work(self) -> None:
        """Train trials of the search that another process leads."""
        work(self.recipe, self._data_to_tune_on(), self.tune_folder, runtime=self.runtime, progress=self.progress)

    def _data_to_tune_on(self) -> PreparedData:
        if self.recipe.tune is None:
            raise FinetuneError(
                "tune: the recipe does not say what to search; add for example "
                "`tune: {space: {train.learning_rate: {low: 1e-5, high: 5e-4, log: true}}}`"
            )
        self.require_training()
        return self.data()

    def _say_of_which(self) -> None:
        if self.recipe.repeated:
            self.progress.note("this is about one training, of the recipe without `seeds` or `folds`")

    def run(self, *, asked: bool = False) -> Run:
        """Return the trained run, made now if need be, on data that is made if need be."""
        check_code([self.recipe.train.early_stopping.metric], allow_code=self.runtime.allow_code)
        self.require_training()
        folder = self.root / "run"
        if self.force or not has_manifest(folder):  # it is going to be trained
            check_installed(self.recipe.train.trackers)
        if count() > 1:
            self.runtime.accelerator()  # from here on they can talk
        fresh = on_main(lambda: self._has_run(folder, asked))
        data = self.data()
        return self._stage(
            "train",
            fresh,
            lambda: self._with_current_recipe(Run(folder)),
            lambda: train(
                self.recipe,
                data,
                folder,
                runtime=self.runtime,
                resume=self.resume,
                force=self.force,
                progress=self.progress,
            ),
        )

    def ensemble(self, members: Mapping[str, Run], *, asked: bool = False) -> Run:
        """Return the ensemble of some runs, made now if need be."""
        folder, data = self.root / "run", self.data()
        inputs = ensemble_inputs(self.recipe, data.fingerprint, members)
        return self._stage(
            "ensemble",
            self._is_fresh("train", folder, inputs, asked),
            lambda: self._with_current_recipe(Run(folder)),
            lambda: make_ensemble(self.recipe, data, folder, members, runtime=self.runtime, progress=self.progress),
        )

    def _has_run(self, folder: Path, asked: bool) -> bool:
        """Tell whether there is a run that need not be trained, on data that is made if need be."""
        inputs = run_inputs(self.recipe, self.data().fingerprint, allow_code=self.runtime.allow_code)
        return self._is_fresh("train", folder, inputs, asked) and not (asked and self.resume)

    def report(
        self, run: Run, *, split: str = "test", source: Path | None = None, folder: Path | None = None
    ) -> dict[str, Any]:
        """Return the run's report, with the recipe's gates, made now if need be."""
        names = metric_names(self.recipe, run)
        check_code(names, allow_code=self.runtime.allow_code)
        if source is not None and not source.is_file():
            found = "a folder" if source.is_dir() else "nothing"
            raise FinetuneError(f"--data: expected a file of labelled rows, found {found} at {source}")
        path = (folder or run.reports) / f"{report_name(split, source)}.json"
        stored = read_report(path)
        has_data = own_data(run) is not None
        inputs = report_inputs(run, self.recipe, names, split, source, has_data=has_data)
        written = all(path.with_suffix(suffix).is_file() for suffix in (".json", ".md"))
        fresh = stored is not None and written and not self.force and matches(stored, inputs)

        def reuse() -> dict[str, Any]:
            assert stored is not None
            report = evaluation.with_gates(stored, self.recipe)
            if report != stored:
                evaluation.write_report(report, path.parent)
            return report

        return self._stage(
            "eval",
            fresh,
            reuse,
            lambda: evaluate(
                run,
                split=split,
                source=source,
                recipe=self.recipe,
                folder=folder,
                runtime=self.runtime,
                progress=self.progress,
            ),
        )

    def quantized(self, run: Run) -> tuple[Run, dict[str, Any]]:
        """Return the quantized run and its before/after report, made now if need be."""
        backend = self.require_backend()
        folder = self.root / f"run-{backend.name}"
        names = metric_names(self.recipe, run)
        check_code(names, allow_code=self.runtime.allow_code)
        made = self._is_fresh("quantize", folder, quantized_inputs(run, backend), asked=True)
        path = folder / "reports" / f"{QUANTIZATION_REPORT}.json"
        stored = read_report(path)
        inputs = quantization_report_inputs(run, self.recipe, backend, names, "test")

        def reuse() -> tuple[Run, dict[str, Any]]:
            assert stored is not None
            report = quantization.with_gates(stored, self.recipe)
            if report != stored:
                quantization.write_report(report, path.parent)
            return self._with_current_recipe(Run(folder)), report

        def make() -> tuple[Run, dict[str, Any]]:
            how: dict[str, Any] = {"recipe": self.recipe, "runtime": self.runtime, "progress": self.progress}
            if made:
                return quantization.score_again(run, folder, **how)
            if run.format == ENSEMBLE:
                return quantize_ensemble(run, folder, **how, force=self.force)
            return quantization.quantize(run, folder, **how)

        return self._stage("quantize", made and stored is not None and matches(stored, inputs), reuse, make)

    def _with_current_recipe(self, run: Run) -> Run:
        """Let a reused run know what its recipe says today of things that decide nothing of the trained model."""
        today = {name: getattr(self.recipe, name) for name in ("metrics", "gates", "quantize", "generation")}
        if any(getattr(run.recipe, name) != value for name, value in today.items()):
            write_text(run.folder / "recipe.yaml", run.recipe.model_copy(update=today).to_yaml())
            return Run(run.folder)
        return run

    def require_test_split(self) -> None:
        """Raise FinetuneError, before anything is trained, if there would be no test split to judge the model by."""
        if self.recipe.data.fold is not None:  # it holds one out
            return
        given = self.recipe.data.sources
        options = self.recipe.data.split.options
        missing = options.get("test") == 0 and not options.get("folds") if "" in given else "test" not in given
        if missing:
            raise FinetuneError(
                "data.split.test: expected a test split, found 0. Set a fraction; or use `finetune train`, and score a "
                "file of your own with `finetune eval RUN --data FILE`."
            )

    def require_training(self) -> None:
        """Raise FinetuneError, before anything is prepared, for a recipe that can be prepared but not trained."""
        if self.recipe.tokenizer and self.recipe.model.scratch is None:
            raise FinetuneError(
                f"tokenizer: a pretrained model reads the ids of its own tokenizer, and this recipe trains another "
                f"({self.recipe.tokenizer.name}). Remove `tokenizer`, or use `finetune prepare` alone, "
                "or make a new model that learns to read it (model.scratch)."
            )

    def require_backend(self) -> Part:
        """Return the recipe's quantization backend; raise FinetuneError if it names none."""
        if self.recipe.quantize is None:
            known = ", ".join(backends.names())
            raise FinetuneError(f"quantize: the recipe names no backend; add `quantize: NAME` (known: {known})")
        return self.recipe.quantize

    def _is_fresh(self, stage: Name, folder: Path, inputs: dict[str, Any], asked: bool) -> bool:
        """Tell whether an artifact can be used as it is; raise FinetuneError if it is stale and may not be replaced."""
        unfinished = (partial_folder(folder) / MANIFEST).is_file() or folder.with_name(f"{folder.name}.old").exists()
        if unfinished or has_scratch(folder):
            with locked(folder):  # completes what a kill interrupted between two renames
                pass
        if not has_manifest(folder):
            return False
        try:
            manifest = (PreparedData(folder) if stage == "prepare" else Run(folder)).manifest
        except FinetuneError as error:
            if self.rebuild_stale or (asked and self.force):
                return False
            raise FinetuneError(f"{error}. Add --force to replace it.") from None
        if matches(manifest, inputs):
            if damaged := damages(folder, manifest):
                self.progress.note(f"{folder}: damaged ({'; '.join(damaged[:3])}), made again")
                return False
            return not (asked and self.force)
        if asked or self.rebuild_stale:
            return False
        changed = differences(manifest["inputs"], inputs)
        raise FinetuneError(
            f"{folder} is stale: it was made from other inputs (changed: {', '.join(changed)}). "
            f"Run `finetune {stage} {self.recipe_name}` first, or add --force to rebuild it now."
        )

    def _stage(self, name: Name, fresh: bool, reuse: Callable[[], Result], make: Callable[[], Result]) -> Result:
        started = time.perf_counter()
        if not fresh:
            self.progress.note(f"{name} ...")
        result = reuse() if fresh else make()
        stage = Stage(name, "skipped" if fresh else "done", time.perf_counter() - started)
        self.stages.append(stage)
        if fresh:
            self.progress.note(f"{name}: skipped, nothing changed")
        else:
            self.progress.note(f"{name}: done in {stage.seconds:.1f} s")
        return result


def find_run(path: Path, or_what: str = "") -> Run:
    """Return the run that a path names: a run's folder, or the folder that holds `run/`.

    `or_what` is what the command would take instead, for the message.
    """
    for folder in (path, path / "run"):
        if has_manifest(folder):
            run = Run(folder)
            assert run.manifest
            return run
    found = "a folder without one" if path.is_dir() else "a file" if path.exists() else "nothing"
    raise FinetuneError(
        f"{path}: expected a run (a folder with a {MANIFEST}, such as outputs/NAME/run){or_what}, found {found}"
    )
