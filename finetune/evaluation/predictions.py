"""What a classifier said about some rows, beside what is true."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Predictions:
    """Class probabilities of shape (rows, labels), and the true label's index of shape (rows,), empty if unknown."""

    labels: tuple[str, ...]
    targets: NDArray[Any]
    probabilities: NDArray[Any]

    @property
    def predicted(self) -> NDArray[Any]:
        """The most probable label's index, shape (rows,)."""
        return self.probabilities.argmax(axis=-1)  # type: ignore[no-any-return]

    def take(self, rows: NDArray[Any]) -> Predictions:
        """Return the predictions for some rows, by index, in that order; a row may be taken twice."""
        return Predictions(self.labels, self.targets[rows], self.probabilities[rows])

    def __len__(self) -> int:
        return len(self.probabilities)
