"""The second stage: from prepared data to a run that holds the best model, its log and its loss curve."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune import registry
from finetune.artifacts import (
    FITTED,
    PreparedData,
    Run,
    disk_errors,
    fingerprint,
    locked,
    partial_folder,
    publish,
    versions,
    write_json,
    write_text,
)
from finetune.errors import FinetuneError
from finetune.evaluation.metrics import check_code
from finetune.evaluation.predictions import Predictions
from finetune.evaluation.statistics import point
from finetune.fingerprints import differences, run_inputs
from finetune.generation import sample_of
from finetune.inference import Outputs, Predictor, features_of, run_model
from finetune.learners import open_learner, predictor_of
from finetune.models.loading import quiet_transformers, read_json
from finetune.progress import Progress, Silent
from finetune.recipe import EarlyStopping, Recipe, is_written
from finetune.reports.plots import plot_loss_curve
from finetune.runtime import Runtime
from finetune.tasks import save_extras
from finetune.training.batching import Batches, Together
from finetune.training.checkpoints import (
    TrainingState,
    latest_checkpoint,
    load_checkpoint,
    read_state,
    restore_best,
    save_best,
    save_checkpoint,
)
from finetune.training.loop import Step, optimizer_steps

INPUTS = "inputs.json"
Judge = Callable[[int, float], bool]


def train(
    recipe: Recipe,
    data: PreparedData,
    folder: Path,
    *,
    runtime: Runtime | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    judge: Judge | None = None,
) -> Run:
    """Train in `folder`, going on from a checkpoint of the same recipe if there is one; return the finished run.

    With `resume` there has to be one; with `force` an unfinished run is thrown away. A `judge` is asked after each
    evaluation at which training would go on, with the step and the score of early stopping; saying False ends it.
    Raises FinetuneError when the unfinished run that is there belongs to another recipe.
    """
    runtime, progress = runtime or Runtime(), progress or Silent()
    check_code([recipe.train.early_stopping.metric], allow_code=runtime.allow_code)
    with locked(folder):
        inputs = run_inputs(recipe, data.fingerprint, allow_code=runtime.allow_code)
        growing = _open_growing(folder, inputs, resume=resume, force=force)
        try:
            training = _Training(recipe, data, growing, runtime, progress)
            training.judge = judge
            training.run()
            manifest = training.finish(inputs)
        except BaseException:
            if not any((growing / "checkpoints").glob("step-*")):  # nothing in it that one could go on from
                shutil.rmtree(growing, ignore_errors=True)
            raise
        publish(folder, manifest)
    return Run(folder)


def _open_growing(folder: Path, inputs: dict[str, Any], *, resume: bool, force: bool) -> Path:
    """Return the folder in which the run grows: the one of an interrupted run of the same inputs, or an empty one."""
    growing = partial_folder(folder)
    checkpoint = None if force else latest_checkpoint(growing / "checkpoints")
    if resume and checkpoint is None:
        raise FinetuneError(f"--resume: expected an unfinished run with a checkpoint in {growing}, found none")
    if checkpoint is not None:
        stored = read_json(growing / INPUTS)
        if stored.get("fingerprint") == fingerprint(inputs):
            return growing
        changed = differences(stored.get("inputs", {}), inputs) or ["the format of checkpoints"]
        raise FinetuneError(
            f"{growing}: holds an unfinished run of another recipe (changed: {', '.join(changed)}), at step "
            f"{read_state(checkpoint).step}. Undo the change to go on with it, or add --force to throw it away."
        )
    shutil.rmtree(growing, ignore_errors=True)
    (growing / "checkpoints").mkdir(parents=True)
    write_json(growing / INPUTS, {"fingerprint": fingerprint(inputs), "inputs": inputs})
    return growing


class _Log:
    """`log.jsonl`: one line per step and per evaluation; cut back to the checkpoint when training goes on."""

    def __init__(self, path: Path, keep_bytes: int) -> None:
        self._stream = path.open("ab")
        self._stream.truncate(keep_bytes)
        self._stream.seek(keep_bytes)

    def write(self, line: dict[str, Any]) -> None:
        self._stream.write((json.dumps(line, allow_nan=False) + "\n").encode())
        self._stream.flush()

    @property
    def size_bytes(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        self._stream.close()


@dataclass
class _Patience:
    """Which score counts, which was best, and whether to stop."""

    settings: EarlyStopping

    @property
    def higher_is_better(self) -> bool:
        name = self.settings.metric
        return name != "loss" and bool(registry.metrics.get(name).attributes["higher_is_better"])

    def update(self, state: TrainingState, score: float) -> TrainingState:
        """Return the state after an evaluation; its `best_step` is this step if the score is the best so far."""
        if math.isnan(score):
            raise FinetuneError(
                f"early stopping: expected a number as {self.settings.metric}, found NaN at step {state.step}"
            )
        sign = 1.0 if self.higher_is_better else -1.0
        best = state.best_score
        if best is None or sign * (score - best) > self.settings.min_delta:
            return replace(state, best_score=score, best_step=state.step, evaluations_without_gain=0)
        waited = state.evaluations_without_gain + 1
        if self.settings.patience is not None and waited >= self.settings.patience:
            reason = f"{self.settings.metric} did not improve in {waited} evaluations"
            return replace(state, evaluations_without_gain=waited, stopped_because=reason)
        return replace(state, evaluations_without_gain=waited)


class _Training:
    """One training: what it needs, opened once; `run` reads from top to bottom."""

    def __init__(self, recipe: Recipe, data: PreparedData, folder: Path, runtime: Runtime, progress: Progress) -> None:
        self.recipe, self.data, self.folder, self.progress = recipe, data, folder, progress
        self.settings = recipe.train
        self.rows, self.validation = data.split("train"), data.split("validation")
        self.learner, self.spec = open_learner(recipe, data, runtime, progress)
        self.checkpoints = folder / "checkpoints"
        self.patience = _Patience(self.settings.early_stopping)
        self.judge: Judge | None = None
        self.state = TrainingState()
        features = self.rows.features
        together = Together(features.lengths_of(self.spec.sized_by), features.keys(self.spec.together))
        device = self.learner.accelerator.device.type
        self.batches = Batches(together, self.settings, recipe.seed, self.spec.steps, device)
        self.total_steps = self.batches.total_steps

    def run(self) -> None:
        """Train, evaluate, keep the best, stop when it is time, and put the best model back."""
        self._go_on_from_checkpoint()
        log = _Log(self.folder / "log.jsonl", self.state.log_bytes)
        try:
            with self.progress.bar("training", self.total_steps, start=self.state.step) as bar:
                for step in self._steps():
                    log.write(step.as_json())
                    self.state = replace(self.state, step=step.number)
                    evaluated = self._due(step, self.settings.eval_every)
                    if evaluated:
                        self._evaluate(step, log)
                    # unless the recipe says how often, a checkpoint is saved with every evaluation
                    if self._due(step, self.settings.save_every) if self.settings.save_every else evaluated:
                        self.state = replace(self.state, log_bytes=log.size_bytes)
                        save_checkpoint(self.learner, self.state, self.checkpoints)
                    bar.advance(1, _describe(step))
                    if self.state.stopped_because:
                        break
            self._end(log)
        finally:
            log.close()

    def _go_on_from_checkpoint(self) -> None:
        checkpoint = latest_checkpoint(self.checkpoints)
        if checkpoint is not None:
            self.state = load_checkpoint(self.learner, checkpoint)
            self.progress.note(f"going on from the checkpoint of step {self.state.step} of {self.total_steps}")

    def _steps(self) -> Any:
        if self.state.stopped_because:  # it was stopped early, and interrupted before the run was complete
            return iter(())
        schedule = registry.schedules.get(self.settings.schedule.name).build(self.settings.schedule.options)
        return optimizer_steps(
            self.learner,
            self.rows.features,
            self.batches.epoch,
            learning_rate=self.settings.learning_rate,
            schedule=schedule,
            total_steps=self.total_steps,
            max_gradient_norm=self.settings.max_gradient_norm,
            seed=self.recipe.seed,
            done_steps=self.state.step,
        )

    def _due(self, step: Step, every: int | None) -> bool:
        return step.number % (every or self.batches.steps_per_epoch) == 0 or step.number == self.total_steps

    def _evaluate(self, step: Step, log: _Log) -> None:
        scores = self._validation_scores()
        score = scores[self.settings.early_stopping.metric]
        self.state = self.patience.update(self.state, score)
        ends = self.state.stopped_because or step.number == self.total_steps
        if self.judge and not ends and not self.judge(step.number, score):
            self.state = replace(self.state, stopped_because="judged not worth going on")
        best = self.state.best_step == step.number
        if best:
            save_best(self.learner, step.number, self.checkpoints)
        # a metric that is not defined on these rows is null; only the one that chooses the best step has to be a number
        logged = {name: None if math.isnan(value) else value for name, value in scores.items()}
        log.write({"step": step.number, "epoch": step.epoch, "validation": logged, "best": best})
        shown = ", ".join(f"{name} {described(value)}" for name, value in logged.items())
        self.progress.note(f"step {step.number}, epoch {step.epoch + 1}: validation {shown}{' (best)' if best else ''}")

    def _validation_scores(self) -> dict[str, float]:
        outputs = self._validation_outputs()
        assert outputs.loss is not None, "validation rows have targets"
        scores = {"loss": outputs.loss}
        predictions = self._decoded(outputs, self._fitted_on(outputs))
        written = self._written(predictions)
        for name in dict.fromkeys((*self.spec.metrics[:2], self.settings.early_stopping.metric)):
            if name == "loss":
                continue
            if not (self.spec.judged_by_text and is_written(name)):
                scores[name] = point(name, predictions)
            elif written is not None:
                scores[name] = point(name, written)
        return scores

    def _written(self, predictions: Predictions) -> Predictions | None:
        """Return a sample of the validation rows with what the model writes for them, if its task is to write."""
        wanted = self.recipe.generation.validation_rows
        if not self.spec.judged_by_text or not wanted:
            return None
        import numpy as np

        rows = sample_of(len(predictions), wanted, self.recipe.seed)
        return self._predictor.write(predictions.take(np.array(rows)), self.validation.features)

    @cached_property
    def _predictor(self) -> Predictor:
        return predictor_of(self.learner, self.spec, self.recipe, self.data)

    def _validation_outputs(self) -> Outputs:
        self._predictor.model.eval()
        # a loss that compares the rows of a batch is one of training's batches, whatever fits in memory
        size = None if self.spec.adds_up else self.settings.batch_size
        return run_model(self._predictor, self.validation.features, self.settings.eval_batch_size, loss_batch_size=size)

    def _decoded(self, outputs: Outputs, fitted: Mapping[str, Any]) -> Predictions:
        return self._predictor.decode(outputs, self.validation.rows, self.validation.features, fitted)

    def _fitted_on(self, outputs: Outputs) -> dict[str, Any]:
        """Return what is fitted beside the weights: on the training rows, and on outputs for the validation rows."""
        fitted = dict(self.learner.fitted)
        if self.spec.fit_decisions:
            fitted |= self.spec.fit_decisions(self._decoded(outputs, fitted))
        return fitted

    def _end(self, log: _Log) -> None:
        restore_best(self.learner, self.state.best_step, self.checkpoints)
        if not self.state.stopped_because:
            reason = "max_steps reached" if self.total_steps == self.settings.max_steps else "all epochs done"
            self.state = replace(self.state, stopped_because=reason)
        log.write(
            {"step": self.state.step, "restored_step": self.state.best_step, "because": self.state.stopped_because}
        )
        metric = self.settings.early_stopping.metric
        self.progress.note(
            f"stopped at step {self.state.step} ({self.state.stopped_because}); restored the best model, of step "
            f"{self.state.best_step} (validation {metric} {self.state.best_score:.4f})"
        )

    def finish(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Write the model as an ordinary Hugging Face folder, the recipe and the picture; return the manifest."""
        learner = self.learner
        fitted = self._fitted_on(self._validation_outputs()) if self.spec.fit_decisions else learner.fitted
        model = learner.accelerator.unwrap_model(learner.model)
        with quiet_transformers(), disk_errors(self.folder / "model"):
            self._save(model)
            learner.tokenizer.save_pretrained(self.folder / "model")
        save_extras(learner.task, self.folder / "model", self.data.limits["max_length"])
        if fitted:
            write_json(self.folder / FITTED, dict(fitted))
        write_text(self.folder / "recipe.yaml", self.recipe.to_yaml())
        plot_loss_curve(self.folder / "log.jsonl", self.folder / "reports" / "loss.png")
        return {
            "kind": "run",
            "format": "adapter" if self.recipe.adapter and not self.recipe.adapter.merge else "transformers",
            "task": self.recipe.task.resolved(),
            "labels": self.data.labels,
            "limits": self.data.limits,
            "best_step": self.state.best_step,
            "last_step": self.state.step,
            "stopped_because": self.state.stopped_because,
            "metrics": self._best_scores(),
            "parameters": {"total": learner.freezing.total, "trainable": learner.freezing.trainable},
            "freezing": [vars(row) for row in learner.freezing.table],
            "device": str(learner.accelerator.device.type),
            "precision": {"no": "fp32"}.get(learner.accelerator.mixed_precision, learner.accelerator.mixed_precision),
            "data_fingerprint": self.data.fingerprint,
            **self._where_the_data_are(),
            "pretrained_sha256": inputs["model"]["weights_sha256"],
            "fingerprint": fingerprint(inputs),
            "inputs": inputs,
            "versions": versions(),
        }

    def _where_the_data_are(self) -> dict[str, str]:
        """Return how to find the data from the run, unless they lie beside it."""
        place = os.path.relpath(self.data.folder.resolve(), self.folder.resolve())
        return {} if place == os.path.join("..", "data") else {"data_folder": place}  # noqa: PTH118

    def _save(self, model: Any) -> None:
        """Save the model; of one with adapters these alone, or, merged, all of it and the adapters beside it."""
        adapter, folder = self.recipe.adapter, self.folder / "model"
        if adapter is None:
            model.save_pretrained(folder)
            return
        from finetune.models.adapter_files import save_adapter
        from finetune.models.adapter_merging import check_merged, merge

        if not adapter.bits:
            difference = check_merged(model, self._a_batch())
            self.progress.note(f"merging the adapter moves the outputs by at most {difference:.1e} of the largest")
        base = "" if Path(self.recipe.model.id).is_absolute() else self.recipe.model.id
        save_adapter(model, self.folder / "adapter" if adapter.merge else folder, base)
        if adapter.merge:
            merge(model).save_pretrained(folder)

    def _a_batch(self) -> Mapping[str, Any]:
        """Return inputs of a few validation windows."""
        windows = range(min(4, len(self.validation.features)))
        features = features_of(self.spec, self.validation.features, windows)
        batch = self.learner.task.collate(features, self.learner.tokenizer)
        return batch.to(self.learner.accelerator.device).inputs

    def _best_scores(self) -> dict[str, float | None]:
        """Return the validation scores of the restored step, from the log; None where one is not defined."""
        lines = map(json.loads, (self.folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
        scores = {line["step"]: line["validation"] for line in lines if "validation" in line}
        return dict(scores[self.state.best_step])


def described(value: float | None) -> str:
    """Return a score as people read it."""
    return "not defined" if value is None else f"{value:.4f}"


def _describe(step: Step) -> str:
    speed = step.tokens / max(step.seconds, 1e-9)
    return f"loss {step.loss:.4f}  lr {step.learning_rate:.2e}  {speed:,.0f} tokens/s"
