"""Every line of dirty files is accounted for: kept once, or dropped once with its place and reason."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.artifacts import PreparedData
from finetune.errors import FinetuneError
from tests.preparation.world import World, columns_of, dropped, lines_of, plain_rows

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=True)
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["fruit", "tool", "rain", " Rain ", "\ud83d", "\ud800 a", "\x00", "\u2028", "<b>", "1e5"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
LINES = st.one_of(
    st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")),
    st.dictionaries(st.sampled_from(["body", "intent", "more", "\ud83d"]), VALUES, max_size=4).map(
        lambda row: json.dumps(row).encode()
    ),
    st.builds(
        lambda text, label, cut: json.dumps({"body": text, "intent": label}, ensure_ascii=False).encode(
            "utf-8", "surrogatepass"
        )[: cut or None],
        st.text(max_size=10),
        st.sampled_from(["fruit", "tool", None, 3, 0.5, True, ["a"]]),
        st.sampled_from([0, 0, 0, -1, 5]),
    ),
)


def check_accounts(data: PreparedData, lines: list[bytes], file: str | None = None) -> None:
    """Assert that the lines of one file are all there, once, and the dropped ones in their order."""
    report = data.report
    gone = [row for row in dropped(data) if row.get("file") == file]
    kept = [
        line
        for name in data.manifest["splits"]
        for line, place in zip(
            columns_of(data, name)["line"],
            columns_of(data, name).get("file", [None] * len(data.split(name))),
            strict=True,
        )
        if place == file
    ]
    assert sorted(kept + [row["line"] for row in gone]) == list(range(1, len(lines) + 1))
    assert [row["line"] for row in gone] == sorted(row["line"] for row in gone)
    assert report["rows_read"] == report["rows_kept"] + sum(report["dropped"].values())
    assert report["rows_kept"] == sum(report["splits"].values())
    if file is None:
        assert report["rows_read"] == len(lines)
        assert Counter(row["reason"] for row in gone) == report["dropped"]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dirt=st.lists(LINES, max_size=25), place=st.integers(0, 12))
def test_every_line_is_kept_or_dropped_once_whatever_it_holds(world: World, dirt: list[bytes], place: int) -> None:
    good = [json.dumps(row).encode() for row in plain_rows(12)]
    lines = good[:place] + dirt + good[place:]
    data = world.prepare(b"".join(line + b"\n" for line in lines), data={"rare_labels": "drop"})
    check_accounts(data, lines)
    assert data.report["rows_kept"] >= 12


def dirty_lines(count: int, seed: int) -> list[bytes]:
    """Return lines of which about half can be used: the others are broken in all the ways that files break in."""
    generator = random.Random(seed)
    lines: list[bytes] = []
    for number, row in enumerate(plain_rows(count, ("fruit", "tool", "weather"))):
        good = json.dumps(row).encode()
        broken: list[Any] = [
            generator.randbytes(generator.randint(0, 60)).replace(b"\n", b"").replace(b"\r", b""),
            good[: generator.randrange(len(good))],
            json.dumps([row]).encode(),
            json.dumps({**row, "body": generator.choice([None, 5, 1.5, True, [], {}, "", " \t", "\u00a0"])}).encode(),
            json.dumps({**row, "intent": generator.choice([None, 1.5, [], {}, "", " "])}).encode(),
            json.dumps({**row, "body": [[{"a": [row]}]]}).encode(),
            json.dumps({**row, "body": 10 ** generator.randint(1, 400)}).encode(),
            json.dumps({**row, "body": "\ud83d"[: generator.randint(0, 1)], "intent": "\ud83d tool"}).encode(),
            json.dumps({**row, "body": float("nan")}).encode(),
            good.replace(b'"body": "', b'"body": 1e999, "other": "'),
            good.replace(b"number", b"\xff\xfe"),
            good + good,
            lines[generator.randrange(number)] if number else good,
            b'{"body": ' + b"[" * 300 + b"]" * 300 + b', "intent": "tool"}',
            b"",
        ]
        lines.append(generator.choice(broken) if generator.random() < 0.5 else good)
    return lines


def test_ten_thousand_dirty_lines_are_all_accounted_for(world: World) -> None:
    lines = dirty_lines(10_000, seed=3)
    data = world.prepare(b"".join(line + b"\n" for line in lines), data={"rare_labels": "drop"})
    check_accounts(data, lines)
    assert 4_000 < data.report["rows_kept"] < 7_000
    expected = {"empty_line", "not_json", "not_an_object", "not_utf8", "missing_text", "wrong_type_of_text"}
    expected |= {"blank_text", "missing_label", "wrong_type_of_label", "duplicate", "rare_label"}
    assert expected <= set(data.report["dropped"])


def test_what_a_dropped_line_held_is_written_as_it_was(world: World) -> None:
    odd: list[dict[str, Any]] = [
        {"body": None, "intent": "tool", "id": 2**70, "deep": {"a": [1, None, "ü"]}},
        {"body": "text", "intent": ["list"]},
        {"body": "\ud83d", "intent": None},
    ]
    data = world.prepare([*odd, *plain_rows(20)])
    assert [row["row"] for row in dropped(data)] == odd


@pytest.mark.parametrize("text", ["half an emoji \ud83d", "\ud800"])
def test_half_an_emoji_in_a_dropped_row_does_not_stop_the_report(world: World, text: str) -> None:
    data = world.prepare([{"body": text, "intent": None}, *plain_rows(20)])
    assert data.report["dropped"] == {"missing_label": 1}


@pytest.mark.parametrize("depth", [100, 254, 500, 990, 1000, 1015, 1023, 1024, 5000, 100_000])
@pytest.mark.parametrize("column", ["body", "more"])
def test_no_depth_of_nesting_is_too_deep(world: World, depth: int, column: str) -> None:
    deep = b"[" * depth + b"]" * depth
    line = b'{"body": "one more text", "intent": "tool", "%s": %s}' % (column.encode(), deep)
    good = [json.dumps(row).encode() for row in plain_rows(20)]
    report = world.check(b"\n".join([line, *good]) + b"\n")
    assert report["rows_read"] == 21 == report["rows_kept"] + sum(report["dropped"].values())


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"\n\n\n",
        b"nothing\n",
        b'{"body": "a"}\n',
        b'{"body": null, "intent": "x"}\n',
        b'{"body": "a", "intent": "x"}\n{"body": "A", "intent": "y"}\n',
        b'{"body": "a", "intent": "x"}\n',
        b'{"body": "a", "intent": "x"}\n{"body": "b", "intent": "y"}\n',
        b"\xff" * 100,
    ],
)
@pytest.mark.parametrize("rare", ["drop", "error"])
def test_files_without_usable_rows_are_refused_in_words(world: World, lines: bytes, rare: str) -> None:
    with pytest.raises(FinetuneError, match=r"expected|none of its"):
        world.prepare(lines, data={"rare_labels": rare, "near_duplicates": "keep"})
    assert not (world.folder / "data").exists()
    assert not (world.folder / "data.partial").exists()


@pytest.mark.parametrize("way", ["list", "glob", "folder"])
def test_rows_of_several_files_say_which_file_they_came_from(world: World, way: str) -> None:
    folder = world.folder / "parts"
    folder.mkdir()
    rows = plain_rows(40)
    parts: dict[str, list[bytes]] = {}
    for number, name in enumerate(["b.jsonl", "a.jsonl", "c.jsonl"]):
        lines = [json.dumps(row).encode() for row in rows[number * 10 : number * 10 + 10 + 2 * number]]
        parts[name] = [b"broken", *lines, b'{"body": ""}', json.dumps(rows[number]).encode()]
        (folder / name).write_bytes(b"\n".join(parts[name]) + b"\n")
    paths = [str(folder / name) for name in parts]
    source: Any = {"list": paths, "glob": str(folder / "*.jsonl"), "folder": str(folder)}[way]
    data = world.prepare(data={"source": source})
    order = list(parts) if way == "list" else sorted(parts)
    assert [Path(name).name for name in data.report["source"]] == order
    for name, part in zip(data.report["source"], order, strict=True):
        check_accounts(data, parts[part], file=name)
    assert data.report["rows_read"] == sum(map(len, parts.values()))
    places = [(data.report["source"].index(row["file"]), row["line"]) for row in dropped(data)]
    assert places == sorted(places)
    assert data.report["dropped"] == {"not_json": 3, "blank_text": 3, "duplicate": 3 + 2}
    for split in data.manifest["splits"]:
        stored = columns_of(data, split)
        for text, file, line in zip(stored["text"], stored["file"], stored["line"], strict=True):
            assert json.loads(parts[Path(file).name][line - 1])["body"] == text


def test_one_file_has_no_file_column(world: World) -> None:
    data = world.prepare([*plain_rows(20), {"body": ""}])
    assert "file" not in columns_of(data, "train")
    assert "file" not in lines_of(data.folder / "dropped.jsonl")[0]


def test_more_rows_than_a_batch_holds_are_still_one_data_set(world: World) -> None:
    rows = plain_rows(10_300, ("fruit", "tool", "weather"))
    rows[10_200] = {**rows[10_200], "body": rows[5]["body"], "intent": rows[5]["intent"]}
    rows[10_250] = {**rows[10_250], "body": rows[7]["body"].upper(), "intent": "other"}
    report = world.check(rows, data={"group_by": "intent", "split": "random"})
    assert report["dropped"] == {"conflicting_labels": 2, "duplicate": 1}
    assert {label: sum(counts.values()) for label, counts in report["labels"].items()} == {
        label: sum(row["intent"] == label for number, row in enumerate(rows) if number not in {7, 10_200, 10_250})
        for label in ("fruit", "tool", "weather")
    }
    assert [sum(size > 0 for size in counts.values()) for counts in report["labels"].values()] == [1, 1, 1]
