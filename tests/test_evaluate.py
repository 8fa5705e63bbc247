"""The evaluation stage: what its report says about a run, on the run's own splits and on new rows."""

from __future__ import annotations

import hashlib
import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.artifacts import PreparedData, Run, feature_table
from finetune.errors import FinetuneError
from finetune.evaluate import WORST_EXAMPLES, evaluate, metric_names, own_data, report_name
from finetune.inference import open_run
from finetune.prepare import prepare
from finetune.progress import Silent
from finetune.recipe import Recipe, load_recipe
from finetune.runtime import Runtime
from finetune.train import train
from tests.conftest import RecipeMaker, make_rows, write_jsonl

CPU = Runtime(device="cpu", threads=1)
METRICS = [
    "accuracy",
    *(f"{kind}-{average}" for average in ("macro", "micro", "weighted") for kind in ("f1", "precision", "recall")),
    "log-loss",
]


def train_tiny_run(folder: Path, model: Path, **data: Any) -> Run:
    """Prepare 90 rows and train on them for 20 epochs, enough to be right more often than chance."""
    recipe = {
        "name": "tiny",
        "task": "text-classification",
        "seed": 7,
        "data": {
            "source": str(write_jsonl(folder / "rows.jsonl", make_rows())),
            "columns": {"text": "body", "label": "intent"},
            "clean": ["html", "whitespace"],
            "near_duplicates": "off",
            "split": {"name": "stratified", "train": 0.6, "validation": 0.2, "test": 0.2},
            **data,
        },
        "model": {"id": str(model), "max_length": 16},
        "train": {"epochs": 20, "batch_size": 8, "learning_rate": 5e-3, "threads": 1, "device": "cpu"},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    loaded = load_recipe(path)
    data_folder = prepare(loaded, folder / "out" / "data")
    return train(loaded, data_folder, folder / "out" / "run", runtime=CPU)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Run:
    """A trained run with its data beside it; tests that write into it copy it first."""
    return train_tiny_run(tmp_path_factory.mktemp("trained"), tiny_model)


@pytest.fixture
def copied(trained: Run, tmp_path: Path) -> Run:
    shutil.copytree(trained.folder.parent, tmp_path / "out")
    return Run(tmp_path / "out" / "run")


@pytest.fixture(scope="module")
def report(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report on the test split."""
    return evaluate(trained, folder=tmp_path_factory.mktemp("reports"), runtime=CPU)


class Listener(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# The report on a split


def test_a_report_has_the_shape_that_scripts_rely_on(report: dict[str, Any]) -> None:
    assert (report["task"], report["split"], report["rows"]) == ("text-classification", "test", 18)
    assert list(report["metrics"]) == METRICS
    assert list(report["baselines"]) == list(report["gains"]) == ["majority", "tfidf-logreg"]
    for scores in (report["metrics"], *report["baselines"].values(), *report["gains"].values()):
        assert list(scores) == METRICS
        for score in scores.values():
            assert list(score) == ["value", "low", "high"]
            assert score["low"] <= score["high"]
    assert report["labels"] == ["fruit", "tool", "weather"] == list(report["per_label"])
    assert report["intervals"]["level"] == 0.95
    assert (report["dropped"], report["seen_in_training"], report["gates"]) == ({}, 0, [])


def test_the_written_report_is_the_returned_one_beside_its_readable_form(copied: Run) -> None:
    report = evaluate(copied, split="validation", runtime=CPU)
    assert json.loads((copied.reports / "validation.json").read_text(encoding="utf-8")) == report
    text = (copied.reports / "validation.md").read_text(encoding="utf-8")
    assert text.startswith("# tiny: evaluation on validation\n\nModel model, seed 7, run ")
    assert "![Confusion matrix](validation-confusion-matrix.png)" in text
    assert "## Learning curves\n\n![Loss by step](loss.png)\n\n- **" in text
    assert report["diagnosis"] == copied.manifest["diagnosis"] != []
    assert (copied.reports / "validation-confusion-matrix.png").is_file()


def test_the_scores_are_those_of_the_predictions(trained: Run, report: dict[str, Any]) -> None:
    split = PreparedData(trained.folder.parent / "data").split("test")
    predictor = open_run(trained, CPU)
    alone = [
        feature_table(predictor.encode({role: [value] for role, value in row.items()}).features) for row in split.rows
    ]
    assert [{**features[0], "row": row} for row, features in enumerate(alone)] == list(split.features)
    one_by_one = [predictor.predict([row], features, 1) for row, features in zip(split.rows, alone, strict=True)]
    predicted = [prediction.labels[prediction.predicted[0]] for prediction in one_by_one]
    truth = [row["label"] for row in split.rows]
    right = sum(p == t for p, t in zip(predicted, truth, strict=True))
    assert report["metrics"]["accuracy"]["value"] == pytest.approx(right / 18)
    losses = [-np.log(p.probabilities[0, p.targets[0]]) for p in one_by_one]
    assert report["metrics"]["log-loss"]["value"] == pytest.approx(np.mean(losses), abs=1e-5)
    expected = [
        [sum((t, p) == (i, j) for t, p in zip(truth, predicted, strict=True)) for j in report["labels"]]
        for i in report["labels"]
    ]
    assert report["confusion"] == expected


def test_the_confusion_matrix_sums_to_the_rows_and_agrees_with_the_scores(report: dict[str, Any]) -> None:
    matrix = np.array(report["confusion"])
    assert matrix.sum() == report["rows"] == 18
    assert matrix.sum(axis=1).tolist() == [scores["rows"] for scores in report["per_label"].values()] == [6, 6, 6]
    assert report["metrics"]["accuracy"]["value"] == pytest.approx(np.trace(matrix) / 18)
    recalls = [scores["recall"]["value"] for scores in report["per_label"].values()]
    assert recalls == pytest.approx(np.diag(matrix) / 6)
    assert report["metrics"]["recall-macro"]["value"] == pytest.approx(np.mean(recalls))


def test_the_fine_tuned_model_beats_the_majority_and_the_gain_says_so(report: dict[str, Any]) -> None:
    assert report["baselines"]["majority"]["accuracy"]["value"] == pytest.approx(1 / 3)
    for baseline, gains in report["gains"].items():
        for name, gain in gains.items():
            sign = -1 if name == "log-loss" else 1
            difference = report["metrics"][name]["value"] - report["baselines"][baseline][name]["value"]
            assert gain["value"] == pytest.approx(sign * difference)
    assert report["gains"]["majority"]["log-loss"]["value"] > 0


def test_the_worst_examples_come_worst_first_and_can_be_found_in_the_file(trained: Run, report: dict[str, Any]) -> None:
    worst = report["worst"]
    assert len(worst) == min(WORST_EXAMPLES, 18)
    probabilities = [example["probability_of_label"] for example in worst]
    assert probabilities == sorted(probabilities)
    rows = Path(trained.recipe.data.source).read_text(encoding="utf-8").splitlines()
    for example in worst:
        row = json.loads(rows[example["line"] - 1])
        assert (example["text"], example["label"]) == (row["body"], row["intent"])
        assert (example["predicted"] == example["label"]) == (example["probability"] == example["probability_of_label"])
        assert example["probability"] >= example["probability_of_label"]
    wrong = sum(example["predicted"] != example["label"] for example in worst)
    assert wrong == 18 - np.trace(report["confusion"])


def test_no_more_than_the_worst_20_are_kept(trained: Run, tmp_path: Path) -> None:
    report = evaluate(trained, split="train", folder=tmp_path, runtime=CPU)
    assert (report["rows"], len(report["worst"])) == (54, 20)
    assert report["seen_in_training"] == 54


def test_evaluating_twice_gives_the_same_files(copied: Run) -> None:
    evaluate(copied, runtime=CPU)
    first = contents(copied.reports)
    evaluate(copied, runtime=CPU)
    assert contents(copied.reports) == first


def test_evaluating_changes_no_file_of_the_run_but_its_reports(copied: Run, tmp_path: Path) -> None:
    before = contents(copied.folder.parent)
    evaluate(copied, runtime=CPU)
    evaluate(copied, source=write_jsonl(tmp_path / "fresh.jsonl", make_rows(2, seed=5)), runtime=CPU)
    after = contents(copied.folder.parent)
    new = {
        f"run/reports/{name}{end}" for name in ("test", "fresh") for end in (".json", ".md", "-confusion-matrix.png")
    }
    assert set(after) - set(before) == new
    assert {name: after[name] for name in before} == before


def test_another_folder_takes_the_report_and_the_run_stays_as_it_is(copied: Run, tmp_path: Path) -> None:
    before = contents(copied.folder)
    evaluate(copied, folder=tmp_path / "elsewhere", runtime=CPU)
    assert contents(copied.folder) == before
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == [
        "test-confusion-matrix.png",
        "test.json",
        "test.md",
    ]


def test_an_unknown_split_is_refused_with_the_ones_that_there_are(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"--split: expected one of train, validation, test; found \.\./test"):
        evaluate(trained, split="../test", folder=tmp_path, runtime=CPU)


# New rows


def test_new_rows_go_through_the_runs_own_cleaning(trained: Run, tmp_path: Path) -> None:
    rows = make_rows(3, seed=5)
    dirty = [{**row, "body": f"<p> {row['body'].replace(' ', '&nbsp; <br>')} </p>"} for row in rows]
    clean = evaluate(trained, source=write_jsonl(tmp_path / "a.jsonl", rows), folder=tmp_path, runtime=CPU)
    found = evaluate(trained, source=write_jsonl(tmp_path / "b.jsonl", dirty), folder=tmp_path, runtime=CPU)
    assert sorted(example["text"] for example in found["worst"]) == sorted(row["body"] for row in rows)
    assert found["metrics"] == clean["metrics"]
    assert found["worst"] == clean["worst"]
    assert (found["split"], found["rows"]) == ("b", 9)


def test_rows_that_cannot_be_scored_are_counted_by_reason(trained: Run, tmp_path: Path) -> None:
    good = make_rows(2, seed=5)
    bad: list[dict[str, Any]] = [
        {"body": "the apple", "intent": "vehicle"},
        {"body": "the old apple", "intent": "Fruit"},
        {"body": "  ", "intent": "fruit"},
        {"body": None, "intent": "fruit"},
        {"body": 5, "intent": "fruit"},
        {"body": "<br>", "intent": "fruit"},
        {"body": "the plum"},
    ]
    source = write_jsonl(tmp_path / "new.jsonl", [bad[0], *good, *bad[1:]])
    with source.open("a", encoding="utf-8") as stream:
        stream.write("not json\n\n{}\n")
    report = evaluate(trained, source=source, folder=tmp_path, runtime=CPU)
    assert report["rows"] == 6 == np.sum(report["confusion"])
    assert report["dropped"] == {
        "unknown_label": 2, "missing_text": 2, "blank_text": 1, "wrong_type_of_text": 1,
        "nothing_left_after_cleaning_text": 1, "missing_label": 1, "not_json": 1, "empty_line": 1,
    }  # fmt: skip
    assert sorted(example["line"] for example in report["worst"]) == [2, 3, 4, 5, 6, 7]


def test_rows_of_which_none_has_a_known_label_are_refused_with_the_labels(trained: Run, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "new.jsonl", [{"body": "the apple", "intent": "Fruit"}])
    with pytest.raises(
        FinetuneError,
        match=r"new\.jsonl: none of its rows .* \(unknown_label 1; 'Fruit' in line 1\).*labels fruit, tool, weather",
    ):
        evaluate(trained, source=source, folder=tmp_path, runtime=CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["new.jsonl"]


def test_texts_that_the_model_was_trained_on_are_counted(trained: Run, tmp_path: Path) -> None:
    data = PreparedData(trained.folder.parent / "data")
    seen = [{"body": f" {row['text'].upper()} ", "intent": row["label"]} for row in islice(data.split("train").rows, 4)]
    held_out = [{"body": row["text"], "intent": row["label"]} for row in islice(data.split("test").rows, 3)]
    source = write_jsonl(tmp_path / "new.jsonl", [*seen, *held_out])
    report = evaluate(trained, source=source, folder=tmp_path, runtime=CPU)
    assert (report["rows"], report["seen_in_training"]) == (7, 4)
    assert "**4 rows have a text that the model was trained on" in (tmp_path / "new.md").read_text(encoding="utf-8")


def test_rows_that_the_model_cannot_read_to_the_end_are_counted(trained: Run, tmp_path: Path) -> None:
    rows = [{"body": "the " * 20 + "apple", "intent": "fruit"}, {"body": "a saw", "intent": "tool"}]
    report = evaluate(trained, source=write_jsonl(tmp_path / "new.jsonl", rows), folder=tmp_path, runtime=CPU)
    assert report["truncated"] == {"rows": 1, "tokens_lost": 21 + 2 - 16, "lines": [1]}


def test_a_file_called_as_a_split_does_not_replace_the_splits_report() -> None:
    assert report_name("test", None) == "test"
    assert report_name("test", Path("some/test.jsonl")) == "file-test"
    assert report_name("test", Path("some/new.rows.csv")) == "new.rows"


def test_a_file_called_quantization_does_not_replace_the_before_and_after_report() -> None:
    from finetune.artifacts import QUANTIZATION_REPORT as REPORT

    assert report_name("test", Path(f"some/{REPORT}.jsonl")) != REPORT


def test_labels_written_as_numbers_in_new_rows_match_the_runs(
    tmp_path: Path, copied: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["0", "1", "true"]
    for path, key, labels in (
        (copied.folder / "manifest.json", "labels", names),
        (copied.model_folder / "config.json", "id2label", dict(enumerate(names))),
    ):
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), key: labels}), encoding="utf-8")
    monkeypatch.setattr(Run, "check_model", lambda self: None)  # renamed by hand, as it is here
    shutil.rmtree(copied.folder.parent / "data")
    rows = [{"body": "the apple", "intent": label} for label in (0, "1", True, 2)]
    report = evaluate(copied, source=write_jsonl(tmp_path / "new.jsonl", rows), runtime=CPU)
    assert [scores["rows"] for scores in report["per_label"].values()] == [1, 1, 1]
    assert report["dropped"] == {"unknown_label": 1}


# Without the data, and with other recipes


@pytest.mark.parametrize("how", ["gone", "prepared-differently"])
def test_without_the_data_new_rows_are_scored_without_baselines_and_it_says_so(
    copied: Run, tmp_path: Path, how: str
) -> None:
    data = copied.folder.parent / "data"
    if how == "gone":
        shutil.rmtree(data)
    else:
        manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
        (data / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "other"}), encoding="utf-8")
    assert own_data(copied) is None
    listener = Listener()
    source = write_jsonl(tmp_path / "new.jsonl", make_rows(2, seed=5))
    report = evaluate(copied, source=source, runtime=CPU, progress=listener)
    assert (report["rows"], report["baselines"], report["gains"]) == (6, {}, {})
    assert "seen_in_training" not in report
    assert listener.notes == ["no baselines: the data that the run was trained on is not beside it"]
    with pytest.raises(FinetuneError, match=r"out/data: expected the data that .* --data FILE"):
        evaluate(copied, runtime=CPU)


def recipe_with(trained: Run, **changes: Any) -> Recipe:
    return Recipe.model_validate({**trained.recipe.resolved(), **changes})


def test_a_recipe_chooses_the_metrics_and_its_gates_add_theirs(trained: Run, tmp_path: Path) -> None:
    gates = {
        "log-loss": "<= 0.0001",
        "accuracy.low": ">= 0",
        "quantized.recall-macro.drop": "<= 0.01",
        "quantized.agreement": ">= 0.9",
    }
    recipe = recipe_with(trained, metrics=["f1-micro"], gates=gates, quantize="onnx-int8")
    report = evaluate(trained, recipe=recipe, folder=tmp_path, runtime=CPU)
    assert list(report["metrics"]) == ["f1-micro", "log-loss", "accuracy", "recall-macro"]
    log_loss = report["metrics"]["log-loss"]["value"]
    low = report["metrics"]["accuracy"]["low"]
    assert report["gates"] == [
        {
            "gate": "log-loss <= 0.0001",
            "value": log_loss,
            "margin": pytest.approx(0.0001 - log_loss),
            "holds": False,
        },
        {"gate": "accuracy.low >= 0", "value": low, "margin": low, "holds": True},
    ]


def test_a_gate_on_a_metric_of_the_evaluate_library_adds_that_metric(trained: Run) -> None:
    recipe = recipe_with(trained, gates={"evaluate:exact_match.low": ">= 0.5"})
    assert metric_names(recipe, trained) == [*METRICS, "evaluate:exact_match"]


def test_a_report_cannot_be_asked_for_without_any_metric(make_recipe: RecipeMaker) -> None:
    """`loss` chooses the best model while training; it is no metric of a report."""
    with pytest.raises(FinetuneError, match=r"metrics.*log-loss"):
        load_recipe(make_recipe(metrics=["loss"]))


def test_a_metric_that_runs_code_is_refused_before_anything_is_scored(trained: Run, tmp_path: Path) -> None:
    recipe = recipe_with(trained, metrics=["accuracy", "evaluate:my/metric.py"])
    with pytest.raises(FinetuneError, match=r"evaluate:my/metric\.py runs code .*--allow-code"):
        evaluate(trained, recipe=recipe, folder=tmp_path / "reports", runtime=CPU)
    assert not (tmp_path / "reports").exists()


def test_the_seed_of_the_recipe_moves_intervals_and_no_values(
    trained: Run, report: dict[str, Any], tmp_path: Path
) -> None:
    other = evaluate(trained, recipe=recipe_with(trained, seed=8), folder=tmp_path, runtime=CPU)
    assert {name: score["value"] for name, score in other["metrics"].items()} == {
        name: score["value"] for name, score in report["metrics"].items()
    }
    assert other["metrics"]["log-loss"] != report["metrics"]["log-loss"]


def test_the_size_of_the_batches_changes_no_score(trained: Run, report: dict[str, Any], tmp_path: Path) -> None:
    settings = {**trained.recipe.resolved()["train"], "eval_batch_size": 5}
    other = evaluate(trained, recipe=recipe_with(trained, train=settings), folder=tmp_path, runtime=CPU)
    assert other["confusion"] == report["confusion"]
    assert other["metrics"]["log-loss"] == pytest.approx(report["metrics"]["log-loss"], abs=1e-5)
