"""Scores of answers against SQuAD's own definition, the threshold of "no answer", and the baseline."""

from __future__ import annotations

import collections
import random
import re
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from finetune import registry
from finetune.evaluation.answer_scores import answer_scores
from finetune.evaluation.baselines import BaselineInput
from finetune.evaluation.predictions.answers import AnswerPredictions, fit_threshold
from finetune.evaluation.statistics import bootstrap

# -- the functions of evaluate-v2.0.py, written out here step by step as that script takes them


def normalize_answer(s: str) -> str:
    s = s.lower()
    s = "".join(ch for ch in s if ch not in set(string.punctuation))
    s = re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", s)
    return " ".join(s.split())


def compute_exact(a_gold: str, a_pred: str) -> int:
    return int(normalize_answer(a_gold) == normalize_answer(a_pred))


def compute_f1(a_gold: str, a_pred: str) -> float:
    gold_toks = normalize_answer(a_gold).split() if a_gold else []
    pred_toks = normalize_answer(a_pred).split() if a_pred else []
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(pred_toks)
    recall = 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def official(said: str, targets: Sequence[str]) -> tuple[float, float]:
    gold_answers = [text for text in targets if normalize_answer(text)]
    if not gold_answers:
        gold_answers = [""]
    return max(compute_exact(a, said) for a in gold_answers), max(compute_f1(a, said) for a in gold_answers)


EDGES = ["", " ", "the", "The!", "...", "a an the", "A.", "the saw", "Saw", "saw saw", "saw old saw", "they", "1,000",
         "1000", "dont", "Łódź", "«saw»", "anthem", "a\u00a0saw", "don't", "THE  old\tsaw"]  # fmt: skip


def test_scores_are_those_of_the_official_script_on_edges() -> None:
    for said in EDGES:
        assert answer_scores(said, []) == pytest.approx(official(said, []), abs=1e-9)
        for target in EDGES:
            assert answer_scores(said, [target]) == pytest.approx(official(said, [target]), abs=1e-9), (said, target)


def test_scores_are_those_of_the_official_script_on_random_answers() -> None:
    generator = random.Random(1)
    pieces = ["the", "a", "old", "saw", "Saw", "-", "!", "red", "plum", "'s", "1,5", "an"]

    def text() -> str:
        return " ".join(generator.choices(pieces, k=generator.randint(0, 5)))

    for _ in range(2000):
        said, targets = text(), [text() for _ in range(generator.randint(0, 3))]
        assert answer_scores(said, targets) == pytest.approx(official(said, targets), abs=1e-9), (said, targets)


# -- predictions


def objects(values: Sequence[Any]) -> Any:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def answers_of(
    texts: Sequence[str], targets: Sequence[tuple[str, ...]], no_answer: Sequence[float], threshold: float | None = None
) -> AnswerPredictions:
    count = len(texts)
    return AnswerPredictions(
        questions=objects([f"who {number}" for number in range(count)]),
        contexts=np.arange(count) // 2,
        targets=objects(list(targets)),
        texts=objects(list(texts)),
        starts=np.arange(count),
        ends=np.arange(count) + 3,
        probabilities=np.full(count, 0.5),
        no_answer=np.array(no_answer, dtype=np.float64),
        threshold=threshold,
    )


def random_answers(count: int, seed: int, threshold: float | None = None) -> AnswerPredictions:
    generator = random.Random(seed)
    words = ["the", "saw", "old saw", "red plum", "plum", "pear"]
    targets = [tuple(generator.sample(words, generator.choice([0, 1, 2]))) for _ in range(count)]
    values = [float(generator.randint(-6, 6)) / 2 for _ in range(count)]  # many of them equal
    return answers_of(generator.choices(words, k=count), targets, values, threshold)


def metric(name: str, predictions: AnswerPredictions) -> float:
    return float(registry.metrics.get(name).build({})(predictions))


def test_metrics_are_the_official_means() -> None:
    predictions = random_answers(200, 4, threshold=0.5)
    scores = [official(said, targets) for said, targets in zip(predictions.said, predictions.targets, strict=True)]
    exact, overlap = (np.array(column, dtype=float) for column in zip(*scores, strict=True))
    has = np.array([bool(targets) for targets in predictions.targets])
    assert metric("exact-match", predictions) == pytest.approx(exact.mean(), abs=1e-9)
    assert metric("answer-f1", predictions) == pytest.approx(overlap.mean(), abs=1e-9)
    assert metric("has-answer-f1", predictions) == pytest.approx(overlap[has].mean(), abs=1e-9)
    assert metric("no-answer-accuracy", predictions) == pytest.approx(exact[~has].mean(), abs=1e-9)


