"""What a model said about some rows, beside what is true: one file per kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Predictions(Protocol):
    """Answers, one for each thing that was asked: a row, or a query with all of its rows."""

    kind: ClassVar[str]
    same: ClassVar[str]  # what `agrees` calls the same, as a report says it

    @property
    def rows(self) -> NDArray[Any]:
        """The row that each answer is about, shape (answers,); of an answer about several rows the first."""

    def __len__(self) -> int:
        """Return how many answers there are."""

    def take(self, answers: NDArray[Any]) -> Self:
        """Return some answers, by index, in that order; one may be taken twice."""

    def agrees(self, other: Self) -> NDArray[Any]:
        """Tell for each answer whether another model gives the same, shape (answers,)."""


def objects(values: Sequence[Any]) -> NDArray[Any]:
    """Return an array of any objects; numpy would make one of two dimensions of equally long tuples."""
    import numpy as np

    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
