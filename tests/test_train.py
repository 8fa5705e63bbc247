"""The training stage: which model is kept, when it stops, and what a kill at the worst moment costs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune import train as stage
from finetune.artifacts import PreparedData, Run, has_scratch, partial_folder
from finetune.errors import FinetuneError
from finetune.models.loading import weights_digest
from finetune.pipeline import Job
from finetune.prepare import prepare
from finetune.recipe import EarlyStopping, load_recipe
from finetune.runtime import Runtime
from finetune.train import train
from finetune.training.checkpoints import TrainingState
from finetune.training.stopping import Patience
from tests.conftest import RecipeMaker, write_jsonl

CPU = Runtime("cpu", threads=1)


def scores_of(run: Run) -> list[dict[str, Any]]:
    lines = map(json.loads, (run.folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if "validation" in line]


def follow(patience: Patience, scores: list[float]) -> TrainingState:
    state = TrainingState()
    for step, score in enumerate(scores, start=1):
        state = patience.update(TrainingState(**{**vars(state), "step": step}), score)
        if state.stopped_because:
            break
    return state


@pytest.mark.parametrize(
    ("settings", "scores", "best", "last"),
    [
        ({"metric": "loss"}, [3, 2, 2.5, 1, 4], 4, 5),
        ({"metric": "log-loss"}, [3, 2, 2.5], 2, 3),
        ({"metric": "accuracy"}, [0.5, 0.7, 0.6, 0.7], 2, 4),
        ({"metric": "accuracy", "patience": 2}, [0.5, 0.4, 0.5, 0.9], 1, 3),
        ({"metric": "accuracy", "patience": 2}, [0.5, 0.4, 0.6, 0.5, 0.5, 0.9], 3, 5),
        ({"metric": "accuracy", "min_delta": 0.1}, [0.5, 0.55, 0.65], 3, 3),
        ({"metric": "loss", "min_delta": 0.1, "patience": 1}, [1.0, 0.95, 0.5], 1, 2),
    ],
)
def test_patience_keeps_the_best_and_stops_in_time(
    settings: dict[str, Any], scores: list[float], best: int, last: int
) -> None:
    state = follow(Patience(EarlyStopping(**settings)), scores)
    assert (state.best_step, state.step) == (best, last)


def test_a_score_that_is_no_number_is_never_the_best() -> None:
    with pytest.raises(FinetuneError, match="found NaN at step 1"):
        follow(Patience(EarlyStopping()), [float("nan")])


@pytest.fixture
def data(make_recipe: RecipeMaker, tmp_path: Path) -> PreparedData:
    return prepare(load_recipe(make_recipe()), tmp_path / "data")


def test_the_restored_weights_are_those_of_the_best_step(
    make_recipe: RecipeMaker, tmp_path: Path, data: PreparedData
) -> None:
    """A run that is told to end at the best step of a longer one has to end with the same weights."""
    settings = {"max_steps": 12, "eval_every": 3, "schedule": "constant", "learning_rate": 2e-2}
    long = train(load_recipe(make_recipe(train=settings)), data, tmp_path / "long", runtime=CPU)
    scores = scores_of(long)
    best = min(scores, key=lambda line: line["validation"]["loss"])["step"]
    assert long.manifest["best_step"] == best < 12, "choose other settings: the last step is the best here"
    short = train(
        load_recipe(make_recipe(train={**settings, "max_steps": best})), data, tmp_path / "short", runtime=CPU
    )
    assert short.manifest["best_step"] == best
    assert weights_digest(short.model_folder) == weights_digest(long.model_folder)


def test_early_stopping_ends_the_training_and_says_why(
    make_recipe: RecipeMaker, tmp_path: Path, data: PreparedData
) -> None:
    stopping = {"metric": "accuracy", "patience": 2, "min_delta": 1.0}
    recipe = load_recipe(make_recipe(train={"max_steps": 50, "eval_every": 2, "early_stopping": stopping}))
    run = train(recipe, data, tmp_path / "run", runtime=CPU)
    assert (run.manifest["best_step"], run.manifest["last_step"]) == (2, 6)
    assert run.manifest["stopped_because"] == "accuracy did not improve in 2 evaluations"


def test_max_steps_wins_over_the_epochs(make_recipe: RecipeMaker, tmp_path: Path, data: PreparedData) -> None:
    run = train(load_recipe(make_recipe(train={"epochs": 1, "max_steps": 9})), data, tmp_path / "run", runtime=CPU)
    assert (run.manifest["last_step"], run.manifest["stopped_because"]) == (9, "max_steps reached")


def test_a_run_keeps_the_diagnosis_of_its_curves_and_a_resumed_one_has_the_same(
    make_recipe: RecipeMaker, tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a hundredth of the usual rate nothing is learned: both losses stay where guessing the labels would be."""
    settings = {"max_steps": 24, "eval_every": 4, "learning_rate": 1e-6, "save_every": 8}
    recipe = load_recipe(make_recipe(train=settings))
    whole = train(recipe, data, tmp_path / "whole", runtime=CPU)
    found = {finding["name"]: finding for finding in whole.manifest["diagnosis"]}
    assert "underfitting" in found
    assert "1.099" in found["underfitting"]["evidence"], "three labels of the same size"
    assert "raise train.learning_rate (now 1e-06) or train.max_steps (now 24)" in found["underfitting"]["change"]
    assert (whole.reports / "loss.png").is_file()

    saved = stage.save_checkpoint

    def killed_after_saving(*arguments: Any, **named: Any) -> None:
        saved(*arguments, **named)
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(stage, "save_checkpoint", killed_after_saving)
        train(recipe, data, tmp_path / "killed", runtime=CPU)
    resumed = train(recipe, data, tmp_path / "killed", runtime=CPU, resume=True)
    assert resumed.manifest["diagnosis"] == whole.manifest["diagnosis"]
    assert (resumed.reports / "loss.png").read_bytes() == (whole.reports / "loss.png").read_bytes()


