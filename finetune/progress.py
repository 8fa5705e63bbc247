"""What a stage may say while it works; the command line decides how, and whether, it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bar(Protocol):
    """A piece of work whose length is known."""

    def advance(self, count: int = 1, text: str = "") -> None:
        """Move forward by `count` units and show `text` beside the bar."""


class Progress(Protocol):
    """The listener that a stage is given."""

    def note(self, message: str) -> None:
        """Say one thing that the user should know."""

    def detail(self, message: str) -> None:
        """Say one thing that only a curious user wants to know (`--verbose`)."""

    def bar(self, title: str, total: int | None, start: int = 0) -> AbstractContextManager[Bar]:
        """Open a progress bar over `total` units (None: nobody knows), of which `start` are already done."""


class Silent:
    """A listener that ignores everything: the default when the package is used as a library."""

    def note(self, message: str) -> None:
        """Ignore it."""

    def detail(self, message: str) -> None:
        """Ignore it."""

    @contextmanager
    def bar(self, title: str, total: int | None, start: int = 0) -> Iterator[Bar]:  # noqa: ARG002
        """Show nothing."""
        yield _SilentBar()


class _SilentBar:
    def advance(self, count: int = 1, text: str = "") -> None:
        pass


class Hushed:
    """A listener of a stage that is done many times: its notes are details, its bars stay."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def note(self, message: str) -> None:
        """Say it to a curious user alone."""
        self._progress.detail(message)

    def detail(self, message: str) -> None:
        """Say it to a curious user alone."""
        self._progress.detail(message)

    def bar(self, title: str, total: int | None, start: int = 0) -> AbstractContextManager[Bar]:
        """Open the bar."""
        return self._progress.bar(title, total, start)
