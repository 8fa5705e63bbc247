"""Metrics of rankings, means over queries: those of information retrieval (Manning, Raghavan & Schütze 2008, ch. 8).

A candidate is relevant if its relevance is above 0; its gain in NDCG is the relevance itself (linear, as scikit-learn's
`ndcg_score` has it, not 2^relevance - 1). Candidates with equal scores have no order: NDCG, MRR and the hit rate are
what one gets on average over all orders of them (McSherry & Najork 2008, and `ndcg_score`), and average precision
counts them as found together (`average_precision_score`). A query without a relevant candidate is left out of the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from finetune.errors import FinetuneError
from finetune.registry import metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.rankings import RankingPredictions


class Ties(NamedTuple):
    """The candidates of one query, the best first, those with equal scores as one group; each of shape (groups,).

    How many stand before the group (`starts`) and in it (`sizes`), how many of these are relevant, and their gain.
    """

    starts: NDArray[Any]
    sizes: NDArray[Any]
    relevant: NDArray[Any]
    gains: NDArray[Any]


def ties(relevance: NDArray[Any], scores: NDArray[Any]) -> Ties:
    """Rank candidates, both arguments of shape (candidates,)."""
    import numpy as np

    order = np.argsort(-scores, kind="stable")
    ranked, found = scores[order], relevance[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    sizes = np.diff(np.append(starts, len(ranked)))
    return Ties(starts, sizes, np.add.reduceat((found > 0).astype(np.int64), starts), np.add.reduceat(found, starts))


def average_precision(relevance: NDArray[Any], scores: NDArray[Any]) -> float:
    """Return the mean, over the relevant candidates, of the precision at the rank of each."""
    groups = ties(relevance, scores)
    precision = groups.relevant.cumsum() / (groups.starts + groups.sizes)
    return float((precision * groups.relevant).sum() / groups.relevant.sum())


def gain(relevance: NDArray[Any], scores: NDArray[Any], cutoff: int | None = None) -> float:
    """Return NDCG (Järvelin & Kekäläinen 2002) among the first `cutoff`: gains over log2(1 + rank), by the ideal's."""
    import numpy as np

    ranks = np.arange(1, len(scores) + 1)
    discounts = (ranks <= (cutoff or len(ranks))) / np.log2(1 + ranks)
    sums = np.concatenate([[0.0], discounts.cumsum()])
    groups = ties(relevance, scores)
    found = (groups.gains / groups.sizes) @ (sums[groups.starts + groups.sizes] - sums[groups.starts])
    return float(found / (np.sort(relevance)[::-1] @ discounts))


def first_relevant(relevance: NDArray[Any], scores: NDArray[Any]) -> NDArray[Any]:
    """Return with which probability each rank, from 1, is that of the first relevant candidate, shape (candidates,).

    Without ties one of them is 1. In a group of n of which r are relevant, the first j - 1 are not with the
    probability of drawing so many irrelevant ones without putting any back.
    """
    import numpy as np

    groups = ties(relevance, scores)
    group = int(np.flatnonzero(groups.relevant)[0])
    size, relevant, start = (int(values[group]) for values in (groups.sizes, groups.relevant, groups.starts))
    found, none_so_far = np.zeros(len(scores)), 1.0
    for place in range(size - relevant + 1):
        hit = relevant / (size - place)
        found[start + place] = none_so_far * hit
        none_so_far *= 1 - hit
    return found


def reciprocal_rank(relevance: NDArray[Any], scores: NDArray[Any], cutoff: int | None = None) -> float:
    """Return 1 / the rank of the first relevant candidate, 0 if it is behind the first `cutoff`."""
    import numpy as np

    found = first_relevant(relevance, scores)[:cutoff]
    return float((found / np.arange(1, len(found) + 1)).sum())


def hit(relevance: NDArray[Any], scores: NDArray[Any], cutoff: int) -> float:
    """Return 1 if a relevant candidate is among the first `cutoff`, else 0."""
    return float(first_relevant(relevance, scores)[:cutoff].sum())


def by_query(measure: Callable[[NDArray[Any], NDArray[Any]], float], predictions: RankingPredictions) -> NDArray[Any]:
    """Return a measure of each query, and whether it is defined, shape (queries, 2); where it is not, both are 0."""
    import numpy as np

    found = np.zeros((len(predictions), 2))
    for query in np.flatnonzero(predictions.judged).tolist():
        candidates = predictions.candidates(query)
        found[query] = measure(predictions.relevance[candidates], predictions.scores[candidates]), 1
    return found


