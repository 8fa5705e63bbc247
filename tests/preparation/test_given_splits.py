"""Splits that the user gives: rows stay where they were given, and what leaks between them is found and settled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from finetune.artifacts import PreparedData
from finetune.errors import FinetuneError
from tests.preparation.world import World, dropped, findings, lines_of, plain_rows, split_lines, split_of

ROWS = plain_rows(60)
LONG = "the quick brown fox jumps over the lazy dog near the old river bank today"
NEAR = [{"body": LONG, "intent": "tool"}, {"body": LONG + "!", "intent": "tool"}]

Parts = dict[str, list[dict[str, Any]]]


def parts(train: Any = (), validation: Any = (), test: Any = ()) -> Parts:
    """Return rows for the three splits that share nothing, and behind them those that are given."""
    return {
        "train": [*ROWS[:36], *train],
        "validation": [*ROWS[36:48], *validation],
        "test": [*ROWS[48:], *test],
    }


def by_files(world: World, rows: Parts, folder: str = "data", **data: Any) -> PreparedData:
    source = {name: world.write(part, f"{name}.jsonl") for name, part in rows.items()}
    return world.prepare(data={"source": source, **data}, folder=folder)


def by_column(world: World, rows: Parts, folder: str = "data", **data: Any) -> PreparedData:
    flat = [{**row, "part": name} for name, part in rows.items() for row in part]
    return world.prepare(flat, data={"split": {"name": "predefined", "column": "part"}, **data}, folder=folder)


WAYS = pytest.mark.parametrize("way", [by_files, by_column])


@WAYS
def test_no_row_moves(world: World, way: Any) -> None:
    data = way(world, parts())
    assert data.report["splits"] == {"train": 36, "validation": 12, "test": 12}
    found = split_of(data)
    assert {name: [text for text, split in found.items() if split == name] for name in ("train", "test")} == {
        "train": [row["body"] for row in ROWS[:36]],
        "test": [row["body"] for row in ROWS[48:]],
    }
    assert (data.report["leaks"], dropped(data)) == (0, [])
    assert not (data.folder / "leaks.jsonl").exists()


def test_a_split_may_come_from_several_files(world: World) -> None:
    rows = parts()
    train = [world.write(rows["train"][:10], "t1.jsonl"), world.write(rows["train"][10:], "t2.jsonl")]
    source = {"train": train, "validation": world.write(rows["validation"], "v.jsonl")}
    data = world.prepare(data={"source": source})
    assert data.report["splits"] == {"train": 36, "validation": 12}
    assert [Path(name).name for name in data.report["source"]] == ["t1.jsonl", "t2.jsonl", "v.jsonl"]
    assert split_lines(data)["train"] == [*range(1, 11), *range(1, 27)]


def test_the_names_of_predefined_splits_may_be_written_in_several_ways(world: World) -> None:
    rows = [{**row, "split": name} for name, part in parts().items() for row in part]
    rows = [{**row, "split": {"validation": " Dev", "test": "TEST"}.get(row["split"], "train")} for row in rows]
    assert world.check(rows, data={"split": "predefined"})["splits"] == {"train": 36, "validation": 12, "test": 12}


def test_a_value_that_names_no_split_is_refused_with_its_line(world: World) -> None:
    rows = [{**row, "split": "train" if number != 7 else "tarin"} for number, row in enumerate(ROWS)]
    with pytest.raises(FinetuneError, match=r"'tarin'.*line 8"):
        world.prepare(rows, data={"split": "predefined"})
    (found,) = findings(world.check(rows, data={"split": "predefined"}), "splits")
    assert found["severity"] == "error"
    assert "'tarin'" in found["message"]


@WAYS
def test_a_duplicate_within_a_split_is_dropped_and_no_leak(world: World, way: Any) -> None:
    data = way(world, parts(train=[ROWS[3]], test=[ROWS[50]]))
    assert [row["reason"] for row in dropped(data)] == ["duplicate"] * 2
    assert (data.report["leaks"], data.report["duplicates"]["exact"]) == (0, 2)
    assert data.report["splits"] == {"train": 36, "validation": 12, "test": 12}


@WAYS
def test_a_contradiction_within_a_split_is_dropped_there_alone(world: World, way: Any) -> None:
    other = {**ROWS[3], "intent": "tool" if ROWS[3]["intent"] == "fruit" else "fruit"}
    data = way(world, parts(train=[other], test=[]))
    assert [row["row"]["body"] for row in dropped(data)] == [ROWS[3]["body"]] * 2
    assert {row["reason"] for row in dropped(data)} == {"conflicting_labels"}


@WAYS
def test_leaks_are_refused_and_listed_beside_the_data(world: World, way: Any) -> None:
    with pytest.raises(FinetuneError) as refused:
        way(world, parts(validation=[ROWS[0]], test=[ROWS[1], ROWS[40]]))
    listed = lines_of(world.folder / "leaks.jsonl")
    texts = [(leak["split"], leak["other_split"], leak["text"], leak["other_text"]) for leak in listed]
    assert sorted(texts) == sorted(
        [
            ("validation", "train", ROWS[0]["body"], ROWS[0]["body"]),
            ("test", "train", ROWS[1]["body"], ROWS[1]["body"]),
            ("test", "validation", ROWS[40]["body"], ROWS[40]["body"]),
        ]
    )
    assert "3 rows" in str(refused.value)
    assert str(world.folder / "leaks.jsonl") in str(refused.value)
    assert not (world.folder / "data").exists()


def test_leaks_name_file_and_line_of_both_rows(world: World) -> None:
    with pytest.raises(FinetuneError):
        by_files(world, parts(test=[ROWS[1]]))
    (leak,) = lines_of(world.folder / "leaks.jsonl")
    assert (leak["file"], leak["line"]) == ("test.jsonl", 13)
    assert (leak["other_file"], leak["other_line"]) == ("train.jsonl", 2)


def test_the_number_of_leaking_rows_counts_no_row_twice(world: World) -> None:
    with pytest.raises(FinetuneError, match=r"\b2 rows of validation or test"):
        by_files(world, parts(validation=[ROWS[0]], test=[ROWS[0]]))


@WAYS
def test_leaks_may_be_reported_alone(world: World, way: Any) -> None:
    data = way(world, parts(validation=[ROWS[0]], test=[ROWS[1]]), leaks="report")
    assert data.report["splits"] == {"train": 36, "validation": 13, "test": 13}
    (found,) = findings(data.report, "leaks")
    assert (found["severity"], found["count"], data.report["leaks"]) == ("warning", 2, 2)
    assert [leak["text"] for leak in lines_of(data.folder / "leaks.jsonl")] == [ROWS[0]["body"], ROWS[1]["body"]]


@WAYS
def test_what_leaks_is_dropped_from_the_earlier_split_alone(world: World, way: Any) -> None:
    rows = parts(validation=[ROWS[0]], test=[ROWS[1], ROWS[40], ROWS[0]])
    data = way(world, rows, leaks="drop-from-train")
    gone = [row["row"]["body"] for row in dropped(data)]
    assert sorted(gone) == sorted([ROWS[0]["body"], ROWS[1]["body"], ROWS[40]["body"], ROWS[0]["body"]])
    assert data.report["dropped"] == {"leak": 4}
    assert data.report["splits"] == {"train": 34, "validation": 11, "test": 15}
    found = split_of(data)
    assert [found[ROWS[number]["body"]] for number in (0, 1, 40)] == ["test"] * 3
    assert data.report["rows_read"] == 64


@WAYS
@pytest.mark.parametrize("leaks", ["error", "report", "drop-from-train"])
def test_texts_that_are_nearly_the_same_leak_too(world: World, way: Any, leaks: str) -> None:
    rows, settings = parts(train=NEAR[:1], test=NEAR[1:]), {"near_duplicates": "keep", "leaks": leaks}
    if leaks == "error":
        with pytest.raises(FinetuneError, match="leaks"):
            way(world, rows, **settings)
        assert [leak["text"] for leak in lines_of(world.folder / "leaks.jsonl")] == [LONG + "!"]
        return
    data = way(world, rows, **settings)
    assert data.report["leaks"] == 1
    assert [row["row"]["body"] for row in dropped(data)] == ([LONG] if leaks == "drop-from-train" else [])


@WAYS
def test_near_duplicates_are_dropped_within_a_split_and_leak_between_two(world: World, way: Any) -> None:
    third = {"body": LONG + "?", "intent": "tool"}
    rows = parts(train=NEAR, test=[third])
    data = way(world, rows, near_duplicates="drop", leaks="report")
    assert [(row["reason"], row["row"]["body"]) for row in dropped(data)] == [("near_duplicate", LONG + "!")]
    (leak,) = lines_of(data.folder / "leaks.jsonl")
    assert (leak["text"], leak["other_text"]) == (LONG + "?", LONG)


def test_a_group_in_two_given_splits_is_a_leak(world: World) -> None:
    rows = {
        name: [{**row, "customer": f"{name}{number}"} for number, row in enumerate(part)]
        for name, part in parts().items()
    }
    rows["test"][0]["customer"] = rows["train"][0]["customer"] = "both"
    with pytest.raises(FinetuneError, match="leaks"):
        by_files(world, rows, group_by="customer")
    data = by_files(world, rows, group_by="customer", leaks="drop-from-train")
    assert [row["row"]["customer"] for row in dropped(data)] == ["both"]
    assert data.report["splits"] == {"train": 35, "validation": 12, "test": 12}


def test_leaks_that_were_mended_are_not_listed_any_more(world: World) -> None:
    with pytest.raises(FinetuneError):
        by_files(world, parts(test=[ROWS[1]]))
    by_files(world, parts())
    assert not (world.folder / "leaks.jsonl").exists()


@pytest.mark.parametrize("empty", ["train", "validation", "test"])
def test_a_given_split_of_which_nothing_is_left_is_refused(world: World, empty: str) -> None:
    rows = {**parts(), empty: [{"body": " ", "intent": "tool"}]}
    with pytest.raises(FinetuneError, match=empty):
        by_files(world, rows)


def test_what_the_refusal_advises_is_a_setting_that_a_recipe_takes(world: World) -> None:
    rows = parts(test=[ROWS[1]])
    with pytest.raises(FinetuneError) as refused:
        by_files(world, rows)
    message = str(refused.value)
    advised = re.search(r"data\.checks \(([^:)]+): warning\)", message)
    checks = dict.fromkeys(advised[1].split(", "), "warning") if advised else {}
    assert world.recipe(ROWS, data={"checks": checks}).data.checks.keys() == checks.keys()
    assert not re.search(r"[a-z.]Mend|jsonl\.\S", message.replace(str(Path("/")), "/")), "sentences are apart"


def test_conflicts_between_given_splits_are_an_error_where_the_recipe_says_so(world: World) -> None:
    rows = parts(train=[], test=[])
    first = rows["train"][0]
    other = "tool" if first["intent"] == "fruit" else "fruit"
    rows["test"] = [*rows["test"], {**first, "intent": other}]
    source = {name: world.write(part, f"{name}.jsonl") for name, part in rows.items()}
    strict = {"source": source, "leaks": "report", "conflicts": "error"}
    with pytest.raises(
        FinetuneError, match=r"conflicting-labels: 1 text stands under different labels: lines 1 and"
    ) as caught:
        world.prepare(data=strict)
    assert "data.checks" not in str(caught.value), "that would not lower it"
    with pytest.raises(FinetuneError, match="duplicates: found 1 text that repeats another"):
        same = {**source, "test": world.write([*rows["test"][:-1], first], "same.jsonl")}
        world.prepare(data={"source": same, "leaks": "report", "duplicates": "error"})
