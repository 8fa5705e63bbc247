"""Baselines of label sets are plain scikit-learn with thresholds fitted as fairly as the model's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.multiclass import OneVsRestClassifier

from finetune import registry
from finetune.evaluation.baselines import BaselineInput
from finetune.evaluation.baselines.labels import STRENGTHS
from finetune.evaluation.predictions.label_sets import LabelSetPredictions, fit_thresholds, label_matrix
from tests.conftest import FILLER, LABEL_WORDS

LABELS = tuple(LABEL_WORDS)
NAMES = ("prevalence", "tfidf-one-vs-rest")


def rows_of(count: int, seed: int, *, labels: Sequence[str] = LABELS) -> list[dict[str, Any]]:
    """Rows whose words tell their labels, most of the time."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        own = [label for label in labels if generator.random() < 0.4]
        hints = [label if generator.random() < 0.8 else generator.choice(labels) for label in own]
        words = [*generator.choices(FILLER, k=5), *(generator.choice(LABEL_WORDS[hint]) for hint in hints)]
        generator.shuffle(words)
        rows.append({"text": " ".join(words), "labels": own})
    return rows


def given_of(train: list[dict[str, Any]], rule: Any = "per-label", *, rows: int = 15) -> BaselineInput:
    scored = rows_of(rows, seed=3)
    targets = label_matrix((row["labels"] for row in scored), LABELS)
    like = LabelSetPredictions(LABELS, targets, np.zeros(targets.shape), np.full(len(LABELS), 0.5), rule)
    return BaselineInput(train, rows_of(30, seed=2), scored, LABELS, ("text",), "labels", like, lambda: like)


def answer(name: str, given: BaselineInput) -> LabelSetPredictions:
    found: LabelSetPredictions = registry.baselines.get(name).build({})(given)
    return found


def test_prevalence_is_the_share_of_training_rows_and_says_what_f1_likes_best() -> None:
    train = [{"text": "x", "labels": found} for found in (["fruit"], ["fruit", "tool"], [], ["fruit"])]
    found = answer("prevalence", given_of(train))
    assert found.probabilities.tolist() == [[0.75, 0.25, 0.0]] * 15
    assert found.predicted.all()  # of a constant every label is the best guess for F1


def test_one_vs_rest_is_a_plain_pipeline_with_the_strength_that_is_best_on_validation() -> None:
    given = given_of(rows_of(60, seed=1))
    truth, held_out = (
        label_matrix((row["labels"] for row in part), LABELS) for part in (given.train, given.validation)
    )
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    features = vectorizer.fit_transform([row["text"] for row in given.train])
    scored = []
    for strength in STRENGTHS:
        model = OneVsRestClassifier(LogisticRegression(C=strength, max_iter=500)).fit(features, truth)
        said = model.predict_proba(vectorizer.transform([row["text"] for row in given.validation]))
        thresholds = fit_thresholds(held_out, said, "per-label")
        scored.append((f1_score(held_out, said >= thresholds, average="macro"), model, thresholds))
    assert len({score for score, *_ in scored}) > 1  # the choice matters in this world
    _, best, thresholds = max(scored, key=lambda entry: entry[0])
    found = answer("tfidf-one-vs-rest", given)
    expected = best.predict_proba(vectorizer.transform([row["text"] for row in given.rows]))
    assert found.probabilities == pytest.approx(expected, abs=1e-9)
    assert found.thresholds == pytest.approx(thresholds, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_thresholds_follow_the_models_rule_and_the_validation_split(name: str) -> None:
    train = rows_of(40, seed=1)
    assert answer(name, given_of(train, 0.3)).thresholds.tolist() == [0.3, 0.3, 0.3]
    assert len(set(answer(name, given_of(train, "global")).thresholds)) == 1
    fitted = answer(name, given_of(train))
    alone = answer(name, given_of(train, rows=1))
    assert fitted.thresholds.tolist() == alone.thresholds.tolist()  # the scored rows have no say
    assert fitted.probabilities[:1] == pytest.approx(alone.probabilities, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_label_without_a_training_row_gets_0_and_one_on_all_rows_gets_1(name: str) -> None:
    train = [{**row, "labels": sorted({*row["labels"], "fruit"} - {"tool"})} for row in rows_of(20, seed=1)]
    found = answer(name, given_of(train))
    assert (found.probabilities[:, 0] == 1).all()
    assert (found.probabilities[:, 1] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_targets_stay_the_scored_rows_own(name: str) -> None:
    given = given_of(rows_of(20, seed=1))
    assert isinstance(given.like, LabelSetPredictions)
    assert (answer(name, given).targets == given.like.targets).all()


def test_one_vs_rest_solves_a_task_whose_words_give_the_labels_away() -> None:
    found = answer("tfidf-one-vs-rest", given_of(rows_of(200, seed=1), rows=60))
    assert f1_score(found.targets, found.predicted, average="micro") > 0.75
    guess = answer("prevalence", given_of(rows_of(200, seed=1), rows=60))
    assert f1_score(guess.targets, guess.predicted, average="micro") < 0.65
