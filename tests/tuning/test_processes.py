"""Processes of our own command line: their lines are passed on, their exit codes are heeded, none is left behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from finetune.errors import FinetuneError
from finetune.progress import Silent
from finetune.tuning import processes
from finetune.tuning.processes import launcher, threads_of_each


class Notes(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture
def workers_that(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[Callable[[], None], Notes, list[Any]]]:
    """Return a function that gives a launcher of two processes that run Python code instead of our command line."""

    def make(code: str) -> tuple[Callable[[], None], Notes, list[Any]]:
        started, popen = [], processes.subprocess.Popen

        def start(arguments: list[str], **options: Any) -> Any:
            assert arguments[:4] == [sys.executable, "-m", "finetune", "tune"]
            started.append(popen([sys.executable, "-c", code, *arguments[5:]], **options))
            return started[-1]

        monkeypatch.setattr(processes.subprocess, "Popen", start)
        notes = Notes()
        return launcher(["tune", "--worker"], 2, notes), notes, started

    return make


def test_lines_are_passed_on_with_the_number_of_the_worker(workers_that: Any) -> None:
    launch, notes, _ = workers_that("import sys; print('done by', sys.argv[-1], file=sys.stderr)")
    launch()
    assert sorted(notes.said) == ["2 workers", "[1] done by 1", "[2] done by 2"]


def test_a_mistake_of_the_user_ends_all_workers(workers_that: Any) -> None:
    launch, _, started = workers_that(
        "import sys, time\nif sys.argv[-1] == '1': time.sleep(600)\n"
        "print('going', 'error: expected one, found two', '  more of it', sep='\\n', file=sys.stderr)\nsys.exit(2)"
    )
    with pytest.raises(FinetuneError, match="^worker 2: expected one, found two\n  more of it$"):
        launch()
    assert all(process.poll() is not None for process in started)


def test_a_bug_in_a_worker_is_ours(workers_that: Any) -> None:
    launch, notes, started = workers_that("import time, sys; time.sleep(600) if sys.argv[-1] == '1' else 1 / 0")
    with pytest.raises(AssertionError, match="(?s)worker 2 ended with exit code 1:.*ZeroDivisionError"):
        launch()
    assert "[2] ZeroDivisionError: division by zero" in notes.said
    assert all(process.poll() is not None for process in started)


KILL = "import os, signal, sys; os.kill(os.getpid(), signal.SIGKILL) if sys.argv[-1] in {} else None"


def test_the_others_go_on_without_one_that_was_killed(workers_that: Any) -> None:
    launch, notes, _ = workers_that(KILL.format("'1'"))
    launch()
    assert "[1] ended by signal 9; the others go on, with its trial too" in notes.said


def test_it_is_said_when_all_were_killed(workers_that: Any) -> None:
    launch, _, _ = workers_that(KILL.format("'12'"))
    with pytest.raises(FinetuneError, match="every worker was killed, most likely for want of memory"):
        launch()


def test_workers_end_with_the_one_that_started_them(workers_that: Any) -> None:
    _, _, started = workers_that(
        "import sys, time; from finetune.tuning.processes import end_with_parent\nend_with_parent()\n"
        "print('ready', file=sys.stderr, flush=True)\ntime.sleep(600)"
    )
    stopped: list[int] = []

    class Stopping(Notes):
        def note(self, message: str) -> None:
            if message.endswith("ready"):
                number = int(message[1]) - 1
                started[number].stdin.close()  # what happens when we are killed
                stopped.append(started[number].wait(timeout=60))

    with pytest.raises(FinetuneError, match="every worker was killed"):
        launcher(["tune", "--worker"], 2, Stopping())()
    assert stopped == [-15, -15]


def test_threads_are_shared_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda process: set(range(7)), raising=False)
    assert [threads_of_each(workers) for workers in (1, 2, 3, 8)] == [7, 3, 2, 1]
