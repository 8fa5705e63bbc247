"""The shipped questions and replies: enough of them, none repeated, and nothing cheap tells which are relevant."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from finetune.evaluation.baselines.rankings import Bm25, words
from finetune.evaluation.predictions.rankings import RankingPredictions
from finetune.evaluation.statistics import point
from finetune.prepare import check
from finetune.recipe import load_recipe
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    lines = (ROOT / "data" / "forum_replies.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def ndcg(rows: list[dict[str, Any]], scores: list[float]) -> float:
    numbers = {question: number for number, question in enumerate(dict.fromkeys(row["question"] for row in rows))}
    predictions = RankingPredictions.grouped(
        queries=[row["question"] for row in rows],
        texts=[row["reply"] for row in rows],
        scores=np.array(scores),
        relevance=np.array([row["relevance"] for row in rows]),
        rows=np.arange(len(rows)),
        groups=np.array([numbers[row["question"]] for row in rows]),
    )
    return point("ndcg", predictions)


def test_every_question_has_four_or_five_replies_and_a_relevant_one(rows: list[dict[str, Any]]) -> None:
    counts = Counter(row["question"] for row in rows)
    assert (len(rows), len(counts)) == (341, 80)
    assert set(counts.values()) == {4, 5}
    assert {row["question"] for row in rows if row["relevance"] == 2} == set(counts)
    assert Counter(row["relevance"] for row in rows) == {0: 185, 1: 55, 2: 101}


def test_no_reply_is_there_twice_and_no_opening_often(rows: list[dict[str, Any]]) -> None:
    texts = [tuple(re.findall(r"\w+", row["reply"].casefold())) for row in rows]
    assert len(set(texts)) == len(texts)
    for length, most in ((3, 2), (5, 1)):
        openings = Counter(text[:length] for text in texts if len(text) >= length)
        assert {opening: count for opening, count in openings.items() if count > most} == {}


def test_neither_length_nor_shared_words_give_the_relevant_replies_away(rows: list[dict[str, Any]]) -> None:
    """A random order has an NDCG of 0.72; these are no more than 0.03 above it."""
    lengths = [float(len(row["reply"])) for row in rows]
    index = Bm25([words(row["reply"]) for row in rows])
    shared = [index.score(words(row["question"]), words(row["reply"])) for row in rows]
    random = np.mean(
        [ndcg(rows, generator.random(len(rows)).tolist()) for generator in map(np.random.default_rng, range(20))]
    )
    assert random == pytest.approx(0.72, abs=0.01)
    for scores in (lengths, [-length for length in lengths], shared):
        assert ndcg(rows, scores) < random + 0.03


def test_the_recipe_keeps_every_row_and_every_question_in_one_split(rows: list[dict[str, Any]]) -> None:
    report = check(load_recipe(ROOT / "recipes" / "ranking-small.yaml"))
    assert (report["rows_kept"], report["dropped"]) == (len(rows), {})
    assert [finding for finding in report["warnings"] if finding["severity"] == "error"] == []
