"""What a report says of predicted numbers: how well each target is met, where the errors are, and the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune.evaluation.sections import Histogram, Scatter, Section, Table
from finetune.tasks import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.numbers import NumberPredictions

PARTS = 5
POINTS = 2000
METRICS = ("pearson", "spearman", "r2", "rmse", "mae")


def difficulty(predictions: NumberPredictions) -> NDArray[Any]:
    """Return each row's absolute error in deviations of the target, the mean over targets."""
    errors = abs(predictions.values - predictions.targets)
    return (errors / predictions.deviations).mean(axis=1)  # type: ignore[no-any-return]


def example(predictions: NumberPredictions, answer: int, row: Row) -> dict[str, Any]:
    """Return a text with each target's true and predicted value and the error, predicted less true."""
    cells: dict[str, Any] = {role: row[role] for role in ("text", "text_pair") if role in row}
    several = len(predictions.names) > 1
    triples = zip(predictions.names, predictions.targets[answer], predictions.values[answer], strict=True)
    for name, true, said in triples:
        of_target = f" {name}" if several else ""
        cells |= {name: float(true), f"predicted{of_target}": float(said), f"error{of_target}": float(said - true)}
    return cells


def details(predictions: NumberPredictions, seed: int) -> dict[str, Any]:
    """Return for each target its scores, the errors by part of the true values, and the points of the pictures."""
    from finetune.evaluation.statistics import bootstrap

    targets = {}
    for number, name in enumerate(predictions.names):
        one = predictions.of_target(number)
        targets[name] = {
            "deviation_in_training": float(one.deviations[0]),
            "metrics": {metric: found.as_json() for metric, found in bootstrap(METRICS, one, seed).items()},
            "by_quantile": by_quantile(one.targets[:, 0], one.values[:, 0], seed),
            "points": _points(one.targets[:, 0], one.values[:, 0], seed),
        }
    return {"targets": targets}


def by_quantile(true: NDArray[Any], said: NDArray[Any], seed: int) -> list[dict[str, Any]]:
    """Return the errors of as many rows each, from the least true values to the greatest; equal values stay together.

    `bias` is the mean of predicted less true, `mae` the mean of its absolute value, both with intervals.
    """
    import numpy as np

    from finetune.evaluation.statistics import interval_of_sums

    inner = np.quantile(true, np.linspace(0, 1, PARTS + 1)[1:-1]) if len(true) else np.zeros(0)
    part = np.searchsorted(np.unique(inner), true, side="right")
    found = []
    for number in np.unique(part):
        rows = part == number
        errors = (said - true)[rows]
        bias, mae = (
            interval_of_sums(np.stack([np.ones_like(values), values], axis=1), _mean, seed)
            for values in (errors, abs(errors))
        )
        found.append(
            {
                "low": float(true[rows].min()),
                "high": float(true[rows].max()),
                "rows": int(rows.sum()),
                "mean_true": float(true[rows].mean()),
                "mean_predicted": float(said[rows].mean()),
                "bias": bias.as_json(),
                "mae": mae.as_json(),
            }
        )
    return found


def _mean(sums: NDArray[Any]) -> NDArray[Any]:
    return sums[..., 1] / sums[..., 0]  # type: ignore[no-any-return]


def _points(true: NDArray[Any], said: NDArray[Any], seed: int) -> dict[str, list[float]]:
    """Return true and predicted values, of very many rows a sample."""
    import numpy as np

    chosen = np.arange(len(true))
    if len(true) > POINTS:
        chosen = np.sort(np.random.default_rng(seed).choice(len(true), POINTS, replace=False))
    return {"true": true[chosen].tolist(), "predicted": said[chosen].tolist()}


def sections(report: Mapping[str, Any]) -> list[Section]:
    """Return the scores by target if there are several, then for each its errors by quantile and its pictures."""
    targets = report["targets"]
    rows = [[name, *(found["metrics"][metric] for metric in METRICS)] for name, found in targets.items()]
    by_target: list[Section] = [Table("By target", ["target", "Pearson", "Spearman", "R²", "RMSE", "MAE"], rows)]
    each = [section for name, found in targets.items() for section in _of_target(name, found, report["rows"])]
    return [*by_target, *each] if len(targets) > 1 else each


def _of_target(name: str, found: Mapping[str, Any], rows: int) -> list[Section]:
    header = [f"true {name}", "rows", "mean", "predicted, mean", "bias", "MAE"]
    lines = [
        [
            f"{part['low']:g}" if part["low"] == part["high"] else f"{part['low']:g} to {part['high']:g}",
            *(part[key] for key in ("rows", "mean_true", "mean_predicted", "bias", "mae")),
        ]
        for part in found["by_quantile"]
    ]
    true, said = found["points"]["true"], found["points"]["predicted"]
    note = f"{len(true)} of {rows} rows" if len(true) < rows else ""
    residuals = [predicted - wanted for wanted, predicted in zip(true, said, strict=True)]
    return [
        Table(
            f"Errors by true {name}",
            header,
            lines,
            "Bias is the mean of predicted less true: positive where the model says too much.",
        ),
        Scatter(
            f"True and predicted {name}", true, said, f"true {name}", f"predicted {name}", diagonal=True, note=note
        ),
        Histogram(f"Residuals of {name}", residuals, f"predicted less true {name}", note),
    ]
