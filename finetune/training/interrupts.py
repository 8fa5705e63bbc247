"""Signals that ask a training to stop, held back while a step is taken, so that what is then saved is whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from finetune.errors import Terminated
from finetune.processes import count, gathered

MEANINGS: dict[int, type[BaseException]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


class Interrupts:
    """While it is entered, Ctrl-C and SIGTERM wait for `check`; where nothing is half-done, `open` lets them through.

    A second signal does not wait: then `whole` is False, and there is nothing to be saved. Outside of the main thread,
    and for signals that are ignored (`nohup`), everything stays as it was. Several processes end after the same step,
    whichever of them was told; their launcher tells them again, so that they always wait.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        """Take who is told that a signal waits."""
        self.whole = True
        self._tell = tell
        self._held, self._arrived = True, 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in MEANINGS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._arrive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise what a signal means that has been waiting, in this process or another."""
        arrived = max(gathered([self._arrived]))
        if arrived:
            raise MEANINGS[arrived]

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Let signals end what is done here at once."""
        if count() > 1:  # the others would wait for this one
            yield
            return
        self.check()
        self._held = False
        try:
            yield
        finally:
            self._held = True

    def _arrive(self, number: int, frame: object) -> None:  # noqa: ARG002
        if count() > 1 and self._arrived:
            return
        if self._held and not self._arrived:
            self._arrived = number
            self._tell("stopping after this step; a checkpoint will be saved")
            return
        self.whole = not self._held
        raise MEANINGS[number]
