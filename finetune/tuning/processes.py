"""Processes that train trials of one search side by side: our own command line, ending with the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import IO

from finetune.errors import FinetuneError
from finetune.progress import Progress

ENDING_SECONDS = 30.0
POLL_SECONDS = 0.2
ENDED_BY_SIGNAL = 128  # and the signal's number: what our command line exits with


def threads_of_each(workers: int) -> int:
    """Return how many threads each of several processes gets, so that together they have one for each core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // workers)


def launcher(command: Sequence[str], workers: int, progress: Progress) -> Callable[[], None]:
    """Return a function that runs `finetune COMMAND --worker N` in several processes, and waits for all of them.

    It raises FinetuneError if one ended by a mistake that the user can fix, or if all were killed. One that was killed
    leaves its trial to the others.
    """

    def launch() -> None:
        progress.note(f"{workers} workers")
        processes = [_start(command, number) for number in range(1, workers + 1)]
        listeners = [_listen(process, number, progress) for number, process in enumerate(processes, start=1)]
        try:
            _wait(processes, progress)
        finally:
            _end(processes)
            for listener in listeners:
                listener.join()

    return launch


def _start(command: Sequence[str], number: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "finetune", *command, "--worker", str(number)]
    return subprocess.Popen(  # noqa: S603 -- our own command line
        arguments,
        stdin=subprocess.PIPE,  # it closes when we are gone, however we went
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C is our business: we tell them
    )


def _listen(process: subprocess.Popen[str], number: int, progress: Progress) -> threading.Thread:
    def pass_on(stream: IO[str]) -> None:
        for line in stream:
            progress.note(f"[{number}] {line.rstrip()}")

    assert process.stderr is not None
    listener = threading.Thread(target=pass_on, args=(process.stderr,), daemon=True)
    listener.start()
    return listener


def _wait(processes: Sequence[subprocess.Popen[str]], progress: Progress) -> None:
    running = dict(enumerate(processes, start=1))
    killed = 0
    while running:
        for number, process in list(running.items()):
            try:
                code = process.wait(timeout=POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            del running[number]
            if code < 0 or code > ENDED_BY_SIGNAL:
                killed += 1
                by = -code if code < 0 else code - ENDED_BY_SIGNAL
                progress.note(f"[{number}] ended by signal {by}; the others go on, with its trial too")
                continue
            if code == FinetuneError.exit_code:
                raise FinetuneError(f"tune: worker {number} could not go on; it says why above")
            assert code == 0, f"worker {number} ended with exit code {code}"
    if killed == len(processes):
        raise FinetuneError(
            "tune: every worker was killed, most likely for want of memory. Take fewer --workers, or smaller batches "
            "in tune.space, and run the command again."
        )


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(timeout=ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def end_with_parent() -> None:
    """Have this process end in good order when the one that started it is gone."""

    def watch() -> None:
        while os.read(0, 1024):  # nothing ever comes: the end of the stream is what we wait for
            continue
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
