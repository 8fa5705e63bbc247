"""Metrics of label sets: of whole sets, and of how labels are ranked by their probabilities, as scikit-learn has them.

Precision, recall and F1 with their averages stand in `labels`: they are the same for one label and for several.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from finetune.registry import metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.label_sets import LabelSetPredictions


def exact_matches(predictions: LabelSetPredictions) -> NDArray[Any]:
    """Return for each row whether its labels are exactly the true ones, shape (rows,)."""
    return (predictions.targets == predictions.predicted).all(axis=1)  # type: ignore[no-any-return]


@metrics.register("subset-accuracy", of=("labels",), higher_is_better=True, from_rows=exact_matches)
def subset_accuracy(predictions: LabelSetPredictions) -> float:
    """Share of rows whose labels are exactly the true ones (`accuracy_score`)."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(predictions.targets, predictions.predicted))


def wrong_shares(predictions: LabelSetPredictions) -> NDArray[Any]:
    """Return for each row the share of labels that are missing or too many, shape (rows,)."""
    return (predictions.targets != predictions.predicted).mean(axis=1)  # type: ignore[no-any-return]


@metrics.register("hamming-loss", of=("labels",), higher_is_better=False, from_rows=wrong_shares)
def hamming_loss(predictions: LabelSetPredictions) -> float:
    """Share of wrong decisions, one a row and label (`hamming_loss`)."""
    from sklearn.metrics import hamming_loss as reference

    return float(reference(predictions.targets, predictions.predicted))


def overlaps(predictions: LabelSetPredictions) -> NDArray[Any]:
    """Return the Jaccard similarity of each row's true and predicted labels, shape (rows,); 1 if both are none."""
    import numpy as np

    true, said = predictions.targets, predictions.predicted
    together = (true | said).sum(axis=1)
    return np.divide((true & said).sum(axis=1), together, out=np.ones(len(true)), where=together > 0)  # type: ignore[no-any-return]


@metrics.register("jaccard-samples", of=("labels",), higher_is_better=True, from_rows=overlaps)
def jaccard_samples(predictions: LabelSetPredictions) -> float:
    """Mean over rows of labels in both sets by labels in either: `jaccard_score(average="samples", zero_division=1)`.

    A row without labels for which none is predicted is answered rightly, and counts 1.
    """
    return float(overlaps(predictions).mean())


def average_precisions(targets: NDArray[Any], scores: NDArray[Any]) -> NDArray[Any]:
    """Return the average precision of each list, shape (lists,); both arguments have the shape (lists, length).

    It is the mean over the list's positives of the precision among all that score at least as high: what
    `average_precision_score` computes of each label, and `label_ranking_average_precision_score` of each row.
    A list without a positive has NaN.
    """
    import numpy as np

    length = targets.shape[1]
    order = np.argsort(-scores, axis=1, kind="stable")
    hits, ranked = (np.take_along_axis(values, order, axis=1) for values in (targets, scores))
    # equal scores are taken together: each has the precision behind the last of them
    ends = np.where(np.diff(ranked, axis=1, append=np.nan) != 0, np.arange(length), length)
    ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    precisions = np.take_along_axis(hits.cumsum(axis=1) / np.arange(1, length + 1), ends, axis=1)
    positives = hits.sum(axis=1)
    sums = (hits * precisions).sum(axis=1)
    return np.divide(sums, positives, out=np.full(len(targets), np.nan), where=positives > 0)  # type: ignore[no-any-return]


def row_ranking_precisions(predictions: LabelSetPredictions) -> NDArray[Any]:
    """Return each row's average precision over its labels, shape (rows,); 1 for a row without labels."""
    import numpy as np

    return np.nan_to_num(average_precisions(predictions.targets, predictions.probabilities), nan=1.0)  # type: ignore[no-any-return]


@metrics.register(
    "label-ranking-average-precision", of=("labels",), higher_is_better=True, from_rows=row_ranking_precisions
)
def label_ranking_average_precision(predictions: LabelSetPredictions) -> float:
    """Mean over rows and true labels of the share of true ones among the labels that are at least as probable.

    `label_ranking_average_precision_score`, which gives a row without labels 1; needs no thresholds.
    """
    return float(row_ranking_precisions(predictions).mean())


