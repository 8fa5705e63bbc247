"""Any number of labels out of several: a probability for each, and the thresholds that make a set out of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from finetune.errors import FinetuneError, suggestion

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.counts import LabelCounts

ThresholdRule = Literal["per-label", "global"] | float
UNFITTED = 0.5


@dataclass(frozen=True)
class LabelSetPredictions:
    """Probabilities of shape (rows, labels), and 0 or 1 for each label of each row, of shape (0, labels) if unknown.

    A label is said when its probability reaches its entry in `thresholds`, shape (labels,), or (rows, labels) where
    several models said them. `rule` tells how these were chosen, so that whoever is compared with these predictions can
    choose them the same way.
    """

    labels: tuple[str, ...]
    targets: NDArray[Any]
    probabilities: NDArray[Any]
    thresholds: NDArray[Any]
    rule: ThresholdRule = "per-label"
    kind: ClassVar[str] = "labels"
    same: ClassVar[str] = "exactly the same labels"

    @property
    def predicted(self) -> NDArray[Any]:
        """Return 0 or 1 for each label, shape (rows, labels)."""
        return (self.probabilities >= self.thresholds).astype(int)

    @property
    def rows(self) -> NDArray[Any]:
        """An answer is about the row of the same number."""
        import numpy as np

        return np.arange(len(self))

    def take(self, answers: NDArray[Any]) -> LabelSetPredictions:
        """Return the predictions for some rows, by index, in that order; a row may be taken twice."""
        thresholds = self.thresholds[answers] if self.thresholds.ndim == 2 else self.thresholds
        return replace(
            self, targets=self.targets[answers], probabilities=self.probabilities[answers], thresholds=thresholds
        )

    def agrees(self, other: LabelSetPredictions) -> NDArray[Any]:
        """Tell for each row whether another model says exactly the same labels."""
        return (self.predicted == other.predicted).all(axis=1)  # type: ignore[no-any-return]

    def label_counts(self, weights: NDArray[Any]) -> LabelCounts:
        """Return true positives, predicted and actual counts, each of shape (resamples, labels).

        `weights` of shape (resamples, rows) say how often each row counts.
        """
        from finetune.evaluation.predictions.counts import LabelCounts

        true, said = self.targets.astype(float), self.predicted.astype(float)
        return LabelCounts(weights @ (true * said), weights @ said, weights @ true, every_label=True)

    def confusion(self) -> NDArray[Any]:
        """Return which labels are found, missed and mixed up, shape (labels + 1, labels + 1); the last is "none".

        [i, i] counts the rows with label i for which it is said; [i, j] those on which i is missed and j said wrongly;
        [i, none] those on which i is missed and nothing said wrongly, [none, j] those on which j is said wrongly and
        nothing missed; [none, none] rows without labels for which none is said.
        """
        import numpy as np

        true, said = self.targets == 1, self.predicted == 1
        missed, wrong = (
            np.column_stack([part, ~part.any(axis=1)]).astype(int) for part in (true & ~said, said & ~true)
        )
        counts: NDArray[Any] = missed.T @ wrong
        counts[-1, -1] = (~true.any(axis=1) & ~said.any(axis=1)).sum()
        return counts + np.diag([*(true & said).sum(axis=0), 0])

    def __len__(self) -> int:
        return len(self.probabilities)


def label_matrix(sets: Iterable[Sequence[str]], labels: Sequence[str]) -> NDArray[Any]:
    """Return 0 or 1 for each label of each set, shape (sets, labels); raise FinetuneError at an unknown label."""
    import numpy as np

    sets = list(sets)
    index = {label: number for number, label in enumerate(labels)}
    matrix = np.zeros((len(sets), len(labels)), dtype=np.int64)
    for row, found in enumerate(sets):
        for label in found:
            if label not in index:
                raise FinetuneError(
                    f"row {row + 1}: expected labels that the model knows ({', '.join(labels[:20])}), "
                    f"found {label!r}{suggestion(label, labels)}"
                )
            matrix[row, index[label]] = 1
    return matrix


def fit_thresholds(targets: NDArray[Any], probabilities: NDArray[Any], rule: ThresholdRule) -> NDArray[Any]:
    """Return a threshold for each label, shape (labels,); both arguments have the shape (rows, labels).

    `per-label` maximizes the F1 of each label by itself, `global` micro F1 with one threshold for all of them, and a
    number is taken as it is. The search is exact: F1 changes only where a threshold passes a probability that occurs.
    """
    import numpy as np

    if rule == "per-label":
        return np.array([best_threshold(*column) for column in zip(targets.T, probabilities.T, strict=True)])
    value = best_threshold(targets.ravel(), probabilities.ravel()) if rule == "global" else rule
    return np.full(targets.shape[1], value)


def best_threshold(targets: NDArray[Any], probabilities: NDArray[Any]) -> float:
    """Return the threshold with the highest F1 for 0/1 targets and probabilities, both of shape (decisions,).

    It lies midway between two neighbouring probabilities (below the least and above the greatest: between it and
    0 or 1); of several with the same F1 it is the one nearest to 0.5. Without a positive every threshold has an F1 of
    0, so that it is 0.5. Lipton, Elkan & Narayanaswamy 2014 (Thresholding Classifiers to Maximize F1 Score) is why it
    is searched for, and warns that with few positives the best threshold in hindsight may be far from the best one.
    """
    import numpy as np

    positives = targets.sum()
    if not positives:
        return UNFITTED
    order = np.argsort(-probabilities, kind="stable")
    ranked = np.concatenate([[1.0], probabilities[order], [0.0]])
    said = np.arange(len(targets) + 1)
    scores = 2 * np.concatenate([[0], targets[order].cumsum()]) / (said + positives)
    scores[(ranked[:-1] == ranked[1:]) & (said < len(targets))] = 0  # equal probabilities cannot be parted
    middles = (ranked[:-1] + ranked[1:]) / 2
    best = np.flatnonzero(scores >= scores.max() - 1e-12)
    return float(middles[best[np.abs(middles[best] - UNFITTED).argmin()]])
