"""Baselines for one label a row."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from finetune.evaluation.baselines import BaselineInput
from finetune.registry import baselines

if TYPE_CHECKING:
    from finetune.evaluation.predictions.labels import LabelPredictions


NO_WORD = "_" * 99  # one that no text has
# Inverse regularization strengths C to choose from
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@baselines.register("majority", of=("label",), title="majority class")
def majority(given: BaselineInput) -> LabelPredictions:
    """Give every text the training split's label frequencies; the most frequent label wins everywhere."""
    import numpy as np

    counts = np.bincount(given.targets(given.train), minlength=len(given.labels)).astype(np.float64)
    return _said(given, np.tile(counts / counts.sum(), (len(given.rows), 1)))


@baselines.register("tfidf-logreg", of=("label",), title="TF-IDF + logistic regression")
def tfidf_logreg(given: BaselineInput) -> LabelPredictions:
    """Words and word pairs, sublinear TF-IDF, logistic regression with C chosen on the validation split."""
    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    vectorizer = word_pairs(texts := given.texts(given.train))
    features, targets = vectorizer.transform(texts), given.targets(given.train)
    held_out, wanted = vectorizer.transform(given.texts(given.validation)), given.targets(given.validation)
    models = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a strength that does not converge loses on validation
        for strength in STRENGTHS:
            models.append(LogisticRegression(C=strength, max_iter=500).fit(features, targets))
    best = max(models, key=lambda model: model.score(held_out, wanted))
    probabilities = np.zeros((len(given.rows), len(given.labels)))
    probabilities[:, best.classes_] = best.predict_proba(vectorizer.transform(given.texts(given.rows)))
    return _said(given, probabilities)


def word_pairs(texts: Sequence[str]) -> Any:
    """Return a vectorizer of the words and word pairs of some texts, with sublinear TF-IDF weights.

    Where they have none, as when all are emoji, every vector is zero.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")  # noqa: S106
    analyzed = vectorizer.build_analyzer()
    return vectorizer.fit(texts if any(map(analyzed, texts)) else [NO_WORD])


def _said(given: BaselineInput, probabilities: Any) -> LabelPredictions:
    return replace(cast("LabelPredictions", given.like), probabilities=probabilities)
