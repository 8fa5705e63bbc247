"""Rows that belong together never stand in two splits: duplicates, near-duplicates, the user's groups."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.errors import FinetuneError
from tests.conftest import FILLER
from tests.preparation.world import World, dropped, findings, lines_of, plain_rows, reasons, split_of

LONG = "the quick brown fox jumps over the lazy dog near the old river bank on day"


def families(count: int, members: int) -> list[dict[str, Any]]:
    """Return texts in families: those of one differ in their last character only, those of two in every word."""
    return [
        {
            "body": " ".join(f"{word}{family}" for word in FILLER[:12]) + "!.?,;:"[member],
            "intent": ("fruit", "tool")[family % 2],
        }
        for member in range(members)
        for family in range(count)
    ]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=st.lists(st.integers(0, 12) | st.none(), min_size=40, max_size=60), seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("split", ["random", "grouped", "stratified", "stratified-grouped", "hash"])
def test_no_group_is_in_two_splits(world: World, groups: list[int | None], seed: int, split: str) -> None:
    rows = [{**row, "customer": group} for row, group in zip(plain_rows(len(groups)), groups, strict=True)]
    alone = [{"body": f"alone {number}", "intent": "ab"[number % 2]} for number in range(20)]  # so that splits are full
    data = world.prepare([*rows, *alone], data={"group_by": "customer", "split": split, "seed": seed})
    found = split_of(data)
    splits = defaultdict(set)
    for row in rows:
        splits[row["customer"]].add(found[row["body"]])
    assert all(len(names) == 1 for group, names in splits.items() if group is not None)


def test_rows_without_a_group_are_groups_of_their_own(world: World) -> None:
    rows = [{**row, "customer": None if number % 2 else "one"} for number, row in enumerate(plain_rows(60))]
    data = world.prepare(rows, data={"group_by": "customer", "split": "random"})
    found = split_of(data)
    assert len({found[row["body"]] for row in rows[::2]}) == 1
    assert len({found[row["body"]] for row in rows[1::2]}) == 3


@pytest.mark.parametrize(
    ("setting", "data"),
    [("data.group_by", {"group_by": "custommer"}), ("data.split", {"split": {"name": "hash", "by": "custommer"}})],
)
def test_a_column_that_is_not_there_is_refused_by_its_setting(world: World, setting: str, data: dict[str, Any]) -> None:
    rows = [{**row, "customer": number} for number, row in enumerate(plain_rows(40))]
    with pytest.raises(FinetuneError, match=r"'custommer'.*Did you mean customer") as refused:
        world.prepare(rows, data=data)
    assert setting in str(refused.value)
    assert "data.columns.custommer" not in str(refused.value)


def test_groups_in_several_columns_chain(world: World) -> None:
    rows = [
        {**row, "customer": f"c{number // 2}", "order": f"o{(number + 1) // 2}" if number < 20 else f"x{number}"}
        for number, row in enumerate(plain_rows(60))
    ]
    found = split_of(world.prepare(rows, data={"group_by": ["customer", "order"], "split": "random"}))
    assert len({found[row["body"]] for row in rows[:20]}) == 1


@pytest.mark.parametrize("split", ["random", "stratified", "hash"])
def test_near_duplicates_stay_together(world: World, split: str) -> None:
    rows = families(30, 4)
    data = world.prepare(rows, data={"near_duplicates": "keep", "split": split})
    assert data.report["rows_kept"] == 120
    assert data.report["duplicates"]["near"] == 90
    found = split_of(data)
    for family in range(30):
        assert len({found[row["body"]] for row in rows[family::30]}) == 1
    pairs = lines_of(data.folder / "near_duplicates.jsonl")
    assert pairs
    assert all((first - second) % 30 == 0 for first, second in (pair["lines"] for pair in pairs))
    assert all(0.8 <= pair["similarity"] < 1 for pair in pairs)


def test_near_duplicates_are_dropped_but_for_the_first(world: World) -> None:
    data = world.prepare(families(30, 3), data={"near_duplicates": "drop"})
    assert data.report["dropped"] == {"near_duplicate": 60}
    assert sorted(line for line, _ in reasons(data)) == list(range(31, 91))
    assert data.report["duplicates"]["near"] == 60


def test_near_duplicates_are_reported_and_kept(world: World) -> None:
    report = world.check(families(30, 2), data={"near_duplicates": "report"})
    (found,) = findings(report, "near-duplicates")
    assert (found["severity"], found["count"], report["rows_kept"]) == ("warning", 30, 60)
    assert found["examples"][0]["lines"] == [1, 31]


def test_near_duplicates_are_not_looked_for_when_that_is_off(world: World) -> None:
    data = world.prepare(families(30, 2), data={"near_duplicates": "off"})
    assert (data.report["duplicates"]["near"], data.report["duplicates"]["searched"]) == (0, False)
    assert not (data.folder / "near_duplicates.jsonl").exists()


def test_near_duplicates_with_different_labels_are_no_contradiction(world: World) -> None:
    rows = families(30, 2)
    rows[30]["intent"] = "tool"
    report = world.check(rows, data={"near_duplicates": "keep", "conflicts": "error"})
    assert (findings(report, "conflicting-labels"), report["rows_kept"]) == ([], 60)


@pytest.mark.parametrize("how", ["keep", "report"])
def test_repeated_texts_may_stay_and_stay_together(world: World, how: str) -> None:
    rows = plain_rows(30)
    repeats = [{**row, "body": f" {row['body'].upper()} "} for row in rows]
    data = world.prepare([*rows, *repeats], data={"duplicates": how})
    assert (data.report["rows_kept"], data.report["duplicates"]["exact"], dropped(data)) == (60, 30, [])
    found = split_of(data)
    assert all(found[row["body"]] == found[f" {row['body'].upper()} "] for row in rows)
    assert [finding["count"] for finding in findings(data.report, "duplicates")] == ([30] if how == "report" else [])


def test_repeated_texts_may_be_an_error(world: World) -> None:
    rows = plain_rows(30)
    with pytest.raises(FinetuneError, match=r"1 .*lines 5 and 31"):
        world.prepare([*rows, rows[4]], data={"duplicates": "error"})


@pytest.mark.parametrize(("how", "kept"), [("drop", 30), ("keep", 32), ("error", 0)])
def test_contradictions_are_settled_as_the_recipe_says(world: World, how: str, kept: int) -> None:
    rows = [*plain_rows(30), {"body": "rain or plum", "intent": "fruit"}, {"body": "Rain or  plum", "intent": "tool"}]
    settings_ = {"conflicts": how, "duplicates": "keep"}
    if how == "error":
        with pytest.raises(FinetuneError, match="conflicting-labels"):
            world.prepare(rows, data=settings_)
        return
    data = world.prepare(rows, data=settings_)
    assert data.report["rows_kept"] == kept
    assert reasons(data) == ([(31, "conflicting_labels"), (32, "conflicting_labels")] if how == "drop" else [])


def test_pairs_are_duplicates_only_as_pairs(world: World) -> None:
    rows = [
        {"text": f"question {number // 3}", "text_pair": f"answer {number % 3}", "label": "yes" if number % 2 else "no"}
        for number in range(60)
    ]
    again = [rows[4], {**rows[5], "text_pair": rows[6]["text_pair"], "text": "question new"}]
    columns = {"text": "text", "text_pair": "text_pair"}
    data = world.prepare([*rows, *again], data={"columns": columns})
    assert reasons(data) == [(61, "duplicate")]
    assert data.report["rows_kept"] == 61


def test_the_parts_of_a_pair_are_told_apart(world: World) -> None:
    rows = plain_rows(30)
    pairs = [{"text": row["body"], "text_pair": f"b {n}", "label": row["intent"]} for n, row in enumerate(rows)]
    moved = [{**pair, "text": f"{pair['text']} b", "text_pair": pair["text_pair"][2:]} for pair in pairs]
    data = world.prepare([*pairs, *moved], data={"columns": {"text": "text", "text_pair": "text_pair"}})
    assert data.report["dropped"] == {}