def mean_of_sums(sums: NDArray[Any]) -> NDArray[Any]:
    """Return the mean over queries from summed `by_query`, shape (..., 2); NaN where no query has a measure."""
    import numpy as np

    undefined = np.full(sums.shape[:-1], np.nan)
    return np.divide(sums[..., 0], sums[..., 1], out=undefined, where=sums[..., 1] > 0)  # type: ignore[no-any-return]


def cutoff_of(argument: str) -> int:
    """Return the number of candidates that a metric looks at; raise FinetuneError if the text is none."""
    if not (argument.isdecimal() and argument.isascii() and int(argument)):
        raise FinetuneError(f"metrics: expected a number of ranks behind the @, such as ndcg@10; found {argument!r}")
    return int(argument)


def _mean(per_query: NDArray[Any]) -> float:
    return float(mean_of_sums(per_query.sum(axis=0)))


def _mean_at(argument: str, sums: NDArray[Any]) -> NDArray[Any]:  # noqa: ARG001
    return mean_of_sums(sums)


def average_precisions(predictions: RankingPredictions) -> NDArray[Any]:
    """Return `average_precision` by query."""
    return by_query(average_precision, predictions)


def reciprocal_ranks(predictions: RankingPredictions) -> NDArray[Any]:
    """Return `reciprocal_rank` by query."""
    return by_query(reciprocal_rank, predictions)


def reciprocal_ranks_at(argument: str, predictions: RankingPredictions) -> NDArray[Any]:
    """Return `reciprocal_rank` within the first so many, by query."""
    cutoff = cutoff_of(argument)
    return by_query(lambda relevance, scores: reciprocal_rank(relevance, scores, cutoff), predictions)


def gains(predictions: RankingPredictions) -> NDArray[Any]:
    """Return `gain` by query."""
    return by_query(gain, predictions)


def gains_at(argument: str, predictions: RankingPredictions) -> NDArray[Any]:
    """Return `gain` within the first so many, by query."""
    cutoff = cutoff_of(argument)
    return by_query(lambda relevance, scores: gain(relevance, scores, cutoff), predictions)


def hits_at(argument: str, predictions: RankingPredictions) -> NDArray[Any]:
    """Return `hit` within the first so many, by query."""
    cutoff = cutoff_of(argument)
    return by_query(lambda relevance, scores: hit(relevance, scores, cutoff), predictions)


@metrics.register("map", of=("ranking",), higher_is_better=True, from_sums=(average_precisions, mean_of_sums))
def mean_average_precision(predictions: RankingPredictions) -> float:
    """Mean average precision: the mean over queries of scikit-learn's `average_precision_score`."""
    return _mean(average_precisions(predictions))


@metrics.register("mrr", of=("ranking",), higher_is_better=True, from_sums=(reciprocal_ranks, mean_of_sums))
def mrr(predictions: RankingPredictions) -> float:
    """Mean reciprocal rank of the first relevant candidate (Voorhees 1999)."""
    return _mean(reciprocal_ranks(predictions))


@metrics.register(
    "mrr@",
    of=("ranking",),
    higher_is_better=True,
    from_sums=(reciprocal_ranks_at, _mean_at),
    check_argument=cutoff_of,
    example="10",
)
def mrr_at(argument: str, predictions: RankingPredictions) -> float:
    """Mean reciprocal rank, 0 for a query whose first relevant candidate is behind the first so many."""
    return _mean(reciprocal_ranks_at(argument, predictions))


@metrics.register("ndcg", of=("ranking",), higher_is_better=True, from_sums=(gains, mean_of_sums))
def ndcg(predictions: RankingPredictions) -> float:
    """Normalized discounted cumulative gain of all candidates (`ndcg_score`)."""
    return _mean(gains(predictions))


@metrics.register(
    "ndcg@",
    of=("ranking",),
    higher_is_better=True,
    from_sums=(gains_at, _mean_at),
    check_argument=cutoff_of,
    example="10",
)
def ndcg_at(argument: str, predictions: RankingPredictions) -> float:
    """Normalized discounted cumulative gain of the first so many (`ndcg_score` with `k`)."""
    return _mean(gains_at(argument, predictions))


@metrics.register(
    "hit-rate@",
    of=("ranking",),
    higher_is_better=True,
    from_sums=(hits_at, _mean_at),
    check_argument=cutoff_of,
    example="3",
)
def hit_rate_at(argument: str, predictions: RankingPredictions) -> float:
    """Share of queries with a relevant candidate among the first so many."""
    return _mean(hits_at(argument, predictions))
