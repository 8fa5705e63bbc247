"""A recipe done several times, with several seeds or on several folds: a run of each, and what they say together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune.artifacts import (
    ENSEMBLE,
    FORMAT_VERSION,
    PreparedData,
    Run,
    fingerprint,
    has_manifest,
    partial_folder,
    write_json,
    write_text,
)
from finetune.errors import FinetuneError
from finetune.evaluate import asked_metrics, read_report, report_name
from finetune.evaluation.spread import spreads
from finetune.fingerprints import report_inputs
from finetune.gates import check_gates
from finetune.out_of_fold import OUT_OF_FOLD, score_out_of_fold
from finetune.pipeline import Job, Stage
from finetune.processes import count
from finetune.recipe import FoldSection, Recipe
from finetune.reports.repeats import repeats_report
from finetune.training.checkpoints import latest_checkpoint

REPEATS = "repeats"


@dataclass(frozen=True)
class Repeat:
    """One of the trainings: what it is called, and the job that does it in a folder of its own."""

    name: str
    job: Job


class Repeats:
    """The job of a recipe with `seeds` or `folds`; it is asked as the job of any other recipe is.

    All of it is in the job's folder: `data/`; `seeds/SEED/run` on that same data, or `folds/NUMBER/data` and
    `folds/NUMBER/run`; and `run/`, the ensemble of these runs. A repeat that is finished and unchanged is skipped.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.recipe = job, job.recipe
        self.kind = "seeds" if self.recipe.seeds else "folds"

    @property
    def stages(self) -> list[Stage]:
        """What was done and what was skipped, of the repeats first."""
        of_repeats = [replace(stage, of=repeat.name) for repeat in self._repeats for stage in repeat.job.stages]
        return [*self.job.stages[:1], *of_repeats, *self.job.stages[1:]]

    def data(self, *, asked: bool = False) -> PreparedData:
        """Return the prepared data of the recipe, made now if need be, as that of each fold is."""
        data = self.job.data(asked=asked)
        for number, repeat in enumerate(self._repeats if self.recipe.folds else (), start=1):
            self.job.progress.note(f"{repeat.name} ({number} of {self.recipe.folds})")
            repeat.job.data(asked=asked)
        return data

    def run(self, *, asked: bool = False) -> Run:
        """Return the ensemble of the trained runs, made now if need be."""
        self._require_one_process()
        self._refuse_unfinished()
        self._note_what_is_replaced()
        return self.job.ensemble(dict(self._runs(asked)), asked=asked)

    def report(
        self, run: Run, *, split: str = "test", source: Path | None = None, folder: Path | None = None
    ) -> dict[str, Any]:
        """Return what the repeats score, each and together, with the recipe's gates held against the means.

        With folds, the test split of each is what it holds out; what none of them saw judges the ensemble.
        """
        reports = {}
        for repeat, member in zip(self._repeats, run.members, strict=True):
            self.job.progress.note(repeat.name)
            reports[repeat.name] = repeat.job.report(member, split=split, source=source)
        scores = [{name: score["value"] for name, score in found["metrics"].items()} for found in reports.values()]
        rows = [found["rows"] for found in reports.values()]
        report = {
            **summary(run),
            "split": report_name(split, source),
            "rows": sum(rows) if self._apart(source) else rows[0],
            "metrics": spreads(scores),
            **self._together(run, split, source),
        }
        if split == "test" and source is None:
            report |= self._held_out(run, folder or run.reports)
        else:
            report.pop("out_of_fold", None)
        for described, found in zip(report["runs"], reports.values(), strict=True):
            described |= {"rows": found["rows"], "metrics": found["metrics"]}
        return self._write(self._with_gates(report), folder or run.reports)

    def _apart(self, source: Path | None) -> bool:
        """Whether each repeat is scored on rows of its own."""
        return self.kind == "folds" and source is None

    def _together(self, run: Run, split: str, source: Path | None) -> dict[str, Any]:
        """Return the scores of the ensemble, on rows that none of its members was trained on."""
        if self.recipe.no_average:
            return {"ensemble": {"missing": self.recipe.no_average}}
        if self._apart(source) and (split != "test" or "test" not in self.job.data().manifest["splits"]):
            return {"ensemble": {"missing": "there are no rows that every fold has left out"}}
        self.job.progress.note("the ensemble")
        found = self.job.report(run, split=split, source=source)
        voting = self.recipe.spec.voting
        return {"ensemble": {"averages": voting.averages, "rows": found["rows"], "metrics": found["metrics"]}}

    def _held_out(self, run: Run, folder: Path) -> dict[str, Any]:
        """Return the scores of what the models of all folds say of the rows that they hold out."""
        if self.kind != "folds":
            return {}
        names = asked_metrics(self.recipe)
        inputs = report_inputs(run, self.recipe, names, OUT_OF_FOLD, None, has_data=True)
        stored = (read_report(folder / f"{REPEATS}.json") or {}).get("out_of_fold", {})
        if stored.get("fingerprint") == fingerprint(inputs) and not self.job.force:
            return {"out_of_fold": stored}
        self.job.progress.note("all held-out rows")
        runtime, progress = self.job.runtime, self.job.progress
        found = score_out_of_fold(run, self.recipe, names, runtime, progress)
        return {"out_of_fold": {**run.manifest["out_of_fold"], **found, "fingerprint": fingerprint(inputs)}}

    def _with_gates(self, report: dict[str, Any]) -> dict[str, Any]:
        gates = [gate for gate in self.recipe.gates if not gate.quantized]
        means = {name: {"value": score["mean"]} for name, score in report["metrics"].items()}
        return {**report, "gates": check_gates(gates, means)}

    def _write(self, report: dict[str, Any], folder: Path) -> dict[str, Any]:
        name = REPEATS if report["split"] == "test" else f"{REPEATS}-{report['split']}"
        write_text(folder / f"{name}.md", repeats_report(report))
        write_json(folder / f"{name}.json", report)
        return report

    def quantized(self, run: Run) -> tuple[Run, dict[str, Any]]:
        """Return the ensemble of the quantized runs and its before/after report, made now if need be."""
        return self.job.quantized(run)

    def require_test_split(self) -> None:
        """Raise FinetuneError, before anything is trained, if there would be no rows to judge the models by."""
        if not self.recipe.folds or self.recipe.quantize:  # each fold holds some out
            self.job.require_test_split()

    def _require_one_process(self) -> None:
        if count() > 1:
            raise FinetuneError(
                f"{self.kind}: the repeats are trained one after another, each in one process; found {count()} "
                "processes. Leave --processes or the launcher out."
            )

    def _refuse_unfinished(self) -> None:
        """Raise FinetuneError where the ensemble would take the place of a training that was interrupted."""
        if _is_unfinished(self.job) and not self.job.force:
            growing = partial_folder(self.job.root / "run")
            raise FinetuneError(
                f"{growing}: holds an unfinished run of this recipe without `{self.kind}`. Remove `{self.kind}` to go "
                "on with it, or add --force to throw it away."
            )

    def _note_what_is_replaced(self) -> None:
        folder = self.job.root / "run"
        if has_manifest(folder) and Run(folder).format != ENSEMBLE:
            self.job.progress.note(f"{folder}: the run without `{self.kind}`; the ensemble will take its place")

    def _runs(self, asked: bool) -> Iterator[tuple[str, Run]]:
        self.job.require_training()
        if self.job.resume:
            self._resume()
        for number, repeat in enumerate(self._repeats, start=1):
            self.job.progress.note(f"{repeat.name} ({number} of {len(self._repeats)})")
            yield repeat.name, repeat.job.run(asked=asked)

    def _resume(self) -> None:
        """Let the repeat that was interrupted go on, as the command line insists; raise FinetuneError if none was."""
        unfinished = [repeat.job for repeat in self._repeats if _is_unfinished(repeat.job)]
        if not unfinished:
            raise FinetuneError(
                f"--resume: expected an unfinished run with a checkpoint among the {self.kind} in "
                f"{self.job.root / self.kind}, found none. Leave it out: what is finished is skipped anyway."
            )
        for repeat in self._repeats:
            repeat.job.resume = repeat.job in unfinished
            repeat.job.force = self.job.force and repeat.job.resume

    @cached_property
    def _repeats(self) -> list[Repeat]:
        """The trainings, in order; what they share is made first."""
        data = self.job.data()
        if self.recipe.seeds:
            return [
                Repeat(f"seed {seed}", self._job(str(seed), self._with_seed(seed), data)) for seed in self.recipe.seeds
            ]
        assert self.recipe.folds
        return [
            Repeat(f"fold {number}", self._job(str(number), self._with_fold(number, data), None))
            for number in range(self.recipe.folds)
        ]

    def _job(self, name: str, recipe: Recipe, data: PreparedData | None) -> Job:
        return replace(self.job, recipe=recipe, root=self.job.root / self.kind / name, stages=[], _data=data)

    def _with_seed(self, seed: int) -> Recipe:
        return self._single(f"seed-{seed}", {"seed": seed}, {})

    def _with_fold(self, number: int, data: PreparedData) -> Recipe:
        assert self.recipe.folds
        # what `max_length: auto` found is for all folds, so that their models read the same tokens
        model = self.recipe.model.model_copy(update={"max_length": data.limits["max_length"]})
        return self._single(
            f"fold-{number}", {"model": model}, {"fold": FoldSection(number=number, of=self.recipe.folds)}
        )

    def _single(self, name: str, changes: Mapping[str, Any], of_data: Mapping[str, Any]) -> Recipe:
        """Return the recipe of one training; its rows are drawn by the recipe's own seed."""
        recipe = self.recipe
        seed = recipe.seed if recipe.data.seed is None else recipe.data.seed
        update = {
            "name": f"{recipe.name}-{name}",
            "seeds": None,
            "folds": None,
            "metrics": tuple(asked_metrics(recipe)),
            "gates": (),  # they are held against the mean
            "data": recipe.data.model_copy(update={"seed": seed, **of_data}),
            **changes,
        }
        return recipe.model_copy(update=update)


def _is_unfinished(job: Job) -> bool:
    return latest_checkpoint(partial_folder(job.root / "run") / "checkpoints") is not None


def summary(run: Run) -> dict[str, Any]:
    """Return what is known of the repeats once they are trained: their validation scores above all."""
    recipe, kept = run.recipe, ("best_step", "last_step", "stopped_because")
    runs = [
        {
            "name": described["name"],
            "folder": described["folder"],
            **{key: member.manifest[key] for key in kept},
            "validation": member.manifest["metrics"],
        }
        for described, member in zip(run.manifest["members"], run.members, strict=True)
    ]
    return {
        "format_version": FORMAT_VERSION,
        "recipe": recipe.name,
        "task": recipe.task.name,
        "model": recipe.model.title,
        "repeats": "seeds" if recipe.seeds else "folds",
        "count": len(runs),
        **({"out_of_fold": run.manifest["out_of_fold"]} if recipe.folds else {}),
        "validation": spreads([member["validation"] for member in runs]),
        "runs": runs,
    }