def test_what_is_asked_of_no_question_is_not_defined() -> None:
    answered = answers_of(["saw", "old"], [("saw",), ("red",)], [0, 0])
    assert np.isnan(metric("no-answer-accuracy", answered))
    assert metric("has-answer-f1", answered) == 0.5
    none = answers_of(["saw", "old"], [(), ()], [1, -1], threshold=0.0)
    assert np.isnan(metric("has-answer-f1", none))
    assert metric("no-answer-accuracy", none) == 0.5
    assert bootstrap(["no-answer-accuracy"], answered, 1)["no-answer-accuracy"].as_json()["low"] is None


def test_resampled_metrics_are_those_of_the_rows_taken() -> None:
    predictions = random_answers(40, 9, threshold=0.0)
    rows = np.random.default_rng(0).integers(0, 40, 60)
    taken = predictions.take(rows)
    weights = np.bincount(rows, minlength=40)
    for name in ("exact-match", "answer-f1", "has-answer-f1", "no-answer-accuracy"):
        attributes = registry.metrics.get(name).attributes
        if "from_rows" in attributes:
            value = weights @ attributes["from_rows"](predictions) / weights.sum()
        else:
            per_answer, combine = attributes["from_sums"]
            value = combine(weights @ per_answer(predictions))
        assert value == pytest.approx(metric(name, taken), abs=1e-12)


def test_no_answer_is_said_above_the_threshold_alone() -> None:
    values = [-1.0, 0.5, 0.6, 9.0]
    targets = [()] * 4
    assert answers_of(["saw"] * 4, targets, values, 0.5).said.tolist() == ["saw", "saw", "", ""]
    assert answers_of(["saw"] * 4, targets, values, None).said.tolist() == ["saw"] * 4
    assert answers_of(["", "saw"], targets[:2], [-5, -5], None).answered.tolist() == [False, True]


@pytest.mark.parametrize("seed", range(8))
def test_the_fitted_threshold_is_the_best_there_is(seed: int) -> None:
    predictions = random_answers(30, seed)
    fitted = fit_threshold(predictions)
    every = np.unique(predictions.no_answer)
    candidates = np.concatenate([[every[0] - 0.5], (every[1:] + every[:-1]) / 2, [every[-1] + 0.5]])

    def score(threshold: float) -> float:
        said = np.where(predictions.no_answer <= threshold, predictions.texts, "")
        return float(
            np.mean([official(text, targets)[1] for text, targets in zip(said, predictions.targets, strict=True)])
        )

    scores = np.array([score(float(candidate)) for candidate in candidates])
    assert score(fitted) == pytest.approx(scores.max(), abs=1e-12)
    best = candidates[scores > scores.max() - 1e-9]
    assert abs(fitted) == pytest.approx(np.abs(best).min())


def test_two_models_agree_where_both_say_the_same() -> None:
    one = answers_of(["saw"] * 4, [()] * 4, [0, 0, 1, 1], 0.5)
    other = answers_of(["saw"] * 4, [()] * 4, [0, 1, 0, 1], 0.5)
    assert one.agrees(other).tolist() == [True, False, False, True]
    moved = AnswerPredictions(**{**vars(one), "ends": one.ends + 1})
    assert one.agrees(moved).tolist() == [False, False, True, True]


# -- the baseline

CONTEXTS = [
    "The mill stands in Dorf. Old Martha Kern owns the mill. It was painted green in 1920.",
    "The boat sails on Mondays. It carries 40 goats to Ilm. The captain is Bo Lind.",
    "A fox lives in the wood. In the evening it comes to the gate.",
]
FUNCTION_WORDS = "It is in the air. Here is the end to it. The rest is in it. Is it to be the last?"


def said_by_baseline(questions: Sequence[tuple[int, str]]) -> AnswerPredictions:
    rows = [{"context": CONTEXTS[number], "question": question, "answers": []} for number, question in questions]
    like = answers_of([""] * len(rows), [()] * len(rows), [0.0] * len(rows), 0.5)
    given = BaselineInput(
        train=[{"context": context, "question": "", "answers": []} for context in [*CONTEXTS, FUNCTION_WORDS]],
        validation=[], rows=rows, labels=(), text_roles=("context", "question"), label_role=None,
        like=like, pretrained=lambda: like,
    )  # fmt: skip
    found = registry.baselines.get("nearest-words").build({})(given)
    assert isinstance(found, AnswerPredictions)
    for row, start, end, text in zip(rows, found.starts, found.ends, found.texts, strict=True):
        assert row["context"][start:end] == text
    return found


def test_the_baseline_takes_the_words_beside_those_of_the_question() -> None:
    found = said_by_baseline([(0, "Who owns the mill?"), (1, "Who is the captain?"), (1, "What carries it to Ilm?")])
    assert found.said.tolist() == ["Old Martha Kern", "Bo Lind", "40 goats"]
    assert found.threshold is None
    assert found.targets.tolist() == [()] * 3


def test_the_baseline_answers_what_shares_no_word_with_the_context() -> None:
    assert said_by_baseline([(2, "Quando?")]).said[0] in CONTEXTS[2]
    assert said_by_baseline([(2, "Quando?")]).said[0] != ""
