"""The same recipe gives the same bytes: with one worker or two, the second time, and after a kill at any moment."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from finetune.artifacts import partial_folder
from finetune.pipeline import Job
from tests.conftest import ROOT, finetune
from tests.preparation.test_counts import dirty_lines
from tests.preparation.world import World, digests, plain_rows, tagged_rows


def near_rows(count: int) -> list[dict[str, Any]]:
    """Return rows of which some repeat others, exactly or nearly, some contradict others, and some are broken."""
    rows = plain_rows(count)
    for number in range(0, count, 7):
        rows[number] = {**rows[number], "body": rows[(number * 5) % count]["body"] + " ! "[: number % 4]}
    for number in range(0, count, 31):
        rows[number] = {**rows[number], "intent": None}
    return rows


TEXTS: dict[str, Any] = {
    "clean": ["unicode", "html", "whitespace"],
    "near_duplicates": {"action": "drop", "threshold": 0.7},
    "augment": {"operations": ["swap", "delete"], "copies": 1},
    "rare_labels": "drop",
}


@pytest.mark.parametrize("kind", ["texts", "tags", "dirt"])
def test_two_workers_write_the_bytes_of_one(world: World, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("finetune.preparation.reading", "finetune.data.sources"):  # many pieces of work out of few rows
        monkeypatch.setattr(f"{module}.BATCH_ROWS", 60)
    rows: Any = {
        "texts": near_rows(500),
        "tags": tagged_rows(300),
        "dirt": b"".join(line + b"\n" for line in dirty_lines(600, seed=2)),
    }[kind]
    sections: dict[str, Any] = {"task": "token-classification"} if kind == "tags" else {}
    source = rows if kind != "texts" else None
    data: dict[str, Any] = {"texts": TEXTS, "tags": {}, "dirt": {"rare_labels": "drop"}}[kind]
    if source is None:  # several files
        parts = [world.write(near_rows(500)[start : start + 100], f"part{start}.jsonl") for start in range(0, 500, 100)]
        data = {**data, "source": parts}
    one = world.prepare(source, folder="one", data={**data, "workers": 1}, **sections)
    two = world.prepare(source, folder="two", data={**data, "workers": 2}, **sections)
    assert digests(one.folder) == digests(two.folder)
    assert one.report["rows_kept"] > 100


def test_the_pictures_are_the_same_the_second_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # here they are drawn
    one, two = (digests(world.prepare(plain_rows(60), folder=name).folder) for name in ("one", "two"))
    assert one == two
    assert sum(name.endswith(".png") for name in one) >= 2


def test_the_number_of_workers_makes_nothing_stale(world: World) -> None:
    recipe = world.recipe(plain_rows(40))
    Job(recipe, world.folder / "out").data()
    again = Job(world.recipe(plain_rows(40), data={"workers": 2}), world.folder / "out")
    again.data()
    assert [stage.status for stage in again.stages] == ["skipped"]


def test_the_rows_of_a_file_may_come_in_any_chunks(world: World) -> None:
    """Rows in several files are read in other batches than in one, and give the same splits and dropped rows."""
    rows = near_rows(300)
    one = world.prepare(rows, folder="one", data=TEXTS)
    parts = [world.write(rows[start : start + 37], f"part{start:03}.jsonl") for start in range(0, 300, 37)]
    many = world.prepare(folder="many", data={**TEXTS, "source": parts})
    for name in ("rows_read", "rows_kept", "dropped", "splits", "labels", "tokens", "augmented"):
        assert many.report[name] == one.report[name], name
    assert {name: many.report["duplicates"][name] for name in ("exact", "near")} == {
        name: one.report["duplicates"][name] for name in ("exact", "near")
    }


def stop_at(changes: int, recipe: Path, out: Path, how: signal.Signals) -> tuple[int, list[int]]:
    """Start a preparation, kill it when its folder has changed so often; return its exit code and its workers."""
    command = [sys.executable, "-m", "finetune", "prepare", str(recipe), "--output", str(out), "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=recipe.parent, env=environment, stderr=subprocess.DEVNULL)
    growing = partial_folder(out / "data")
    seen, children = 0, set()
    last: list[tuple[str, int]] = []
    while process.poll() is None and seen < changes:
        found = sizes(growing)
        seen, last = seen + (found != last), found
        children.update(children_of(process.pid))
        time.sleep(0.002)
    if process.poll() is None:
        process.send_signal(how)
    return process.wait(timeout=60), sorted(children)


def sizes(folder: Path) -> list[tuple[str, int]]:
    found = []
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(OSError):  # it may be gone again
            found.append((path.name, path.stat().st_size))
    return found


def children_of(parent: int) -> list[int]:
    """Return the processes that a process has started; only Linux tells."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return found


def gone(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in {"Z", "X"}


def kept_files(folder: Path) -> dict[str, str]:
    """Return the digests of all files but the report for people and its pictures."""
    return {
        name: digest for name, digest in digests(folder).items() if not name.startswith("report") or ".json" in name
    }


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells which processes there are")
@pytest.mark.parametrize(
    ("changes", "how"), [(1, signal.SIGKILL), (3, signal.SIGKILL), (6, signal.SIGKILL), (3, signal.SIGTERM)]
)
def test_a_kill_at_any_moment_leaves_nothing_that_another_run_does_not_mend(
    world: World, changes: int, how: signal.Signals
) -> None:
    rows = near_rows(800)
    expected = kept_files(world.prepare(rows, data=TEXTS).folder)
    out = world.folder / "out"
    code, children = stop_at(changes, world.recipe_file(rows, data={**TEXTS, "workers": 2}), out, how)
    assert code in {-how, 128 + how}
    assert not (out / "data").exists()
    assert how == signal.SIGKILL or not partial_folder(out / "data").exists()
    deadline = time.monotonic() + 20
    while not all(map(gone, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert all(map(gone, children)), "workers end with their parent"
    Job(world.recipe(rows, data=TEXTS), out).data()
    assert kept_files(out / "data") == expected
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".lock") == ["data"]


def test_a_kill_between_the_renames_is_put_right(world: World) -> None:
    recipe = world.recipe(plain_rows(40))
    data = Job(recipe, world.folder / "out").data()
    expected = digests(data.folder)
    for moment in range(3):
        growing, old = partial_folder(data.folder), data.folder.with_name("data.old")
        if moment == 0:  # killed before the first rename
            growing.mkdir()
            (growing / "half").write_text("half")
        elif moment == 1:  # between the two
            data.folder.rename(growing)
            old.mkdir()
            (old / "manifest.json").write_text("{}")
        else:  # behind the second
            old.mkdir()
        again = Job(recipe, world.folder / "out", force=moment == 0)
        again.data(asked=True)
        assert digests(data.folder) == expected
        assert sorted(path.name for path in (world.folder / "out").iterdir() if path.suffix != ".lock") == ["data"]


def test_what_a_failure_leaves_is_what_was_there_before(world: World) -> None:
    data = world.prepare(plain_rows(40))
    before = digests(data.folder)
    recipe = world.recipe_file(plain_rows(40, ["one label"]))
    done = finetune("prepare", recipe, "--output", world.folder, cwd=world.folder, check=2)
    assert "labels" in done.stderr
    assert digests(data.folder) == before
    assert json.loads((data.folder / "manifest.json").read_text())["kind"] == "data"
    assert not partial_folder(data.folder).exists()