def test_one_evaluation_is_too_few_for_a_diagnosis(
    make_recipe: RecipeMaker, tmp_path: Path, data: PreparedData
) -> None:
    run = train(load_recipe(make_recipe(train={"max_steps": 5})), data, tmp_path / "run", runtime=CPU)
    assert [finding["name"] for finding in run.manifest["diagnosis"]] == ["cannot-tell"]


def test_a_judge_is_asked_wherever_training_would_go_on_and_ends_it(
    make_recipe: RecipeMaker, tmp_path: Path, data: PreparedData
) -> None:
    stopping = {"metric": "accuracy"}
    recipe = load_recipe(make_recipe(train={"max_steps": 8, "eval_every": 2, "early_stopping": stopping}))
    asked: list[tuple[int, float]] = []
    patient = train(recipe, data, tmp_path / "a", runtime=CPU, judge=lambda *found: asked.append(found) is None)
    assert asked == [(line["step"], line["validation"]["accuracy"]) for line in scores_of(patient)][:3]
    assert patient.manifest["stopped_because"] == "max_steps reached"
    harsh = train(recipe, data, tmp_path / "b", runtime=CPU, judge=lambda step, score: step < 4)
    assert (harsh.manifest["last_step"], harsh.manifest["stopped_because"]) == (4, "judged not worth going on")
    assert scores_of(harsh) == scores_of(patient)[:2]


def test_who_was_out_of_patience_anyway_is_not_judged(
    make_recipe: RecipeMaker, tmp_path: Path, data: PreparedData
) -> None:
    stopping = {"metric": "accuracy", "patience": 1, "min_delta": 1.0}
    recipe = load_recipe(make_recipe(train={"max_steps": 50, "eval_every": 2, "early_stopping": stopping}))
    asked: list[int] = []
    run = train(recipe, data, tmp_path / "run", runtime=CPU, judge=lambda step, score: asked.append(step) is None)
    assert (asked, run.manifest["last_step"]) == ([2], 4)


