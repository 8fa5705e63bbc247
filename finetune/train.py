"""The second stage: from prepared data to a run that holds the best model, its log and its loss curve."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn

from finetune import registry
from finetune.artifacts import (
    FITTED,
    PreparedData,
    Run,
    disk_errors,
    fingerprint,
    locked,
    publish,
    versions,
    write_json,
    write_text,
)
from finetune.errors import FinetuneError, NotFinite, Terminated
from finetune.evaluation.metrics import check_code
from finetune.evaluation.predictions import Predictions
from finetune.evaluation.statistics import point
from finetune.fingerprints import run_inputs
from finetune.generation import sample_of
from finetune.inference import Outputs, Predictor, features_of, run_model
from finetune.learners import describe_stages, open_learner, predictor_of
from finetune.models.loading import quiet_transformers
from finetune.processes import count, is_main, on_main
from finetune.progress import Progress, Silent
from finetune.recipe import Recipe, is_written
from finetune.reports.plots import plot_loss_curve
from finetune.resuming import open_growing
from finetune.runtime import Runtime
from finetune.tasks import save_extras
from finetune.training.averaging import mean_of_files
from finetune.training.batching import Batches
from finetune.training.checkpoints import (
    TrainingState,
    best_path,
    latest_checkpoint,
    load_checkpoint,
    put_tensors,
    read_state,
    restore_best,
    save_best,
    save_checkpoint,
)
from finetune.training.curves import Curve
from finetune.training.diagnosis import chance_loss, diagnose
from finetune.training.interrupts import Interrupts
from finetune.training.log import Log, NoLog, read_log
from finetune.training.loop import Step, optimizer_steps
from finetune.training.stopping import Explosion, Patience
from finetune.training.tracking import Trackers, check_installed

SHOWN_ROWS = 8
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

    With `resume` there has to be one; with `force` an unfinished run is thrown away, with both it goes on whatever has
    changed of its training. A `judge` is asked after each evaluation at which training would go on, with the step and
    the score of early stopping; saying False ends it. Raises FinetuneError when the unfinished run that is there cannot
    go on with this recipe.
    """
    runtime, progress = runtime or Runtime(), progress or Silent()
    check_code([recipe.train.early_stopping.metric], allow_code=runtime.allow_code)
    check_installed(recipe.train.trackers)
    with locked(folder) if is_main() else nullcontext():
        inputs = run_inputs(recipe, data.fingerprint, allow_code=runtime.allow_code)
        growing = on_main(lambda: open_growing(folder, inputs, progress, resume=resume, force=force))
        try:
            training = _Training(recipe, data, growing, runtime, progress)
            training.judge = judge
            training.run()
            manifest = training.finish(inputs)
        except BaseException:
            if is_main() and not any((growing / "checkpoints").glob("step-*")):  # nothing that one could go on from
                shutil.rmtree(growing, ignore_errors=True)
            raise
        on_main(lambda: publish(folder, manifest))
    return Run(folder)


