"""The command `lr-find`: its curve is training's own, it writes two files, and leaves everything else alone."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from finetune import lr_find as stage
from finetune.errors import FinetuneError, NotFinite
from finetune.pipeline import Job
from finetune.progress import Silent
from finetune.recipe import load_recipe
from finetune.runtime import Runtime
from finetune.training.range_test import Sweep
from tests.conftest import ROOT, RecipeMaker, finetune
from tests.planning.world import Plans

CPU = Runtime("cpu", threads=1)
SHORT = Sweep(1e-6, 1e-1, 20)
FILES = ["lr-find.json", "lr-find.png"]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Plans:
    return Plans(tmp_path_factory.mktemp("kinds"))


def job_of(path: Path, root: Path, *overrides: str) -> Job:
    return Job(load_recipe(path, list(overrides)), root, CPU, recipe_name="recipe.yaml")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --- the command line ------------------------------------------------------------------------------------------------


def test_the_command_prepares_what_is_missing_advises_and_applies_nothing(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    path = make_recipe(train={"batch_size": 27})
    before = path.read_bytes()
    options = ["--from", "1e-4", "--to", "1", "--steps", "60"]
    done = finetune("lr-find", "recipe.yaml", *options, cwd=tmp_path)
    root = tmp_path / "outputs" / "tiny"
    assert sorted(item.name for item in root.iterdir() if item.is_dir()) == ["data", "lr-find"]
    assert sorted(contents(root / "lr-find")) == FILES
    assert path.read_bytes() == before
    report = json.loads((root / "lr-find" / "lr-find.json").read_text(encoding="utf-8"))
    lines = done.stdout.splitlines()
    assert 1e-3 < report["advice"]["steepest"] < 0.1
    assert any(line.startswith("try  --set train.learning_rate=") for line in lines)
    assert any(line.startswith("train.learning_rate is 5e-3: ") for line in lines)
    assert any("first steps, each at another rate, without validation" in line for line in lines)
    assert lines[-1] == "picture: outputs/tiny/lr-find/lr-find.png"
    assert "prepare: done" in done.stderr

    again = finetune("lr-find", "recipe.yaml", *options, "--json", cwd=tmp_path)
    assert json.loads(again.stdout) == report, "the same recipe has the same curve"
    assert "prepare: skipped, nothing changed" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "1e-2", "--to", "1e-3"], "error: lr-find: expected 0 < --from < --to <= 10, found --from 0.01 and"),
        (["--steps", "5"], "error: lr-find: expected --steps of at least 20, found 5"),
        (["--set", "train.learning_rat=1"], "error: 1 problem in the recipe:"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_made(
    make_recipe: RecipeMaker, tmp_path: Path, arguments: list[str], message: str
) -> None:
    make_recipe()
    done = finetune("lr-find", "recipe.yaml", *arguments, cwd=tmp_path, check=2)
    assert done.stderr.startswith(message)
    assert not (tmp_path / "outputs").exists()


def test_stale_data_are_refused(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    path = make_recipe()
    job_of(path, tmp_path / "out").data(asked=True)
    with pytest.raises(FinetuneError, match="is stale: .*`finetune prepare recipe.yaml` first"):
        job_of(path, tmp_path / "out", "model.max_length=9").lr_find(SHORT)
    assert not (tmp_path / "out" / "lr-find").exists()


# --- the curve -------------------------------------------------------------------------------------------------------


def test_its_first_loss_is_trainings_and_its_rates_are_the_sweeps(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    job = job_of(make_recipe(train={"max_steps": 1}), tmp_path / "out")
    report = job.lr_find(SHORT)
    log = (job.run(asked=True).folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert report["points"][0]["loss"] == json.loads(log[0])["loss"]
    rates = [point["learning_rate"] for point in report["points"]]
    assert rates == [pytest.approx(1e-6 * 10 ** (5 * step / 19)) for step in range(20)]
    assert report["epochs"] == round(20 / 7, 2)
    assert "ended_early" not in report


def test_layers_that_learn_more_slowly_do_so_here(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    path = make_recipe()
    whole = job_of(path, tmp_path / "out").lr_find(SHORT)
    decayed = job_of(path, tmp_path / "out", "train.layer_decay=0.1").lr_find(SHORT)
    assert (whole["rates_differ"], decayed["rates_differ"]) == (False, True)
    assert [point["learning_rate"] for point in decayed["points"]] == [
        point["learning_rate"] for point in whole["points"]
    ]
    assert decayed["points"][-1]["loss"] != whole["points"][-1]["loss"]


@pytest.mark.parametrize("kind", ["ranking", "embedding", "masked-lm", "causal-lm packed", "seq2seq", "regression"])
def test_every_kind_of_training_has_a_curve(plans: Plans, tmp_path: Path, kind: str) -> None:
    recipe = plans.recipe(kind)
    report = stage.lr_find(recipe, plans.data(recipe), tmp_path, sweep=SHORT, runtime=CPU)
    assert len(report["points"]) >= 8
    assert all(math.isfinite(point["smoothed"]) for point in report["points"])
    assert sorted(contents(tmp_path)) == FILES


def test_a_finished_run_and_an_unfinished_one_are_left_alone(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    job = job_of(make_recipe(train={"max_steps": 2}), tmp_path / "out")
    job.run(asked=True)
    checkpoint = tmp_path / "out" / "run.partial" / "checkpoints" / "step-1" / "state.json"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("{}", encoding="utf-8")
    before = contents(tmp_path / "out")
    job_of(tmp_path / "recipe.yaml", tmp_path / "out").lr_find(SHORT)
    after = contents(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert sorted(set(after) - set(before)) == [f"lr-find/{name}" for name in FILES]


# --- how it ends -----------------------------------------------------------------------------------------------------


def test_a_loss_that_explodes_ends_the_test_and_is_a_result(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    path = make_recipe(train={"optimizer": "sgd", "max_gradient_norm": None})
    report = job_of(path, tmp_path / "out").lr_find(Sweep(1e-3, 10.0, 200))
    assert report["ended_early"]["because"] == "the loss exploded"
    assert len(report["points"]) < 200
    assert report["ended_early"]["learning_rate"] == report["points"][-1]["learning_rate"] < 10


def test_a_loss_that_is_not_finite_ends_the_test_with_the_curve_until_then(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses_until(monkeypatch, 12)
    report = job_of(make_recipe(), tmp_path / "out").lr_find(SHORT)
    assert report["ended_early"]["because"] == "the loss or its gradient was not finite"
    assert len(report["points"]) == 12
    assert sorted(contents(tmp_path / "out" / "lr-find")) == FILES


def test_a_first_loss_that_is_not_finite_is_an_error_and_not_the_rates(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses_until(monkeypatch, 0)
    with pytest.raises(FinetuneError, match="not finite before anything was learned, .*train.precision"):
        job_of(make_recipe(), tmp_path / "out").lr_find(SHORT)
    assert not (tmp_path / "out" / "lr-find").exists()


def losses_until(monkeypatch: pytest.MonkeyPatch, finite: int) -> None:
    """Let the loop's losses be NaN after so many steps."""
    from finetune.training import loop

    accumulate, calls = loop._accumulate, iter(range(1000))

    def broken(*arguments: Any) -> tuple[float, int]:
        loss, tokens = accumulate(*arguments)
        if next(calls) >= finite:
            raise NotFinite("a loss of nan", [0])
        return loss, tokens

    monkeypatch.setattr(loop, "_accumulate", broken)


