"""The exceptions that carry a message for the user, and the exit code that goes with each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

# FinetuneError (2)        a mistake that the user can fix: one message, no traceback
# ├── RecipeError (2)      every problem of a recipe at once
# ├── RowError (2)         one of several rows; whoever gave them adds its line
# ├── NotFinite (2)        a step of training whose loss or gradient is no number
# └── GateFailed (3)       the work is done and written, but a quality gate does not hold
# Terminated (143)         SIGTERM arrived; like KeyboardInterrupt, not an Exception


SHOWN = 20  # of the names that are known


class FinetuneError(Exception):
    """A mistake that the user can fix; the message says what was expected, what was found and how to fix it."""

    exit_code: ClassVar[int] = 2


class RowError(FinetuneError):
    """A mistake in one of several rows; `row` is its place among them, from 0."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


class NotFinite(FinetuneError):
    """A step of training whose loss or gradient is not finite; `windows` are those that it came from.

    The weights are as they were before it.
    """

    def __init__(self, found: str, windows: Sequence[int]) -> None:
        super().__init__(found)
        self.windows = windows


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a recipe: where it stands, which setting, and what is the matter."""

    where: str
    path: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.path, self.message) if part)


class RecipeError(FinetuneError):
    """All problems of a recipe, reported together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        heading = "1 problem in the recipe" if count == 1 else f"{count} problems in the recipe"
        super().__init__("\n".join([f"{heading}:", *(f"  {problem}" for problem in self.problems)]))


class GateFailed(FinetuneError):
    """One or more quality gates do not hold."""

    exit_code = 3


class Terminated(BaseException):
    """SIGTERM arrived: unwind, so that nothing half-written remains."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `Did you mean X? ` for the nearest of the known names, or nothing when none is near."""
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"Did you mean {found[0]}? " if found else ""


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `, did you mean X?` for the nearest of the known names, or the list of them when none is near."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if nearest:
        return f", did you mean {nearest[0]}?"
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f" (known: {', '.join(known[:SHOWN])}{more})" if known else ""
