"""Baselines of numbers: constants and a linear model, chosen on the validation split alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from finetune import registry
from finetune.evaluation.baselines import BaselineInput
from finetune.evaluation.baselines.numbers import ALPHAS
from finetune.evaluation.predictions.numbers import NumberPredictions

WORTH = {"plum": 1.0, "pear": 3.0, "melon": 7.0, "grape": -2.0}


def rows_of(count: int, seed: int) -> list[dict[str, Any]]:
    """Return texts whose first target is what their words are worth, with noise; the second is the length."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words = generator.choice(list(WORTH), size=generator.integers(2, 6)).tolist()
        value = float(np.mean([WORTH[word] for word in words]) + generator.normal() / 2)
        rows.append({"text": " ".join(words), "value": value, "words": len(words)})
    return rows


def said(
    name: str,
    train: Sequence[dict[str, Any]],
    validation: Sequence[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    names: tuple[str, ...] = ("value",),
    **limits: float,
) -> np.ndarray:
    targets = np.array([[row[target] for target in names] for row in rows])
    like = NumberPredictions(names, targets, np.zeros_like(targets), np.ones(len(names)), **limits)
    given = BaselineInput(train, validation, rows, (), ("text", "text_pair"), names[0], like, lambda: like)
    found: NumberPredictions = registry.baselines.get(name).build({})(given)
    assert found.targets is targets
    return np.asarray(found.values)


def test_the_mean_is_that_of_the_training_split() -> None:
    train, test = rows_of(20, 1), rows_of(3, 2)
    found = said("mean", train, rows_of(5, 3), test, ("value", "words"))
    wanted = [np.mean([row[name] for row in train]) for name in ("value", "words")]
    np.testing.assert_allclose(found, np.tile(wanted, (3, 1)))


@pytest.mark.parametrize("names", [("value",), ("value", "words")])
def test_ridge_is_a_plain_pipeline_with_the_alpha_that_is_best_on_validation(names: tuple[str, ...]) -> None:
    train, validation, test = rows_of(60, 1), rows_of(30, 2), rows_of(10, 3)
    found = said("tfidf-ridge", train, validation, test, names)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    features = [vectorizer.fit_transform([row["text"] for row in train])]
    features += [vectorizer.transform([row["text"] for row in rows]) for rows in (validation, test)]
    for column, name in enumerate(names):
        wanted, best = None, np.inf
        for alpha in ALPHAS:
            model = Ridge(alpha=alpha).fit(features[0], [row[name] for row in train])
            error = np.mean((model.predict(features[1]) - [row[name] for row in validation]) ** 2)
            if error < best:
                wanted, best = model.predict(features[2]), error
        np.testing.assert_allclose(found[:, column], wanted, atol=1e-4)  # as far as the solver goes


def test_ridge_reads_pairs_and_learns_what_words_are_worth() -> None:
    train, validation, test = rows_of(200, 1), rows_of(40, 2), rows_of(60, 3)
    paired = [
        [{**row, "text": "about", "text_pair": row["text"]} for row in part] for part in (train, validation, test)
    ]
    truth = np.array([row["value"] for row in test])
    assert np.corrcoef(said("tfidf-ridge", *paired)[:, 0], truth)[0, 1] > 0.9


def test_a_baseline_keeps_to_the_declared_range_as_the_model_does() -> None:
    train, validation, test = rows_of(60, 1), rows_of(30, 2), rows_of(60, 3)
    free = said("tfidf-ridge", train, validation, test)
    held = said("tfidf-ridge", train, validation, test, minimum=0.0, maximum=3.0)
    assert (free.min() < 0, free.max() > 3) == (True, True)
    np.testing.assert_array_equal(held, np.clip(free, 0, 3))
