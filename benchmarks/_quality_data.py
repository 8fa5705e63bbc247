"""The data sets of `quality.py`: which rows both systems get, how they are split, and how long both train."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
SPLIT_SEED = 0


@dataclass(frozen=True)
class DataSet:
    """One data set: its files, the rows of train, validation and test, the budget, and what is scored.

    `kind` says what a row's target is: label, labels, number, tags or answer. `score` chooses learning rate and
    checkpoint in both systems, and is what the bar is about; it is named as our recipes name it.
    """

    name: str
    kind: str
    files: tuple[str, ...]
    read: Callable[[Row], Row]
    sizes: tuple[int, int, int]
    steps: int
    score: str
    task: str | dict[str, Any]
    max_length: int = 128
    batch_size: int = 16
    model: dict[str, Any] = field(default_factory=dict)  # further settings of our recipe
    learning_rates: tuple[float, ...] = (1e-4, 2e-4, 4e-4)


def _pair(row: Row) -> Row:
    return {"text": row["text"], "text_pair": row["token"], "score": row["score"]}


def _question(row: Row) -> Row:
    return {
        "context": row["context"],
        "question": row["question"],
        "answers": {"text": [row["answer"]], "answer_start": [row["start"]]},
    }


DATA_SETS = (
    DataSet(
        "banking77", "label", ("train.jsonl",), lambda row: {"text": row["text"], "label": row["label"]},
        (4000, 1000, 4000), 750, "accuracy", "text-classification",
    ),
    DataSet(
        "sms_spam", "label", ("all.jsonl",), lambda row: {"text": row["text"], "label": row["label"]},
        (1200, 600, 3200), 150, "accuracy", "text-classification",
    ),
    DataSet(
        "goemotions", "labels", ("train.jsonl",), lambda row: {"text": row["text"], "labels": row["labels"]},
        (4000, 1000, 4000), 750, "f1-micro", "multi-label",
    ),
    DataSet(
        "complex_lcp", "number", ("train.jsonl", "dev.jsonl"), _pair,
        (1600, 800, 3000), 200, "pearson", {"name": "regression", "targets": ["score"], "minimum": 0, "maximum": 1},
    ),
    DataSet(
        "wnut17", "tags", ("train.jsonl", "dev.jsonl"), lambda row: {"tokens": row["tokens"], "tags": row["tags"]},
        (1800, 500, 2000), 225, "entity-f1", "token-classification",
        max_length=64, model={"overflow": "window", "stride": 16},
    ),
    DataSet(
        "xquad", "answer", ("en.jsonl",), _question,
        (560, 130, 500), 140, "answer-f1", "question-answering",
        max_length=256, batch_size=8, model={"overflow": "window", "stride": 128},
    ),
)  # fmt: skip


def unit_of(row: Row) -> str:
    """Return what is never divided between splits and is drawn as one by the bootstrap: the context, or the text."""
    text = row.get("context") or row.get("text") or " ".join(row["tokens"])
    return " ".join(text.casefold().split())


def split_rows(data_set: DataSet, data: Path) -> dict[str, list[Row]]:
    """Draw train, validation and test once, the same for every system and seed; repeated rows count once."""
    files = [data / data_set.name / name for name in data_set.files]
    rows = [data_set.read(json.loads(line)) for file in files for line in file.read_text("utf-8").splitlines()]
    units: dict[str, dict[str, Row]] = {}
    for row in rows:
        inputs = [unit_of(row), *(str(row[role]).casefold() for role in ("text_pair", "question") if role in row)]
        units.setdefault(inputs[0], {}).setdefault(json.dumps(inputs), row)
    drawn = list(units.values())
    random.Random(SPLIT_SEED).shuffle(drawn)
    splits: dict[str, list[Row]] = {}
    waiting = iter(drawn)
    for name, size in zip(("test", "validation", "train"), reversed(data_set.sizes), strict=True):
        found: list[Row] = []
        while len(found) < size and (unit := next(waiting, None)) is not None:
            found += unit.values()
        splits[name] = found
    if len(splits["train"]) < 0.8 * data_set.sizes[0]:
        raise SystemExit(f"{data_set.name}: expected {sum(data_set.sizes)} rows without repeats, found {len(rows)}")
    return splits


def write_splits(data_set: DataSet, data: Path, folder: Path) -> dict[str, Path]:
    """Write the three files that both systems read, if they are not there; return them by split."""
    files = {name: folder / f"{name}.jsonl" for name in ("train", "validation", "test")}
    if not all(file.is_file() for file in files.values()):
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in split_rows(data_set, data).items():
            files[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def read_rows(file: Path | str) -> list[Row]:
    return [json.loads(line) for line in Path(file).read_text("utf-8").splitlines()]
