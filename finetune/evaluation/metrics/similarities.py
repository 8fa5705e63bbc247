"""Metrics of vectors: how early right answers come (recall@k, MRR), triplets in order, and clusters by topic.

Each anchor is asked for its own positive among all different positives and negatives of the split: recall@k is the
share of positives that are among the first k, as sentence-transformers' `InformationRetrievalEvaluator` has it where
an anchor has one positive. Candidates that are equally near have no order: what is given is the mean over all orders of
them (McSherry & Najork 2008). Silhouette and adjusted Rand index are scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from finetune.errors import FinetuneError
from finetune.registry import metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.similarities import RetrievalPredictions, TripletPredictions

RETRIEVAL = ("retrieval", "triplets")


def check_cutoff(argument: str) -> None:
    """Raise FinetuneError unless the text is a number of candidates."""
    if not (argument.isascii() and argument.isdecimal() and int(argument)):
        raise FinetuneError(f"metrics: expected a number of candidates behind recall@, such as 10; found {argument!r}")


def found_within(argument: str, predictions: RetrievalPredictions) -> NDArray[Any]:
    """Return for each positive the probability that it is among the first k, 0 or 1 without ties, shape (anchors,)."""
    import numpy as np

    check_cutoff(argument)
    places = predictions.places
    return np.clip((int(argument) - places.before) / (places.tied + 1), 0.0, 1.0)  # type: ignore[no-any-return]


@metrics.register(
    "recall@", of=RETRIEVAL, higher_is_better=True, from_rows=found_within, check_argument=check_cutoff, example="10"
)
def recall_at(argument: str, predictions: RetrievalPredictions) -> float:
    """Share of the positives that are among the first k candidates."""
    return float(found_within(argument, predictions).mean())


def reciprocal_ranks(predictions: RetrievalPredictions) -> NDArray[Any]:
    """Return 1 / the rank of each positive, shape (anchors,)."""
    import numpy as np
    from scipy.special import digamma

    before, tied = predictions.places.before, predictions.places.tied
    # the sum of 1 / rank over the ranks from before + 1 to before + 1 + tied
    sums = np.where(tied, digamma(before + tied + 2.0) - digamma(before + 1.0), 1 / (before + 1.0))
    return sums / (tied + 1)  # type: ignore[no-any-return]


@metrics.register("retrieval-mrr", of=RETRIEVAL, higher_is_better=True, from_rows=reciprocal_ranks)
def retrieval_mrr(predictions: RetrievalPredictions) -> float:
    """Mean reciprocal rank of the positives."""
    return float(reciprocal_ranks(predictions).mean())


def triplets_in_order(predictions: TripletPredictions) -> NDArray[Any]:
    """Return 1 for each anchor that is nearer to its positive than to its negative, else 0, shape (anchors,)."""
    import numpy as np

    return (predictions.places.similarities > predictions.places.negative_similarities).astype(np.float64)


@metrics.register("triplet-accuracy", of=("triplets",), higher_is_better=True, from_rows=triplets_in_order)
def triplet_accuracy(predictions: TripletPredictions) -> float:
    """Share of the anchors that are nearer to their positive than to their negative; equally near is wrong."""
    return float(triplets_in_order(predictions).mean())


def silhouettes(predictions: RetrievalPredictions) -> NDArray[Any]:
    """Return the silhouette of each anchor among all of the split, shape (anchors,); NaN without topics."""
    import numpy as np

    clustering = predictions.clustering
    return np.full(len(predictions), np.nan) if clustering is None else clustering.silhouettes[predictions.rows]


@metrics.register("silhouette", of=RETRIEVAL, higher_is_better=True, from_rows=silhouettes)
def silhouette(predictions: RetrievalPredictions) -> float:
    """Mean silhouette of the anchors in their topics, -1 to 1 (`silhouette_score`, cosine); NaN without topics."""
    return float(silhouettes(predictions).mean())


def rand_of_counts(counts: NDArray[Any], itself: NDArray[Any]) -> NDArray[Any]:
    """Return the adjusted Rand index (Hubert & Arabie 1985) from counts of shape (..., topics, clusters).

    Pairs of an anchor with a copy of itself are none; `itself` of shape (...,) is how many there are, as ordered pairs
    and each copy with itself: the number of anchors if none is there twice. Else every copy would be a success.
    """
    import numpy as np

    pairs, cells = counts.sum(axis=(-2, -1)) ** 2, (counts**2).sum(axis=(-2, -1))
    in_topic = (counts.sum(axis=-1) ** 2).sum(axis=-1) - cells  # pairs together in their topic alone, each twice
    in_cluster = (counts.sum(axis=-2) ** 2).sum(axis=-1) - cells
    together, apart = cells - itself, pairs - cells - in_topic - in_cluster
    above = 2 * (together * apart - in_topic * in_cluster)
    below = (together + in_topic) * (in_topic + apart) + (together + in_cluster) * (in_cluster + apart)
    same = (in_topic == 0) & (in_cluster == 0)
    found: NDArray[Any] = np.divide(above, below, out=np.ones_like(below), where=~same & (below > 0))
    return found


def rand_indices(predictions: RetrievalPredictions) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return the adjusted Rand index as a function of how often each anchor is drawn, shape (resamples, anchors)."""
    import numpy as np

    clustering = predictions.clustering
    if clustering is None:
        return lambda weights: np.full(len(weights), np.nan)
    rows, size = predictions.rows, len(clustering.names)
    cells = clustering.topics[rows] * size + clustering.clusters[rows]

    def indices(weights: NDArray[Any]) -> NDArray[Any]:
        counts = np.stack([np.bincount(cells, weights=row, minlength=size**2) for row in weights])
        drawn = np.stack([np.bincount(rows, weights=row) for row in weights])
        return rand_of_counts(counts.reshape(-1, size, size), (drawn**2).sum(axis=1))

    return indices


@metrics.register("adjusted-rand", of=RETRIEVAL, higher_is_better=True, from_weights=rand_indices)
def adjusted_rand(predictions: RetrievalPredictions) -> float:
    """How far the anchors' k-means clusters are their topics (`adjusted_rand_score`): 1 the same, 0 as by chance."""
    import numpy as np
    from sklearn.metrics import adjusted_rand_score

    clustering, rows = predictions.clustering, predictions.rows
    if clustering is None:
        return float("nan")
    if len(np.unique(rows)) < len(rows):  # a resample
        return float(rand_indices(predictions)(np.ones((1, len(rows))))[0])
    return float(adjusted_rand_score(clustering.topics[rows], clustering.clusters[rows]))
