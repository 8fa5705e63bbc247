"""The rows of the regression recipe: scored over the whole scale in half points, no templates, none given away."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from finetune.prepare import check
from finetune.recipe import load_recipe
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    lines = (ROOT / "data" / "town_messages.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def words(row: dict[str, Any]) -> list[str]:
    return re.findall(r"\w+", row["message"].casefold())


def test_a_row_is_a_message_and_its_urgency(rows: list[dict[str, Any]]) -> None:
    assert {tuple(row) for row in rows} == {("message", "urgency")}
    assert all(row["message"] == row["message"].strip() != "" for row in rows)


def test_every_half_point_of_the_scale_is_there_several_times(rows: list[dict[str, Any]]) -> None:
    counts = Counter(row["urgency"] for row in rows)
    assert sorted(counts) == [half / 2 for half in range(21)]
    assert (min(counts.values()) >= 9, max(counts.values()) <= 26) == (True, True)


@pytest.mark.parametrize(("length", "most"), [(1, 80), (2, 9), (3, 6), (4, 3), (5, 1)])
def test_no_opening_is_repeated_as_a_template_would(rows: list[dict[str, Any]], length: int, most: int) -> None:
    openings = Counter(tuple(words(row)[:length]) for row in rows if len(words(row)) >= length)
    assert {opening: count for opening, count in openings.items() if count > most} == {}


def test_messages_are_short_and_long_and_all_different(rows: list[dict[str, Any]]) -> None:
    lengths = sorted(len(words(row)) for row in rows)
    assert (lengths[0] <= 4, 15 <= lengths[len(lengths) // 2] <= 25, lengths[-1] >= 40) == (True, True, True)
    assert len({" ".join(words(row)) for row in rows}) == len(rows)


def test_the_recipe_keeps_every_row_within_the_range_that_it_declares(rows: list[dict[str, Any]]) -> None:
    recipe = load_recipe(ROOT / "recipes" / "regression-small.yaml")
    assert (recipe.task.options["minimum"], recipe.task.options["maximum"]) == (0, 10)
    report = check(recipe)
    assert (report["rows_kept"], report["dropped"], report["splits"]["test"] >= 110) == (len(rows), {}, True)
    assert [finding for finding in report["warnings"] if finding["severity"] == "error"] == []


def test_the_public_recipe_is_valid_and_names_its_published_score() -> None:
    path = ROOT / "recipes" / "stsb.yaml"
    recipe = load_recipe(path, check_inputs=True)
    assert (recipe.task.options["maximum"], recipe.data.columns["text_pair"]) == (5, "sentence2")
    assert "published: Pearson 0.886" in path.read_text(encoding="utf-8")
