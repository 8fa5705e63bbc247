"""Rankings: metrics equal to scikit-learn's where it has them, ties by the stated rule, queries taken and compared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score, ndcg_score

from finetune import registry
from finetune.errors import FinetuneError
from finetune.evaluation.metrics.rankings import average_precision, first_relevant, gain, hit, reciprocal_rank
from finetune.evaluation.predictions.rankings import RankingPredictions
from finetune.evaluation.statistics import bootstrap, paired_bootstrap, point

METRICS = ("ndcg", "ndcg@10", "ndcg@3", "map", "mrr", "mrr@2", "hit-rate@1", "hit-rate@3")


def rankings(queries: Sequence[tuple[Sequence[float], Sequence[float]]]) -> RankingPredictions:
    """Return predictions from each query's relevance and scores."""
    counts = [len(scores) for _, scores in queries]
    groups = np.repeat(np.arange(len(queries)), counts)
    return RankingPredictions.grouped(
        queries=[f"query {group}" for group in groups],
        texts=[f"text {number}" for number in range(sum(counts))],
        scores=np.array([score for _, scores in queries for score in scores]),
        relevance=np.array([grade for grades, _ in queries for grade in grades]),
        rows=np.arange(sum(counts)),
        groups=groups,
    )


def random_queries(seed: int, *, grades: int, scores: int | None, count: int = 60) -> list[tuple[Any, Any]]:
    """Return queries of 2 to 12 candidates, each with a relevant one; few different scores make many ties."""
    generator = np.random.default_rng(seed)
    found: list[tuple[Any, Any]] = []
    while len(found) < count:
        size = int(generator.integers(2, 13))
        relevance = generator.integers(0, grades + 1, size).astype(float)
        said = generator.normal(size=size) if scores is None else generator.integers(0, scores, size).astype(float)
        if relevance.any():
            found.append((relevance, said))
    return found


WORLDS = {
    "no ties": random_queries(1, grades=3, scores=None),
    "ties": random_queries(2, grades=3, scores=3),
    "all scores equal": random_queries(3, grades=2, scores=1),
    "one grade": random_queries(4, grades=1, scores=4),
}


@pytest.fixture(params=WORLDS)
def queries(request: pytest.FixtureRequest) -> list[tuple[Any, Any]]:
    return WORLDS[request.param]


@pytest.mark.parametrize("cutoff", [None, 1, 3, 10])
def test_ndcg_is_scikit_learns(queries: list[tuple[Any, Any]], cutoff: int | None) -> None:
    wanted = np.mean([ndcg_score([relevance], [scores], k=cutoff) for relevance, scores in queries])
    name = f"ndcg@{cutoff}" if cutoff else "ndcg"
    assert point(name, rankings(queries)) == pytest.approx(wanted, abs=1e-9)


def test_map_is_the_mean_of_scikit_learns_average_precision(queries: list[tuple[Any, Any]]) -> None:
    wanted = np.mean([average_precision_score(relevance > 0, scores) for relevance, scores in queries])
    assert point("map", rankings(queries)) == pytest.approx(wanted, abs=1e-9)


def test_map_is_label_ranking_average_precision_where_no_scores_are_equal() -> None:
    queries = WORLDS["no ties"]
    wanted = [label_ranking_average_precision_score([relevance > 0], [scores]) for relevance, scores in queries]
    assert point("map", rankings(queries)) == pytest.approx(np.mean(wanted), abs=1e-9)


@pytest.mark.parametrize("cutoff", [1, 2, 4])
def test_mrr_and_hit_rate_are_means_over_all_orders_of_equal_scores(cutoff: int) -> None:
    for relevance, scores in random_queries(5, grades=1, scores=2, count=25):
        relevance, scores = relevance[:6], scores[:6]
        if not relevance.any():
            continue
        orders = [
            order
            for order in itertools.permutations(range(len(scores)))
            if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
        ]
        ranks = [next(rank for rank, index in enumerate(order, start=1) if relevance[index]) for order in orders]
        wanted = np.mean([1 / rank if rank <= cutoff else 0 for rank in ranks])
        assert reciprocal_rank(relevance, scores, cutoff) == pytest.approx(wanted, abs=1e-9)
        assert hit(relevance, scores, cutoff) == pytest.approx(np.mean([rank <= cutoff for rank in ranks]), abs=1e-9)
        assert first_relevant(relevance, scores).sum() == pytest.approx(1.0)


def test_metrics_of_a_ranking_that_one_can_work_out_by_hand() -> None:
    relevance, scores = np.array([0.0, 1.0, 0.0, 2.0]), np.array([4.0, 3.0, 2.0, 1.0])
    assert average_precision(relevance, scores) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert reciprocal_rank(relevance, scores) == 0.5
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    assert gain(relevance, scores) == pytest.approx((1 / math.log2(3) + 2 / math.log2(5)) / ideal)
    assert (hit(relevance, scores, 1), hit(relevance, scores, 2)) == (0.0, 1.0)


