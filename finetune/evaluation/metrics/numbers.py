"""Metrics of numbers: correlations as scipy defines them, errors as scikit-learn does.

With several targets a metric is the mean over them (scikit-learn's `uniform_average`). What is not defined is NaN: a
correlation with a constant, and everything that needs two rows where there is one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from finetune.registry import metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.numbers import NumberPredictions

# A sum of squares that is this much smaller than what it is the difference of is rounding: there is no variance
ROUNDING = 1e-12


def moments(predictions: NumberPredictions) -> NDArray[Any]:
    """Return what correlations and errors are sums of, shape (rows, 7 × targets).

    For each target: 1, the true value, the predicted one, their squares and product, and the squared error; true and
    predicted values less a value from their middle, so that little is lost to rounding and a constant is 0.
    """
    import numpy as np

    true, said = (values - _middle(values) for values in (predictions.targets, predictions.values))
    errors = (predictions.values - predictions.targets) ** 2
    statistics = np.stack([np.ones_like(true), true, said, true**2, said**2, true * said, errors], axis=2)
    return statistics.reshape(len(true), -1)


def _middle(values: NDArray[Any]) -> NDArray[Any]:
    """Return a value of each column that half of the others are not above, shape (columns,)."""
    import numpy as np

    return np.sort(values, axis=0)[len(values) // 2]  # type: ignore[no-any-return]


def _by_target(sums: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return the seven sums, each of shape (..., targets)."""
    import numpy as np

    return tuple(np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 7), -1, 0))


def _variation(count: NDArray[Any], total: NDArray[Any], squares: NDArray[Any]) -> NDArray[Any]:
    """Return the sum of squared differences from the mean; 0 where only rounding is left of it."""
    import numpy as np

    found = squares - total**2 / count
    return np.where(found <= ROUNDING * squares, 0.0, found)


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any], undefined: Any) -> NDArray[Any]:
    """Return the quotient, and something else where the denominator is 0."""
    import numpy as np

    otherwise = np.broadcast_to(undefined, np.shape(denominator)).astype(np.float64)
    return np.divide(numerator, denominator, out=otherwise, where=denominator > 0)  # type: ignore[no-any-return]


def pearson_of_sums(sums: NDArray[Any]) -> NDArray[Any]:
    """Return Pearson's correlation, the mean over targets, from summed `moments`."""
    import numpy as np

    count, true, said, true_squares, said_squares, products, _ = _by_target(sums)
    spread = np.sqrt(_variation(count, true, true_squares)) * np.sqrt(_variation(count, said, said_squares))
    found = _ratio(products - true * said / count, spread, np.nan)
    return np.clip(found, -1, 1).mean(axis=-1)  # type: ignore[no-any-return]


def r2_of_sums(sums: NDArray[Any]) -> NDArray[Any]:
    """Return the coefficient of determination from summed `moments`.

    Of constant targets it is what scikit-learn says: 1 if all predictions are right, else 0.
    """
    import numpy as np

    count, true, _, true_squares, _, _, errors = _by_target(sums)
    found = 1 - _ratio(errors, _variation(count, true, true_squares), errors > 0)
    return np.where(count < 2, np.nan, found).mean(axis=-1)  # type: ignore[no-any-return]


def rmse_of_sums(sums: NDArray[Any]) -> NDArray[Any]:
    """Return the root of the mean squared error from summed `moments`."""
    import numpy as np

    count, *_, errors = _by_target(sums)
    return np.sqrt(errors / count).mean(axis=-1)  # type: ignore[no-any-return]


def absolute_errors(predictions: NumberPredictions) -> NDArray[Any]:
    """Return each row's absolute error, the mean over targets, shape (rows,)."""
    return abs(predictions.values - predictions.targets).mean(axis=1)  # type: ignore[no-any-return]


def _mean_over_targets(
    correlation: Callable[[NDArray[Any], NDArray[Any]], Any], predictions: NumberPredictions
) -> float:
    """Return the mean over targets of a function of scipy; its warning is our NaN."""
    import numpy as np

    if len(predictions) < 2:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = zip(predictions.targets.T, predictions.values.T, strict=True)
        return float(np.mean([correlation(true, said).statistic for true, said in pairs]))


@metrics.register("pearson", of=("numbers", "similarity"), higher_is_better=True, from_sums=(moments, pearson_of_sums))
def pearson(predictions: NumberPredictions) -> float:
    """Pearson's correlation of true and predicted values (`scipy.stats.pearsonr`); NaN if either is constant."""
    from scipy.stats import pearsonr

    return _mean_over_targets(pearsonr, predictions)


def rank_correlations(predictions: NumberPredictions) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return Spearman's correlation as a function of how often each row is drawn.

    It takes weights of shape (resamples, rows), all of one resample adding up to one number or another, and returns
    the shape (resamples,). Ranks are those that the rows have in the resample, equal values having their mean rank.
    """
    import numpy as np

    pairs = list(zip(predictions.targets.T, predictions.values.T, strict=True))

    def correlations(weights: NDArray[Any]) -> NDArray[Any]:
        return np.mean([_rank_correlation(true, said, weights) for true, said in pairs], axis=0)  # type: ignore[no-any-return]

    return correlations


def _rank_correlation(true: NDArray[Any], said: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    middle = (weights.sum(axis=1, keepdims=True) + 1) / 2
    first, second = (weighted_ranks(values, weights) - middle for values in (true, said))
    spread = np.sqrt((weights * first**2).sum(axis=1)) * np.sqrt((weights * second**2).sum(axis=1))
    return _ratio((weights * first * second).sum(axis=1), spread, np.nan)


def weighted_ranks(values: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
    """Return the mean rank of each row's value among all rows that a resample draws, shape (resamples, rows).

    It has the same shape as `weights`, which say how often each row is drawn; `values` have the shape (rows,).
    """
    import numpy as np

    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=np.nan) != 0)
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks = counts.cumsum(axis=1) - (counts - 1) / 2
    return ranks[:, np.searchsorted(values[order][starts], values)]


@metrics.register("spearman", of=("numbers", "similarity"), higher_is_better=True, from_weights=rank_correlations)
def spearman(predictions: NumberPredictions) -> float:
    """Spearman's rank correlation (`scipy.stats.spearmanr`); NaN if either side is constant."""
    from scipy.stats import spearmanr

    return _mean_over_targets(spearmanr, predictions)


@metrics.register("r2", of=("numbers",), higher_is_better=True, from_sums=(moments, r2_of_sums))
def r2(predictions: NumberPredictions) -> float:
    """Coefficient of determination (`r2_score`): 1 is perfect, 0 as good as the mean of the rows that are scored."""
    from sklearn.metrics import r2_score

    if len(predictions) < 2:
        return float("nan")
    return float(r2_score(predictions.targets, predictions.values))


@metrics.register("rmse", of=("numbers",), higher_is_better=False, from_sums=(moments, rmse_of_sums))
def rmse(predictions: NumberPredictions) -> float:
    """Root of the mean squared error (`root_mean_squared_error`), in the units of the target."""
    from sklearn.metrics import root_mean_squared_error

    return float(root_mean_squared_error(predictions.targets, predictions.values))


@metrics.register("mae", of=("numbers",), higher_is_better=False, from_rows=absolute_errors)
def mae(predictions: NumberPredictions) -> float:
    """Mean absolute error (`mean_absolute_error`), in the units of the target."""
    from sklearn.metrics import mean_absolute_error

    return float(mean_absolute_error(predictions.targets, predictions.values))
