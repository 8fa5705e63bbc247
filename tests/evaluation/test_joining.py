"""Predictions of several models about rows of their own, scored as one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finetune.evaluation.predictions import objects
from finetune.evaluation.predictions.answers import AnswerPredictions
from finetune.evaluation.predictions.joining import join
from finetune.evaluation.predictions.label_sets import LabelSetPredictions
from finetune.evaluation.predictions.labels import LabelPredictions
from finetune.evaluation.predictions.numbers import NumberPredictions
from finetune.evaluation.predictions.rankings import RankingPredictions
from finetune.evaluation.predictions.similarities import EmbeddingPredictions
from finetune.evaluation.predictions.tags import TagPredictions
from finetune.evaluation.predictions.texts import TextPredictions
from finetune.evaluation.statistics import point, score

GENERATOR = np.random.default_rng(0)
ROWS = 12
PROBABILITIES = GENERATOR.dirichlet(np.ones(3), ROWS)


def labels() -> LabelPredictions:
    return LabelPredictions(("x", "y", "z"), np.arange(ROWS) % 3, PROBABILITIES)


def label_sets() -> LabelSetPredictions:
    targets = (np.arange(ROWS * 3).reshape(ROWS, 3) % 2).astype(int)
    return LabelSetPredictions(("x", "y", "z"), targets, PROBABILITIES, np.array([0.2, 0.3, 0.4]))


def numbers() -> NumberPredictions:
    values = PROBABILITIES[:, :1]
    return NumberPredictions(("score",), values + np.linspace(0, 1, ROWS)[:, None], values, np.array([2.0]))


def tags() -> TagPredictions:
    true = [["B-A", "I-A", "O"] if row % 2 else ["O", "B-B"] for row in range(ROWS)]
    said = [["B-A", "O", "O"] if row % 3 else list(true[row]) for row in range(ROWS)]
    scores = tuple(np.ones(len(row)) for row in said)
    return TagPredictions(("A", "B"), tuple(true), tuple(said[row][: len(true[row])] for row in range(ROWS)), scores)


def answers() -> AnswerPredictions:
    texts = [f"word {row % 4}" for row in range(ROWS)]
    return AnswerPredictions(
        questions=objects([f"q{row}" for row in range(ROWS)]),
        contexts=np.arange(ROWS) // 2,
        targets=objects([(f"word {row % 3}",) if row % 4 else () for row in range(ROWS)]),
        texts=objects(texts),
        starts=np.zeros(ROWS, np.int64),
        ends=np.full(ROWS, 6),
        probabilities=PROBABILITIES[:, 0],
        no_answer=PROBABILITIES[:, 1],
        threshold=0.3,
    )


def rankings() -> RankingPredictions:
    queries = [f"q{row // 3}" for row in range(ROWS)]
    rows, relevance = np.arange(ROWS), np.array([0.0, 1.0, 0.0] * (ROWS // 3))
    return RankingPredictions.grouped(queries, queries, PROBABILITIES[:, 0], relevance, rows, rows // 3)


def texts() -> TextPredictions:
    said = [f"a red apple {row % 2}" for row in range(ROWS)]
    return TextPredictions.of(said, [[f"a red apple {row % 3}"] for row in range(ROWS)], ["s"] * ROWS)


METRICS = {
    labels: ("accuracy", "f1-macro", "log-loss"),
    label_sets: ("f1-macro", "subset-accuracy", "hamming-loss"),
    numbers: ("rmse", "pearson"),
    tags: ("entity-f1", "entity-precision"),
    answers: ("exact-match", "answer-f1"),
    rankings: ("ndcg", "mrr"),
    texts: ("rougeL", "chrf"),
}


@pytest.mark.parametrize("make", METRICS, ids=lambda make: make.__name__)
def test_what_is_taken_apart_and_joined_scores_as_before(make: Any) -> None:
    whole = make()
    places = np.arange(len(whole))
    parts = [whole.take(places[:1]), whole.take(places[1:])]
    joined = join(parts, [0, 0])
    assert joined is not None
    assert len(joined) == len(whole)
    for name in METRICS[make]:
        assert point(name, joined) == pytest.approx(point(name, whole)), name
    before, after = (score(METRICS[make], one, 7).intervals() for one in (whole, joined))
    assert {name: vars(one) for name, one in after.items()} == {
        name: pytest.approx(vars(one), nan_ok=True) for name, one in before.items()
    }


def test_each_model_decides_by_its_own_thresholds() -> None:
    sets = label_sets()
    strict = LabelSetPredictions(sets.labels, sets.targets, sets.probabilities, np.full(3, 0.9))
    joined: Any = join([sets, strict], [0, ROWS])
    np.testing.assert_array_equal(joined.predicted, np.concatenate([sets.predicted, strict.predicted]))
    np.testing.assert_array_equal(joined.take(np.array([ROWS])).predicted, strict.predicted[:1])
    spans = answers()
    always = AnswerPredictions(**{**vars(spans), "threshold": None})
    both: Any = join([spans, always], [0, ROWS])
    np.testing.assert_array_equal(both.answered, np.concatenate([spans.answered, always.answered]))
    assert not spans.answered.all()
    assert always.answered.all()


def test_rows_are_numbered_through() -> None:
    assert join([labels(), labels()], [0, ROWS]).rows.tolist() == list(range(2 * ROWS))  # type: ignore[union-attr]
    joined: Any = join([rankings(), rankings()], [0, ROWS])
    assert joined.rows.tolist() == [0, 3, 6, 9, 12, 15, 18, 21]


def test_contexts_of_two_models_are_different_ones() -> None:
    joined: Any = join([answers(), answers()], [0, ROWS])
    assert len(set(joined.contexts.tolist())) == 2 * len(set(answers().contexts.tolist()))


def test_vectors_of_two_models_are_not_joined() -> None:
    vectors = EmbeddingPredictions(np.ones((2, 3)))
    assert join([vectors, vectors], [0, 2]) is None
