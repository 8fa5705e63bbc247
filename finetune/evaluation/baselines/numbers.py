"""Baselines for numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from finetune.evaluation.baselines import BaselineInput
from finetune.evaluation.baselines.labels import word_pairs
from finetune.registry import baselines

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.numbers import NumberPredictions

# Strengths of regularization (alpha) to choose from
ALPHAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@baselines.register("mean", of=("numbers",), title="mean of the training scores")
def mean(given: BaselineInput) -> NumberPredictions:
    """Say of every text the mean of the training split: of all constants the one with the least squared error."""
    import numpy as np

    like = _like(given)
    return like.saying(np.tile(scores(given.train, like.names).mean(axis=0), (len(given.rows), 1)))


@baselines.register("tfidf-ridge", of=("numbers",), title="TF-IDF + ridge regression")
def tfidf_ridge(given: BaselineInput) -> NumberPredictions:
    """Words and word pairs, sublinear TF-IDF, ridge regression with the alpha that is best on the validation split.

    It is chosen for each target by the squared error there.
    """
    import numpy as np
    from sklearn.linear_model import Ridge

    like, vectorizer = _like(given), word_pairs(texts := given.texts(given.train))
    features, targets = vectorizer.transform(texts), scores(given.train, like.names)
    held_out, wanted = vectorizer.transform(given.texts(given.validation)), scores(given.validation, like.names)
    asked = vectorizer.transform(given.texts(given.rows))
    models = [Ridge(alpha=alpha).fit(features, targets) for alpha in ALPHAS]
    errors = [((_said(model, held_out) - wanted) ** 2).mean(axis=0) for model in models]
    best = np.argmin(errors, axis=0)
    columns = [_said(models[model], asked)[:, target] for target, model in enumerate(best)]
    return like.saying(np.stack(columns, axis=1))


def scores(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> NDArray[Any]:
    """Return the true values of some rows, shape (rows, targets)."""
    import numpy as np

    return np.array([[row[name] for name in names] for row in rows], dtype=np.float64)


def _said(model: Any, features: Any) -> NDArray[Any]:
    """Return what a model says, shape (texts, targets), also where there is one target."""
    return model.predict(features).reshape(features.shape[0], -1)  # type: ignore[no-any-return]


def _like(given: BaselineInput) -> NumberPredictions:
    return cast("NumberPredictions", given.like)
