"""Ranks, cosines and clusters of vectors against formulas written out, scikit-learn and scipy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import adjusted_rand_score, recall_score, silhouette_samples, silhouette_score

from finetune.errors import FinetuneError
from finetune.evaluation import statistics
from finetune.evaluation.baselines import BaselineInput
from finetune.evaluation.clusters import Clustering
from finetune.evaluation.metrics.similarities import rand_indices
from finetune.evaluation.predictions import similarities
from finetune.evaluation.predictions.similarities import (
    Corpus,
    EmbeddingPredictions,
    RetrievalPredictions,
    SimilarityPredictions,
    TripletPredictions,
    unit_vectors,
)
from finetune.evaluation.statistics import bootstrap, point
from finetune.registry import baselines

EXACT = 1e-9


def pair_rows(count: int, *, negatives: bool = False) -> list[dict[str, str]]:
    """Rows of different texts."""
    roles = ("anchor", "positive", *(("negative",) if negatives else ()))
    return [{role: f"{role} {number}" for role in roles} for number in range(count)]


def random_vectors(count: int, width: int = 8, seed: int = 0) -> NDArray[Any]:
    return unit_vectors(np.random.default_rng(seed).normal(size=(count, width)))


def predict(rows: list[dict[str, str]], *, seed: int = 0, topics: tuple[str, ...] = ()) -> RetrievalPredictions:
    """Random predictions for rows, in whose corpus every text has a vector of its own."""
    corpus = Corpus.of(rows)
    kind = TripletPredictions if len(corpus.negatives) else RetrievalPredictions
    anchors, candidates = random_vectors(len(rows), seed=seed), random_vectors(len(corpus.texts), seed=seed + 1)
    return kind.of(anchors, candidates, corpus, topics)


def test_ranks_are_those_of_the_whole_matrix_of_similarities(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pair_rows(50, negatives=True)
    anchors, candidates = random_vectors(50), random_vectors(100, seed=1)
    monkeypatch.setattr(similarities, "CHUNK_CELLS", 700)  # seven anchors at once
    found = TripletPredictions.of(anchors, candidates, Corpus.of(rows), ())
    matrix = anchors @ candidates.T
    order = np.argsort(-matrix, axis=1)
    assert found.places.ranks.tolist() == [order[row].tolist().index(row) + 1 for row in range(50)]
    assert found.firsts.tolist() == order[:, 0].tolist()
    np.testing.assert_allclose(found.places.similarities, np.diag(matrix), atol=EXACT)
    np.testing.assert_allclose(found.places.negative_similarities, np.diag(matrix[:, 50:]), atol=EXACT)
    matrix[np.arange(50), np.arange(50)] = -2
    np.testing.assert_allclose(found.places.rival_similarities, matrix.max(axis=1), atol=EXACT)


def test_no_matrix_of_all_similarities_is_ever_made(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    places_of = similarities._places_of
    monkeypatch.setattr(similarities, "CHUNK_CELLS", 1000)
    monkeypatch.setattr(
        similarities, "_places_of", lambda found, *rest: (sizes.append(found.size), places_of(found, *rest))[1]
    )
    predict(pair_rows(90))
    assert len(sizes) == 9
    assert max(sizes) <= 1000


@pytest.mark.parametrize("cutoff", [1, 3, 10, 500])
def test_recall_and_mrr_follow_from_the_ranks(cutoff: int) -> None:
    found = predict(pair_rows(60))
    ranks = found.places.ranks
    assert point(f"recall@{cutoff}", found) == pytest.approx((ranks <= cutoff).mean(), abs=EXACT)
    assert point("retrieval-mrr", found) == pytest.approx((1 / ranks).mean(), abs=EXACT)
    hits = (ranks <= cutoff).astype(int)
    assert point(f"recall@{cutoff}", found) == pytest.approx(recall_score(np.ones(60), hits, zero_division=0))


def test_equally_near_candidates_count_by_the_mean_over_their_orders() -> None:
    rows = pair_rows(6)
    same = np.tile([[1.0, 0.0]], (6, 1))
    found = RetrievalPredictions.of(same, same, Corpus.of(rows), ())
    assert found.places.ranks.tolist() == [3.5] * 6
    assert point("recall@2", found) == pytest.approx(2 / 6, abs=EXACT)
    assert point("retrieval-mrr", found) == pytest.approx(np.mean([1 / rank for rank in range(1, 7)]), abs=EXACT)


def test_what_differs_in_the_last_bit_is_equally_near() -> None:
    """Products of many rows are summed in an order that depends on their place."""
    rows = pair_rows(4)
    anchors = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (4, 1))
    candidates = np.array([[0.5, 0.0], [0.5, 0.0], [0.5, 0.0], [0.4999, 0.0]], dtype=np.float32)
    candidates[1, 0] = np.nextafter(candidates[1, 0], np.float32(1))
    found = RetrievalPredictions.of(anchors, candidates, Corpus.of(rows), ())
    assert found.places.ranks.tolist() == [2.0, 2.0, 2.0, 4.0]


def test_what_is_also_right_is_no_wrong_answer() -> None:
    rows = [
        {"anchor": "a", "positive": "p"},
        {"anchor": "a", "positive": "q"},  # the same anchor with another answer
        {"anchor": "b", "positive": "a"},  # an anchor among the candidates
        {"anchor": "c", "positive": "p"},  # an answer that two anchors share
    ]
    corpus = Corpus.of(rows)
    assert corpus.texts == ("p", "q", "a")
    assert corpus.own.tolist() == [0, 1, 2, 0]
    assert {row: found.tolist() for row, found in corpus.also_right.items()} == {0: [0, 1, 2], 1: [0, 1, 2]}
    anchors = unit_vectors(np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    candidates = unit_vectors(np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]))
    found = RetrievalPredictions.of(anchors, candidates, corpus, ())
    assert found.places.ranks.tolist() == [1, 1, 2.5, 1]
    assert np.isnan(found.places.rival_similarities).tolist() == [True, True, False, False]


def test_one_pair_alone_is_found_and_has_no_rival() -> None:
    found = predict(pair_rows(1))
    assert (found.places.ranks.tolist(), found.firsts.tolist()) == ([1.0], [0])
    assert np.isnan(found.places.rival_similarities).all()
    assert np.isnan(found.places.random_similarities).all()
    assert point("recall@1", found) == 1


def test_sparse_vectors_are_ranked_and_clustered_as_dense_ones() -> None:
    rows, topics = pair_rows(30), ["x", "y", "z"] * 10
    anchors, candidates = random_vectors(30), random_vectors(30, seed=1)
    anchors[4] = 0  # a text of which no word is known
    dense = RetrievalPredictions.of(anchors, candidates, Corpus.of(rows), topics)
    sparse = RetrievalPredictions.of(csr_matrix(anchors), csr_matrix(candidates), Corpus.of(rows), topics)
    np.testing.assert_allclose(sparse.places.ranks, dense.places.ranks)
    np.testing.assert_allclose(sparse.places.similarities, dense.places.similarities, atol=EXACT)
    assert dense.clustering is not None
    assert sparse.clustering is not None
    np.testing.assert_allclose(sparse.clustering.silhouettes, dense.clustering.silhouettes, atol=EXACT)
    assert adjusted_rand_score(sparse.clustering.clusters, dense.clustering.clusters) == 1


def test_the_triplets_in_order_are_counted_and_a_tie_is_wrong() -> None:
    rows = pair_rows(3, negatives=True)
    anchors = unit_vectors(np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
    candidates = unit_vectors(np.array([[1, 0.1], [0.5, 1], [1, 1], [0, 1], [1, 0], [1, 1.0]]))
    found = TripletPredictions.of(anchors, candidates, Corpus.of(rows), ())
    assert point("triplet-accuracy", found) == pytest.approx(1 / 3, abs=EXACT)


@pytest.mark.parametrize("sizes", [(5, 7, 9), (1, 1, 20), (2, 2, 2), (10, 11)])
def test_silhouettes_are_those_of_scikit_learn(sizes: tuple[int, ...]) -> None:
    vectors = random_vectors(sum(sizes), seed=3)
    topics = [f"topic {number}" for number, size in enumerate(sizes) for _ in range(size)]
    order = np.random.default_rng(4).permutation(len(topics))
    topics = [topics[place] for place in order]
    found = Clustering(vectors, topics).silhouettes
    np.testing.assert_allclose(found, silhouette_samples(vectors, topics, metric="cosine"), atol=EXACT)
    predictions = RetrievalPredictions.of(vectors, vectors, Corpus.of(pair_rows(len(topics))), topics)
    expected = silhouette_score(vectors, topics, metric="cosine")
    assert point("silhouette", predictions) == pytest.approx(expected, abs=EXACT)


def test_silhouettes_of_equal_vectors_are_zero() -> None:
    vectors = np.tile([[1.0, 0.0]], (6, 1))
    assert Clustering(vectors, ["a", "b"] * 3).silhouettes.tolist() == [0.0] * 6


@pytest.mark.parametrize("topics", [["a"] * 4, ["a", "b", "c", "d"], []])
def test_clusters_that_do_not_exist_have_no_silhouette(topics: list[str]) -> None:
    predictions = RetrievalPredictions.of(random_vectors(4), random_vectors(4), Corpus.of(pair_rows(4)), topics)
    assert np.isnan(point("silhouette", predictions))


def test_texts_that_lie_by_topic_are_clustered_by_topic() -> None:
    centres = np.repeat(np.eye(3), 10, axis=0)
    vectors = unit_vectors(centres + np.random.default_rng(0).normal(scale=0.05, size=centres.shape))
    topics = tuple(np.repeat(["a", "b", "c"], 10))
    found = RetrievalPredictions.of(vectors, vectors, Corpus.of(pair_rows(30)), topics)
    assert point("adjusted-rand", found) == 1
    assert point("silhouette", found) > 0.8
    assert np.isnan(point("adjusted-rand", predict(pair_rows(5))))


@pytest.mark.parametrize("seed", range(5))
def test_the_rand_index_from_counts_is_that_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    topics = [str(topic) for topic in generator.integers(0, 4, 40)]
    found = RetrievalPredictions.of(random_vectors(40), random_vectors(40), Corpus.of(pair_rows(40)), topics)
    assert found.clustering is not None
    found.clustering.__dict__["clusters"] = generator.integers(0, len(set(topics)), 40)
    expected = adjusted_rand_score(found.clustering.topics, found.clustering.clusters)
    assert rand_indices(found)(np.ones((1, 40)))[0] == pytest.approx(expected, abs=EXACT)
    assert point("adjusted-rand", found) == pytest.approx(expected, abs=EXACT)


def test_copies_of_a_row_do_not_make_clusters_look_right() -> None:
    topics = [str(number % 4) for number in range(60)]
    found = RetrievalPredictions.of(random_vectors(60), random_vectors(60), Corpus.of(pair_rows(60)), topics)
    twice = found.take(np.repeat(np.arange(60), 2))
    assert abs(point("adjusted-rand", twice) - point("adjusted-rand", found)) < 0.02
    interval = bootstrap(["adjusted-rand"], found, seed=1)["adjusted-rand"]
    assert interval.low < interval.value < interval.high


RESAMPLED = ("recall@1", "recall@5", "retrieval-mrr", "triplet-accuracy", "silhouette", "adjusted-rand")


@pytest.mark.parametrize("name", RESAMPLED)
def test_the_fast_way_of_each_metric_gives_what_the_metric_gives_of_the_resample(name: str) -> None:
    found = predict(pair_rows(25, negatives=True), topics=tuple(str(number % 3) for number in range(25)))
    drawn = np.random.default_rng(2).integers(0, 25, 25)
    weights = np.bincount(drawn, minlength=25)[None].astype(float)
    way = statistics._fast_way(name, found)
    assert way is not None
    assert way.of(weights)[0] == pytest.approx(point(name, found.take(drawn)), abs=EXACT)


def test_taking_anchors_leaves_the_candidates_as_they_are() -> None:
    found = predict(pair_rows(20))
    few = found.take(np.array([3, 3, 7]))
    assert few.rows.tolist() == [3, 3, 7]
    assert few.places.ranks.tolist() == found.places.ranks[[3, 3, 7]].tolist()
    assert few.firsts.tolist() == found.firsts[[3, 3, 7]].tolist()
    assert len(few.corpus.texts) == 20


def test_two_models_agree_where_they_put_the_same_first() -> None:
    found, other = predict(pair_rows(30)), predict(pair_rows(30), seed=5)
    assert found.agrees(found).all()
    assert found.agrees(other).tolist() == (found.firsts == other.firsts).tolist()
    scored = SimilarityPredictions(np.array([[0.1], [0.5]]), np.array([[0.0], [1.0]]))
    assert scored.agrees(SimilarityPredictions(np.array([[0.14], [0.6]]), scored.targets)).tolist() == [True, False]
    vectors = EmbeddingPredictions(np.array([[2.0, 0.0], [1.0, 0.0]]))
    assert vectors.agrees(EmbeddingPredictions(np.array([[1.0, 0.0], [1.0, 1.0]]))).tolist() == [True, False]


@pytest.mark.parametrize(("name", "reference"), [("spearman", spearmanr), ("pearson", pearsonr)])
def test_correlations_of_cosines_and_scores_are_those_of_scipy(name: str, reference: Callable[..., Any]) -> None:
    first, second = random_vectors(40), random_vectors(40, seed=1)
    scores = np.random.default_rng(2).integers(0, 6, 40) / 5
    found = SimilarityPredictions.of(first, second, scores)
    assert point(name, found) == pytest.approx(reference((first * second).sum(axis=1), scores)[0], abs=EXACT)


@pytest.mark.parametrize("argument", ["0", "-1", "ten", "1.5", "²"])
def test_recall_wants_a_number_of_candidates(argument: str) -> None:
    with pytest.raises(FinetuneError, match="expected a number of candidates"):
        point(f"recall@{argument}", predict(pair_rows(3)))


def given(train: list[dict[str, Any]], rows: list[dict[str, Any]], like: Any) -> BaselineInput:
    roles = ("text", "text_pair") if "text" in rows[0] else ("anchor", "positive")
    return BaselineInput(train, train, rows, (), roles, None, like, lambda: like)


def test_the_baseline_of_words_finds_answers_that_share_words_with_their_anchor() -> None:
    train = [{"anchor": "the red lamp", "positive": "a lamp that is red"}]
    words = ["lamp", "cable", "switch", "meter"]
    train += [{"anchor": f"about the {word}", "positive": f"a {word} was changed"} for word in words]
    rows = [{"anchor": f"my {word} again", "positive": f"new {word}", "topic": word[0]} for word in words]
    like = RetrievalPredictions.of(random_vectors(4), random_vectors(4), Corpus.of(rows), ())
    found = baselines.get("tfidf-cosine").build({})(given(train, rows, like))
    assert found.places.ranks.tolist() == [1.0] * 4
    assert found.kind == "retrieval"
    assert found.clustering.names.tolist() == ["c", "l", "m", "s"]


def test_the_baseline_of_words_scores_pairs_by_shared_words() -> None:
    rows = [
        {"text": "a dog runs", "text_pair": "a dog runs", "score": 1.0},
        {"text": "a dog runs", "text_pair": "prices fell", "score": 0.0},
    ]
    like = SimilarityPredictions(np.zeros((2, 1)), np.array([[1.0], [0.0]]))
    found = baselines.get("tfidf-cosine").build({})(given(rows, rows, like))
    np.testing.assert_allclose(found.values, [[1.0], [0.0]], atol=EXACT)
    assert found.targets.tolist() == [[1.0], [0.0]]


def test_the_pretrained_baseline_is_what_the_model_said_before() -> None:
    rows = pair_rows(4)
    like, before = predict(rows), predict(rows, seed=9)
    asked = BaselineInput(rows, rows, rows, (), ("anchor", "positive"), None, like, lambda: before)
    assert baselines.get("pretrained").build({})(asked) is before


def test_the_baseline_of_words_finds_nothing_where_training_has_no_word() -> None:
    train = [{"text": "!", "text_pair": "…", "score": 1.0}]
    rows = [{"text": "a dog", "text_pair": "a dog", "score": 1.0}, {"text": "?", "text_pair": "?", "score": 0.0}]
    like = SimilarityPredictions(np.ones((2, 1)), np.array([[1.0], [0.0]]))
    found = baselines.get("tfidf-cosine").build({})(given(train, rows, like))
    assert found.values.tolist() == [[0.0], [0.0]]
