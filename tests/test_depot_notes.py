"""The shipped pairs of the embedding recipe: enough of them, each written by itself, with little in common to read."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from finetune.prepare import check
from finetune.recipe import load_recipe
from tests.conftest import ROOT

SYSTEMS = {
    "cab", "current and drive", "doors", "information and tickets", "operations", "running gear", "saloon", "track",
}  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    lines = (ROOT / "data" / "depot_notes.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def test_there_are_enough_pairs_in_eight_systems(rows: list[dict[str, Any]]) -> None:
    assert 300 <= len(rows) <= 400
    assert {tuple(row) for row in rows} == {("note", "record", "system")}
    counts = Counter(row["system"] for row in rows)
    assert counts.keys() == SYSTEMS
    assert min(counts.values()) >= 35


@pytest.mark.parametrize("column", ["note", "record"])
def test_no_text_is_there_twice_and_no_opening_often(rows: list[dict[str, Any]], column: str) -> None:
    texts = [words(row[column]) for row in rows]
    assert len({tuple(text) for text in texts}) == len(texts)
    openings = {length: Counter(tuple(text[:length]) for text in texts) for length in (3, 4)}
    assert {opening: count for opening, count in openings[3].items() if count > 4} == {}
    assert {opening: count for opening, count in openings[4].items() if count > 2} == {}


def test_a_note_shares_few_words_with_its_record(rows: list[dict[str, Any]]) -> None:
    common = {
        "the",
        "a",
        "an",
        "of",
        "in",
        "on",
        "at",
        "and",
        "to",
        "for",
        "by",
        "no",
        "not",
        "with",
        "from",
        "is",
        "was",
    }
    shares = []
    for row in rows:
        note, record = (set(words(row[column])) - common for column in ("note", "record"))
        shares.append(len(note & record) / len(record))
    assert sum(shares) / len(shares) < 0.1


def test_the_recipe_keeps_every_pair(rows: list[dict[str, Any]]) -> None:
    report = check(load_recipe(ROOT / "recipes" / "embedding-small.yaml"))
    assert (report["rows_kept"], report["dropped"]) == (len(rows), {})
    assert report["splits"]["test"] >= 80
    assert [finding for finding in report["warnings"] if finding["severity"] == "error"] == []
