"""The command `plan`: what it prints and writes, what it refuses, and that training afterwards knows nothing of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import FinetuneError
from finetune.pipeline import Job
from finetune.plan import SHOWN_STEPS, plan
from finetune.recipe import load_recipe
from finetune.runtime import Runtime
from tests.conftest import RecipeMaker, build_tiny_model, finetune, make_rows, write_jsonl
from tests.planning.world import Plans

CPU = Runtime("cpu", threads=1)
FILES = ["plan.json", "plan.md", "schedule.png"]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    return Plans(tmp_path_factory.mktemp("plans"))


def job_of(path: Path, root: Path, *overrides: str) -> Job:
    return Job(load_recipe(path, list(overrides)), root, CPU, recipe_name="recipe.yaml")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


# ---------------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------------


def test_the_command_prepares_what_is_missing_writes_the_plan_and_trains_nothing(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    make_recipe(train={"gradient_checkpointing": True, "precision": "bf16"})
    done = finetune("plan", "recipe.yaml", cwd=tmp_path)
    root = tmp_path / "outputs" / "tiny"
    assert names(root) == ["data", "plan"]
    assert names(root / "plan") == FILES
    report = json.loads((root / "plan" / "plan.json").read_text(encoding="utf-8"))
    lines = done.stdout.splitlines()
    assert "parameters       21,667 of 21,667 are trained" in lines
    assert "optimizer steps  14 (2 epochs of 7)" in lines
    assert "learning rate    0.005 at first, 0.005 (step 1) at most, 0.00036 at last" in lines
    assert "memory on cpu, each part at its largest" in lines
    assert any(line.startswith("warning: training takes 14 optimizer steps") for line in lines)
    assert lines[-1] == "report: outputs/tiny/plan/plan.md"
    assert report["warnings"][-1]["check"] == "steps"
    assert "prepare: done" in done.stderr
    assert "Traceback" not in done.stderr

    again = finetune("plan", "recipe.yaml", "--json", "--measure", cwd=tmp_path)
    printed = json.loads(again.stdout)
    assert printed == json.loads((root / "plan" / "plan.json").read_text(encoding="utf-8"))
    assert len(printed["time"]["steps"]) == 3
    assert "prepare: skipped, nothing changed" in again.stderr
    assert names(root) == ["data", "plan"]


def test_stale_data_are_refused_with_one_message(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    path = make_recipe()
    job_of(path, tmp_path / "outputs" / "tiny").data(asked=True)
    done = finetune("plan", "recipe.yaml", "--set", "model.max_length=9", cwd=tmp_path, check=2)
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line]
    assert len(errors) == 1, done.stderr
    assert re.search(r"^error: outputs/tiny/data is stale: .*`finetune prepare recipe.yaml` first", errors[0])
    assert names(tmp_path / "outputs" / "tiny") == ["data"]


def test_a_quiet_plan_says_nothing(plans: Plans) -> None:
    path = plans.file("causal-lm answers", train={"gradient_checkpointing": True})
    done = finetune("plan", path, "--quiet", "--output", plans.folder / "quiet", cwd=plans.folder)
    assert (done.stdout, done.stderr) == ("", "")


# ---------------------------------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------------------------------


def test_the_plan_is_one_of_the_whole_training(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    job = job_of(make_recipe(), tmp_path / "out")
    report = job.plan()
    assert report == json.loads((job.plan_folder / "plan.json").read_text(encoding="utf-8"))
    assert {key: report[key] for key in ("name", "task", "model", "device")} == {
        "name": "tiny", "task": "text-classification", "model": "model", "device": "cpu"
    }  # fmt: skip
    parameters = report["parameters"]
    assert parameters["total"] == parameters["trainable"] == sum(row["total"] for row in parameters["groups"])
    assert [row["group"] for row in parameters["groups"]][:2] == ["embeddings", "layer 0"]
    memory = report["memory"]
    assert memory["peak"] > memory["weights"] + memory["optimizer"] + memory["process"]
    assert memory["available"] > 1e7
    assert "time" not in report
    assert report["versions"]["torch"]
    assert (job.plan_folder / "schedule.png").read_bytes().startswith(b"\x89PNG")
    text = (job.plan_folder / "plan.md").read_text(encoding="utf-8")
    for heading in ("# Plan of tiny", "## Before you begin", "## Work", "## Memory", "## Parameters"):
        assert f"{heading}\n" in text
    assert "| optimizer steps | 14 (2 epochs of 7) |" in text
    assert "![The learning rate by step](schedule.png)" in text


@pytest.mark.parametrize(
    ("settings", "steps", "highest"),
    [
        ({"max_steps": 1}, 1, (1, 1.0)),
        ({"max_steps": 9}, 9, (1, 1.0)),
        ({"max_steps": 100, "schedule": {"name": "cosine", "warmup_steps": 9}}, 100, (10, 1.0)),
        ({"max_steps": 30, "schedule": {"name": "constant", "warmup_ratio": 0.5}}, 30, (16, 1.0)),
        ({"max_steps": 10_000, "schedule": {"name": "linear", "warmup_steps": 10}}, 10_000, (11, 1.0)),
    ],
)  # fmt: skip
def test_the_schedule_has_the_first_step_the_last_and_the_highest(
    plans: Plans, settings: dict[str, Any], steps: int, highest: tuple[int, float]
) -> None:
    recipe = plans.recipe("text-classification", train={"learning_rate": 1.0, **settings})
    schedule = plan(recipe, plans.data(recipe), plans.folder / "schedule", runtime=CPU)["schedule"]
    numbers = [point["step"] for point in schedule]
    assert (numbers[0], numbers[-1]) == (1, steps)
    assert numbers == sorted(set(numbers))
    assert len(numbers) == min(steps, len(numbers)) <= SHOWN_STEPS + 3
    most = max(schedule, key=lambda point: point["learning_rate"])
    assert (most["step"], most["learning_rate"]) == (highest[0], pytest.approx(highest[1]))


def test_a_plans_learning_rates_are_those_of_the_training(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    schedule = {"name": "cosine", "warmup_ratio": 0.2}
    job = job_of(make_recipe(train={"schedule": schedule, "max_steps": 12}), tmp_path / "out")
    planned = {point["step"]: point["learning_rate"] for point in job.plan()["schedule"]}
    assert planned == {line["step"]: line["learning_rate"] for line in log_of(job) if "loss" in line}


def test_names_are_shown_as_they_are_and_never_as_markup(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path / "a|b*c*<img src=x>[link](x)")
    job = job_of(make_recipe(model={"id": str(folder)}), tmp_path / "out")
    job.plan()
    text = (job.plan_folder / "plan.md").read_text(encoding="utf-8")
    assert "a\\|b\\*c\\*&lt;img src=x&gt;\\[link\\]" in text
    assert "<img" not in text


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------


def test_a_tokenizer_of_its_own_for_a_pretrained_model_is_refused_before_anything_is_made(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    path = make_recipe(tokenizer={"name": "bpe", "vocabulary": 340})
    with pytest.raises(FinetuneError, match="^tokenizer: a pretrained model reads the ids of its own tokenizer"):
        job_of(path, tmp_path / "out").plan()
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Training afterwards
# ---------------------------------------------------------------------------------------------------------------------


def log_of(job: Job) -> list[dict[str, Any]]:
    """Train, and return the log without what a clock says."""
    lines = (job.run(asked=True).folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize("kind", ["text-classification", "masked-lm"])
def test_training_after_a_plan_is_training_without_one(plans: Plans, tmp_path: Path, kind: str) -> None:
    recipe = plans.recipe(kind, train={"max_steps": 5, "eval_every": 2})

    def job(name: str) -> Job:
        made = Job(recipe, tmp_path / name, CPU)
        made.data(asked=True)
        return made

    expected = log_of(job("without"))
    assert len([line for line in expected if "loss" in line]) == 5
    for name, measured in (("planned", False), ("measured", True)):
        one = job(name)
        one.plan(measure=measured)
        assert names(tmp_path / name) == ["data", "plan"]
        assert log_of(one) == expected, name


def test_a_plan_of_a_trained_recipe_leaves_its_run_alone(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    path = make_recipe(train={"max_steps": 2})
    job = job_of(path, tmp_path / "out")
    folder = job.run(asked=True).folder
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    job_of(path, tmp_path / "out", "train.batch_size=4").plan()
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()} == before


def test_one_row_to_validate_with_and_one_step_are_enough(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    rows = make_rows()[:21]
    source = {
        "train": write_jsonl(tmp_path / "a.jsonl", rows[:20]),
        "validation": write_jsonl(tmp_path / "b.jsonl", rows[20:]),
    }
    data = {"source": {name: str(path) for name, path in source.items()}, "split": "stratified"}
    path = make_recipe(data={**data, "checks": {"rare-labels": "off"}}, train={"batch_size": 64, "epochs": 1})
    report = job_of(path, tmp_path / "out").plan(measure=True)
    assert (report["work"]["steps"], report["work"]["evaluations"], report["work"]["validation_rows"]) == (1, 1, 1)
    assert [point["step"] for point in report["schedule"]] == [1]
    assert len(report["time"]["steps"]) == 3
