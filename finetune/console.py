"""How progress looks: a bar on a terminal, plain lines elsewhere, nothing when the user wants quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from finetune.progress import Bar

PLAIN_EVERY_SECONDS = 10.0


@dataclass
class ConsoleProgress:
    """Writes notes and bars to standard error."""

    verbose: bool = False
    _live: Any = field(default=None, repr=False)

    def note(self, message: str) -> None:
        """Print one message, above the bar if there is one."""
        if self._live is not None:
            self._live.console.print(message, markup=False, highlight=False, soft_wrap=True)
        else:
            print(message, file=sys.stderr, flush=True)

    def detail(self, message: str) -> None:
        """Print one message if the user asked for more."""
        if self.verbose:
            self.note(message)

    @contextmanager
    def bar(self, title: str, total: int, start: int = 0) -> Iterator[Bar]:
        """Show a bar on a terminal, or a line now and then elsewhere."""
        if not sys.stderr.isatty() or self._live is not None:
            yield PlainBar(title, total, start)
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        text = TextColumn("{task.fields[text]}", markup=False)
        with Progress(*columns, text, console=Console(stderr=True), transient=True) as live:
            self._live = live
            task = live.add_task(title, total=total, completed=start, text="")
            try:
                yield _RichBar(live, task)
            finally:
                self._live = None


@dataclass
class _RichBar:
    live: Any
    task: Any

    def advance(self, count: int = 1, text: str = "") -> None:
        self.live.update(self.task, advance=count, **({"text": text} if text else {}))


@dataclass
class PlainBar:
    """A bar for logs: a line when some time has passed, and one at the end."""

    title: str
    total: int
    done: int
    started: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.first = self.done

    def advance(self, count: int = 1, text: str = "") -> None:
        """Move forward; print if it is time."""
        self.done += count
        now = time.monotonic()
        finished = self.done >= self.total
        if now - self.last < PLAIN_EVERY_SECONDS and not (finished and now - self.started > PLAIN_EVERY_SECONDS):
            return
        self.last = now
        left = (now - self.started) / max(1, self.done - self.first) * (self.total - self.done)
        line = f"{self.title} {self.done}/{self.total}  {text}  {left:.0f} s left"
        print(" ".join(line.split()), file=sys.stderr, flush=True)
