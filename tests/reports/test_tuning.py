"""A search as people read it: the best first, nothing claimed that the trials do not show, no markup from values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from finetune.recipe import load_recipe
from finetune.reports.tuning import best_recipe, caution, draw_study, ranked, shown, tuning_report
from tests.conftest import RecipeMaker


def trial(number: int, state: str, score: float | None, failure: str = "", **values: Any) -> dict[str, Any]:
    found = {"train.epochs": number + 1, **values}
    return {
        "number": number, "state": state, "values": found, "score": score, "steps": 10, "evaluations": 2,
        "seconds": 1.5, "failure": failure,
    }  # fmt: skip


def report_of(*trials: dict[str, Any], higher: bool = True, **changes: Any) -> dict[str, Any]:
    finished = [found for found in trials if found["state"] == "finished"]
    return {
        "name": "tiny", "metric": "accuracy", "higher_is_better": higher, "search": "tpe", "seed": 7, "planned": 9,
        "pruning": {"name": "successive-halving", "first": 1, "factor": 3}, "space": {"train.epochs": [1, 2, 3]},
        "best": finished[0] if finished else None, "trials": list(trials), "pictures": {}, **changes,
    }  # fmt: skip


TRIALS = (
    trial(0, "finished", 0.5),
    trial(1, "failed", None, failure="loss <b>nan</b> | at *step* 3"),
    trial(2, "pruned", 0.9),
    trial(3, "finished", 0.7),
)


@pytest.mark.parametrize(("higher", "expected"), [(True, [3, 0, 2, 1]), (False, [0, 3, 2, 1])])
def test_trials_are_ranked_by_score_with_those_that_did_not_finish_behind(higher: bool, expected: list[int]) -> None:
    assert [found["number"] for found in ranked(report_of(*TRIALS, higher=higher))] == expected


def test_the_report_counts_the_trials_and_says_what_the_best_score_is_not() -> None:
    text = tuning_report(report_of(*TRIALS))
    assert "4 of 9 trials: 2 finished, 1 pruned, 1 failed." in text
    assert "accuracy on the validation split, higher is better" in text
    assert "It is the best of 3 validation scores, and so partly luck" in text
    assert "The test split has not been looked at." in text
    assert "| 2 | pruned | 3 | 0.9000 | 2 | 10 | 1.5 |" in text


def test_one_score_is_counted_as_one() -> None:
    assert "the best of 1 validation score, and" in caution(report_of(TRIALS[0]))


def test_what_comes_from_a_recipe_or_an_error_is_shown_as_it_is() -> None:
    hostile = trial(4, "finished", 0.8, **{"model.id": "a|b<img src=x>"})
    text = tuning_report(report_of(hostile, *TRIALS, space={"model.id": ["a|b<img src=x>"]}))
    assert "- 1: loss &lt;b&gt;nan&lt;/b&gt; \\| at \\*step\\* 3" in text
    assert "a\\|b&lt;img src=x&gt;" in text
    assert "<img" not in text


def test_values_are_shown_as_a_recipe_writes_them() -> None:
    values = [None, True, 3, 0.000123456, "linear", {"name": "cosine"}]
    assert [shown(value) for value in values] == ["null", "true", "3", "0.0001235", "linear", '{"name": "cosine"}']


def test_the_best_recipe_says_where_it_comes_from_and_loads(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    recipe = load_recipe(make_recipe())
    best = trial(5, "finished", 0.8, **{"model.id": "two\nname: other"})
    text = best_recipe(recipe, report_of(best))
    path = tmp_path / "best.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_recipe(path) == recipe
    assert text.startswith("# the recipe tiny with the best values that finetune tune found, in trial 5:\n")
    assert "#   model.id: two name: other\n" in text
    assert "# validation accuracy 0.8000. It is the best of 1" in text
    assert "What gives access" not in text


def test_the_best_recipe_tells_that_a_password_was_left_out(make_recipe: RecipeMaker) -> None:
    recipe = load_recipe(make_recipe(data={"source": "https://user:word@example.com/rows.jsonl"}))
    text = best_recipe(recipe, report_of(TRIALS[0]))
    assert "# What gives access to data.source was left out" in text
    assert "word" not in text


def study_of(scores: list[float], epochs: list[int], rates: list[float]) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for score, epoch, rate in zip(scores, epochs, rates, strict=True):
        space = {
            "train.epochs": optuna.distributions.IntDistribution(1, 9),
            "train.learning_rate": optuna.distributions.FloatDistribution(0.0, 1.0),
        }
        params = {"train.epochs": epoch, "train.learning_rate": rate}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=score))
    return study


def test_pictures_are_drawn_from_enough_trials_that_differ(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    style = dict(matplotlib.rcParams)
    epochs = [1 + number % 9 for number in range(36)]
    rates = [number * 7 % 36 / 36 for number in range(36)]
    found = draw_study(study_of([epoch / 10 for epoch in epochs], epochs, rates), "f1-macro", tmp_path)
    assert {title: picture["file"] for title, picture in found.items()} == {
        "History": "history.png", "Importance of the settings": "importance.png"
    }  # fmt: skip
    values = found["Importance of the settings"]["values"]
    assert values["train.epochs"] > values["train.learning_rate"]
    for name in ("history.png", "importance.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert {name: value for name, value in matplotlib.rcParams.items() if name != "backend"} == {
        name: value for name, value in style.items() if name != "backend"
    }, "the style of other pictures stays"


@pytest.mark.parametrize(
    ("scores", "epochs", "rates", "missing"),
    [
        ([0.5], [1], [0.1], {"History", "Importance of the settings"}),
        ([], [], [], {"History", "Importance of the settings"}),
        ([0.5, 0.6, 0.9], [1, 2, 3], [0.1, 0.1, 0.1], {"Importance of the settings"}),
        ([0.5, 0.5, 0.5], [1, 2, 3], [0.1, 0.2, 0.3], {"Importance of the settings"}),
    ],
)
def test_a_picture_that_would_show_nothing_is_left_out_with_the_reason(
    tmp_path: Path, scores: list[float], epochs: list[int], rates: list[float], missing: set[str]
) -> None:
    (tmp_path / "importance.png").write_bytes(b"of a search before")
    found = draw_study(study_of(scores, epochs, rates), "accuracy", tmp_path)
    assert {title for title, picture in found.items() if "left_out" in picture} == missing
    assert not (tmp_path / "importance.png").exists()
    text = tuning_report(report_of(TRIALS[0], pictures=found))
    assert text.count("Left out: ") == len(missing)
