"""Signals that ask a training to stop, held back while a step is taken, so that what is then saved is whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from finetune.errors import Terminated

MEANINGS: dict[int, type[BaseException]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


class Interrupts:
    """While it is entered, Ctrl-C and SIGTERM wait for `check`; where nothing is half-done, `open` lets them through.

    A second signal does not wait: then `whole` is False, and there is nothing to be saved. Outside of the main thread,
    and for signals that are ignored (`nohup`), everything stays as it was.
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
        """Raise what a signal means that has been waiting."""
        if self._arrived:
            raise MEANINGS[self._arrived]

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Let signals end what is done here at once."""
        self.check()
        self._held = False
        try:
            yield
        finally:
            self._held = True

    def _arrive(self, number: int, frame: object) -> None:  # noqa: ARG002
        if self._held and not self._arrived:
            self._arrived = number
            self._tell("stopping after this step; a checkpoint will be saved")
            return
        self.whole = not self._held
        raise MEANINGS[number]
