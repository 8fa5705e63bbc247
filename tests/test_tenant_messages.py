"""The rows of the multi-label recipe: enough of each label, some with none, a quarter with several, no templates."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from finetune.prepare import check
from finetune.recipe import load_recipe
from tests.conftest import ROOT

PROBLEMS = {"cleaning", "electrics", "heating", "noise", "pests", "security", "water"}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    lines = (ROOT / "data" / "tenant_messages.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def words(row: dict[str, Any]) -> list[str]:
    return re.findall(r"\w+", row["message"].casefold())


def test_a_row_is_a_message_and_a_sorted_list_of_problems(rows: list[dict[str, Any]]) -> None:
    assert {tuple(row) for row in rows} == {("message", "problems")}
    assert all(row["message"] == row["message"].strip() != "" for row in rows)
    assert all(row["problems"] == sorted(set(row["problems"])) for row in rows)


def test_some_rows_have_no_label_and_a_quarter_has_several(rows: list[dict[str, Any]]) -> None:
    numbers = Counter(len(row["problems"]) for row in rows)
    assert 350 <= len(rows) <= 400
    assert 0.08 <= numbers[0] / len(rows) <= 0.2
    assert 0.22 <= (len(rows) - numbers[0] - numbers[1]) / len(rows) <= 0.35


def test_every_problem_is_on_at_least_50_rows(rows: list[dict[str, Any]]) -> None:
    counts = Counter(problem for row in rows for problem in row["problems"])
    assert counts.keys() == PROBLEMS
    assert min(counts.values()) >= 50


@pytest.mark.parametrize(("length", "most"), [(1, 66), (2, 8), (3, 3), (5, 1)])
def test_no_opening_is_repeated_as_a_template_would(rows: list[dict[str, Any]], length: int, most: int) -> None:
    openings = Counter(tuple(words(row)[:length]) for row in rows if len(words(row)) >= length)
    assert {opening: count for opening, count in openings.items() if count > most} == {}


def test_messages_are_short_and_long_and_all_different(rows: list[dict[str, Any]]) -> None:
    lengths = sorted(len(words(row)) for row in rows)
    assert (lengths[0] < 5, 15 <= lengths[len(lengths) // 2] <= 25, lengths[-1] > 55) == (True, True, True)
    assert len({" ".join(words(row)) for row in rows}) == len(rows)


def test_the_recipe_keeps_every_row(rows: list[dict[str, Any]]) -> None:
    report = check(load_recipe(ROOT / "recipes" / "multi-label-small.yaml"))
    assert (report["rows_kept"], report["dropped"]) == (len(rows), {})
    assert [finding for finding in report["warnings"] if finding["severity"] == "error"] == []