class Interrupting(Silent):
    """Ctrl-C in the third step."""

    @contextmanager
    def bar(self, title: str, total: int | None, start: int = 0) -> Iterator[Any]:
        yield self

    def advance(self, count: int = 1, text: str = "") -> None:
        self.steps = getattr(self, "steps", 0) + count
        if self.steps == 3:
            raise KeyboardInterrupt


def test_an_interrupted_test_leaves_the_one_before_it_as_it_was(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    path = make_recipe()
    job_of(path, tmp_path / "out").lr_find(SHORT)
    before = contents(tmp_path / "out")
    interrupted = job_of(path, tmp_path / "out", "train.batch_size=4")
    interrupted.progress = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        interrupted.lr_find(SHORT)
    assert contents(tmp_path / "out") == before


def test_a_termination_ends_in_one_message_and_writes_nothing(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    make_recipe()
    command = [sys.executable, "-m", "finetune", "lr-find", "recipe.yaml", "--steps", "1000000"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    assert any("total   " in line for line in process.stderr), "the freezing table, right before the first step"
    process.send_signal(signal.SIGTERM)
    out, messages = process.communicate(timeout=60)
    assert process.returncode == 143
    assert out == ""
    assert "Traceback" not in messages
    assert not (tmp_path / "outputs" / "tiny" / "lr-find").exists()
