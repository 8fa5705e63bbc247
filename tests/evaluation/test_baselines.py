"""The baselines are what they say they are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from finetune import registry
from finetune.evaluation.baselines import BaselineInput
from finetune.evaluation.baselines.labels import STRENGTHS
from finetune.evaluation.predictions.labels import LabelPredictions
from tests.conftest import FILLER, LABEL_WORDS, make_rows

LABELS = list(LABEL_WORDS)
OF_LABELS = ["majority", "tfidf-logreg"]


@dataclass(frozen=True)
class LabelledTexts:
    texts: Sequence[str]
    targets: Sequence[int]

    def rows(self) -> list[dict[str, str]]:
        return [{"text": text, "label": str(target)} for text, target in zip(self.texts, self.targets, strict=True)]


def said(name: str, train: LabelledTexts, validation: LabelledTexts, texts: Sequence[str], labels: int) -> np.ndarray:
    """Return the probabilities that a baseline gives to texts."""
    names = tuple(str(number) for number in range(labels))
    targets = np.zeros(len(texts), dtype=np.int64)
    like = LabelPredictions(names, targets, np.full((len(texts), labels), 1 / labels))
    rows = [{"text": text} for text in texts]
    given = BaselineInput(
        train.rows(), validation.rows(), rows, names, ("text", "text_pair"), "label", like, lambda: like
    )
    found = registry.baselines.get(name).build({})(given)
    assert found.targets is targets
    return np.asarray(found.probabilities)


def labelled(rows: Sequence[dict[str, str]]) -> LabelledTexts:
    return LabelledTexts([row["body"] for row in rows], [LABELS.index(row["intent"]) for row in rows])


def noisy(count: int, seed: int) -> LabelledTexts:
    """Sentences whose words tell the label only in part, so that the strength of the regression matters."""
    generator = random.Random(seed)
    texts, targets = [], []
    for _ in range(count):
        target = generator.randrange(3)
        hint = LABELS[target] if generator.random() < 0.6 else generator.choice(LABELS)
        words = [*generator.choices(FILLER, k=4), generator.choice(LABEL_WORDS[hint])]
        generator.shuffle(words)
        texts.append(" ".join(words))
        targets.append(target)
    return LabelledTexts(texts, targets)


def test_majority_gives_every_text_the_frequencies_of_the_training_split() -> None:
    train = LabelledTexts(["a", "b", "c", "d", "e"], [2, 0, 2, 2, 0])
    validation = LabelledTexts(["f", "g"], [1, 1])
    found = said("majority", train, validation, ["x", "y"], 4)
    assert found.tolist() == [[0.4, 0.0, 0.6, 0.0], [0.4, 0.0, 0.6, 0.0]]


def test_tfidf_is_a_plain_pipeline_with_the_strength_that_is_best_on_validation() -> None:
    train, validation = noisy(60, seed=1), noisy(40, seed=2)
    texts = noisy(25, seed=3).texts
    found = said("tfidf-logreg", train, validation, texts, 3)

    scored = []
    for strength in STRENGTHS:
        pipeline = make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b"),
            LogisticRegression(C=strength, max_iter=500),
        ).fit(train.texts, train.targets)
        scored.append((pipeline.score(validation.texts, validation.targets), pipeline))
    assert len({score for score, _ in scored}) > 1  # the choice matters in this world
    best = max(scored, key=lambda pair: pair[0])[1]
    assert found == pytest.approx(best.predict_proba(texts), abs=1e-9)


def test_tfidf_chooses_its_strength_on_validation_and_never_on_the_scored_texts() -> None:
    train = noisy(60, seed=1)
    validation, texts = noisy(40, seed=2), noisy(25, seed=3).texts
    one_by_one = np.concatenate([said("tfidf-logreg", train, validation, [text], 3) for text in texts[:2]])
    assert said("tfidf-logreg", train, validation, texts, 3)[:2] == pytest.approx(one_by_one, abs=1e-12)


@pytest.mark.parametrize("name", OF_LABELS)
def test_texts_without_any_word_get_the_frequencies_of_the_labels(name: str) -> None:
    train = LabelledTexts([":-)", "\U0001f600!", "...", "?!"], [0, 1, 1, 1])
    found = said(name, train, train, ["\U0001f60e", "*"], 2)
    assert found == pytest.approx(np.array([[0.25, 0.75]] * 2), abs=0.01)


def test_tfidf_learns_words_of_one_letter_and_pairs_of_words() -> None:
    train = LabelledTexts(["x", "y"] * 4 + ["not good", "good not"] * 4, [0, 1] * 8)
    found = said("tfidf-logreg", train, train, ["x", "y", "not good", "good not"], 2)
    assert found.argmax(axis=1).tolist() == [0, 1, 0, 1]


def test_tfidf_solves_a_task_whose_words_give_the_label_away() -> None:
    rows = make_rows(30)
    order = random.Random(0).sample(range(90), 90)
    train, validation, test = (labelled([rows[i] for i in order[a:b]]) for a, b in ((0, 50), (50, 70), (70, 90)))
    found = said("tfidf-logreg", train, validation, test.texts, 3)
    assert (found.argmax(axis=1) == test.targets).mean() >= 0.8


@pytest.mark.parametrize("name", OF_LABELS)
def test_a_label_that_is_missing_from_train_gets_probability_0(name: str) -> None:
    rows = [row for row in make_rows(8) if row["intent"] != "tool"]
    here = labelled(rows)
    found = said(name, here, labelled(make_rows(3)), here.texts, 3)
    assert found.shape == (16, 3)
    assert (found[:, LABELS.index("tool")] == 0).all()
    assert found.sum(axis=1) == pytest.approx(np.ones(16))


@pytest.mark.parametrize("name", OF_LABELS)
def test_a_baseline_answers_texts_that_it_has_no_word_of_with_probabilities(name: str) -> None:
    train = labelled(make_rows(6))
    found = said(name, train, train, ["qwerty", "…", ""], 3)
    assert found.sum(axis=1) == pytest.approx(np.ones(3))
    assert (found > 0).all()