class _Training:
    """One training: what it needs, opened once; `run` reads from top to bottom."""

    def __init__(self, recipe: Recipe, data: PreparedData, folder: Path, runtime: Runtime, progress: Progress) -> None:
        self.recipe, self.data, self.folder, self.progress = recipe, data, folder, progress
        self.settings = recipe.train
        self.rows, self.validation = data.split("train"), data.split("validation")
        self.learner, self.spec = open_learner(recipe, data, runtime, progress)
        self.checkpoints = folder / "checkpoints"
        self.patience = Patience(self.settings.early_stopping)
        self.judge: Judge | None = None
        self.state = TrainingState()
        self.averaged_steps: list[int] = []
        device = self.learner.accelerator.device.type
        self.batches = Batches.of(recipe, self.rows.features, self.spec, device)
        self.total_steps = self.batches.total_steps
        warmup = self.settings.schedule.options.get("warmup_steps", 0)
        if warmup >= self.total_steps:
            raise FinetuneError(
                f"train.schedule.warmup_steps: expected fewer steps than training takes ({self.total_steps}), found "
                f"{warmup}. Lower it, use warmup_ratio, or train for longer."
            )
        steps = (self.total_steps, self.batches.steps_per_epoch)
        for told in (self.batches.describe_sampling(data.labels), describe_stages(self.learner.freezing, *steps)):
            if told:
                progress.note(told)

    def run(self) -> None:
        """Train, evaluate, keep the best, stop when it is time, and put the best model back."""
        self._go_on_from_checkpoint()
        with (
            Trackers(self.recipe, self.folder, self.state.step, self.progress) as trackers,
            closing(self._open_log(trackers)) as log,
        ):
            with Interrupts(self.progress.note) as interrupts:
                try:
                    self._take_steps(log, interrupts)
                except NotFinite as error:
                    self._lost(log, str(error), error.windows)
                except (KeyboardInterrupt, Terminated):
                    if interrupts.whole:
                        self._save(log)
                    raise
            self._end(log)

    def _open_log(self, trackers: Trackers) -> Log | NoLog:
        return Log(self.folder / "log.jsonl", self.state.log_bytes, trackers) if is_main() else NoLog()

    def _take_steps(self, log: Log | NoLog, interrupts: Interrupts) -> None:
        if self.state.unscored:  # the evaluation after the last step was interrupted
            self._evaluate(log, interrupts)
        losses = Explosion().see(on_main(log.losses))
        saved, fitting = time.monotonic(), self.learner.rows_that_fit
        with self.progress.bar("training", self.total_steps, start=self.state.step) as bar:
            for step in self._steps():
                log.write(step.as_json())
                if self.learner.rows_that_fit != fitting:
                    fitting = self.learner.rows_that_fit
                    self.progress.note(
                        f"memory holds {fitting} rows at a time from here on; the gradients are the same"
                    )
                due = self._due(step, self.settings.eval_every)
                self.state = replace(self.state, step=step.number, unscored=due)
                if reason := losses.see([step.loss]).found:
                    self._lost(log, reason, ())
                if due:
                    self._evaluate(log, interrupts)
                if self._checkpoint_due(step, time.monotonic() - saved):
                    self._save(log)
                    saved = time.monotonic()
                bar.advance(1, _describe(step))
                interrupts.check()
                if self.state.stopped_because:
                    break

    def _checkpoint_due(self, step: Step, seconds: float) -> bool:
        """Tell whether a checkpoint is due: with every evaluation, unless the recipe says how often."""
        steps, minutes = self.settings.save_every, self.settings.save_minutes
        if steps is None and minutes is None:
            return self._due(step, self.settings.eval_every)
        last = step.number == self.total_steps or bool(self.state.stopped_because)
        return last or bool(steps and step.number % steps == 0) or bool(minutes and seconds >= 60 * minutes)

    def _save(self, log: Log | NoLog) -> None:
        """Save a checkpoint of the state, unless there is one."""
        self.state = replace(self.state, log_bytes=log.size_bytes)
        if not is_main() or not self.state.step:  # another process would look at checkpoints that go away meanwhile
            return
        latest = latest_checkpoint(self.checkpoints)
        if latest is None or read_state(latest) != self.state:
            save_checkpoint(self.learner, self.state, self.checkpoints, keep=self.settings.keep_checkpoints)

    def _go_on_from_checkpoint(self) -> None:
        checkpoint = latest_checkpoint(self.checkpoints)
        if checkpoint is not None:
            self.state = load_checkpoint(self.learner, checkpoint)
            self.progress.note(f"going on from the checkpoint of step {self.state.step} of {self.total_steps}")

    def _lost(self, log: Log | NoLog, found: str, windows: Sequence[int]) -> NoReturn:
        """End a training whose loss is lost; what was good before is kept."""
        step, rates = self.state.step, [group["lr"] for group in self.learner.optimizer.param_groups]
        if windows:
            self._save(log)
            step += 1
        kept = latest_checkpoint(self.checkpoints) if is_main() else None  # the others look at nothing that may go
        good = f"The checkpoint of step {read_state(kept).step} is kept. " if kept else ""
        rows = f" It came from {self._rows_of(windows)}: look at them." if windows else ""
        raise FinetuneError(
            f"training: expected a loss that is finite and falls, found {found} at step {step} (learning rate "
            f"{max(rates):.2e}).{rows} {good}Lower train.learning_rate, or warm up longer; since that changes the "
            f"recipe, start again with --force{', or go on from there with --resume --force' if kept else ''}"
        )

    def _rows_of(self, windows: Sequence[int]) -> str:
        """Return the lines that windows are of, as messages name them."""
        rows = sorted({int(self.rows.features.row_ids[window]) for window in windows})
        lines = [self.rows.place(row) for row in rows]
        return ", ".join(lines[:SHOWN_ROWS]) + (
            f" and {len(lines) - SHOWN_ROWS} more" if len(lines) > SHOWN_ROWS else ""
        )

    def _steps(self) -> Any:
        if self.state.stopped_because:  # it was stopped early, and interrupted before the run was complete
            return iter(())
        schedule = registry.schedules.get(self.settings.schedule.name).build(self.settings.schedule.options)
        return optimizer_steps(
            self.learner,
            self.rows.features,
            self.batches.epoch,
            learning_rate=self.settings.peak_learning_rate,
            schedule=schedule,
            total_steps=self.total_steps,
            max_gradient_norm=self.settings.max_gradient_norm,
            seed=self.recipe.seed,
            done_steps=self.state.step,
            steps_per_epoch=self.batches.steps_per_epoch,
        )

    def _due(self, step: Step, every: int | None) -> bool:
        return step.number % (every or self.batches.steps_per_epoch) == 0 or step.number == self.total_steps

    def _evaluate(self, log: Log | NoLog, interrupts: Interrupts) -> None:
        """Score the model, and its moving average if there is one; keep the better one if it is the best so far."""
        step, metric, average = self.state.step, self.settings.early_stopping.metric, self.learner.average
        line: dict[str, Any] = {"step": step, "epoch": (step - 1) // self.batches.steps_per_epoch}
        with interrupts.open():
            scores = others = self._validation_scores()
            if average is not None:
                with average.applied():
                    others = self._validation_scores()
        line["validation"] = logged(scores)
        averaged = False
        if average is not None:
            line["average"] = logged(others)
            averaged = self.patience.better(others[metric], scores[metric])
            scores = others if averaged else scores
        state = self.patience.update(replace(self.state, unscored=False), scores[metric])
        state = self._judged(state, scores[metric])
        best = state.best_step == step
        if best:
            state = replace(state, best_averaged=averaged)
        state = self._with_best_steps(state, scores[metric])
        if step in state.kept_steps:
            with average.applied() if averaged and average else nullcontext():
                if is_main():
                    save_best(self.learner, state, self.checkpoints)
        log.write({**line, "best": best})
        self.state = state
        shown = ", ".join(f"{name} {described(value)}" for name, value in logged(scores).items())
        marks = ", ".join([*(["moving average"] if averaged else []), *(["best"] if best else [])])
        self.progress.note(
            f"step {step}, epoch {line['epoch'] + 1}: validation {shown}{f' ({marks})' if marks else ''}"
        )

    def _judged(self, state: TrainingState, score: float) -> TrainingState:
        """Return the state after the judge has been asked, if there is one and training would go on."""
        ends = state.stopped_because or state.step == self.total_steps
        judge = self.judge
        if judge is None or ends or on_main(lambda: judge(state.step, score)):
            return state
        return replace(state, stopped_because="judged not worth going on")

    def _with_best_steps(self, state: TrainingState, score: float) -> TrainingState:
        """Return the state with this step among the best ones, if the best are to be averaged and it is one."""
        if self.settings.average_best is None:
            return state
        steps = sorted(
            (*state.best_steps, (state.step, score)), key=itemgetter(1), reverse=self.patience.higher_is_better
        )
        return replace(state, best_steps=tuple(steps[: self.settings.average_best]))

    def _validation_scores(self) -> dict[str, float]:
        outputs = self._validation_outputs()
        assert outputs.loss is not None, "validation rows have targets"
        return on_main(lambda: self._scores_of(outputs))

    def _scores_of(self, outputs: Outputs) -> dict[str, float]:
        assert outputs.loss is not None
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
        batch, shared = self.settings.eval_batch_size, count() > 1
        return run_model(self._predictor, self.validation.features, batch, loss_batch_size=size, shared=shared)

    def _decoded(self, outputs: Outputs, fitted: Mapping[str, Any]) -> Predictions:
        return self._predictor.decode(outputs, self.validation.rows, self.validation.features, fitted)

    def _fitted_on(self, outputs: Outputs) -> dict[str, Any]:
        """Return what is fitted beside the weights: on the training rows, and on outputs for the validation rows."""
        fitted = dict(self.learner.fitted)
        if self.spec.fit_decisions:
            fitted |= self.spec.fit_decisions(self._decoded(outputs, fitted))
        return fitted

    def _end(self, log: Log | NoLog) -> None:
        if not self.state.stopped_because:
            reason = "max_steps reached" if self.total_steps == self.settings.max_steps else "all epochs done"
            self.state = replace(self.state, stopped_because=reason)
        on_main(lambda: None)  # what is read now has to be written
        self.averaged_steps = self._average_of_best(log)
        if not self.averaged_steps:
            restore_best(self.learner, self.state.best_step, self.checkpoints)
        log.write(
            {"step": self.state.step, "restored_step": self.state.best_step, "because": self.state.stopped_because}
        )
        metric = self.settings.early_stopping.metric
        steps = ", ".join(map(str, self.averaged_steps))
        restored = (
            f"kept the average of the models of steps {steps}"
            if steps
            else f"restored the best model, {'the moving average ' if self.state.best_averaged else ''}of step "
            f"{self.state.best_step} (validation {metric} {self.state.best_score:.4f})"
        )
        self.progress.note(f"stopped at step {self.state.step} ({self.state.stopped_because}); {restored}")

    def _average_of_best(self, log: Log | NoLog) -> list[int]:
        """Let the model have the mean of the best models' weights if validation says that it is better than the best.

        Returns the steps that it is a mean of, none where it is not kept.
        """
        steps = sorted(step for step, _ in self.state.best_steps)
        if len(steps) < 2:
            return []
        paths = [best_path(self.checkpoints, step) for step in steps]
        put_tensors(self.learner.accelerator.unwrap_model(self.learner.model), mean_of_files(paths))
        scores, metric = self._validation_scores(), self.settings.early_stopping.metric
        assert self.state.best_score is not None
        better = self.patience.better(scores[metric], self.state.best_score)
        log.write({"step": self.state.step, "averaged_steps": steps, "average": logged(scores), "kept": better})
        verdict = "better" if better else "no better"
        self.progress.note(
            f"the average of the models of steps {', '.join(map(str, steps))}: validation {metric} "
            f"{scores[metric]:.4f}, {verdict} than the best ({self.state.best_score:.4f})"
        )
        return steps if better else []

    def finish(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Write the model as an ordinary Hugging Face folder, the recipe and the picture; return the manifest."""
        learner = self.learner
        fitted = self._fitted_on(self._validation_outputs()) if self.spec.fit_decisions else learner.fitted
        return on_main(lambda: self._write(inputs, fitted))

    def _write(self, inputs: dict[str, Any], fitted: Mapping[str, Any]) -> dict[str, Any]:
        learner = self.learner
        model = learner.accelerator.unwrap_model(learner.model)
        with quiet_transformers(), disk_errors(self.folder / "model"):
            self._write_model(model)
            learner.tokenizer.save_pretrained(self.folder / "model")
        save_extras(learner.task, self.folder / "model", self.data.limits["max_length"])
        if fitted:
            write_json(self.folder / FITTED, dict(fitted))
        write_text(self.folder / "recipe.yaml", self.recipe.to_yaml())
        curve = Curve.of(read_log(self.folder / "log.jsonl"), self.settings.early_stopping.metric)
        findings = diagnose(curve, self.recipe, self._chance_loss())
        plot_loss_curve(curve, self.folder / "reports" / "loss.png", findings)
        return {
            "kind": "run",
            "format": "adapter" if self.recipe.adapter and not self.recipe.adapter.merge else "transformers",
            "task": self.recipe.task.resolved(),
            "labels": self.data.labels,
            "limits": self.data.limits,
            "best_step": self.state.best_step,
            **({"moving_average": True} if self.state.best_averaged and not self.averaged_steps else {}),
            **({"averaged_steps": self.averaged_steps} if self.averaged_steps else {}),
            "last_step": self.state.step,
            "stopped_because": self.state.stopped_because,
            "metrics": self._best_scores(),
            "diagnosis": [finding.as_json() for finding in findings],
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

    def _write_model(self, model: Any) -> None:
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
        """Return the validation scores of the restored model, from the log; None where one is not defined."""
        lines = read_log(self.folder / "log.jsonl")
        if self.averaged_steps:
            return next(dict(line["average"]) for line in reversed(lines) if "averaged_steps" in line)
        key = "average" if self.state.best_averaged else "validation"
        return next(dict(line[key]) for line in lines if "best" in line and line["step"] == self.state.best_step)

    def _chance_loss(self) -> float | None:
        count = self.spec.frequencies
        frequencies = count(self.rows, self.data.labels) if count is not None else None
        return chance_loss(self.spec.loss, self.settings.loss, frequencies)


def logged(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Return scores as the log has them: a metric that is not defined on these rows is null."""
    return {name: None if math.isnan(value) else value for name, value in scores.items()}


def described(value: float | None) -> str:
    """Return a score as people read it."""
    return "not defined" if value is None else f"{value:.4f}"


def _describe(step: Step) -> str:
    speed = step.tokens / max(step.seconds, 1e-9)
    return f"loss {step.loss:.4f}  lr {step.learning_rate:.2e}  {speed:,.0f} tokens/s"