def test_a_run_says_where_its_data_are_unless_they_lie_beside_it(
    make_recipe: RecipeMaker, tmp_path: Path, data: PreparedData
) -> None:
    recipe = load_recipe(make_recipe(train={"max_steps": 1}))
    beside = train(recipe, data, tmp_path / "run", runtime=CPU)
    apart = train(recipe, data, tmp_path / "some" / "where" / "run", runtime=CPU)
    assert "data_folder" not in beside.manifest
    assert apart.manifest["data_folder"] == "../../../data"
    assert beside.data_folder() == apart.data_folder() == data.folder


class Killed(BaseException):
    """Stands for SIGKILL: nothing that would clean up may run after it."""


@pytest.mark.parametrize("moment", ["before the manifest", "after the manifest", "before the scratch is removed"])
def test_a_kill_while_the_run_is_completed_costs_nothing(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    recipe = load_recipe(make_recipe(train={"max_steps": 4, "eval_every": 2}))
    whole = Job(recipe, tmp_path / "whole", CPU)
    expected = weights_digest(whole.run(asked=True).model_folder)

    from finetune import artifacts

    target = {
        "before the manifest": "write_json",
        "after the manifest": "_swap",
        "before the scratch is removed": "_remove_scratch",
    }[moment]
    prepare(recipe, tmp_path / "out" / "data")
    child = os.fork()
    if child == 0:  # a process of its own, killed at the moment without a chance to clean up
        setattr(artifacts, target, lambda *arguments: os._exit(9))
        train(recipe, PreparedData(tmp_path / "out" / "data"), tmp_path / "out" / "run", runtime=CPU)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    job = Job(recipe, tmp_path / "out", CPU)
    run = job.run(asked=True)
    assert weights_digest(run.model_folder) == expected
    assert not has_scratch(run.folder)
    assert not partial_folder(run.folder).exists()


def test_a_checkpoint_whose_best_model_is_gone_does_not_count(
    make_recipe: RecipeMaker, tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(make_recipe(train={"max_steps": 6, "eval_every": 2}))

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(stage._Training, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, data, tmp_path / "run", runtime=CPU)
    growing = partial_folder(tmp_path / "run")
    for path in (growing / "checkpoints").glob("best-*"):
        path.unlink()
    run = train(recipe, data, tmp_path / "run", runtime=CPU)
    assert run.manifest["last_step"] == 6


def test_a_damaged_run_is_refused_and_made_again(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    recipe = load_recipe(make_recipe(train={"max_steps": 2}))
    job = Job(recipe, tmp_path / "out", CPU)
    run = job.run(asked=True)
    weights = run.model_folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(FinetuneError, match=r"damaged \(model/model.safetensors has other content\)"):
        job.report(run)
    (run.model_folder / "tokenizer.json").unlink()
    with pytest.raises(FinetuneError, match="model/tokenizer.json is missing"):
        job.report(Run(run.folder))
    again = Job(recipe, tmp_path / "out", CPU)
    again.report(again.run(asked=True))
    assert [stage.status for stage in again.stages] == ["skipped", "done", "done"]


def test_a_run_learns_the_gates_of_today_without_being_trained_again(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    settings = {"max_steps": 2}
    Job(load_recipe(make_recipe(train=settings, gates={"accuracy": ">= 0"})), tmp_path / "out", CPU).run(asked=True)
    job = Job(load_recipe(make_recipe(train=settings, gates={"accuracy": ">= 1.01"})), tmp_path / "out", CPU)
    run = job.run(asked=True)
    assert [stage.status for stage in job.stages] == ["skipped", "skipped"]
    assert [str(gate) for gate in Run(run.folder).recipe.gates] == ["accuracy >= 1.01"]


def test_a_changed_metric_module_is_scored_anew(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    pytest.importorskip("evaluate")
    module = """
import datasets
import evaluate
class Constant(evaluate.Metric):
    def _info(self):
        kinds = datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=kinds)
    def _compute(self, predictions, references):
        return {"constant": VALUE}
"""
    path = tmp_path / "constant.py"
    path.write_text(module.replace("VALUE", "0.25"))
    recipe = load_recipe(make_recipe(train={"max_steps": 2}, metrics=["accuracy", "evaluate:./constant.py"]))
    name = f"evaluate:{path}"
    assert recipe.metrics == ("accuracy", name), "the path resolves against the recipe's folder"
    runtime = Runtime("cpu", threads=1, allow_code=True)
    job = Job(recipe, tmp_path / "out", runtime)
    run = job.run(asked=True)
    assert job.report(run)["metrics"][name]["value"] == 0.25
    path.write_text(module.replace("VALUE", "0.75"))
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    again = Job(recipe, tmp_path / "out", runtime)
    again.report(run)
    assert again.stages[-1].status == "done"


def test_other_metrics_score_the_quantized_run_again_without_quantizing(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    settings = {"train": {"max_steps": 2}, "quantize": "onnx-int8"}
    first = Job(load_recipe(make_recipe(**settings, metrics=["accuracy"])), tmp_path / "out", CPU)
    quantized, _ = first.quantized(first.run(asked=True))
    made = (quantized.model_folder / "model.onnx").stat().st_mtime_ns
    second = Job(load_recipe(make_recipe(**settings, metrics=["accuracy", "f1-macro"])), tmp_path / "out", CPU)
    quantized, report = second.quantized(second.run(asked=True))
    assert list(report["drop"]) == ["accuracy", "f1-macro"]
    assert (quantized.model_folder / "model.onnx").stat().st_mtime_ns == made


def test_a_metric_that_is_not_defined_on_validation_ends_no_training(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    rows = [{"body": f"the {word} {n}", "score": 5.0} for n, word in enumerate(["apple", "saw", "rain"] * 12)]
    source = str(write_jsonl(tmp_path / "constant.jsonl", rows))
    recipe = load_recipe(
        make_recipe(
            task={"name": "regression", "minimum": 5, "maximum": 9},
            data={"source": source, "columns": {"text": "body"}, "checks": {"number-range": "off"}},
        )
    )
    run = train(recipe, prepare(recipe, tmp_path / "data"), tmp_path / "run", runtime=Runtime("cpu", threads=1))
    assert run.manifest["metrics"]["pearson"] is None
    assert run.manifest["metrics"]["rmse"] < 1
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(line["validation"]["pearson"] is None for line in lines if "validation" in line)


# ---------------------------------------------------------------------------------------------------------------------
# A loss that is lost
# ---------------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_with_the_rows_that_it_came_from_and_keeps_what_was_good(
    make_recipe: RecipeMaker, tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.tasks.text_classification import TextClassification
    from finetune.training import loop

    recipe = load_recipe(make_recipe(train={"max_steps": 6, "eval_every": 2, "save_every": 4}))
    true, taken = loop.training_batch, []

    def batch_of(learner: Any, rows: Any, windows: list[int], draw: Any) -> Any:
        taken.append(windows)
        return true(learner, rows, windows, draw)

    def loss(task: Any, outputs: Any, batch: Any, fitted: Any) -> Any:
        total, count = task.criterion(outputs, batch.targets["labels"], fitted)
        return total.sum() * (float("nan") if outputs.requires_grad and len(taken) == 6 else 1.0), count.sum()

    with monkeypatch.context() as patched:
        patched.setattr(loop, "training_batch", batch_of)
        patched.setattr(TextClassification, "loss", loss)
        with pytest.raises(FinetuneError) as caught:
            train(recipe, data, tmp_path / "run", runtime=CPU)
    message = str(caught.value)
    assert "expected a loss that is finite and falls, found a loss of nan at step 6" in message
    lines = [data.split("train").lines[window] for window in sorted(taken[-1])]
    assert f"It came from {', '.join(f'line {line}' for line in lines)}: look at them." in message
    assert "The checkpoint of step 5 is kept. Lower train.learning_rate" in message
    run = train(recipe, data, tmp_path / "run", runtime=CPU)  # the poison is gone
    assert weights_digest(run.model_folder) == weights_digest(
        train(recipe, data, tmp_path / "w", runtime=CPU).model_folder
    )


def test_a_gradient_that_is_no_number_is_one_too(
    make_recipe: RecipeMaker, tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.training import loop

    monkeypatch.setattr(loop, "_clip", lambda *arguments: float("inf"))
    with pytest.raises(
        FinetuneError, match=r"with a gradient norm of inf at step 1 .*came from line.* and start|again"
    ):
        train(load_recipe(make_recipe(train={"max_steps": 2})), data, tmp_path / "run", runtime=CPU)
    assert not partial_folder(tmp_path / "run").exists()


def test_a_loss_that_explodes_ends_the_training(
    make_recipe: RecipeMaker, tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.training import stopping

    monkeypatch.setattr(stopping, "STREAK", 3)
    monkeypatch.setattr(stopping, "TIMES", 1.5)
    settings = {"max_steps": 60, "eval_every": 5, "learning_rate": 0.9, "optimizer": "sgd", "max_gradient_norm": None}
    with pytest.raises(
        FinetuneError, match=r"found the loss has been above .* for 3 steps, 1.5 times that of the first"
    ):
        train(load_recipe(make_recipe(train=settings)), data, tmp_path / "run", runtime=CPU)


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------------------------------------


def checkpoints_of(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (partial_folder(run) / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [9]),
        ({"keep_checkpoints": 3}, [3, 6, 9]),
        ({"save_every": 4}, [8]),
        ({"save_every": 2, "keep_checkpoints": 2}, [8, 10]),
        ({"save_minutes": 1e-9, "keep_checkpoints": 4}, [7, 8, 9, 10]),
        ({"save_minutes": 60.0, "save_every": 7}, [7]),
    ],
)
def test_checkpoints_are_saved_when_the_recipe_says_and_the_last_ones_stay(
    make_recipe: RecipeMaker,
    tmp_path: Path,
    data: PreparedData,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    expected: list[int],
) -> None:
    """Looked at after step 10 of 12, where it is killed."""
    true = stage._Training._checkpoint_due

    def due(training: Any, step: Any, seconds: float) -> bool:
        if step.number == 11:
            raise Killed
        return true(training, step, seconds)

    monkeypatch.setattr(stage._Training, "_checkpoint_due", due)
    with pytest.raises(Killed):
        train(load_recipe(make_recipe(train={"max_steps": 12, "eval_every": 3, **settings})), data, tmp_path / "run")
    assert checkpoints_of(tmp_path / "run") == expected


def test_a_full_disk_is_noticed_before_a_checkpoint_is_written(
    make_recipe: RecipeMaker, tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.training import checkpoints

    recipe = load_recipe(make_recipe(train={"max_steps": 9, "eval_every": 3}))
    calls = []

    class Usage:
        free = 1 << 40

    def usage(path: Path) -> Usage:
        calls.append(path)
        if len(calls) > 3:  # the best model, and the two files of the first checkpoint
            Usage.free = 1000
        return Usage()

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.shutil, "disk_usage", usage)
        with pytest.raises(FinetuneError, match=r"expected \d+ MB of free space for .*safetensors, found 0 MB"):
            train(recipe, data, tmp_path / "run", runtime=CPU)
    assert checkpoints_of(tmp_path / "run") == [3]
    assert not list((partial_folder(tmp_path / "run") / "checkpoints").glob(".*"))
    assert train(recipe, data, tmp_path / "run", runtime=CPU).manifest["last_step"] == 9
