"""How people read vectors: as `predict` gives them, what came before the right answer, and how far apart pairs are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune.evaluation.sections import Histogram, Scatter, Section, Table
from finetune.tasks import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.similarities import (
        EmbeddingPredictions,
        RetrievalPredictions,
        SimilarityPredictions,
    )

CUTOFFS = (1, 2, 3, 5, 10, 20, 50, 100)
POINTS = 2000


def describe(predictions: EmbeddingPredictions, answer: int, row: Row) -> dict[str, Any]:  # noqa: ARG001
    """Return the vector, each number as short as it can be written and still be the same float32."""
    return {"embedding": [float(str(value)) for value in predictions.vectors[answer]]}


def rank_difficulty(predictions: RetrievalPredictions) -> NDArray[Any]:
    """Return the rank of each positive; of equal ranks the worse, the further it is behind the best other candidate."""
    import numpy as np

    places = predictions.places
    behind = np.nan_to_num(places.rival_similarities - places.similarities)  # from -2 to 2
    return places.ranks + behind / 8  # type: ignore[no-any-return]


def ranked_example(predictions: RetrievalPredictions, answer: int, row: Row) -> dict[str, Any]:
    """Return an anchor with its positive, the rank of that, and what came first instead, with their cosines."""
    places = predictions.places
    rank, first = float(places.ranks[answer]), int(predictions.firsts[answer])
    cells: dict[str, Any] = {
        "anchor": row["anchor"],
        "positive": row["positive"],
        "rank": int(rank) if rank == int(rank) else rank,
        "similarity": float(places.similarities[answer]),
    }
    if rank > 1:
        cells |= {
            "ranked first": predictions.corpus.texts[first],
            "its similarity": float(places.rival_similarities[answer]),
        }
    if "negative" in row:
        cells |= {"negative": row["negative"], "similarity of negative": float(places.negative_similarities[answer])}
    return cells


def order_difficulty(predictions: SimilarityPredictions) -> NDArray[Any]:
    """Return how far each pair's place by cosine is from its place by score, as a share of the pairs."""
    from scipy.stats import rankdata

    said, true = (rankdata(values[:, 0]) for values in (predictions.values, predictions.targets))
    return abs(said - true) / len(predictions)  # type: ignore[no-any-return]


def scored_example(predictions: SimilarityPredictions, answer: int, row: Row) -> dict[str, Any]:
    """Return a pair with its score and its cosine."""
    return {
        "text": row["text"],
        "text_pair": row["text_pair"],
        "score": float(row["score"]),
        "similarity": float(predictions.values[answer, 0]),
    }


def retrieval_details(predictions: RetrievalPredictions, seed: int) -> dict[str, Any]:
    """Return recall by the number of candidates looked at, the cosines of positives and others, and scores by topic."""
    import numpy as np

    from finetune.evaluation.metrics.similarities import found_within

    places, count = predictions.places, len(predictions.corpus.texts)
    anchors = predictions.corpus.anchors[predictions.rows]
    by_cutoff = [
        {
            "k": cutoff,
            "recall": _mean(found_within(str(cutoff), predictions), anchors, seed),
            "by_chance": cutoff / count,
        }
        for cutoff in CUTOFFS
        if cutoff <= count
    ]
    series = {
        "positive": places.similarities,
        "negative": places.negative_similarities,
        "another candidate": places.random_similarities,
    }
    chosen = _sample(len(predictions), seed)
    cosines = {name: values[chosen][~np.isnan(values[chosen])].tolist() for name, values in series.items()}
    return {
        "anchors": len(np.unique(anchors)),
        "candidates": count,
        "median_rank": float(np.median(places.ranks)),
        "recall_by_cutoff": by_cutoff,
        "similarities": {name: values for name, values in cosines.items() if values},
        **_by_topic(predictions, seed),
    }


