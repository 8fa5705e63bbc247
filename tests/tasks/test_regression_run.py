"""A whole run with two scores: prepared in windows, trained, evaluated, quantized and asked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import finetune.prepare
from finetune.artifacts import PreparedData, Run
from finetune.data.rows import Record
from finetune.evaluate import evaluate
from finetune.predict import Answering
from finetune.prepare import prepare
from finetune.quantize import quantize
from finetune.recipe import Recipe
from finetune.runtime import Runtime
from finetune.train import train
from tests.conftest import LABEL_WORDS, make_rows
from tests.preparation.world import World

CPU = Runtime(device="cpu", threads=1)
WORTH = {word: float(number) for number, words in enumerate(LABEL_WORDS.values()) for word in words}
TARGETS = ["worth", "words"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> World:
    return World(tmp_path_factory.mktemp("numbers"), tiny_model)


@pytest.fixture(scope="module")
def recipe(world: World) -> Recipe:
    rows = [
        {
            "body": row["body"],
            "a": sum(WORTH.get(word, 0.0) for word in row["body"].split()),
            "b": row["body"].count(" "),
        }
        for row in make_rows()
    ]
    return world.recipe(
        rows,
        task={"name": "regression", "targets": TARGETS, "minimum": 0},
        data={
            "columns": {"text": "body", "worth": "a", "words": "b"},
            "split": {"name": "stratified", "train": 0.6, "validation": 0.2, "test": 0.2},
        },
        model={"max_length": 8, "overflow": "window", "stride": 1},
        train={"epochs": 2, "learning_rate": 5e-3, "device": "cpu"},
        quantize="onnx-int8",
    )


@pytest.fixture(scope="module")
def run(world: World, recipe: Recipe) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.prepare, "draw_preparation", lambda report, folder: {})
        data = prepare(recipe, world.folder / "data")
    return train(recipe, data, world.folder / "run", runtime=CPU)


@pytest.fixture(scope="module")
def report(run: Run) -> dict[str, Any]:
    return evaluate(run, runtime=CPU)


def test_the_scale_of_the_training_rows_stays_with_the_run(world: World, run: Run) -> None:
    rows = list(PreparedData(world.folder / "data").split("train").rows)
    for name in TARGETS:
        scores = [row[name] for row in rows]
        mean = sum(scores) / len(scores)
        assert run.fitted["mean"][name] == pytest.approx(mean)
        variance = sum((score - mean) ** 2 for score in scores) / len(scores)
        assert run.fitted["deviation"][name] == pytest.approx(math.sqrt(variance))


def test_the_report_has_the_metrics_their_gains_and_what_each_target_is_like(report: dict[str, Any]) -> None:
    assert list(report["metrics"]) == ["rmse", "pearson", "spearman", "r2", "mae"]
    assert set(report["gains"]) == {"mean", "tfidf-ridge"}
    assert report["baselines"]["mean"]["pearson"] == {"value": None, "low": None, "high": None}
    for metric in report["metrics"]:
        each = [report["targets"][name]["metrics"][metric]["value"] for name in TARGETS]
        assert report["metrics"][metric]["value"] == pytest.approx(sum(each) / 2)
    assert sum(part["rows"] for part in report["targets"]["worth"]["by_quantile"]) == report["rows"]


def test_the_report_is_written_with_its_pictures_and_worst_examples(run: Run, report: dict[str, Any]) -> None:
    text = (run.reports / "test.md").read_text(encoding="utf-8")
    for title in ("By target", "Errors by true worth", "True and predicted words", "Residuals of words"):
        assert title in text
    assert len(list(run.reports.glob("test-*.png"))) == 4
    assert json.loads((run.reports / "test.json").read_text(encoding="utf-8")) == report
    first = report["worst"][0]
    assert first["error worth"] == pytest.approx(first["predicted worth"] - first["worth"])


def test_an_answer_is_a_number_for_each_target_within_the_declared_range(run: Run) -> None:
    texts = [row["body"] for row in make_rows(per_label=5, seed=3)]
    answers = list(Answering(run, CPU).texts(texts))
    assert [set(answer) for answer in answers] == [{"row", *TARGETS}] * len(texts)
    assert all(answer[name] >= 0 for answer in answers for name in TARGETS)
    asked = list(Answering(run, CPU).records([Record(1, {"body": texts[0]})]))
    assert asked[0] == pytest.approx(answers[0], abs=1e-4)


def test_the_quantized_run_says_nearly_the_same_in_the_same_units(run: Run, recipe: Recipe, world: World) -> None:
    quantized, report = quantize(run, world.folder / "run-onnx-int8", recipe=recipe, runtime=CPU)
    assert quantized.fitted == run.fitted
    assert 0 <= report["agreement"] <= 1
    assert report["agreement_means"] == "numbers within 5 % of the standard deviation of the training scores"
    before, after = report["before"]["rmse"]["value"], report["after"]["rmse"]["value"]
    assert after == pytest.approx(before, rel=0.5)
