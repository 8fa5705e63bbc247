"""Baselines for label sets; their thresholds are fitted on the validation split just as the model's are."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from finetune.evaluation.baselines import BaselineInput, Row
from finetune.evaluation.baselines.labels import STRENGTHS, word_pairs
from finetune.registry import baselines

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.label_sets import LabelSetPredictions


@baselines.register("prevalence", of=("labels",), title="label frequencies")
def prevalence(given: BaselineInput) -> LabelSetPredictions:
    """Give every text each label with the share of training rows that have it as its probability.

    All rows get the same labels: with fitted thresholds all of them, which is the best that F1 allows for a guess.
    """
    import numpy as np

    shares = _targets(given, given.train).mean(axis=0)
    said, held_out = (np.tile(shares, (len(rows), 1)) for rows in (given.rows, given.validation))
    return _said(given, said, held_out)


@baselines.register("tfidf-one-vs-rest", of=("labels",), title="TF-IDF + a logistic regression for each label")
def tfidf_one_vs_rest(given: BaselineInput) -> LabelSetPredictions:
    """Words and word pairs, sublinear TF-IDF, a logistic regression for each label.

    Their C is the one with the best macro F1 on the validation split. A label that no training row has gets
    probability 0, and one that all have gets 1.
    """
    import numpy as np

    vectorizer, targets = word_pairs(texts := given.texts(given.train)), _targets(given, given.train)
    features = vectorizer.transform(texts)
    held_out, rows = (vectorizer.transform(given.texts(part)) for part in (given.validation, given.rows))
    found = []
    for strength in STRENGTHS:
        probabilities = [_probabilities(features, column, strength, (held_out, rows)) for column in targets.T]
        on_validation, on_rows = (np.column_stack(part) for part in zip(*probabilities, strict=True))
        found.append((_score(given, on_validation), on_rows, on_validation))
    _, *best = max(found, key=lambda entry: entry[0])
    return _said(given, *best)


def _probabilities(features: Any, targets: NDArray[Any], strength: float, parts: Iterable[Any]) -> list[NDArray[Any]]:
    """Return the probability of a label in each row of each part, by a regression on 0/1 targets of shape (rows,)."""
    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if targets.min() == targets.max():
        return [np.full(part.shape[0], float(targets[0])) for part in parts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a strength that does not converge loses on validation
        model = LogisticRegression(C=strength, max_iter=500).fit(features, targets)
    return [model.predict_proba(part)[:, 1] for part in parts]


def _score(given: BaselineInput, probabilities: NDArray[Any]) -> float:
    """Return macro F1 on the validation split, with thresholds fitted there."""
    import numpy as np

    from finetune.evaluation.metrics.labels import averaged_scores

    told = replace(_said(given, probabilities, probabilities), targets=_targets(given, given.validation))
    return float(averaged_scores("f1", "macro", told.label_counts(np.ones(len(probabilities)))))


def _said(given: BaselineInput, probabilities: NDArray[Any], on_validation: NDArray[Any]) -> LabelSetPredictions:
    """Return predictions for the rows, with thresholds fitted on validation by the model's own rule."""
    from finetune.evaluation.predictions.label_sets import fit_thresholds

    like = cast("LabelSetPredictions", given.like)
    thresholds = fit_thresholds(_targets(given, given.validation), on_validation, like.rule)
    return replace(like, probabilities=probabilities, thresholds=thresholds)


def _targets(given: BaselineInput, rows: Iterable[Row]) -> NDArray[Any]:
    """Return 0 or 1 for each label of each row, shape (rows, labels)."""
    from finetune.evaluation.predictions.label_sets import label_matrix

    assert given.label_role is not None
    return label_matrix((row[given.label_role] for row in rows), given.labels)