def _in_steps(targets: NDArray[Any], scores: NDArray[Any]) -> tuple[Any, Any]:
    """Return how rows, and rows with a label, add up to steps from the highest score down; both of shape (rows,).

    Both are sparse, of shape (steps, rows). A step holds the rows of one score, or of several in a row without the
    label: to a curve that changes at rows with the label these are one.
    """
    import numpy as np
    from scipy.sparse import csr_array

    order = np.argsort(-scores, kind="stable")
    value = np.concatenate([[0], np.cumsum(np.diff(scores[order]) != 0)])
    with_label = np.bincount(value, weights=targets[order]) > 0
    begins = with_label | np.concatenate([[True], with_label[:-1]])
    step = np.cumsum(begins)[value] - 1
    shape = (int(begins.sum()), len(scores))
    chosen = targets[order] == 1
    every = csr_array((np.ones(len(order)), (step, order)), shape=shape)
    return every, csr_array((np.ones(chosen.sum()), (step[chosen], order[chosen])), shape=shape)


def _over_labels(
    predictions: LabelSetPredictions, score: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return the mean score over labels as a function of how often each row is drawn, shape (resamples, rows).

    `score` takes how many rows, and how many with the label, are drawn in each step from the highest probability down,
    of shape (steps, resamples). Rows are sorted once, for all resamples.
    """
    import numpy as np

    steps = [_in_steps(*column) for column in zip(predictions.targets.T, predictions.probabilities.T, strict=True)]

    def scores(weights: NDArray[Any]) -> NDArray[Any]:
        drawn = np.ascontiguousarray(weights.T, dtype=np.float64)
        return np.mean([score(every @ drawn, positive @ drawn) for every, positive in steps], axis=0)  # type: ignore[no-any-return]

    return scores


def precision_areas(every: NDArray[Any], positive: NDArray[Any]) -> NDArray[Any]:
    """Return the area under precision and recall of each resample, 0 without a positive; both (steps, resamples)."""
    import numpy as np

    said, hits = every.cumsum(axis=0), positive.cumsum(axis=0)
    precisions = np.divide(hits, said, out=np.zeros_like(said), where=said > 0)
    sums = (positive * precisions).sum(axis=0)
    return np.divide(sums, hits[-1], out=np.zeros_like(sums), where=hits[-1] > 0)  # type: ignore[no-any-return]


def roc_areas(every: NDArray[Any], positive: NDArray[Any]) -> NDArray[Any]:
    """Return the area under the ROC curve of each resample, NaN if all rows are of one kind; both (steps, resamples).

    Of the pairs of a row with the label and one without, those count whose first is in an earlier step, and half of
    those in one step.
    """
    import numpy as np

    above = every.cumsum(axis=0)
    rows, positives = above[-1].copy(), positive.sum(axis=0)
    above -= every / 2
    # rows with the label are above themselves in half of all pairs: taking that away leaves those without it
    below = positives * rows - (positive * above).sum(axis=0)
    sums, pairs = below - positives**2 / 2, positives * (rows - positives)
    return np.divide(sums, pairs, out=np.full_like(sums, np.nan), where=pairs > 0)  # type: ignore[no-any-return]


def average_precisions_of_resamples(predictions: LabelSetPredictions) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return macro average precision as a function of how often each row is drawn."""
    return _over_labels(predictions, precision_areas)


def roc_areas_of_resamples(predictions: LabelSetPredictions) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return macro ROC AUC as a function of how often each row is drawn."""
    return _over_labels(predictions, roc_areas)


@metrics.register(
    "average-precision-macro", of=("labels",), higher_is_better=True, from_weights=average_precisions_of_resamples
)
def average_precision_macro(predictions: LabelSetPredictions) -> float:
    """Mean over labels of the area under precision and recall (`average_precision_score`); needs no thresholds.

    A label without a positive row counts 0, as it does there.
    """
    import numpy as np

    return float(np.nan_to_num(average_precisions(predictions.targets.T, predictions.probabilities.T)).mean())


@metrics.register("roc-auc-macro", of=("labels",), higher_is_better=True, from_weights=roc_areas_of_resamples)
def roc_auc_macro(predictions: LabelSetPredictions) -> float:
    """Mean over labels of the area under the ROC curve (`roc_auc_score`); needs no thresholds.

    NaN if a label is on no row, or on all. Computed from ranks (Hanley & McNeil 1982): the share of pairs of a row
    with the label and one without in which the first is more probable, a tie being half.
    """
    import numpy as np
    from scipy.stats import rankdata

    positives = predictions.targets.sum(axis=0)
    negatives = len(predictions) - positives
    ranks = (rankdata(predictions.probabilities, axis=0) * predictions.targets).sum(axis=0)
    pairs = positives * negatives
    areas = np.full(len(pairs), np.nan)
    return float(np.divide(ranks - positives * (positives + 1) / 2, pairs, out=areas, where=pairs > 0).mean())
