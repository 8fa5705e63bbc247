"""Bi-encoders from the file of rows to the answer: prepared, trained, evaluated and asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.artifacts import PreparedData, Run
from finetune.errors import FinetuneError
from finetune.evaluate import evaluate
from finetune.predict import Answering
from finetune.prepare import prepare
from finetune.quantize import quantize
from finetune.recipe import load_recipe
from finetune.runtime import Runtime
from finetune.train import train
from tests.conftest import FILLER, LABEL_WORDS, RecipeMaker, build_tiny_model, write_jsonl

CPU = Runtime("cpu", threads=1)
WORDS = [word for words in LABEL_WORDS.values() for word in words]
TOPICS = {word: label for label, words in LABEL_WORDS.items() for word in words}


def raw_rows(count: int = 45) -> list[dict[str, Any]]:
    """Rows that have every column: a word of the anchor belongs to a filler of the positive."""
    rows = []
    for number in range(count):
        word, other = WORDS[number % 15], WORDS[(number + 7) % 15]
        rows.append(
            {
                "anchor": f"{FILLER[number % 9]} {word} {FILLER[number // 9]}",
                "positive": f"{FILLER[-1 - number % 15]} {FILLER[number // 9]} today",
                "negative": f"my {other} {FILLER[number // 9]} {FILLER[number % 5]}",
                "score": (number % 6) * 1.0,
                "topic": TOPICS[word],
            }
        )
    return rows


SECTIONS: dict[str, dict[str, Any]] = {
    "pairs": {"task": {"name": "embedding"}, "columns": {"topic": "topic"}},
    "triplets": {"task": {"name": "embedding", "rows": "triplets", "loss": "triplet-margin"}, "columns": {}},
    "scored": {
        "task": {"name": "embedding", "rows": "scored", "maximum": 5.0, "loss": "cosent"},
        "columns": {"text": "anchor", "text_pair": "positive"},
    },
}


def recipe_for(kind: str, make_recipe: RecipeMaker, source: Path, **sections: Any) -> Path:
    chosen = SECTIONS[kind]
    data = {"source": str(source), "columns": chosen["columns"], "duplicates": "keep", "checks": {"rare-labels": "off"}}
    split = {"name": "random", "train": 0.6, "validation": 0.2, "test": 0.2}
    sections = {"train": {"epochs": 1, "batch_size": 9}, **sections}
    return make_recipe(task=chosen["task"], data={**data, "split": split}, **sections)


@pytest.mark.parametrize(("kind", "parts"), [("pairs", 2), ("triplets", 3), ("scored", 2)])
def test_rows_are_prepared_learned_from_scored_and_asked(
    kind: str, parts: int, make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    recipe = load_recipe(recipe_for(kind, make_recipe, write_jsonl(tmp_path / "raw.jsonl", raw_rows())))
    data = prepare(recipe, tmp_path / "data")
    assert {name: len(data.split(name)) for name in ("train", "validation", "test")} == data.manifest["splits"]
    assert sum(len(data.split(name).features) for name in data.manifest["splits"]) == 45 * parts
    run = train(recipe, data, tmp_path / "run")
    report = evaluate(run)
    assert report["rows"] == len(data.split("test")) == 9
    assert set(report["baselines"]) == {"tfidf-cosine", "pretrained"}
    assert all(found["value"] is not None for found in report["metrics"].values())
    assert len(report["worst"]) == 9
    assert_report(kind, report)
    answers = list(Answering(Run(tmp_path / "run")).texts(["the plum", "fog", "the plum"]))
    vectors = np.array([answer["embedding"] for answer in answers])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors[0].tolist() == pytest.approx(vectors[2].tolist())


def assert_report(kind: str, report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    if kind == "scored":
        assert len(report["points"]["score"]) == 9
        assert {"text", "text_pair", "score", "similarity"} <= report["worst"][0].keys()
        return
    assert report["recall_by_cutoff"][-1]["k"] <= report["candidates"]
    assert report["worst"][0]["rank"] >= report["worst"][-1]["rank"]
    assert ("by_topic" in report) == (kind == "pairs")
    assert ("negative" in report["similarities"]) == (kind == "triplets")


def test_the_loss_on_validation_is_one_of_trainings_batches_whatever_fits_in_memory(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    """In-batch negatives: among nine pairs the right answer is harder to find than among three."""
    losses = []
    for number, (size, eval_size) in enumerate([(9, 2), (9, 64), (3, 64)]):
        training = {"epochs": 1, "batch_size": size, "eval_batch_size": eval_size, "learning_rate": 1e-12}
        source = write_jsonl(tmp_path / "raw.jsonl", raw_rows())
        recipe = load_recipe(recipe_for("pairs", make_recipe, source, train=training))
        run = train(recipe, prepare(recipe, tmp_path / f"data{number}"), tmp_path / f"run{number}")
        lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
        losses.append([line["validation"]["loss"] for line in lines if "validation" in line])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[2][0] < losses[0][0] - 0.1


def test_new_rows_are_judged_without_the_topic_that_they_do_not_have(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_for("pairs", make_recipe, write_jsonl(tmp_path / "raw.jsonl", raw_rows())))
    run = train(recipe, prepare(recipe, tmp_path / "data"), tmp_path / "run")
    with_topic = evaluate(run, source=write_jsonl(tmp_path / "new.jsonl", raw_rows(20)))
    bare = [{name: value for name, value in row.items() if name != "topic"} for row in raw_rows(20)]
    without = evaluate(run, source=write_jsonl(tmp_path / "bare.jsonl", bare))
    assert without["rows"] == with_topic["rows"] == 20
    assert without["metrics"]["recall@1"] == with_topic["metrics"]["recall@1"]
    assert "by_topic" in with_topic
    assert "by_topic" not in without


def test_a_topic_is_never_learned_from(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    rows = raw_rows()
    swapped = [{**row, "topic": "another" if number % 2 else "yet another"} for number, row in enumerate(rows)]
    features = []
    for name, content in (("first", rows), ("second", swapped)):
        recipe = load_recipe(recipe_for("pairs", make_recipe, write_jsonl(tmp_path / f"{name}.jsonl", content)))
        features.append(prepare(recipe, tmp_path / name).split("train").features[:])
    assert features[0] == features[1]


@pytest.mark.parametrize(
    ("kind", "spoiled", "reason"),
    [
        ("pairs", {"positive": None}, "missing_positive"),
        ("pairs", {"topic": None}, "missing_topic"),
        ("triplets", {"negative": "  "}, "blank_negative"),
        ("scored", {"score": 5.5}, "out_of_range_score"),
        ("scored", {"score": "high"}, "not_a_number_in_score"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(
    kind: str, spoiled: dict[str, Any], reason: str, make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    rows = raw_rows()
    rows[4] |= spoiled
    path = recipe_for(kind, make_recipe, write_jsonl(tmp_path / "raw.jsonl", rows))
    text = json.loads(path.read_text())
    text["data"]["checks"] |= {"faulty-targets": "off"}
    path.write_text(json.dumps(text))
    data = prepare(load_recipe(path), tmp_path / "data")
    dropped = [json.loads(line) for line in (data.folder / "dropped.jsonl").read_text().splitlines()]
    assert [(drop["line"], drop["reason"]) for drop in dropped] == [(5, reason)]
    assert PreparedData(tmp_path / "data").report["rows_kept"] == 44


@pytest.mark.parametrize(
    ("kind", "sections", "message"),
    [
        ("pairs", {"train": {"gradient_accumulation": 2}}, "does not add up"),
        ("pairs", {"model": {"overflow": "window"}}, "reads no text in windows"),
        ("scored", {"metrics": ["recall@1"]}, "recall@1 does not judge"),
        ("pairs", {"metrics": ["triplet-accuracy"]}, "triplet-accuracy does not judge"),
        ("pairs", {"metrics": ["recall@all"]}, "expected a number of candidates"),
    ],
)
def test_what_does_not_fit_the_rows_is_refused_before_anything_is_read(
    kind: str, sections: dict[str, Any], message: str, make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    path = recipe_for(kind, make_recipe, write_jsonl(tmp_path / "raw.jsonl", raw_rows()), **sections)
    with pytest.raises(FinetuneError, match=message):
        load_recipe(path)


def test_a_wrong_loss_is_told_beside_the_other_mistakes(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    path = recipe_for("pairs", make_recipe, write_jsonl(tmp_path / "raw.jsonl", raw_rows()))
    text = json.loads(path.read_text())
    text["task"]["loss"] = "cosine"
    text["train"]["epochs"] = -1
    path.write_text(json.dumps(text))
    with pytest.raises(FinetuneError, match="(?s)expected in-batch-negatives for rows: pairs.*epochs"):
        load_recipe(path)


@pytest.mark.parametrize("kind", ["pairs", "triplets"])
def test_rows_of_one_anchor_share_a_split_and_an_interval(kind: str, make_recipe: RecipeMaker, tmp_path: Path) -> None:
    rows = [{**row, "anchor": raw_rows()[number // 3]["anchor"]} for number, row in enumerate(raw_rows())]
    recipe = load_recipe(recipe_for(kind, make_recipe, write_jsonl(tmp_path / "raw.jsonl", rows)))
    data = prepare(recipe, tmp_path / "data")
    anchors = [{row["anchor"] for row in data.split(name).rows} for name in ("train", "validation", "test")]
    assert sum(map(len, anchors)) == len(set.union(*anchors)) == 15
    report = evaluate(train(recipe, data, tmp_path / "run"))
    assert report["intervals"]["units"] == report["anchors"] == len(anchors[2])
    assert report["rows"] == 3 * len(anchors[2])


def test_a_positive_of_training_that_is_asked_for_again_is_noted(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    rows = [{**row, "positive": f"the answer {number % 3}"} for number, row in enumerate(raw_rows())]
    recipe = load_recipe(recipe_for("pairs", make_recipe, write_jsonl(tmp_path / "raw.jsonl", rows)))
    data = prepare(recipe, tmp_path / "data")
    (found,) = [finding for finding in data.report["warnings"] if finding["check"] == "shared-positives"]
    assert found["severity"] == "note"
    assert found["count"] == sum(len(data.split(name)) for name in ("validation", "test"))


def test_a_quantized_run_is_judged_beside_the_pretrained_model_too(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "pairs.jsonl", raw_rows())
    recipe = load_recipe(recipe_for("pairs", make_recipe, source, quantize="onnx-int8"))
    data = prepare(recipe, tmp_path / "out" / "data")
    run = train(recipe, data, tmp_path / "out" / "run", runtime=CPU)
    quantized, report = quantize(run, tmp_path / "out" / "run-onnx-int8", runtime=CPU)
    assert set(report["drop"]) == set(report["before"])
    again = evaluate(quantized, runtime=CPU)
    assert again["baselines"] == evaluate(run, runtime=CPU)["baselines"]
    assert set(again["baselines"]) == {"tfidf-cosine", "pretrained"}


def test_other_weights_than_training_began_with_are_no_baseline(
    make_recipe: RecipeMaker, tmp_path: Path, still_model: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(still_model, model)
    source = write_jsonl(tmp_path / "pairs.jsonl", raw_rows())
    recipe = load_recipe(recipe_for("pairs", make_recipe, source, model={"id": str(model)}))
    run = train(recipe, prepare(recipe, tmp_path / "out" / "data"), tmp_path / "out" / "run", runtime=CPU)
    build_tiny_model(model, dropout=0.0, seed=5)
    assert set(evaluate(run, runtime=CPU)["baselines"]) == {"tfidf-cosine"}
