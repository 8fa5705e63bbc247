"""What a report says of rankings: where the first relevant texts stand, and queries as a person sees their results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune.evaluation.sections import Section, Table
from finetune.tasks import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.rankings import RankingPredictions

RANKS_SHOWN = 10
TEXTS_SHOWN = 5


def describe(predictions: RankingPredictions, answer: int, row: Row, *, pointwise: bool) -> dict[str, Any]:
    """Return the score of a pair, or a query's texts with their scores, the best first.

    A score learned from pairs is between 0 and 1 (as much of the greatest relevance); one learned from lists compares
    the texts of one query alone, and has no limits.
    """
    scores = predictions.scores
    if "text" in row:
        return {"score": _score(scores[predictions.candidates(answer)][0], pointwise)}
    return {
        "ranking": [
            {"text": predictions.texts[candidate], "score": _score(scores[candidate], pointwise)}
            for candidate in predictions.order(answer)
        ]
    }


def _score(value: float, pointwise: bool) -> float:
    return round(0.5 * (1 + math.tanh(0.5 * value)) if pointwise else float(value), 6)


def difficulty(predictions: RankingPredictions) -> NDArray[Any]:
    """Return for each query how much NDCG is missing; a query that has no relevant text comes last."""
    import numpy as np

    from finetune.evaluation.metrics.rankings import gains

    found, defined = gains(predictions).T
    return np.where(defined > 0, 1 - found, -1.0)


def example(predictions: RankingPredictions, answer: int, row: Row) -> dict[str, Any]:
    """Return a query, its texts as they were ranked, each with its relevance, and NDCG."""
    import numpy as np

    order = predictions.order(answer)
    shown = [
        f"{rank}. [{predictions.relevance[candidate]:g}] {predictions.texts[candidate]}"
        for rank, candidate in enumerate(order[:TEXTS_SHOWN], start=1)
    ]
    more = [f"… and {len(order) - TEXTS_SHOWN} more"] if len(order) > TEXTS_SHOWN else []
    missing = float(difficulty(predictions.take(np.array([answer])))[0])
    return {"query": row["query"], "ranking": " ".join([*shown, *more]), "ndcg": 1 - missing if missing >= 0 else None}


def details(predictions: RankingPredictions, seed: int) -> dict[str, Any]:  # noqa: ARG001
    """Return how many queries and pairs there are, and at which rank the first relevant text stands how often.

    A tie counts at each of its ranks with its probability.
    """
    import numpy as np

    from finetune.evaluation.metrics.rankings import first_relevant

    ranks = np.zeros(int(np.diff(predictions.offsets).max(initial=0)))
    for query in np.flatnonzero(predictions.judged).tolist():
        found = predictions.candidates(query)
        places = first_relevant(predictions.relevance[found], predictions.scores[found])
        ranks[: len(places)] += places
    return {
        "queries": len(predictions),
        "pairs": len(predictions.scores),
        "queries_without_positive": int((~predictions.judged).sum()),
        "first_relevant_at_rank": [round(float(count), 6) for count in ranks],
    }


def sections(report: Mapping[str, Any]) -> list[Section]:
    """Return the table of the ranks at which the first relevant texts stand."""
    counts = report["first_relevant_at_rank"]
    judged = report["queries"] - report["queries_without_positive"]
    lines, so_far = [], 0.0
    for rank, count in enumerate(counts[:RANKS_SHOWN], start=1):
        so_far += count
        whole = int(count) if count == int(count) else count  # only ties share a query out
        lines.append([str(rank), whole, so_far / judged if judged else None])
    without = report["queries_without_positive"]
    left_out = f" {without} queries without a relevant text are in no metric." if without else ""
    note = f"{report['pairs']} pairs of {report['queries']} queries.{left_out}"
    return [Table("Where the first relevant text stands", ["rank", "queries", "hit rate so far"], lines, note)]
