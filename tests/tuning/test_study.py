"""The study on disk: the same trials however often it is interrupted, each once however many processes there are."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from finetune.errors import FinetuneError
from finetune.space import TuneSection
from finetune.tuning.study import MAX_DEATHS, Study, Trial, import_optuna
from tests.conftest import ROOT

SPACE: dict[str, Any] = {
    "train.learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
    "train.epochs": {"low": 1, "high": 9},
    "freeze": ["none", {"name": "first-layers", "count": 2}],
}


def study_in(folder: Path, *, higher: bool = True, seed: int = 5, **settings: Any) -> Study:
    section = TuneSection.model_validate({"trials": 12, "space": SPACE, **settings})
    return Study(folder, section, seed=seed, higher_is_better=higher)


def begun(study: Study) -> Trial:
    trial = study.begin()
    assert trial is not None
    return trial


def score_of(values: dict[str, Any]) -> float:
    return -abs(math.log10(values.get("train.learning_rate", 1)) + 3) - values["train.epochs"] / 10


def finish(study: Study, trial: Trial, score: float | None = None) -> None:
    study.end(trial, score=score_of(trial.values) if score is None else score, steps=3, seconds=1.0)


def search(folder: Path, **settings: Any) -> list[dict[str, Any]]:
    study = study_in(folder, **settings)
    while trial := study.begin():
        finish(study, trial)
    return [found.values for found in study.outcomes()]


def test_a_search_that_is_interrupted_at_every_trial_draws_the_same(tmp_path: Path) -> None:
    expected = search(tmp_path / "whole")
    assert len(expected) == len({str(values) for values in expected}) == 12
    while trial := study_in(tmp_path / "parts").begin():
        trial.lock.release()  # the process is gone: another opens the study, and goes on with the trial
        study = study_in(tmp_path / "parts")
        again = begun(study)
        assert (again.number, again.values, again.resumed) == (trial.number, trial.values, True)
        finish(study, again)
    assert [found.values for found in study_in(tmp_path / "parts").outcomes()] == expected


def test_another_seed_and_another_search_draw_other_values(tmp_path: Path) -> None:
    tpe, chance = (search(tmp_path / kind, search=kind) for kind in ("tpe", "random"))
    assert tpe[0] != search(tmp_path / "other", seed=6, trials=1)[0]
    assert tpe[:10] == chance[:10]  # behind ten random trials the search by TPE knows something
    assert tpe[-1] != chance[-1]


def test_more_trials_go_on_where_fewer_ended(tmp_path: Path) -> None:
    assert search(tmp_path / "a", trials=4)[:2] == search(tmp_path / "b", trials=2)
    assert search(tmp_path / "b", trials=4) == search(tmp_path / "a", trials=4)


def test_a_grid_is_walked_in_its_order_and_only_once(tmp_path: Path) -> None:
    space = {"train.epochs": {"low": 1, "high": 2}, "freeze": SPACE["freeze"], "adapter": [None, "lora"]}
    settings = {"search": "grid", "trials": None, "space": space}
    study = study_in(tmp_path, **settings)
    expected = list(study.settings.grid())
    finish(study, begun(study))
    # a kill between what is written into the queue and what is taken out of it
    study.study.enqueue_trial({"train.epochs": 1, "freeze": "none", "adapter": "lora"})
    assert search(tmp_path, **settings) == expected
    assert len(expected) == 8


def test_a_trial_is_pruned_unless_it_is_among_the_best_of_those_that_came_as_far(tmp_path: Path) -> None:
    study = study_in(tmp_path, pruning={"name": "successive-halving", "first": 1, "factor": 2})
    trials = [begun(study) for _ in range(4)]
    assert [study.goes_on(trial, 10, score) for trial, score in zip(trials, (0.5, 0.4, 0.6, 0.55), strict=True)] == [
        True,  # the first has no rival
        False,
        True,
        True,  # among the better two of four
    ]
    assert study.goes_on(trials[2], 20, 0.1)  # evaluation 2: the only one that came so far
    assert not study.goes_on(trials[3], 33, 0.05)  # and another one at it, whatever its step
    assert study.goes_on(trials[0], 20, 0.7)


def test_a_lower_loss_is_better(tmp_path: Path) -> None:
    study = study_in(tmp_path, higher=False)
    first, second = begun(study), begun(study)
    assert study.goes_on(first, 10, 0.5)
    assert not study.goes_on(second, 10, 0.6)
    finish(study, first, 0.5)
    study.end(second, score=None, steps=10, seconds=1.0)
    finish(study, begun(study), 0.3)
    best = study.best()
    assert best is not None
    assert (best.number, best.score) == (2, 0.3)


def test_without_pruning_the_worst_goes_on(tmp_path: Path) -> None:
    study = study_in(tmp_path, pruning="none")
    finish(study, begun(study), 0.9)
    assert study.goes_on(begun(study), 10, 0.0)


def test_a_trial_that_repeats_an_evaluation_gets_the_same_answer(tmp_path: Path) -> None:
    study = study_in(tmp_path, pruning={"factor": 2})
    first, second = begun(study), begun(study)
    assert study.goes_on(first, 10, 0.5)
    assert not study.goes_on(second, 10, 0.4)
    second.lock.release()  # killed before the trial was ended
    again = begun(study_in(tmp_path))
    assert again.number == 1
    assert not study.goes_on(again, 10, 0.4)
    assert study.pruned_at(again) == 10
    study.end(again, score=None, steps=10, seconds=1.0)
    found = study.outcomes()[1]
    assert (found.state, found.score, found.evaluations) == ("pruned", 0.4, 1)


def test_a_trial_that_somebody_works_on_is_left_to_them(tmp_path: Path) -> None:
    mine, other = study_in(tmp_path), study_in(tmp_path)
    first, second = begun(mine), begun(other)
    finish(mine, first)
    assert (first.number, second.number, begun(mine).number) == (0, 1, 2)


def test_a_trial_that_kills_its_process_again_and_again_has_failed(tmp_path: Path) -> None:
    for _ in range(MAX_DEATHS):
        trial = begun(study_in(tmp_path))
        assert trial.number == 0
        trial.lock.release()
    study = study_in(tmp_path)
    assert begun(study).number == 1
    found = study.outcomes()[0]
    assert (found.state, found.score) == ("failed", None)
    assert found.failure.startswith(f"killed {MAX_DEATHS} times while it was trained")


def test_a_trial_may_be_interrupted_in_good_order_as_often_as_one_likes(tmp_path: Path) -> None:
    for _ in range(MAX_DEATHS + 2):
        study = study_in(tmp_path)
        study.interrupt(begun(study), seconds=2.0)
    trial = begun(study)
    finish(study, trial)
    assert (trial.number, study.outcomes()[0].seconds) == (0, 2.0 * (MAX_DEATHS + 2) + 1)


def test_of_equal_scores_the_first_is_the_best_and_failures_never_are(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    assert study.best() is None
    study.end(begun(study), score=None, steps=0, seconds=0.0, failure="no")
    for score in (0.2, 0.7, 0.7):
        finish(study, begun(study), score)
    best = study.best()
    assert best is not None
    assert (best.number, best.score) == (2, 0.7)
    assert [found.state for found in study.outcomes()] == ["failed", "finished", "finished", "finished"]


WORKER = """
import sys
from pathlib import Path
from tests.tuning.test_study import search
search(Path(sys.argv[1]), trials=10)
"""


def test_several_processes_share_the_trials_among_them(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], errors
    found = study_in(tmp_path, trials=10).outcomes()
    assert [outcome.number for outcome in found] == list(range(10))
    assert all(outcome.state == "finished" and outcome.score == score_of(outcome.values) for outcome in found)
    assert len({str(outcome.values) for outcome in found}) == 10


def test_without_optuna_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(FinetuneError, match=r"pip install 'finetune-toolkit\[tune\]'"):
        import_optuna()


def test_optuna_says_nothing_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    search(tmp_path, trials=3)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR
