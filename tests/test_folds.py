"""Cross-validation: which rows each fold holds out, and what its models say of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from finetune.artifacts import PreparedData, Run
from finetune.evaluate import evaluate
from finetune.pipeline import Job
from finetune.predict import Answering
from finetune.prepare import prepare
from finetune.recipe import Recipe, load_recipe
from finetune.repeats import Repeats
from finetune.runtime import Runtime
from tests.conftest import RecipeMaker, make_rows, write_jsonl

LoadRecipe = Callable[..., Recipe]
QUICK: dict[str, Any] = {
    "folds": 3,
    "train": {"max_steps": 3, "learning_rate": 2e-2, "eval_every": 3},
    "metrics": ["accuracy", "log-loss"],
}


@pytest.fixture
def recipe(make_recipe: RecipeMaker) -> LoadRecipe:
    """Return a function that makes a recipe of three folds and three steps; keyword arguments change it."""

    def make(**sections: Any) -> Recipe:
        train = {**QUICK["train"], **sections.pop("train", {})}
        return load_recipe(make_recipe(**{**QUICK, **sections, "train": train}))

    return make


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the folds that these tests start from are kept."""
    return tmp_path_factory.mktemp("folds")


@pytest.fixture
def root(tmp_path: Path, store: Path, recipe: LoadRecipe) -> Path:
    """A folder in which all folds have been trained and scored, made once and copied for each test."""
    if not (store / "out").exists():
        repeats = Repeats(Job(recipe(), store / "out"))
        repeats.report(repeats.run(asked=True))
    return Path(shutil.copytree(store / "out", tmp_path / "out"))


def done(repeats: Repeats) -> list[str]:
    return [f"{stage.of} {stage.name}".strip() for stage in repeats.stages if stage.status == "done"]


def out_of_fold(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "run" / "out_of_fold.jsonl").read_text(encoding="utf-8").splitlines()]


def repeats_report(root: Path) -> dict[str, Any]:
    return dict(json.loads((root / "run" / "reports" / "repeats.json").read_text(encoding="utf-8")))


# Which rows are in which fold


def places(data: PreparedData) -> dict[str, list[int]]:
    """Return the lines of each split's rows."""
    return {name: data.split(name).lines for name in data.manifest["splits"]}


def prepared(recipe: Recipe, folder: Path) -> tuple[dict[str, list[int]], list[dict[str, list[int]]]]:
    """Return where the rows of the recipe are, and those of each of its folds."""
    repeats = Repeats(Job(recipe, folder))
    whole = places(repeats.data(asked=True))
    assert recipe.folds
    return whole, [places(PreparedData(folder / "folds" / str(fold) / "data")) for fold in range(recipe.folds)]


SPLITTERS: Mapping[str, dict[str, Any]] = {
    "random": {"name": "random"},
    "stratified": {"name": "stratified"},
    "grouped": {"name": "grouped"},
    "stratified-grouped": {"name": "stratified-grouped"},
    "hash": {"name": "hash", "train": 0.5, "validation": 0.2, "test": 0.3},
    "predefined": {"name": "predefined", "column": "given"},
}


@pytest.mark.parametrize("name", SPLITTERS)
def test_every_row_that_is_not_for_test_is_held_out_once(tmp_path: Path, recipe: LoadRecipe, name: str) -> None:
    rows = [
        {**row, "topic": f"t{number // 3}", "given": ("train", "train", "dev", "test")[number % 4]}
        for number, row in enumerate(make_rows())
    ]
    # a text that is there twice never stands in two splits
    rows += [{**row, "topic": f"u{number}"} for number, row in enumerate(rows[:8])]
    data: dict[str, Any] = {"source": str(write_jsonl(tmp_path / "given.jsonl", rows)), "split": SPLITTERS[name]}
    columns = {"text": "body", "label": "intent"}
    grouped = {"group_by": "topic"} if "grouped" in name else {}
    whole, folds = prepared(
        recipe(data={**data, "columns": columns, "duplicates": "keep", **grouped}), tmp_path / "out"
    )
    left = sorted(whole["train"] + whole["validation"])
    assert whole["test"]
    assert sorted(line for fold in folds for line in fold["test"]) == left
    fold_of = {line: number for number, fold in enumerate(folds) for line in fold["test"]}
    for fold in folds:
        assert sorted(line for lines in fold.values() for line in lines) == left
        assert min(map(len, fold.values())) > 0
    for number in range(8):  # lines count from 1
        if number + 1 in fold_of:
            assert fold_of[number + 1] == fold_of[len(rows) - 8 + number + 1]
    if grouped:
        topics = {rows[line - 1]["topic"]: number for line, number in fold_of.items()}
        assert all(fold_of[line] == topics[rows[line - 1]["topic"]] for line in fold_of)
    if name == "hash":  # the digits that draw the folds are others than those that draw the test split
        assert min(len(fold["test"]) for fold in folds) > len(left) / 6


def test_files_that_are_given_for_test_stay_out_of_the_folds(tmp_path: Path, recipe: LoadRecipe) -> None:
    rows = make_rows()
    source = {
        name: str(write_jsonl(tmp_path / f"{name}.jsonl", part))
        for name, part in (("train", rows[:50]), ("validation", rows[50:70]), ("test", rows[70:]))
    }
    path = tmp_path / "given.yaml"
    plain = json.loads(json.dumps(recipe().resolved()))
    del plain["data"]["split"]
    path.write_text(json.dumps({**plain, "data": {**plain["data"], "source": source}}), encoding="utf-8")
    repeats = Repeats(Job(load_recipe(path), tmp_path / "out"))
    repeats.data(asked=True)
    held_out = [PreparedData(tmp_path / "out" / "folds" / str(fold) / "data").split("test") for fold in range(3)]
    found = sorted(split.place(row) for split in held_out for row in range(len(split)))
    assert found == sorted(
        [f"train.jsonl line {line}" for line in range(1, 51)]
        + [f"validation.jsonl line {line}" for line in range(1, 21)]
    )


def test_labels_are_in_every_fold_in_proportion(root: Path) -> None:
    for fold in "012":
        rows = PreparedData(root / "folds" / fold / "data").split("test").rows
        assert [sum(row["label"] == label for row in rows) for label in ("fruit", "tool", "weather")] == [8, 8, 8]


def test_a_label_that_is_in_the_test_split_alone_is_known_to_every_fold(tmp_path: Path, recipe: LoadRecipe) -> None:
    rows = [{**row, "given": ("train", "train", "dev", "test")[number % 4]} for number, row in enumerate(make_rows())]
    rows.append({"body": "we had fog again today", "intent": "other", "given": "test"})
    source = str(write_jsonl(tmp_path / "given.jsonl", rows))
    columns, split = {"text": "body", "label": "intent"}, {"name": "predefined", "column": "given"}
    fold = {"number": 1, "of": 3}
    made = recipe(folds=None, data={"source": source, "columns": columns, "split": split, "fold": fold})
    assert prepare(made, tmp_path / "data").labels == ["fruit", "other", "tool", "weather"]


def test_what_is_left_out_is_counted_but_is_no_loss(root: Path) -> None:
    report = PreparedData(root / "folds" / "0" / "data").report
    assert report["dropped"] == {"kept_for_test": 18}
    assert report["rows_kept"] == 72
    assert not [finding for finding in report["warnings"] if finding["check"] == "many-dropped"]
    assert report["split"]["held_out"] == "fold 0 (from 0) of 3"


# What the models say