def test_a_single_relevant_candidate_is_ranked_perfectly() -> None:
    one = rankings([([1.0], [-3.0])])
    assert {name: point(name, one) for name in METRICS} == dict.fromkeys(METRICS, 1.0)


def test_a_query_without_a_relevant_candidate_is_in_no_mean() -> None:
    judged = random_queries(6, grades=2, scores=None, count=9)
    more = [*judged[:4], ([0.0, 0.0, 0.0], [3.0, 2.0, 1.0]), *judged[4:]]
    assert rankings(more).judged.tolist() == [True] * 4 + [False] + [True] * 5
    for name in METRICS:
        assert point(name, rankings(more)) == pytest.approx(point(name, rankings(judged)), abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_of_queries_without_relevant_candidates_is_not_defined(name: str) -> None:
    nothing = rankings([([0.0, 0.0], [1.0, 2.0])])
    assert math.isnan(point(name, nothing))
    assert math.isnan(bootstrap([name], nothing, seed=1)[name].low)


@pytest.mark.parametrize("name", METRICS)
def test_the_bootstrap_resamples_whole_queries(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By sums, or by calling the metric on each resample: the same intervals."""
    from finetune.evaluation import statistics

    predictions = rankings(WORLDS["ties"])
    monkeypatch.setattr(statistics, "RESAMPLES", 40)
    monkeypatch.setattr(statistics, "RESAMPLES_OF_SLOW_METRICS", 40)
    fast = bootstrap([name], predictions, seed=3)[name]
    monkeypatch.setattr(statistics, "_fast_way", lambda *_: None)
    slow = bootstrap([name], predictions, seed=3)[name]
    assert (fast.value, fast.low, fast.high) == pytest.approx((slow.value, slow.low, slow.high), abs=1e-12)


def test_a_model_that_ranks_worse_has_a_positive_drop() -> None:
    good = rankings([(relevance, relevance) for relevance, _ in WORLDS["no ties"]])
    bad = good.saying(-good.scores)
    drop = paired_bootstrap(["ndcg@10"], good, bad, seed=1)["ndcg@10"]
    assert drop.low > 0


@pytest.mark.parametrize("argument", ["0", "-1", "ten", "1.5", "²"])
def test_what_is_no_number_of_ranks_is_refused(argument: str) -> None:
    with pytest.raises(FinetuneError, match="expected a number of ranks"):
        registry.metrics.get(f"ndcg@{argument}")


def test_taken_queries_keep_their_candidates() -> None:
    predictions = rankings([([1.0, 0.0], [0.1, 0.2]), ([0.0], [0.3]), ([2.0, 0.0, 1.0], [0.4, 0.5, 0.6])])
    taken = predictions.take(np.array([2, 0, 2]))
    assert taken.offsets.tolist() == [0, 3, 5, 8]
    assert taken.scores.tolist() == [0.4, 0.5, 0.6, 0.1, 0.2, 0.4, 0.5, 0.6]
    assert taken.texts.tolist() == ["text 3", "text 4", "text 5", "text 0", "text 1", "text 3", "text 4", "text 5"]
    assert taken.queries.tolist() == ["query 2", "query 0", "query 2"]
    assert taken.rows.tolist() == [3, 0, 3]


def test_candidates_in_any_order_are_brought_together_by_query() -> None:
    predictions = RankingPredictions.grouped(
        queries=["b", "a", "b", "a"],
        texts=["b1", "a1", "b2", "a2"],
        scores=np.array([1.0, 2.0, 3.0, 4.0]),
        relevance=np.array([1.0, 0.0, 0.0, 2.0]),
        rows=np.arange(4),
        groups=np.array([7, 3, 7, 3]),
    )
    assert predictions.queries.tolist() == ["b", "a"]
    assert predictions.texts.tolist() == ["b1", "b2", "a1", "a2"]
    assert predictions.relevance.tolist() == [1.0, 0.0, 0.0, 2.0]
    assert predictions.rows.tolist() == [0, 1]
    assert predictions.order(0) == [1, 0]


def test_models_agree_on_a_query_if_they_put_the_same_candidate_first() -> None:
    ours = rankings([([1.0, 0.0, 0.0], [3.0, 2.0, 1.0]), ([1.0, 0.0], [0.1, 0.2])])
    theirs = ours.saying(np.array([3.0, 1.0, 2.0, 0.3, 0.2]))
    assert ours.agrees(theirs).tolist() == [True, False]


def test_no_queries_are_no_answers() -> None:
    none = rankings(WORLDS["ties"]).take(np.zeros(0, dtype=np.int64))
    assert (len(none), len(none.scores), none.judged.tolist(), none.agrees(none).tolist()) == (0, 0, [], [])
