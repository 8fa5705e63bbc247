"""Several processes (gloo) and one: the same training, with one voice, the same exit codes and the same files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune import processes
from finetune import train as stage
from finetune.artifacts import Run, partial_folder
from finetune.errors import FinetuneError, Terminated
from finetune.pipeline import Job
from finetune.recipe import load_recipe
from finetune.runtime import Runtime
from finetune.training.checkpoints import TrainingState, latest_checkpoint, read_state
from finetune.training.log import NoLog, read_log
from tests.conftest import ROOT, RecipeMaker, finetune

# 54 training rows in steps of 7 (5 in the last of an epoch), the rows of which two processes share unevenly
SETTINGS = {"epochs": 2, "batch_size": 7, "eval_every": 4, "learning_rate": 5e-3, "threads": 1}


@pytest.fixture
def recipe(make_recipe: RecipeMaker, still_model: Path) -> Path:
    """A recipe without dropout, which no two processes could draw alike."""
    return make_recipe(model={"id": str(still_model), "dropout": 0.0}, train=SETTINGS)


def trained_alone(recipe: Path, folder: Path, *overrides: str) -> Path:
    """Train in this process, and return the folder."""
    Job(load_recipe(recipe, overrides), folder, Runtime("cpu", threads=1)).run(asked=True)
    return folder


def assert_the_same(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    """Compare losses, gradient norms and validation scores."""
    first, second = (read_log(folder / "run" / "log.jsonl") for folder in (one, other))
    assert len(first) == len(second)
    for ours, theirs in zip(first, second, strict=True):
        for key in ("step", "rows", "tokens", "best", "restored_step"):
            assert ours.get(key) == theirs.get(key)
        for key in ("loss", "gradient_norm", "learning_rate"):
            assert ours.get(key, 0.0) == pytest.approx(theirs.get(key, 0.0), rel=tolerance)
        assert ours.get("validation", {}) == pytest.approx(theirs.get("validation", {}), rel=tolerance)
    scores = [Run(folder / "run").manifest["metrics"] for folder in (one, other)]
    assert scores[0] == pytest.approx(scores[1], rel=tolerance)


def test_two_processes_train_as_one_does(recipe: Path, tmp_path: Path) -> None:
    """With unfreezing, accumulation and averages, each of which several processes could get wrong."""
    overrides = ["freeze={name: gradual, every: 3, unit: steps}", "train.gradient_accumulation=2", "train.ema=0.9"]
    overrides += ["train.average_best=2"]
    given = [argument for override in overrides for argument in ("--set", override)]
    done = finetune("train", recipe, "--output", "two", "--processes", "2", *given, cwd=tmp_path)
    assert_the_same(trained_alone(recipe, tmp_path / "one", *overrides), tmp_path / "two")
    assert done.stderr.count("train: done") == 1, "only the main process speaks"
    assert "[rank" not in done.stderr
    assert "Warning" not in done.stderr


def test_a_signal_ends_all_processes_after_the_same_step_and_torchs_launcher_goes_on(
    recipe: Path, tmp_path: Path
) -> None:
    overrides = ("train.epochs=12", "train.schedule=constant", "train.learning_rate=1e-4")
    longer = [argument for override in overrides for argument in ("--set", override)]
    command = [sys.executable, "-m", "finetune", "train", str(recipe), "--output", "two", "--processes", "2", *longer]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    log = partial_folder(tmp_path / "two" / "run") / "log.jsonl"
    limit = time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("learning_rate") > 5) and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert said.count("terminated. Finished stages and the last checkpoint are kept") == 1
    checkpoint = latest_checkpoint(partial_folder(tmp_path / "two" / "run") / "checkpoints")
    assert checkpoint is not None
    step = read_state(checkpoint).step
    assert step > 5
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "finetune"]
    again = [*launcher, "train", str(recipe), "--output", "two", "--resume", "--json", *longer]
    done = subprocess.run(
        again, cwd=tmp_path, check=True, env={**environment, "OMP_NUM_THREADS": "1"}, timeout=300, capture_output=True,
        text=True,
    )  # fmt: skip
    assert f"going on from the checkpoint of step {step} of 96" in done.stderr
    assert json.loads(done.stdout)["folder"].endswith("two/run")
    assert_the_same(trained_alone(recipe, tmp_path / "one", *overrides), tmp_path / "two", 1e-4)


def test_a_mistake_is_one_message_and_its_exit_code_is_relayed(recipe: Path, tmp_path: Path) -> None:
    early = finetune("train", recipe, "--processes", "2", "--set", "train.loss=mse", cwd=tmp_path, check=2)
    assert early.stderr.count("expected a loss for what text-classification predicts") == 1
    late = finetune(
        "train", recipe, "--processes", "2", "--set", "freeze={name: first-layers, count: 9}", cwd=tmp_path, check=2
    )
    assert late.stderr.count("freeze.count: expected at most 2") == 1
    assert "Traceback" not in late.stderr
    wrong = finetune("train", recipe, "--processes", "0", cwd=tmp_path, check=2)
    assert "--processes" in wrong.stderr


# ---------------------------------------------------------------------------------------------------------------------
# In one process
# ---------------------------------------------------------------------------------------------------------------------


def test_alone_everything_is_done_at_once() -> None:
    assert (processes.count(), processes.rank(), processes.is_main()) == (1, 0, True)
    assert processes.on_main(lambda: 5) == 5
    assert processes.gathered([1, 2]) == [1, 2]


@pytest.mark.parametrize(
    ("error", "code"), [(FinetuneError("x"), 2), (KeyboardInterrupt(), 130), (Terminated(), 143), (ValueError(), 1)]
)
def test_the_others_end_with_the_exit_code_of_the_main_process(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    sent: list[list[Any]] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "_broadcast", lambda objects: sent.append(objects) or sent[0])

    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        processes.on_main(fail)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(processes.OtherProcessFailed) as caught:
        processes.on_main(fail)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0, 0], (0, "")),
        ([2, -15], (2, "")),
        ([-15, 2], (2, "process 1: error: no room")),
        ([-9, -15], (137, "")),
        ([143, 143], (143, "")),
    ],
)
def test_what_is_relayed_is_what_was_to_blame(
    monkeypatch: pytest.MonkeyPatch, codes: list[int], expected: tuple[int, str]
) -> None:
    def ended(*arguments: Any) -> list[int]:
        if codes == [-15, 2]:
            monkeypatch.setenv("WORLD_SIZE", "2")
            monkeypatch.setenv("RANK", "1")
            assert processes.say("error: no room") is None
            monkeypatch.setenv("WORLD_SIZE", "1")
        return codes

    monkeypatch.setattr(processes, "_launched", ended)
    monkeypatch.setenv(processes.MESSAGES, "")
    assert processes.launch(["train"], 2, None) == expected


def test_without_our_launcher_a_process_says_which_one_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(processes.MESSAGES, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes.say("error: x") == "error: x"
    monkeypatch.setenv("RANK", "1")
    assert processes.say("error: x") == "process 1: error: x"


def test_only_the_main_process_looks_at_checkpoints_when_one_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others would find one whose files the main process is removing."""
    looked: list[Path] = []
    monkeypatch.setattr(stage, "latest_checkpoint", looked.append)
    monkeypatch.setattr(stage, "save_checkpoint", lambda *arguments, **options: None)
    training = SimpleNamespace(
        state=TrainingState(step=4), checkpoints=tmp_path, learner=None, settings=SimpleNamespace(keep_checkpoints=1)
    )
    for main, expected in ((False, []), (True, [tmp_path])):
        monkeypatch.setattr(stage, "is_main", lambda main=main: main)
        stage._Training._save(training, NoLog())  # type: ignore[arg-type]
        assert looked == expected
