"""The shipped data: enough hand-written rows in eight intents, and a file with every kind of dirt."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from finetune.artifacts import PreparedData
from finetune.data.duplicates import text_key
from finetune.prepare import check, prepare
from finetune.recipe import load_recipe
from tests.conftest import ROOT

TICKETS = ROOT / "data" / "support_tickets.jsonl"
MESSY = ROOT / "data" / "messy.jsonl"
INTENTS = {
    "account_access", "billing", "cancellation", "delivery", "feedback", "product_question", "return_refund",
    "technical_issue",
}  # fmt: skip

# What is wrong with messy.jsonl once the cleaners unicode, html and whitespace ran: the lines dropped for each reason
MESSY_LINES = 249
MESSY_DROPPED = {
    "blank_text": [20, 60, 71, 105, 136, 162, 183],
    "conflicting_labels": [15, 28, 74, 91, 107, 181, 203, 224, 225, 226],
    "duplicate": [110, 145, 166, 184, 210, 213, 219, 228, 234, 236, 242, 244],
    "empty_line": [72, 221],
    "missing_label": [27, 50, 94, 101, 144, 152, 168, 171, 180, 208],
    "missing_text": [30, 53, 55, 67, 134, 157, 187, 194, 199, 204, 211, 214],
    "not_an_object": [26, 170],
    "not_json": [147, 217],
    "nothing_left_after_cleaning_text": [9, 119, 120, 197, 229],
    "wrong_type_of_label": [13, 17, 19, 235],
    "wrong_type_of_text": [3, 70, 82, 100, 117, 154],
}


@pytest.fixture(scope="module")
def tickets() -> list[dict[str, Any]]:
    return [json.loads(line) for line in TICKETS.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> PreparedData:
    folder = tmp_path_factory.mktemp("messy")
    recipe = {
        "name": "messy",
        "task": "text-classification",
        "data": {
            "source": str(MESSY),
            "columns": {"text": "body", "label": "intent"},
            "clean": ["unicode", "html", "whitespace"],
        },
        "model": {"id": str(tiny_model), "max_length": 64},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return prepare(load_recipe(folder / "recipe.yaml"), folder / "data")


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def kept(data: PreparedData) -> list[tuple[int, dict[str, Any]]]:
    splits = [data.split(name) for name in data.manifest["splits"]]
    return [(line, row) for split in splits for line, row in zip(split.lines, split.rows, strict=True)]


def test_there_are_enough_tickets_in_eight_unbalanced_intents(tickets: list[dict[str, Any]]) -> None:
    counts = Counter(row["intent"] for row in tickets)
    assert counts.keys() == INTENTS
    assert len(tickets) >= 1_200
    assert (min(counts.values()) >= 60, max(counts.values()) <= 300) == (True, True)
    assert max(counts.values()) > 2 * min(counts.values())


def test_a_ticket_is_a_body_and_an_intent_and_nothing_else(tickets: list[dict[str, Any]]) -> None:
    assert {tuple(row) for row in tickets} == {("body", "intent")}
    assert [row for row in tickets if row["body"] != row["body"].strip() or not row["body"]] == []


def test_the_quickstart_keeps_every_ticket_and_has_at_least_240_test_rows(tickets: list[dict[str, Any]]) -> None:
    recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml")
    assert (Path(str(recipe.data.source)).resolve(), recipe.data.split.name) == (TICKETS, "stratified")
    report = check(recipe)
    assert report["splits"]["test"] >= 240
    assert (report["rows_kept"], report["dropped"]) == (len(tickets), {})
    assert [finding for finding in report["warnings"] if finding["severity"] == "error"] == []


def test_no_ticket_is_there_twice(tickets: list[dict[str, Any]]) -> None:
    lines: dict[str, list[int]] = {}
    for line, row in enumerate(tickets, start=1):
        lines.setdefault(" ".join(words(row["body"])), []).append(line)
    assert [group for group in lines.values() if len(group) > 1] == []


@pytest.mark.parametrize(("length", "most"), [(1, 200), (3, 20), (5, 8), (10, 3)])
def test_no_opening_is_repeated_as_a_template_would(tickets: list[dict[str, Any]], length: int, most: int) -> None:
    openings = Counter(tuple(words(row["body"])[:length]) for row in tickets if len(words(row["body"])) >= length)
    assert {opening: count for opening, count in openings.items() if count > most} == {}


def test_tickets_are_short_and_long(tickets: list[dict[str, Any]]) -> None:
    lengths = sorted(len(row["body"].split()) for row in tickets)
    assert 15 <= lengths[len(lengths) // 2] <= 30
    assert sum(length < 7 for length in lengths) >= len(lengths) // 20
    assert sum(length > 45 for length in lengths) >= len(lengths) // 20


def test_messy_rows_are_dropped_for_exactly_what_is_wrong_with_them(messy: PreparedData) -> None:
    found: dict[str, list[int]] = {}
    for line in (messy.folder / "dropped.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["reason"], []).append(row["line"])
    assert found == MESSY_DROPPED
    assert messy.report["dropped"] == {reason: len(lines) for reason, lines in MESSY_DROPPED.items()}
    assert messy.report["rows_read"] == MESSY_LINES
    assert messy.report["rows_kept"] == len(kept(messy)) == MESSY_LINES - sum(map(len, MESSY_DROPPED.values()))


def test_messy_rows_that_are_kept_have_the_eight_intents(messy: PreparedData) -> None:
    assert set(messy.labels) == INTENTS
    assert {row["label"] for _, row in kept(messy)} == INTENTS


def test_messy_texts_that_are_kept_are_clean(messy: PreparedData) -> None:
    dirt = re.compile(
        r"</?(?:p|br|div|b|i|a|span|blockquote|style|script)\b|&(?:[a-z]+|#\d+);|\u00e2\u20ac|\u00c3\u00bc"
        r"|[\x00-\x1f\u00a0\u00ad\u200b\u2028\u200e\u200f\ufeff]|\s\s|^\s|\s$"
    )
    assert [line for line, row in kept(messy) if dirt.search(row["text"])] == []
    assert all(item["rows_touched"] >= 30 for item in messy.report["cleaners"])


def test_messy_keeps_what_is_odd_but_means_something(messy: PreparedData) -> None:
    texts = "\n".join(row["text"] for _, row in kept(messy))
    assert len(re.findall("[\U0001f300-\U0001faff]", texts)) >= 10
    assert len(re.findall("https?://|www\\.", texts)) >= 5


def test_texts_that_are_in_both_files_are_found(messy: PreparedData, tickets: list[dict[str, Any]]) -> None:
    known = {text_key([row["body"]]) for row in tickets}
    assert len(known) == len(tickets)
    assert sorted(line for line, row in kept(messy) if text_key([row["text"]]) in known) == [62, 123, 135, 207]


def test_the_recipe_that_adapts_reads_no_request_that_the_one_after_it_is_judged_by(
    tmp_path: Path, tiny_model: Path
) -> None:
    parts = {}
    for name in ("adapt-small", "adapted-small"):
        loaded = load_recipe(ROOT / "recipes" / f"{name}.yaml", [f"model.id={tiny_model}", "model.sha256=null"])
        data = prepare(loaded, tmp_path / name)
        parts[name] = {
            split: {row["text"] for row in data.split(split).rows} for split in ("train", "validation", "test")
        }
    for split, requests in parts["adapted-small"].items():
        assert requests == parts["adapt-small"][split]
    assert not parts["adapt-small"]["train"] & parts["adapted-small"]["test"]
