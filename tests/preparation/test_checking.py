"""`prepare --check`, `--preview`, standard input and compressed files, through the real command line."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import FinetuneError, RecipeError
from tests.conftest import finetune
from tests.preparation.world import World, findings, listing, plain_rows

RARE = [{"body": "a rare text", "intent": "rare"}]


def test_good_data_passes_the_check_and_nothing_is_written(world: World) -> None:
    recipe = world.recipe_file(plain_rows(60))
    before = listing(world.folder)
    done = finetune("prepare", recipe, "--check", "--json", cwd=world.folder)
    report = json.loads(done.stdout)
    assert (report["rows_read"], report["rows_kept"], report["leaks"]) == (60, 60, 0)
    assert set(report["splits"]) == {"train", "validation", "test"}
    assert "tokens" not in report
    assert listing(world.folder) == before


def test_data_with_an_error_fails_the_check_and_is_refused(world: World) -> None:
    recipe = world.recipe_file([*plain_rows(60), *RARE])
    before = listing(world.folder)
    done = finetune("prepare", recipe, "--check", "--json", cwd=world.folder, check=3)
    report = json.loads(done.stdout)
    worst = report["warnings"][0]
    assert (worst["check"], worst["severity"], worst["count"]) == ("rare-labels", "error", 1)
    assert "rare-labels" in done.stderr
    assert listing(world.folder) == before
    done = finetune("prepare", recipe, cwd=world.folder, check=2)
    assert "rare-labels" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_check_for_people_names_the_errors(world: World) -> None:
    recipe = world.recipe_file([*plain_rows(60), *RARE])
    done = finetune("prepare", recipe, "--check", cwd=world.folder, check=3)
    assert re.search(r"61\b", done.stdout)
    assert "rare" in done.stdout
    assert not re.search(r"[a-z.]Mend", done.stderr)


@pytest.mark.parametrize("lines", [b"", b"nonsense\n" * 5, b'{"other": 1}\n' * 5])
def test_data_that_cannot_be_read_is_refused_by_the_check_too(world: World, lines: bytes) -> None:
    recipe = world.recipe_file(lines)
    before = listing(world.folder)
    done = finetune("prepare", recipe, "--check", "--json", cwd=world.folder, check=2)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert listing(world.folder) == before


def test_leaks_fail_the_check(world: World) -> None:
    rows = plain_rows(60)
    source = {"train": world.write(rows[:40], "t.jsonl"), "validation": world.write(rows[39:], "v.jsonl")}
    recipe = world.recipe_file(data={"source": source})
    before = listing(world.folder)
    report = json.loads(finetune("prepare", recipe, "--check", "--json", cwd=world.folder, check=3).stdout)
    assert report["leaks"] == 1
    assert report["leak_examples"][0]["other_line"] == 40
    assert listing(world.folder) == before


def test_severities_are_raised_and_lowered_by_the_recipe(world: World) -> None:
    rows = [*plain_rows(60), *RARE]
    lowered = world.check(rows, data={"checks": {"rare-labels": "warning"}})
    assert [found["severity"] for found in findings(lowered, "rare-labels")] == ["warning"]
    assert findings(world.check(rows, data={"checks": {"rare-labels": "off"}}), "rare-labels") == []
    few = plain_rows(30)
    assert {found["severity"] for found in findings(world.check(few), "too-few-rows")} == {"warning"}
    raised = world.check(few, data={"checks": {"too-few-rows": "error"}})
    assert {found["severity"] for found in findings(raised, "too-few-rows")} == {"error"}
    with pytest.raises(FinetuneError, match="too-few-rows"):
        world.prepare(few, data={"checks": {"too-few-rows": "error"}})
    assert world.prepare(rows, data={"checks": {"rare-labels": "note"}}).report["rows_kept"] == 61


def test_options_of_checks_come_from_the_recipe(world: World) -> None:
    settings: dict[str, Any] = {"too-few-rows": {"rows_in_all": 5, "rows_per_label": 2}}
    assert findings(world.check(plain_rows(30), data={"checks": settings}), "too-few-rows") == []


@pytest.mark.parametrize(
    "checks",
    [{"no-such-check": "error"}, {"imbalance": "loud"}, {"imbalance": {"ratio": 0.5}}, {"imbalance": {"x": 1}}],
)
def test_wrong_settings_of_checks_are_problems_of_the_recipe(world: World, checks: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"data\.checks"):
        world.recipe(plain_rows(30), data={"checks": checks})


def test_the_preview_prints_and_writes_nothing(world: World) -> None:
    recipe = world.recipe_file(plain_rows(60), data={"augment": {"operations": ["swap"]}})
    before = listing(world.folder)
    done = finetune("prepare", recipe, "--preview", "4", "--json", cwd=world.folder)
    shown = json.loads(done.stdout)
    assert len(shown) == 4
    assert all(row["operation"] == "swap" and row["before"] != row["after"] for row in shown)
    assert "swap" in finetune("prepare", recipe, "--preview", "2", cwd=world.folder).stdout
    assert listing(world.folder) == before


@pytest.mark.parametrize("check_only", [False, True])
def test_rows_may_come_from_standard_input(world: World, check_only: bool) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in [*plain_rows(60), {"body": " "}])
    recipe = world.recipe_file(data={"source": "-", "format": "jsonl"})
    more = ["--check"] if check_only else ["--output", world.folder / "out"]
    done = finetune("prepare", recipe, *more, "--json", cwd=world.folder, input=rows)
    report = json.loads(done.stdout)
    assert (report["rows_read"], report["rows_kept"], report["dropped"]) == (61, 60, {"blank_text": 1})
    assert report["source"] == ["standard input"]


def test_no_standard_input_is_refused_in_words(world: World) -> None:
    recipe = world.recipe_file(data={"source": "-", "format": "jsonl"})
    done = finetune("prepare", recipe, "--check", cwd=world.folder, check=2, input="")
    assert done.stderr.startswith("error: ")


def test_compressed_files_are_read_as_they_are_plain(world: World) -> None:
    rows = [*plain_rows(60), {"body": " "}]
    plain = world.prepare(rows, folder="plain")
    path: Path = world.folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0))
    packed = world.prepare(data={"source": str(path)}, folder="packed")
    for name in ("train.arrow", "validation.arrow", "test.arrow", "dropped.jsonl"):
        assert (packed.folder / name).read_bytes() == (plain.folder / name).read_bytes()


def test_a_compressed_file_that_was_cut_off_is_refused(world: World) -> None:
    path: Path = world.folder / "rows.jsonl.gz"
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in plain_rows(60)).encode())
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(FinetuneError, match="cut off"):
        world.prepare(data={"source": str(path)})


@pytest.mark.parametrize(
    ("rows", "data"),
    [
        (plain_rows(2), {}),
        (plain_rows(4), {}),
        ([{"body": "  ", "intent": "a"}] * 5, {}),
        ([{**row, "day": "soon" if number == 7 else "2026-01-02"} for number, row in enumerate(plain_rows(60))],
         {"split": {"name": "time", "by": "day"}}),
    ],
)  # fmt: skip
def test_data_that_can_be_read_but_not_divided_fails_the_check(world: World, rows: Any, data: Any) -> None:
    recipe = world.recipe_file(rows, data=data)
    done = finetune("prepare", recipe, "--check", "--json", cwd=world.folder, check=3)
    report = json.loads(done.stdout)
    assert report["warnings"][-1]["severity"] == "error"
    assert report["rows_read"] == len(rows)
    assert "Traceback" not in done.stderr


def test_a_check_and_a_preview_at_once_are_refused(world: World) -> None:
    recipe = world.recipe_file(plain_rows(60), data={"augment": {"operations": ["swap"]}})
    done = finetune("prepare", recipe, "--check", "--preview", "3", cwd=world.folder, check=2)
    assert "found both" in done.stderr


def test_a_misspelt_option_of_a_check_is_named(world: World) -> None:
    with pytest.raises(RecipeError, match=r"data\.checks\.long-rows\.word: unknown setting, did you mean words\?"):
        world.recipe(plain_rows(60), data={"checks": {"long-rows": {"word": 3}}})


def test_a_forced_preparation_reads_the_source_again(world: World) -> None:
    recipe = world.recipe_file(plain_rows(60))
    finetune("prepare", recipe, "--output", "out", cwd=world.folder)
    done = finetune("prepare", recipe, "--output", "out", "--force", cwd=world.folder)
    assert "only their tokens" not in done.stderr


def test_another_delimiter_is_guessed_at_in_the_message(world: World) -> None:
    world.write(b"body;intent\na text;fruit\n", "semicolon.csv")
    with pytest.raises(FinetuneError, match=r"found body;intent\. Is that the delimiter\?.*delimiter: auto"):
        world.prepare(data={"source": str(world.folder / "semicolon.csv")})