def _by_topic(predictions: RetrievalPredictions, seed: int) -> dict[str, Any]:
    """Return for each topic how many anchors it has, and their mean silhouette and reciprocal rank."""
    from finetune.evaluation.metrics.similarities import reciprocal_ranks, silhouettes

    if predictions.clustering is None:
        return {}
    topics, anchors = (held[predictions.rows] for held in (predictions.clustering.topics, predictions.corpus.anchors))
    measures = {"silhouette": silhouettes(predictions), "mrr": reciprocal_ranks(predictions)}
    found = {
        str(name): {
            "rows": int((topics == number).sum()),
            **{
                measure: _mean(values[topics == number], anchors[topics == number], seed)
                for measure, values in measures.items()
            },
        }
        for number, name in enumerate(predictions.clustering.names)
    }
    return {"by_topic": found}


def _mean(values: NDArray[Any], anchors: NDArray[Any], seed: int) -> dict[str, float | None]:
    """Return a mean over rows with its interval, which is over their anchors, given by numbers."""
    import numpy as np

    from finetune.evaluation.statistics import interval_of_sums

    units = np.unique(anchors, return_inverse=True)[1]
    statistics = np.stack([np.ones(len(values)), values], axis=1)
    return interval_of_sums(statistics, lambda sums: sums[..., 1] / sums[..., 0], seed, units).as_json()


def _sample(count: int, seed: int) -> NDArray[Any]:
    """Return the numbers of all rows, of very many a sample."""
    import numpy as np

    if count <= POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, POINTS, replace=False))


def retrieval_sections(report: Mapping[str, Any]) -> list[Section]:
    """Return the table of recall by cutoff, that of the topics, and the picture of the cosines."""
    rows = [[str(line["k"]), line["recall"], line["by_chance"]] for line in report["recall_by_cutoff"]]
    note = (
        f"{_asked(report)}, each asked for its own positive among the {report['candidates']} candidates of "
        f"this split; the median rank is {report['median_rank']:g}. Intervals are over anchors, for these candidates: "
        "among more of them every recall would be lower."
    )
    found: list[Section] = [Table("How early the right answer comes", ["first k", "recall", "by chance"], rows, note)]
    if "by_topic" in report:
        lines = [[name, line["rows"], line["silhouette"], line["mrr"]] for name, line in report["by_topic"].items()]
        meaning = "The silhouette is above 0 where anchors are nearer to those of their own topic than to any other's."
        found.append(Table("By topic", ["topic", "rows", "silhouette", "MRR"], lines, meaning))
    pictured = _of(len(report["similarities"]["positive"]), report["rows"])
    return [*found, Histogram("How near anchors are", report["similarities"], "cosine with the anchor", pictured)]


def _asked(report: Mapping[str, Any]) -> str:
    rows, anchors = report["rows"], report.get("anchors", report["rows"])
    return f"{rows} anchors" if rows == anchors else f"{rows} rows with {anchors} different anchors"


def _of(shown: int, rows: int) -> str:
    return f"{shown} of {rows} rows" if shown < rows else ""


def scored_details(predictions: SimilarityPredictions, seed: int) -> dict[str, Any]:
    """Return the points of the picture."""
    chosen = _sample(len(predictions), seed)
    return {
        "points": {
            "score": predictions.targets[chosen, 0].tolist(),
            "similarity": predictions.values[chosen, 0].tolist(),
        }
    }


def scored_sections(report: Mapping[str, Any]) -> list[Section]:
    """Return the picture of scores and cosines."""
    points = report["points"]
    note = _of(len(points["score"]), report["rows"])
    return [Scatter("Scores and cosines", points["score"], points["similarity"], "score", "cosine", note=note)]


_OF_RETRIEVAL: dict[str, Any] = {
    "example": ranked_example,
    "difficulty": rank_difficulty,
    "worst_means": "The anchors whose positive came last, with what came first instead.",
    "details": retrieval_details,
    "sections": retrieval_sections,
}
REPORTS: dict[str, dict[str, Any]] = {
    "retrieval": _OF_RETRIEVAL,
    "triplets": _OF_RETRIEVAL,
    "similarity": {
        "example": scored_example,
        "difficulty": order_difficulty,
        "worst_means": "The pairs whose place by cosine is furthest from their place by score.",
        "details": scored_details,
        "sections": scored_sections,
    },
}
