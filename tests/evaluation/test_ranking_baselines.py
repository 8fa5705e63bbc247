"""Baselines for rankings, held to calculations by hand and to scikit-learn's vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from finetune.evaluation.baselines import BaselineInput
from finetune.evaluation.baselines.rankings import Bm25, bm25, known_texts, tfidf_ranking, words
from finetune.evaluation.predictions.rankings import RankingPredictions

TRAIN = [
    {"query": "red apple", "text": "an apple is red", "relevance": 1.0},
    {"query": "red apple", "text": "a pear, green", "relevance": 0.0},
]
ROWS = [
    {"query": "Green pear?", "text": "the pear is green and GREEN", "relevance": 2.0},
    {"query": "Green pear?", "text": "a hammer", "relevance": 0.0},
    {"query": "hammer", "text": "hammer and saw", "relevance": 1.0},
]


def given(train: Sequence[Mapping[str, Any]] = TRAIN, rows: Sequence[Mapping[str, Any]] = ROWS) -> BaselineInput:
    like = RankingPredictions.grouped(
        queries=[row["query"] for row in rows],
        texts=[row["text"] for row in rows],
        scores=np.zeros(len(rows)),
        relevance=np.array([row["relevance"] for row in rows]),
        rows=np.arange(len(rows)),
        groups=np.array([0, 0, 1]),
    )
    return BaselineInput(train, [], rows, (), ("query", "text"), "relevance", like, lambda: like)


def test_bm25_is_what_a_calculation_by_hand_gives() -> None:
    """Five texts with 4, 3, 6, 2 and 3 words: 3.6 on average; "green" is in two of them, "pear" in two."""
    said = bm25(given())
    weight = math.log(1 + (5 - 2 + 0.5) / (2 + 0.5))
    norm = 1.2 * (0.25 + 0.75 * 6 / 3.6)
    wanted = weight * 2 * 2.2 / (2 + norm) + weight * 1 * 2.2 / (1 + norm)
    assert said.scores[0] == pytest.approx(wanted, abs=1e-12)
    assert said.scores[1] == 0


def test_a_word_that_the_query_repeats_counts_again() -> None:
    index = Bm25([["a", "b"], ["b"], ["c"]])
    assert index.score(["a", "a"], ["a", "b"]) == pytest.approx(2 * index.score(["a"], ["a", "b"]))


def test_a_word_that_is_in_every_text_still_counts_for_something() -> None:
    index = Bm25([["a"], ["a", "b"]])
    assert index.weight("a") > 0
    assert index.weight("b") > index.weight("a")
    assert index.weight("new") > index.weight("b")


def test_tfidf_scores_are_cosines_of_scikit_learns_vectors() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics.pairwise import cosine_similarity

    said = tfidf_ranking(given())
    texts = [row["text"] for row in (*TRAIN, *ROWS)]
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\w+").fit(texts)
    for row, score in zip(ROWS, said.scores, strict=True):
        pair = vectorizer.transform([row["query"], row["text"]])
        assert score == pytest.approx(cosine_similarity(pair)[0, 1], abs=1e-12)


@pytest.mark.parametrize("baseline", [bm25, tfidf_ranking])
def test_a_baseline_ranks_the_same_candidates(baseline: Any) -> None:
    told = given()
    said = baseline(told)
    assert said.relevance.tolist() == [2.0, 0.0, 1.0]
    assert said.offsets.tolist() == told.like.offsets.tolist()  # type: ignore[attr-defined]
    assert said.order(0) == [0, 1]


def test_statistics_are_of_all_candidates_each_once_and_of_no_query() -> None:
    lists = [{"query": "q", "positive": "first", "negatives": ["second", "a hammer"]}]
    told = given(train=lists)
    assert known_texts(told, told.like) == ["first", "second", "a hammer", ROWS[0]["text"], ROWS[2]["text"]]  # type: ignore[arg-type]


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert words("Isn't it GREEN, or 5.50?") == ["isn", "t", "it", "green", "or", "5", "50"]


@pytest.mark.parametrize("baseline", [bm25, tfidf_ranking])
def test_texts_without_any_word_all_score_nothing(baseline: Any) -> None:
    signs = [{**row, "text": "!?"} for row in ROWS]
    assert baseline(given(train=signs, rows=signs)).scores.tolist() == [0.0, 0.0, 0.0]
