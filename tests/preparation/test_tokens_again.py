"""Rows that are there already are tokenized again, not read again; and tokenizers of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import finetune.prepare
from finetune.artifacts import PreparedData
from finetune.data.sources import Source
from finetune.errors import FinetuneError
from finetune.pipeline import Job
from finetune.prepare import prepare
from tests.conftest import build_tiny_model
from tests.preparation.world import Notes, World, columns_of, digests, plain_rows, split_lines, tagged_rows

TASKS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "text-classification": ([*plain_rows(60), {"body": " "}, plain_rows(5)[4]], {}),
    "token-classification": (tagged_rows(60, words=10), {}),
    "multi-label": (
        [{"text": row["body"], "labels": [row["intent"]] * (n % 3)} for n, row in enumerate(plain_rows(60))],
        {},
    ),
    "regression": ([{"text": row["body"], "score": n / 7} for n, row in enumerate(plain_rows(60))], {}),
    "pairs": (
        [{"text": row["body"], "text_pair": f"x {n}", "label": row["intent"]} for n, row in enumerate(plain_rows(60))],
        {"columns": {"text": "text", "text_pair": "text_pair"}},
    ),
    "augmented": (plain_rows(60), {"augment": {"operations": ["swap", "delete"], "copies": 2}}),
    "near": (
        [*plain_rows(60), *({**row, "body": row["body"] + "!"} for row in plain_rows(20))],
        {"near_duplicates": {"action": "keep", "threshold": 0.5}},
    ),
}


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function after which reading the source is an error."""

    def forbid() -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise AssertionError("the source was read again")

        monkeypatch.setattr(Source, "batches", fail)

    return forbid


@pytest.mark.parametrize("kind", list(TASKS))
@pytest.mark.parametrize(
    "model", [{"max_length": 6}, {"max_length": "auto"}, {"max_length": 8, "overflow": "window", "stride": 2}]
)
def test_only_the_tokens_are_made_again(world: World, no_reading: Any, kind: str, model: dict[str, Any]) -> None:
    rows, settings = TASKS[kind]
    task = kind if "-" in kind or kind == "regression" else "text-classification"
    if kind == "pairs" and model.get("overflow") == "window":
        model = {"max_length": 8}  # windows are over one text
    given: dict[str, Any] = {"task": task, "data": settings}
    fresh = world.prepare(rows, folder="fresh", model=model, **given)
    first = world.prepare(rows, **given)
    assert first.limits != fresh.limits
    no_reading()
    notes = Notes()
    again = prepare(world.recipe(rows, model=model, **given), world.folder / "data", progress=notes)
    assert any("only their tokens" in note for note in notes.heard)
    assert digests(again.folder) == digests(fresh.folder)


