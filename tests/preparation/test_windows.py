"""Rows that are longer than the model reads: cut and counted, refused, or read in windows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finetune.prepare
from finetune.artifacts import PreparedData, Run
from finetune.data.tokenization import Encoder, Limits
from finetune.errors import FinetuneError
from finetune.evaluate import evaluate
from finetune.inference import open_run, run_model
from finetune.pipeline import Job
from finetune.predict import Answering
from finetune.prepare import prepare
from finetune.runtime import Runtime
from tests.conftest import FILLER, LABEL_WORDS
from tests.models.world import save
from tests.preparation.world import World, columns_of, plain_rows, tagged_rows


def long_rows(count: int, most: int = 40) -> list[dict[str, Any]]:
    """Return learnable texts of 3 to `most` words."""
    generator = random.Random(5)
    rows = []
    for number in range(count):
        label = list(LABEL_WORDS)[number % 3]
        words = generator.choices(FILLER, k=3 + number * (most - 3) // count)
        words[generator.randrange(len(words))] = LABEL_WORDS[label][number % 5]
        rows.append({"body": " ".join([*words, f"n{number}"]), "intent": label})
    return rows


WINDOWS = {"max_length": 12, "overflow": "window", "stride": 3}


def test_windows_cover_every_token_and_overlap_by_the_stride(world: World) -> None:
    from transformers import AutoTokenizer

    data = world.prepare(long_rows(60), model=WINDOWS)
    tokenizer = AutoTokenizer.from_pretrained(str(world.model))
    several = 0
    for name in data.manifest["splits"]:
        stored = columns_of(data, name)
        expected = tokenizer(
            stored["text"], truncation=True, max_length=12, stride=3, return_overflowing_tokens=True
        )  # fmt: skip
        flat = [window for row in stored["input_ids"] for window in row]
        assert flat == expected["input_ids"]
        owners = [row for row, windows in enumerate(stored["input_ids"]) for _ in windows]
        assert owners == expected["overflow_to_sample_mapping"]
        assert stored["length"] == [sum(map(len, windows)) for windows in stored["input_ids"]]
        several += len(flat) - len(stored["input_ids"])
    assert data.report["tokens"]["windows"] == several + 60 > 90
    assert (data.report["tokens"]["rows_cut"], data.report["tokens"]["tokens_lost"]) == (0, 0)


def test_what_is_cut_is_counted(world: World) -> None:
    rows = long_rows(60)
    data = world.prepare(rows, model={"max_length": 12})
    over = {number: len(row["body"].split()) + 2 - 12 for number, row in enumerate(rows, start=1)}
    over = {number: lost for number, lost in over.items() if lost > 0}
    cut = data.report["truncated"]
    assert data.report["tokens"]["rows_cut"] == len(over) == sum(split["rows"] for split in cut.values())
    assert data.report["tokens"]["tokens_lost"] == sum(over.values())
    for name, found in cut.items():
        assert found["lines"] == [line for line in data.split(name).lines if line in over][:20]


def test_long_rows_may_be_refused_with_their_lines(world: World) -> None:
    rows = [*plain_rows(50), {"body": "the " * 40, "intent": "tool"}]
    with pytest.raises(FinetuneError, match=r"line(s)? 51") as refused:
        world.prepare(rows, model={"max_length": 12, "overflow": "error"})
    assert "model.max_length" in str(refused.value)
    assert not (world.folder / "data").exists()
    assert not (world.folder / "data.partial").exists()
    assert world.prepare(rows[:50], model={"max_length": 12, "overflow": "error"}).report["tokens"]["rows_cut"] == 0


def test_a_stride_that_leaves_no_new_tokens_is_refused(world: World) -> None:
    with pytest.raises(FinetuneError, match=r"model.stride.*less than 10"):
        world.prepare(long_rows(60), model={**WINDOWS, "stride": 10})


@pytest.mark.parametrize(("length", "stride"), [(12, 3), (40, 10), (64, 12)])
def test_windows_share_a_part_of_their_tokens_when_the_recipe_does_not_say_how_many(
    world: World, length: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune.prepare, "DEFAULT_STRIDE", 12)
    data = world.prepare(long_rows(60), model={"max_length": length, "overflow": "window"})
    assert data.limits["stride"] == stride


def test_entities_are_lost_to_truncation_and_not_to_windows(world: World) -> None:
    rows = tagged_rows(60, words=10)  # two entities each: one at the first word, one behind eight
    cut = world.prepare(rows, task="token-classification", model={"max_length": 8})
    assert cut.report["tokens"]["entities_lost"] == 60
    whole = world.prepare(rows, task="token-classification", model={"max_length": 8, "overflow": "window", "stride": 2})
    assert whole.report["tokens"]["entities_lost"] == 0
    for name in whole.manifest["splits"]:
        stored = columns_of(whole, name)
        for words, targets, tags in zip(stored["word_ids"], stored["label_ids"], stored["tags"], strict=True):
            assert len(words) > 1
            decided = [
                (word, target)
                for window, window_targets in zip(words, targets, strict=True)
                for word, target in zip(window, window_targets, strict=True)
                if target != -100
            ]
            names = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
            assert [names[target] for _, target in sorted(decided)] == tags


@pytest.mark.parametrize("pair", [False, True])
def test_an_automatic_length_cuts_one_row_in_a_hundred_at_most(world: World, pair: bool) -> None:
    rows = [{"text": row["body"], "label": row["intent"]} for row in long_rows(200)]
    columns = {"text": "text"}
    if pair:
        rows = [{**row, "text_pair": row["text"], "text": f"small {number}"} for number, row in enumerate(rows)]
        columns["text_pair"] = "text_pair"
    data = world.prepare(rows, model={"max_length": "auto"}, data={"columns": columns})
    length = data.limits["max_length"]
    train = columns_of(data, "train")
    texts = zip(train["text"], train.get("text_pair", [""] * len(train["text"])), strict=True)
    lengths = sorted(len(text.split()) + len(other.split()) + 2 for text, other in texts)
    assert data.report["truncated"]["train"]["rows"] <= len(lengths) / 100
    assert length % 8 == 0
    assert length - 8 < lengths[int(len(lengths) * 0.99) - 1] + 3
    assert data.report["tokens"]["max_length"] == length


def test_an_automatic_length_is_no_more_than_the_model_reads(world: World) -> None:
    data = world.prepare(long_rows(60, most=120), model={"max_length": "auto"})
    assert data.limits["max_length"] == 64


def test_a_length_that_the_model_cannot_read_is_refused(world: World) -> None:
    with pytest.raises(FinetuneError, match="64"):
        world.prepare(plain_rows(30), model={"max_length": 65})


@pytest.mark.parametrize(
    ("family", "task", "message"),
    [("vit", "text-classification", "which has no such head"), ("bart", "embedding", "an encoder and a decoder")],
)
def test_a_model_of_another_kind_is_refused_before_a_row_is_read(
    world: World, family: str, task: str, message: str, tmp_path: Path
) -> None:
    save(family, tmp_path / family)
    recipe = world.recipe(plain_rows(30), task=task, model={"id": str(tmp_path / family)})
    (tmp_path / "recipe.jsonl").unlink()
    with pytest.raises(FinetuneError, match=rf"model\.id: expected an? .*{message}.*Families that fit: BERT"):
        prepare(recipe, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.fixture
def trained(world: World) -> tuple[PreparedData, Run]:
    """A run that has read its rows in windows."""
    recipe = world.recipe(long_rows(60), model=WINDOWS, train={"epochs": 2, "learning_rate": 5e-3})
    job = Job(recipe, world.folder / "out", Runtime(threads=1))
    run = job.run()
    return job.data(), run


def test_a_model_learns_from_windows_and_is_judged_by_rows(trained: tuple[PreparedData, Run]) -> None:
    data, run = trained
    report = evaluate(run)
    assert report["rows"] == len(data.split("test")) == sum(map(sum, report["confusion"]))
    predictor = open_run(run, Runtime(threads=1))
    split = data.split("test")
    assert len(split.features) > len(split)
    logits = np.stack(run_model(predictor, split.features, 64).values)
    exponentials = np.exp(logits.astype(np.float64))
    each = exponentials / exponentials.sum(axis=1, keepdims=True)
    pooled = np.stack([each[split.features.row_ids == row].mean(axis=0) for row in range(len(split))])
    predictions = predictor.predict(split.rows, split.features, 64)
    np.testing.assert_allclose(predictions.probabilities, pooled, atol=1e-6)
    labels = [run.labels.index(row["label"]) for row in split.rows]
    accuracy = float((pooled.argmax(axis=1) == labels).mean())
    assert report["metrics"]["accuracy"]["value"] == pytest.approx(accuracy)


def test_answers_about_long_texts_are_those_of_the_evaluation(trained: tuple[PreparedData, Run]) -> None:
    data, run = trained
    split = data.split("test")
    predictor = open_run(run, Runtime(threads=1))
    expected = predictor.predict(split.rows, split.features, 64).probabilities
    answers = list(Answering(run, Runtime(threads=1)).texts([row["text"] for row in split.rows]))
    for answer, probabilities in zip(answers, expected, strict=True):
        assert "truncated_tokens" not in answer
        assert list(answer["probabilities"].values()) == pytest.approx(probabilities.tolist(), abs=1e-5)


def test_each_row_weighs_the_same_in_training_however_many_windows_it_has(trained: tuple[PreparedData, Run]) -> None:
    features = trained[0].split("train").features
    weights = np.bincount(features.row_ids, weights=[features[index]["weight"] for index in range(len(features))])
    np.testing.assert_allclose(weights, 1.0)
    assert len(features) > len(weights)


def test_the_loss_of_a_step_is_a_mean_even_where_it_holds_a_part_of_one_row(world: World) -> None:
    """A window of three counts as a third of a row, and a step of it alone shows the loss of that window, whole."""
    training = {"max_steps": 12, "batch_size": 1, "learning_rate": 1e-12}
    recipe = world.recipe(long_rows(60), model={**WINDOWS, "dropout": 0.0}, train=training)
    job = Job(recipe, world.folder / "out", Runtime(threads=1))
    run = job.run()
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    features = job.data().split("train").features
    predictor = open_run(run, Runtime(threads=1))
    logits = np.stack(run_model(predictor, features, 64).values).astype(np.float64)
    labels = [features[index]["label_id"] for index in range(len(features))]
    each = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
    parts = [loss for index, loss in enumerate(each) if features[index]["weight"] < 1]
    assert all(min(abs(each - loss)) < 2e-4 for loss in losses)
    assert any(min(abs(np.array(parts) - loss)) < 2e-4 for loss in losses)


def test_a_run_that_refuses_long_rows_refuses_them_when_it_is_asked_too(world: World) -> None:
    recipe = world.recipe(plain_rows(40), model={"max_length": 12, "overflow": "error"})
    run = Job(recipe, world.folder / "out", Runtime(threads=1)).run()
    short, long = Answering(run, Runtime(threads=1)).texts(["the new plum", "the " * 30])
    assert "label" in short
    assert long["error"].startswith("too_long")


def test_an_encoder_of_windows_gives_the_rows_of_one_without_them_where_nothing_is_long(world: World) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(world.model))
    texts = [row["body"] for row in plain_rows(20)]
    plain = Encoder.of(tokenizer, Limits(32)).texts(texts).features["input_ids"].to_pylist()
    windows = Encoder.of(tokenizer, Limits(32, "window", 4)).texts(texts).features["input_ids"].to_pylist()
    assert windows == [[ids] for ids in plain]
