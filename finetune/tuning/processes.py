"""Processes that train trials of one search side by side: our own command line, ending with the one that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence

from finetune.errors import FinetuneError
from finetune.progress import Progress

ENDING_SECONDS = 30.0
POLL_SECONDS = 0.2
SHOWN_LINES = 40  # of what a worker said last
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
        started = [_Worker(command, number, progress) for number in range(1, workers + 1)]
        try:
            _wait(started, progress)
        finally:
            _end(started)

    return launch


class _Worker:
    """A process, and what it said last."""

    def __init__(self, command: Sequence[str], number: int, progress: Progress) -> None:
        self.number = number
        self._said: deque[str] = deque(maxlen=SHOWN_LINES)
        self.process = subprocess.Popen(  # noqa: S603 -- our own command line
            [sys.executable, "-m", "finetune", *command, "--worker", str(number)],
            stdin=subprocess.PIPE,  # it closes when we are gone, however we went
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is our business: we tell them
        )
        self._listener = threading.Thread(target=self._listen, args=(progress,), daemon=True)
        self._listener.start()

    def _listen(self, progress: Progress) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._said.append(line.rstrip())
            progress.note(f"[{self.number}] {line.rstrip()}")

    def last_words(self) -> str:
        """Return what it said last: its error, if it ended by one."""
        self._listener.join()
        said = list(self._said)
        first = next((place for place, line in enumerate(said) if line.startswith("error: ")), 0)
        return "\n".join(said[first:]).removeprefix("error: ")

    def close(self) -> None:
        """Wait for the process, which was told to end, and take down what joined us."""
        try:
            self.process.wait(timeout=ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._listener.join()
        for stream in (self.process.stdin, self.process.stderr):
            if stream is not None:
                stream.close()


def _wait(workers: Sequence[_Worker], progress: Progress) -> None:
    running, killed = list(workers), 0
    while running:
        for worker in list(running):
            try:
                code = worker.process.wait(timeout=POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            running.remove(worker)
            if code < 0 or code > ENDED_BY_SIGNAL:
                killed += 1
                by = -code if code < 0 else code - ENDED_BY_SIGNAL
                progress.note(f"[{worker.number}] ended by signal {by}; the others go on, with its trial too")
                continue
            if code == FinetuneError.exit_code:
                raise FinetuneError(f"worker {worker.number}: {worker.last_words()}")
            assert code == 0, f"worker {worker.number} ended with exit code {code}:\n{worker.last_words()}"
    if killed == len(workers):
        raise FinetuneError(
            "tune: every worker was killed, most likely for want of memory. Take fewer --workers, or smaller batches "
            "in tune.space, and run the command again."
        )


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.send_signal(signal.SIGTERM)
    for worker in workers:
        worker.close()


def end_with_parent() -> None:
    """Have this process end in good order when the one that started it is gone."""

    def watch() -> None:
        while os.read(0, 1024):  # nothing ever comes: the end of the stream is what we wait for
            continue
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
