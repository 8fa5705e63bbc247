"""What the tests of the whole preparation share: recipes over rows of their own, and ways to look at the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.artifacts import PreparedData
from finetune.data.store import read_stream
from finetune.prepare import check, prepare
from finetune.progress import Silent
from finetune.recipe import Recipe, load_recipe
from tests.conftest import FILLER, LABEL_WORDS

Rows = Sequence[Mapping[str, Any]]

COLUMNS = {"text": "body", "label": "intent"}
ENTITY_WORDS = {"PER": LABEL_WORDS["fruit"], "LOC": LABEL_WORDS["tool"]}


class World:
    """A folder with a tiny model, in which recipes over given rows are written and prepared.

    Near-duplicates are not looked for unless a test asks, so that the sizes of splits are what the rows say.
    """

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model

    def write(self, rows: Rows | bytes, name: str = "rows.jsonl") -> str:
        """Write rows, or a file's bytes, and return the path."""
        lines = rows if isinstance(rows, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode()
        (self.folder / name).write_bytes(lines)
        return str(self.folder / name)

    def recipe_file(self, rows: Rows | bytes | None = None, *, name: str = "recipe", **sections: Any) -> Path:
        """Write a recipe; `rows` become its source, unless `data` names one."""
        data: dict[str, Any] = {"near_duplicates": "off", **sections.pop("data", {})}
        if rows is not None:
            data["source"] = self.write(rows, f"{name}.jsonl")
        task = sections.pop("task", "text-classification")
        if task == "text-classification":
            data.setdefault("columns", COLUMNS)
        model = {"id": str(self.model), "max_length": 32, **sections.pop("model", {})}
        train = {"epochs": 1, "batch_size": 8, "threads": 1, **sections.pop("train", {})}
        plain = {"name": "tiny", "task": task, "seed": 7, "data": data, "model": model, "train": train, **sections}
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(plain), encoding="utf-8")
        return path

    def recipe(self, rows: Rows | bytes | None = None, **sections: Any) -> Recipe:
        """Return a recipe over the rows."""
        return load_recipe(self.recipe_file(rows, **sections))

    def prepare(
        self, rows: Rows | bytes | None = None, *, folder: str = "data", notes: Notes | None = None, **sections: Any
    ) -> PreparedData:
        """Prepare the rows."""
        return prepare(self.recipe(rows, **sections), self.folder / folder, progress=notes)

    def check(self, rows: Rows | bytes | None = None, **sections: Any) -> dict[str, Any]:
        """Return the report on the rows; nothing is tokenized."""
        return check(self.recipe(rows, **sections))


class Notes(Silent):
    """Listens to what the stage tells the user."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, message: str) -> None:
        self.heard.append(message)


def plain_rows(count: int, labels: Sequence[str] = ("fruit", "tool")) -> list[dict[str, Any]]:
    """Return rows whose texts all differ, the labels taking turns."""
    fillers = len(FILLER)
    return [
        {
            "body": f"{FILLER[number % fillers]} {FILLER[number // fillers % fillers]} number{number}",
            "intent": labels[number % len(labels)],
        }
        for number in range(count)
    ]


def tagged_rows(count: int, words: int = 6) -> list[dict[str, Any]]:
    """Return rows of words, different ones, with an entity of one word near the beginning and one of two at the end."""
    rows = []
    for number in range(count):
        kinds = list(ENTITY_WORDS.items())
        (first, first_words), (last, last_words) = kinds[number % 2], kinds[(number + 1) % 2]
        filler = [FILLER[(number * 7 + place * 3 + number // 20) % len(FILLER)] for place in range(words - 3)]
        tokens = [first_words[number % 5], *filler, last_words[number % 5], last_words[(number + 1) % 5]]
        rows.append({"tokens": [*tokens, f"n{number}"], "tags": ["B-" + first, *["O"] * len(filler), "B-" + last, "I-" + last, "O"]})  # fmt: skip  # noqa: E501
    return rows


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def dropped(data: PreparedData) -> list[dict[str, Any]]:
    """Return the dropped rows as they are written."""
    return lines_of(data.folder / "dropped.jsonl")


def reasons(data: PreparedData) -> list[tuple[int, str]]:
    """Return line and reason of each dropped row, in the order in which they are written."""
    return [(row["line"], row["reason"]) for row in dropped(data)]


def split_lines(data: PreparedData) -> dict[str, list[int]]:
    """Return the lines of the rows of each split."""
    return {name: data.split(name).lines for name in data.manifest["splits"]}


def split_of(data: PreparedData, role: str = "text") -> dict[Any, str]:
    """Return the split of each text."""
    return {row[role]: name for name in data.manifest["splits"] for row in data.split(name).rows}


def columns_of(data: PreparedData, split: str) -> dict[str, list[Any]]:
    """Return all columns of a split's file."""
    return dict(read_stream(data.folder / f"{split}.arrow").to_pydict())


def findings(report: Mapping[str, Any], check_name: str) -> list[dict[str, Any]]:
    """Return what one check found."""
    return [finding for finding in report["warnings"] if finding["check"] == check_name]


def digests(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder, by its name there."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def listing(folder: Path) -> dict[str, bytes | None]:
    """Return everything below a folder, with the content of files."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
