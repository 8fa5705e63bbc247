"""Baselines: what one gets without fine-tuning, judged on the same rows, so that a reader sees whether it paid."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.registry import baselines

if TYPE_CHECKING:
    from numpy.typing import NDArray


# Inverse regularization strengths C to choose from
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with the indices of their labels."""

    texts: Sequence[str]
    targets: Sequence[int]


@baselines.register("majority", title="majority class")
def majority(train: LabelledTexts, validation: LabelledTexts, texts: Sequence[str], labels: int) -> NDArray[Any]:  # noqa: ARG001
    """Give every text the training split's label frequencies; the most frequent label wins everywhere."""
    import numpy as np

    counts = np.bincount(train.targets, minlength=labels).astype(np.float64)
    return np.tile(counts / counts.sum(), (len(texts), 1))


@baselines.register("tfidf-logreg", title="TF-IDF + logistic regression")
def tfidf_logreg(
    train: LabelledTexts,
    validation: LabelledTexts,
    texts: Sequence[str],
    labels: int,
) -> NDArray[Any]:
    """Words and word pairs, sublinear TF-IDF, logistic regression with C chosen on the validation split.

    Returns class probabilities of shape (texts, labels).
    """
    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    features = vectorizer.fit_transform(train.texts)
    held_out = vectorizer.transform(validation.texts)
    models = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a strength that does not converge loses on validation
        for strength in STRENGTHS:
            models.append(LogisticRegression(C=strength, max_iter=500).fit(features, train.targets))
    best = max(models, key=lambda model: model.score(held_out, validation.targets))
    probabilities = np.zeros((len(texts), labels))
    probabilities[:, best.classes_] = best.predict_proba(vectorizer.transform(texts))
    return probabilities
