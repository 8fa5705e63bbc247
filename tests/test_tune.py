"""The search: what it trains, keeps and writes, what a kill costs, and what is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune import tune as stage
from finetune.artifacts import PreparedData, Run
from finetune.errors import FinetuneError
from finetune.pipeline import Job
from finetune.recipe import load_recipe
from finetune.runtime import Runtime
from finetune.train import train
from finetune.tuning.study import Study
from tests.conftest import ROOT, RecipeMaker, finetune

CPU = Runtime("cpu", threads=1)
RATES = {"train.learning_rate": {"low": 1e-5, "high": 2e-2, "log": True}}
TRAIN = {"epochs": 2, "early_stopping": {"metric": "accuracy"}}


def job_of(path: Path, root: Path, *overrides: str, **settings: Any) -> Job:
    return Job(load_recipe(path, overrides), root, CPU, **settings)


def tuned(make_recipe: RecipeMaker, root: Path, **tune: Any) -> dict[str, Any]:
    path = make_recipe(train=TRAIN, tune={"space": RATES, "trials": 3, **tune})
    return job_of(path, root).tune()


def timeless(report: dict[str, Any]) -> dict[str, Any]:
    trials = [{name: value for name, value in trial.items() if name != "seconds"} for trial in report["trials"]]
    return {**report, "trials": trials, "best": None, "best_recipe": None}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def digest_of(run: Run) -> str:
    return str(run.manifest["files"]["model/model.safetensors"]["sha256"])


def test_the_best_trial_is_written_as_a_recipe_that_trains_the_same_model(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    report = tuned(make_recipe, tmp_path / "out", pruning="none")
    folder = tmp_path / "out" / "tune"
    best = report["best"]
    assert best["score"] == max(trial["score"] for trial in report["trials"])
    assert [trial["state"] for trial in report["trials"]] == ["finished"] * 3
    assert {(trial["evaluations"], trial["steps"]) for trial in report["trials"]} == {(2, 14)}
    assert report == json.loads((folder / "report.json").read_text(encoding="utf-8"))

    text = (folder / "best.yaml").read_text(encoding="utf-8")
    assert f"in trial {best['number']}:" in text.splitlines()[0]
    assert "# validation accuracy" in text
    recipe = load_recipe(folder / "best.yaml", check_inputs=True)
    assert (recipe.name, recipe.tune) == ("tiny-tuned", None)
    assert recipe.train.learning_rate == best["values"]["train.learning_rate"]
    kept = Run(folder / "trials" / f"{best['number']:04d}" / "run")
    assert kept.manifest["metrics"]["accuracy"] == best["score"]
    assert digest_of(Job(recipe, tmp_path / "again", CPU).run()) == digest_of(kept)


def test_of_the_other_trials_only_the_log_and_the_recipe_stay(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    report = tuned(make_recipe, tmp_path / "out")
    trials = tmp_path / "out" / "tune" / "trials"
    assert names(trials) == [f"{trial['number']:04d}" for trial in report["trials"]]
    for trial in report["trials"]:
        folder = trials / f"{trial['number']:04d}"
        run = ["run"] if trial["number"] == report["best"]["number"] else []
        assert names(folder) == ["log.jsonl", "recipe.yaml", *run]
        assert load_recipe(folder / "recipe.yaml").train.learning_rate == trial["values"]["train.learning_rate"]
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        scores = [line["validation"]["accuracy"] for line in lines if "validation" in line]
        assert trial["score"] == (max(scores) if trial["state"] == "finished" else scores[-1])
        assert trial["evaluations"] == len(scores)


def test_trials_tell_trackers_nothing(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    path = make_recipe(train={**TRAIN, "trackers": ["tensorboard"]}, tune={"space": RATES, "trials": 1})
    job_of(path, tmp_path / "out").tune()
    kept = Run(tmp_path / "out" / "tune" / "trials" / "0000" / "run")
    assert kept.recipe.train.trackers == ()
    assert not (kept.folder / "trackers").exists()
    best = load_recipe(tmp_path / "out" / "tune" / "best.yaml")
    assert [part.name for part in best.train.trackers] == ["tensorboard"]


def test_the_run_that_is_kept_finds_its_data(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    report = tuned(make_recipe, tmp_path / "out", trials=1)
    run = Run(tmp_path / "out" / "tune" / "trials" / "0000" / "run")
    job = Job(run.recipe, tmp_path / "elsewhere", CPU)
    scored = job.report(run, split="validation", folder=tmp_path / "reports")
    assert scored["metrics"]["accuracy"]["value"] == pytest.approx(report["best"]["score"])
    assert scored["baselines"]


def test_no_trial_looks_at_the_test_split(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_recipe(train=TRAIN, tune={"space": RATES, "trials": 2})
    job = job_of(path, tmp_path / "out")
    job.data()
    opened, split = [], PreparedData.split
    monkeypatch.setattr(PreparedData, "split", lambda self, name: (opened.append(name), split(self, name))[1])
    job.tune()
    assert set(opened) == {"train", "validation"}


class Killed(BaseException):
    """What a kill looks like from inside: nothing more is done."""


def test_an_interrupted_search_ends_as_one_that_never_was(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tuned(make_recipe, tmp_path / "whole")
    judged, goes_on = [], Study.goes_on

    def dying(self: Study, trial: Any, step: int, score: float) -> bool:
        judged.append((trial.number, step))
        answer = goes_on(self, trial, step, score)
        if len(judged) in (2, 4):
            raise Killed if len(judged) == 2 else KeyboardInterrupt
        return answer

    monkeypatch.setattr(Study, "goes_on", dying)
    for death in (Killed, KeyboardInterrupt):
        with pytest.raises(death):
            tuned(make_recipe, tmp_path / "parts")
    assert timeless(tuned(make_recipe, tmp_path / "parts")) == timeless(expected)
    assert (0, 7) in judged
    assert judged.count((0, 7)) == 1, "it went on from its checkpoint"


def test_a_finished_search_trains_nothing_and_more_trials_go_on_with_it(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tuned(make_recipe, tmp_path / "out", trials=2)
    trained = []
    monkeypatch.setattr(stage, "train", lambda *given, **options: (trained.append(1), train(*given, **options))[1])
    assert tuned(make_recipe, tmp_path / "out", trials=2)["trials"] == first["trials"]
    assert trained == []
    more = tuned(make_recipe, tmp_path / "out", trials=3)["trials"]
    assert (more[:2], len(more), len(trained)) == (first["trials"], 3, 1)


def test_trials_of_another_search_are_refused_unless_forced(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    tuned(make_recipe, tmp_path / "out", trials=1)
    path = make_recipe(train={**TRAIN, "layer_decay": 0.9}, tune={"space": {**RATES, "train.epochs": [1]}, "trials": 1})
    with pytest.raises(FinetuneError) as error:
        job_of(path, tmp_path / "out").tune()
    assert "(changed: train.layer_decay, tune.space.train.epochs)" in str(error.value)
    report = job_of(path, tmp_path / "out", force=True).tune()
    assert [trial["values"]["train.epochs"] for trial in report["trials"]] == [1]


def test_a_trial_that_cannot_be_trained_is_recorded_and_the_search_goes_on(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    space = {"model.sha256": [None, "0" * 64], "train.epochs": [1]}
    path = make_recipe(tune={"search": "grid", "space": space})
    report = job_of(path, tmp_path / "out").tune()
    assert [trial["state"] for trial in report["trials"]] == ["finished", "failed"]
    assert "000000" in report["trials"][1]["failure"]
    assert report["best"]["number"] == 0
    markdown = (tmp_path / "out" / "tune" / "report.md").read_text(encoding="utf-8")
    assert "## Failures\n\n- 1: " in markdown
    assert names(tmp_path / "out" / "tune" / "trials" / "0001") == ["recipe.yaml"]


def test_a_search_in_which_nothing_could_be_trained_says_why(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    path = make_recipe(tune={"trials": 2, "space": {"model.sha256": ["0" * 64, "1" * 64]}})
    with pytest.raises(FinetuneError, match="^tune: none of 2 trials could be finished. Trial 0: "):
        job_of(path, tmp_path / "out").tune()
    assert "No trial could be finished." in (tmp_path / "out" / "tune" / "report.md").read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "tune" / "best.yaml").exists()


def test_a_bug_of_ours_stops_the_search(
    make_recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any, **options: Any) -> Run:
        raise ZeroDivisionError

    monkeypatch.setattr(stage, "train", broken)
    with pytest.raises(ZeroDivisionError):
        tuned(make_recipe, tmp_path / "out")
    assert names(tmp_path / "out" / "tune" / "trials") == ["0000"]


def test_data_are_made_anew_only_for_values_that_change_them(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    path = make_recipe(train={"epochs": 1}, tune={"trials": 3, "space": {"model.max_length": [8, 32]}})
    report = job_of(path, tmp_path / "out").tune()
    assert {trial["values"]["model.max_length"] for trial in report["trials"]} == {8, 32}
    (made,) = [folder for folder in (tmp_path / "out" / "tune" / "data").iterdir() if folder.is_dir()]
    assert PreparedData(made).limits["max_length"] == 8
    assert PreparedData(tmp_path / "out" / "data").limits["max_length"] == 32


def test_a_recipe_without_a_search_is_told_what_to_add(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match="add for example `tune: {space: "):
        job_of(make_recipe(), tmp_path / "out").tune()
    assert not (tmp_path / "out").exists()


def test_two_searches_do_not_write_into_one_folder(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    job = job_of(make_recipe(train=TRAIN, tune={"space": RATES, "trials": 1}), tmp_path / "out")
    with pytest.raises(FinetuneError, match="another finetune process is writing here"):
        job.tune(launch=lambda: job.tune())


def test_a_worker_notices_that_the_recipe_is_another_one(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    job = job_of(make_recipe(train=TRAIN, tune={"space": RATES, "trials": 1}), tmp_path / "out")
    other = job_of(make_recipe(train=TRAIN, tune={"space": {"train.epochs": [1]}, "trials": 1}), tmp_path / "out")
    with pytest.raises(FinetuneError, match="the recipe was changed while the search began"):
        job.tune(launch=other.work)


def test_workers_are_a_search_like_any_other(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    space = {"train.learning_rate": [1e-4, 5e-3]}
    path = make_recipe(train=TRAIN, tune={"search": "grid", "pruning": "none", "space": space})
    expected = job_of(path, tmp_path / "one").tune()
    done = finetune("tune", "recipe.yaml", "--workers", "2", cwd=tmp_path)
    found = json.loads((tmp_path / "outputs" / "tiny" / "tune" / "report.json").read_text(encoding="utf-8"))
    assert timeless(found) == timeless(expected)

    assert done.stdout.splitlines()[-1] == "next       finetune run outputs/tiny/tune/best.yaml"
    assert "It is the best of 2 validation scores, and so partly luck" in done.stdout
    assert "The test split has not been looked at." in done.stdout
    assert "[2] prepare: skipped, nothing changed" in done.stderr
    for worker in (1, 2):
        assert f"[{worker}] trial " in done.stderr
    assert "(2 of 2): train.learning_rate 0.005" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


def test_a_killed_command_leaves_no_worker_behind_and_goes_on(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    train = {**TRAIN, "max_steps": 100_000, "eval_every": 50}
    make_recipe(train=train, tune={"space": RATES, "pruning": "none", "trials": 3})
    command = [sys.executable, "-m", "finetune", "tune", "recipe.yaml", "--workers", "2", "--output", "out"]
    parent = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=_environment())
    _wait_for(lambda: len(list(tmp_path.glob("out/tune/trials/*/run.partial/checkpoints/step-*"))) == 2)
    parent.send_signal(signal.SIGKILL)
    parent.wait(timeout=60)
    locks = [tmp_path / "out" / "tune" / "trials" / f".{number:04d}.lock" for number in (0, 1)]
    _wait_for(lambda: all(_is_free(lock) for lock in locks))
    study = Study(tmp_path / "out" / "tune", _settings(tmp_path), seed=7, higher_is_better=True)
    found = [study.begin(), study.begin()]
    assert [(trial.number, trial.resumed) for trial in found if trial] == [(0, True), (1, True)]


def _settings(folder: Path) -> Any:
    return load_recipe(folder / "recipe.yaml").tune


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _is_free(path: Path) -> bool:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    lock.release()
    return True


def _wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it never came to pass")


def test_a_pair_of_values_that_is_illegal_only_together_fails_when_it_is_tried(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    path = make_recipe(tune={"trials": 1, "space": {"adapter": ["lora"], "train.layer_decay": [0.9]}})
    with pytest.raises(FinetuneError, match="(?s)Trial 0: 1 problem in the recipe.*the layers are frozen"):
        job_of(path, tmp_path / "out").tune()
