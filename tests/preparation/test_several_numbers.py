"""Rows with several numbers to learn: what holds of one target holds of each."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.errors import FinetuneError
from finetune.reports.preparation import preparation_report
from tests.preparation.world import World, findings, plain_rows, reasons

TASK = {"name": "regression", "targets": ["grammar", "content"]}


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"text": row["body"], "grammar": n % 7, "content": n % 5} for n, row in enumerate(plain_rows(count))]


def test_the_same_text_with_another_second_number_is_a_conflict_and_not_a_repeat(world: World) -> None:
    rows = rows_of(40)
    rows += [{**rows[3], "content": 9}, dict(rows[5])]
    data = world.prepare(rows, task=TASK)
    assert reasons(data) == [(4, "conflicting_labels"), (41, "conflicting_labels"), (42, "duplicate")]


def test_conflicts_that_are_kept_are_found_whichever_number_differs(world: World) -> None:
    rows = rows_of(40)
    rows.append({**rows[3], "content": 9})
    report = world.check(rows, task=TASK, data={"conflicts": "keep", "duplicates": "keep"})
    assert [finding["count"] for finding in findings(report, "conflicting-labels")] == [2]


def test_a_second_number_that_is_constant_is_an_error_too(world: World) -> None:
    rows = [{**row, "content": 3} for row in rows_of(40)]
    with pytest.raises(FinetuneError, match="All 40 rows have the same content, 3"):
        world.prepare(rows, task=TASK)


def test_rows_that_lack_the_second_number_are_counted_as_missing_labels(world: World) -> None:
    rows = rows_of(40)
    rows[7]["content"] = None
    [finding] = findings(world.check(rows, task=TASK), "missing-labels")
    assert (finding["count"], "line 8" in finding["message"]) == (1, True)


def test_the_report_has_every_target_by_split(world: World) -> None:
    data = world.prepare(rows_of(60), task=TASK)
    assert list(data.report["targets"]) == ["grammar", "content"]
    assert data.report["target"] == data.report["targets"]["grammar"]
    text = preparation_report(data.report, {})
    assert ("## Target grammar" in text, "## Target content" in text) == (True, True)
