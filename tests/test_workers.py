"""Work spread over processes: in order, lazily, with errors that reach the user, and with no worker left behind."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune.errors import FinetuneError
from finetune.workers import ordered_map
from tests.conftest import ROOT


class Slow:
    """Gives the number of its process and the square of an item; the first items take longest."""

    def __init__(self, patience: float) -> None:
        self.patience = patience

    def __call__(self, item: int) -> tuple[int, int]:
        time.sleep(self.patience / (1 + item))
        if item == 1000:
            raise FinetuneError("a thousand is too much")
        if item == 2000:
            os._exit(1)
        return os.getpid(), item * item


class Broken:
    """Cannot be made."""

    def __init__(self) -> None:
        raise FinetuneError("there is no such part")

    def __call__(self, item: int) -> int:
        raise AssertionError


MAKE = functools.partial(Slow, 0.02)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_results_come_in_the_order_of_the_work(workers: int, count: int) -> None:
    assert [square for _, square in ordered_map(MAKE, range(count), workers)] == [item**2 for item in range(count)]


def test_one_worker_is_this_process_and_several_are_others() -> None:
    assert {process for process, _ in ordered_map(MAKE, range(3), 1)} == {os.getpid()}
    assert os.getpid() not in {process for process, _ in ordered_map(MAKE, range(9), 2)}


@pytest.mark.parametrize("workers", [1, 2])
def test_work_is_taken_only_as_it_is_needed(workers: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    results = ordered_map(MAKE, items(), workers)
    next(results)
    assert len(taken) <= 2 * workers + 2
    results.close()  # type: ignore[attr-defined]
    assert len(taken) <= 2 * workers + 2


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_work_reaches_the_user_behind_the_results_before_it(workers: int) -> None:
    results = ordered_map(MAKE, [1, 2, 1000, 3], workers)
    assert [next(results)[1], next(results)[1]] == [1, 4]
    with pytest.raises(FinetuneError, match="a thousand is too much"):
        next(results)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_part_that_cannot_be_made_says_why(workers: int) -> None:
    with pytest.raises(FinetuneError, match="there is no such part"):
        list(ordered_map(Broken, [1, 2], workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_reader_is_not_swallowed(workers: int) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise FinetuneError("the file is cut off")

    with pytest.raises(FinetuneError, match="cut off"):
        list(ordered_map(MAKE, items(), workers))


def test_a_worker_that_dies_is_no_endless_wait() -> None:
    with pytest.raises(Exception, match=r"terminated abruptly|worker"):
        list(ordered_map(MAKE, [1, 2000, 3], 2))


PARENT = """
import sys, time
from finetune.workers import ordered_map
from tests.test_workers import MAKE
if __name__ == "__main__":
    for process, _ in ordered_map(MAKE, iter(range(10**6)), 2):
        print(process, flush=True)
"""


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells which processes there are")
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    )
    assert parent.stdout is not None
    workers = {int(parent.stdout.readline()) for _ in range(20)}
    assert all(map(is_alive, workers))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_alive, workers))