def test_another_model_reads_the_same_rows(world: World, no_reading: Any) -> None:
    other = build_tiny_model(world.folder / "other", seed=3)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["apple"], vocabulary["pear"] = vocabulary["pear"], vocabulary["apple"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    rows = [{"body": f"{row['body']} apple", "intent": row["intent"]} for row in plain_rows(40)]
    fresh = world.prepare(rows, folder="fresh", model={"id": str(other)})
    first = world.prepare(rows)
    ids = columns_of(first, "train")["input_ids"]
    no_reading()
    again = world.prepare(rows, model={"id": str(other)})
    assert digests(again.folder) == digests(fresh.folder)
    assert columns_of(again, "train")["input_ids"] != ids


def test_tokenizing_there_and_back_gives_the_first_files(world: World, no_reading: Any) -> None:
    first = digests(world.prepare(plain_rows(60)).folder)
    no_reading()
    world.prepare(plain_rows(60), model={"max_length": 5})
    assert digests(world.prepare(plain_rows(60)).folder) == first


def test_rows_that_somebody_touched_are_read_again(world: World) -> None:
    first = world.prepare(plain_rows(60))
    path = first.folder / "train.arrow"
    content = bytearray(path.read_bytes())
    place = content.find(b"number")
    content[place : place + 6] = b"NUMBER"
    path.write_bytes(bytes(content))
    again = world.prepare(plain_rows(60), model={"max_length": 6})
    assert not any("NUMBER" in text for text in columns_of(again, "train")["text"])


@pytest.mark.parametrize(
    "change",
    [{"seed": 8}, {"clean": ["html"]}, {"split": "random"}, {"duplicates": "keep"}, {"label_map": {"tool": "t"}}],
)
def test_what_decides_the_rows_has_them_read_again(world: World, change: dict[str, Any]) -> None:
    world.prepare(plain_rows(60))
    notes = Notes()
    world.prepare(plain_rows(60), data=change, notes=notes)
    assert not any("only their tokens" in note for note in notes.heard)


def test_a_seed_of_the_data_pins_the_rows_and_another_seed_of_the_training_reads_them_not_again(world: World) -> None:
    job = Job(world.recipe(plain_rows(60), data={"seed": 5}, seed=1), world.folder / "out")
    rows = split_lines(job.data())
    again = Job(world.recipe(plain_rows(60), data={"seed": 5}, seed=2), world.folder / "out")
    assert split_lines(again.data()) == rows
    assert [stage.status for stage in again.stages] == ["skipped"]
    assert split_lines(world.prepare(plain_rows(60), data={"seed": 6}, seed=1)) != rows


def test_a_changed_source_is_read_again(world: World) -> None:
    world.prepare(plain_rows(60))
    data = world.prepare(plain_rows(61), model={"max_length": 6})
    assert data.report["rows_read"] == 61


def test_an_automatic_length_samples_the_same_rows_the_second_time(
    world: World, no_reading: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune.prepare, "AUTO_LENGTH_ROWS", 20)
    rows = [{**row, "body": f"{row['body']} " + "the " * (n * n % 29)} for n, row in enumerate(plain_rows(150))]
    settings = {"augment": {"operations": ["swap"], "copies": 3}}
    fresh = world.prepare(rows, folder="fresh", data=settings, model={"max_length": "auto"})
    world.prepare(rows, data=settings)
    no_reading()
    again = world.prepare(rows, data=settings, model={"max_length": "auto"})
    assert digests(again.folder) == digests(fresh.folder)


# -- tokenizers of one's own

OWN = {"name": "wordpiece", "vocabulary": 200}


def test_a_trained_tokenizer_is_saved_and_opens_as_any_other(world: World) -> None:
    from transformers import AutoTokenizer

    data = world.prepare(plain_rows(80), tokenizer=OWN)
    tokenizer = AutoTokenizer.from_pretrained(str(data.folder / "tokenizer"))
    assert len(tokenizer) <= 200
    assert data.report["tokenizer"] == {"name": "wordpiece", "vocabulary": len(tokenizer)}
    for name in data.manifest["splits"]:
        stored = columns_of(data, name)
        assert stored["input_ids"] == tokenizer(stored["text"], truncation=True, max_length=32)["input_ids"]
    assert {name for name in data.manifest["files"] if name.startswith("tokenizer/")}


@pytest.mark.parametrize("name", ["wordpiece", "bpe", "unigram"])
def test_a_tokenizer_is_trained_on_the_train_split_alone(world: World, name: str) -> None:
    rows = {
        part: [{**row, "body": f"{row['body']} {part}word {letter * 3}"} for row in plain_rows(100)[start : start + 30]]
        for part, start, letter in (("train", 0, "a"), ("validation", 30, "q"), ("test", 60, "z"))
    }
    source = {part: world.write(found, f"{part}.jsonl") for part, found in rows.items()}
    data = world.prepare(data={"source": source}, tokenizer={"name": name, "vocabulary": 400})
    text = (data.folder / "tokenizer" / "tokenizer.json").read_text()
    assert "trainword" in text
    assert "testword" not in text
    assert "validationword" not in text


def test_a_trained_tokenizer_is_the_same_with_augmentation(world: World) -> None:
    plain = world.prepare(plain_rows(80), tokenizer=OWN, folder="plain")
    more = world.prepare(plain_rows(80), tokenizer=OWN, data={"augment": {"operations": ["keyboard"]}})
    assert digests(plain.folder / "tokenizer") == digests(more.folder / "tokenizer")


def test_another_trained_tokenizer_needs_no_reading(world: World, no_reading: Any) -> None:
    fresh = world.prepare(plain_rows(80), tokenizer={**OWN, "vocabulary": 120}, folder="fresh")
    world.prepare(plain_rows(80), tokenizer=OWN)
    no_reading()
    again = world.prepare(plain_rows(80), tokenizer={**OWN, "vocabulary": 120})
    assert digests(again.folder) == digests(fresh.folder)
    assert split_lines(again) == split_lines(fresh)


def test_words_are_tokenized_by_a_trained_tokenizer(world: World) -> None:
    data: PreparedData = world.prepare(
        tagged_rows(60), task="token-classification", tokenizer={"name": "bpe", "vocabulary": 300}
    )
    stored = columns_of(data, "train")
    for tokens, words in zip(stored["tokens"], stored["word_ids"], strict=True):
        assert sorted({word for word in words if word >= 0}) == list(range(len(tokens)))


def test_training_with_a_trained_tokenizer_is_refused_before_anything_is_done(world: World, tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match="finetune prepare"):
        Job(world.recipe(plain_rows(40), tokenizer=OWN), tmp_path / "out").run()
    assert not (tmp_path / "out").exists()
