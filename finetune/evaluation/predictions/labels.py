"""One label out of several: class probabilities, and the true label of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from finetune.evaluation.predictions.counts import LabelCounts

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelPredictions:
    """Class probabilities of shape (rows, labels), and the true label's index of shape (rows,), empty if unknown."""

    labels: tuple[str, ...]
    targets: NDArray[Any]
    probabilities: NDArray[Any]
    kind: ClassVar[str] = "label"
    same: ClassVar[str] = "the same label"

    @property
    def predicted(self) -> NDArray[Any]:
        """The most probable label's index, shape (rows,)."""
        return self.probabilities.argmax(axis=-1)  # type: ignore[no-any-return]

    @property
    def rows(self) -> NDArray[Any]:
        """An answer is about the row of the same number."""
        import numpy as np

        return np.arange(len(self))

    def take(self, answers: NDArray[Any]) -> LabelPredictions:
        """Return the predictions for some rows, by index, in that order; a row may be taken twice."""
        return LabelPredictions(self.labels, self.targets[answers], self.probabilities[answers])

    def agrees(self, other: LabelPredictions) -> NDArray[Any]:
        """Tell for each row whether another model chooses the same label."""
        return self.predicted == other.predicted  # type: ignore[no-any-return]

    def label_counts(self, weights: NDArray[Any]) -> LabelCounts:
        """Return true positives, predicted and actual counts, each of shape (resamples, labels).

        `weights` of shape (resamples, rows) say how often each row counts.
        """
        import numpy as np

        said, size = self.predicted, len(self.labels)
        right = np.flatnonzero(said == self.targets)
        return LabelCounts(
            _counts(self.targets[right], weights[:, right], size),
            _counts(said, weights, size),
            _counts(self.targets, weights, size),
        )

    def confusion(self) -> NDArray[Any]:
        """Return the counts by true label (rows) and predicted label (columns), shape (labels, labels)."""
        import numpy as np

        size = len(self.labels)
        return np.bincount(self.targets * size + self.predicted, minlength=size * size).reshape(size, size)

    def __len__(self) -> int:
        return len(self.probabilities)


def _counts(labels: NDArray[Any], weights: NDArray[Any], size: int) -> NDArray[Any]:
    """Return how often each label occurs, each row weighed, shape (resamples, size)."""
    import numpy as np

    return np.stack([np.bincount(labels, weights=row, minlength=size) for row in weights])
