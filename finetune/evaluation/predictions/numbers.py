"""Numbers, one or several for each row, in the units of the targets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Two models say the same of a row if what they say differs by no more than this share of the targets' deviation
SAME_WITHIN = 0.05


@dataclass(frozen=True)
class NumberPredictions:
    """What was said, and what is true (no rows where that is unknown), each of shape (rows, targets).

    `deviations` of shape (targets,) are the standard deviations of the targets in training: what counts as a large
    error. Nothing below `minimum` or above `maximum` is ever said, where a range is declared.
    """

    names: tuple[str, ...]
    targets: NDArray[Any]
    values: NDArray[Any]
    deviations: NDArray[Any]
    minimum: float = -math.inf
    maximum: float = math.inf
    kind: ClassVar[str] = "numbers"
    same: ClassVar[str] = "numbers within 5 % of the standard deviation of the training scores"

    @property
    def rows(self) -> NDArray[Any]:
        """An answer is about the row of the same number."""
        import numpy as np

        return np.arange(len(self))

    def take(self, answers: NDArray[Any]) -> NumberPredictions:
        """Return the predictions for some rows, by index, in that order; a row may be taken twice."""
        targets = self.targets[answers] if len(self.targets) else self.targets
        return replace(self, targets=targets, values=self.values[answers])

    def agrees(self, other: NumberPredictions) -> NDArray[Any]:
        """Tell for each row whether another model's numbers are all within 5 % of their targets' deviations."""
        return (abs(self.values - other.values) <= SAME_WITHIN * self.deviations).all(axis=1)  # type: ignore[no-any-return]

    def saying(self, values: NDArray[Any]) -> NumberPredictions:
        """Return predictions for the same rows with other values, held within the declared range."""
        import numpy as np

        return replace(self, values=np.clip(values, self.minimum, self.maximum))

    def of_target(self, number: int) -> NumberPredictions:
        """Return the predictions of one target alone."""
        one = slice(number, number + 1)
        return replace(
            self,
            names=self.names[one],
            targets=self.targets[:, one],
            values=self.values[:, one],
            deviations=self.deviations[one],
        )

    def __len__(self) -> int:
        return len(self.values)
