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