def test_each_row_is_kept_with_what_the_model_of_its_fold_says(root: Path) -> None:
    rows = make_rows()
    lines = out_of_fold(root)
    assert len(lines) == 72
    for fold in range(3):
        own = [line for line in lines if line["fold"] == fold]
        run = Run(root / "folds" / str(fold) / "run")
        trained = PreparedData(run.data_folder())
        assert not {line["line"] for line in own} & {*trained.split("train").lines, *trained.split("validation").lines}
        said = list(Answering(run, Runtime("cpu", 1)).texts(rows[line["line"] - 1]["body"] for line in own))
        for line, answer in zip(own, said, strict=True):
            assert line["true"] == {"label": rows[line["line"] - 1]["intent"]}
            assert line["said"]["label"] == answer["label"]
            assert line["said"]["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-5)


def test_all_held_out_rows_are_scored_as_one(root: Path) -> None:
    report, lines = repeats_report(root), out_of_fold(root)
    right = sum(line["said"]["label"] == line["true"]["label"] for line in lines)
    together = report["out_of_fold"]["metrics"]["accuracy"]
    assert together["value"] == pytest.approx(right / 72)
    assert together["low"] <= together["value"] <= together["high"]
    by_fold = [
        sum(line["said"]["label"] == line["true"]["label"] for line in lines if line["fold"] == fold) / 24
        for fold in range(3)
    ]
    assert report["metrics"]["accuracy"]["values"] == pytest.approx(by_fold)
    assert report["rows"] == report["out_of_fold"]["rows"] == 72


def test_the_ensemble_is_judged_by_the_test_split_that_no_fold_has_seen(root: Path) -> None:
    report = repeats_report(root)
    assert report["ensemble"]["rows"] == 18
    test = set(PreparedData(root / "data").split("test").lines)
    for fold in "012":
        assert not test & {
            line for lines in places(PreparedData(root / "folds" / fold / "data")).values() for line in lines
        }
    assert json.loads((root / "run" / "reports" / "test.json").read_text())["seen_in_training"] == 0


def test_the_ensemble_on_validation_is_said_to_have_seen_its_rows(root: Path) -> None:
    report = evaluate(Run(root / "run"), split="validation", runtime=Runtime("cpu", 1))
    assert report["seen_in_training"] == report["rows"] == 18


def test_what_is_finished_is_skipped_and_one_fold_can_be_made_again(root: Path, recipe: LoadRecipe) -> None:
    before = repeats_report(root)
    repeats = Repeats(Job(recipe(), root))
    assert repeats.report(repeats.run(asked=True)) == before
    assert done(repeats) == []
    shutil.rmtree(root / "folds" / "1")
    repeats = Repeats(Job(recipe(), root))
    assert repeats.report(repeats.run(asked=True)) == before
    assert done(repeats) == ["fold 1 prepare", "fold 1 train", "fold 1 eval"]


def test_other_metrics_are_scored_without_training(root: Path, recipe: LoadRecipe) -> None:
    repeats = Repeats(Job(recipe(metrics=["f1-macro"]), root))
    report = repeats.report(repeats.run(asked=True))
    assert list(report["metrics"]) == list(report["out_of_fold"]["metrics"]) == ["f1-macro"]
    assert set(done(repeats)) == {"fold 0 eval", "fold 1 eval", "fold 2 eval", "eval"}


def test_without_a_test_split_all_rows_are_in_folds_and_no_ensemble_is_scored(
    tmp_path: Path, recipe: LoadRecipe
) -> None:
    split = {"name": "stratified", "train": 0.8, "validation": 0.2, "test": 0}
    data = {"source": str(tmp_path / "rows.jsonl"), "columns": {"text": "body", "label": "intent"}, "split": split}
    repeats = Repeats(Job(recipe(folds=2, data=data), tmp_path / "out"))
    repeats.require_test_split()
    report = repeats.report(repeats.run(asked=True))
    assert report["rows"] == 90
    assert report["ensemble"] == {"missing": "there are no rows that every fold has left out"}
    assert "There is no score of an ensemble" in (tmp_path / "out/run/reports/repeats.md").read_text(encoding="utf-8")


def test_folds_read_rows_of_one_length(tmp_path: Path, recipe: LoadRecipe) -> None:
    made = recipe(model={"max_length": "auto"})
    repeats = Repeats(Job(made, tmp_path / "out"))
    length = repeats.data(asked=True).limits["max_length"]
    assert [PreparedData(tmp_path / "out" / "folds" / fold / "data").limits["max_length"] for fold in "012"] == [
        length
    ] * 3
