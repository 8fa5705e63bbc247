"""What a report says of predicted numbers: where the errors are, as plain values for tables and pictures."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from finetune.evaluation.predictions.numbers import NumberPredictions
from finetune.evaluation.sections import Histogram, Scatter, Table
from finetune.tasks import number_reports
from finetune.tasks.number_reports import by_quantile, details, difficulty, example, sections


def predictions_of(targets: object, values: object, *names: str, deviations: object = None) -> NumberPredictions:
    truth, said = (np.asarray(numbers, dtype=np.float64).reshape(-1, len(names)) for numbers in (targets, values))
    return NumberPredictions(names, truth, said, np.asarray(deviations or [1.0] * len(names)))


def ramp(rows: int, *names: str) -> NumberPredictions:
    """Return true values 0, 1, 2, ...; half a point too much is said of the least, half too little of the greatest."""
    truth = np.tile(np.arange(rows, dtype=np.float64)[:, None], (1, len(names)))
    return predictions_of(truth, truth + np.linspace(0.5, -0.5, rows)[:, None], *names)


def report_of(predictions: NumberPredictions) -> dict[str, Any]:
    found = {"rows": len(predictions), **details(predictions, 7)}
    return dict(json.loads(json.dumps(found, allow_nan=False)))  # plain JSON values, no NaN


def test_the_errors_of_each_quantile_add_up_to_those_of_all_rows() -> None:
    predictions = ramp(53, "score")
    parts = by_quantile(predictions.targets[:, 0], predictions.values[:, 0], seed=1)
    counts = [part["rows"] for part in parts]
    assert (len(parts), sum(counts), max(counts) - min(counts) <= 1) == (5, 53, True)
    errors = (predictions.values - predictions.targets)[:, 0]
    for key, wanted in (("bias", errors.mean()), ("mae", abs(errors).mean())):
        found = sum(part["rows"] * part[key]["value"] for part in parts) / 53
        assert found == pytest.approx(wanted, abs=1e-12)
    assert [part["bias"]["value"] > 0 for part in (*parts[:2], *parts[3:])] == [True, True, False, False]
    assert all(part["bias"]["low"] <= part["bias"]["value"] <= part["bias"]["high"] for part in parts)
    assert (parts[0]["low"], parts[-1]["high"]) == (0, 52)


def test_equal_true_values_stay_in_one_part() -> None:
    true = np.array([1.0] * 30 + [2.0] * 3 + [5.0] * 7)
    parts = by_quantile(true, true + 1, seed=1)
    ranges = [(part["low"], part["high"]) for part in parts]
    assert [sum(low <= value <= high for low, high in ranges) for value in true] == [1] * 40
    assert sum(part["rows"] for part in parts) == 40


def test_one_row_has_one_part_and_correlations_that_are_not_defined() -> None:
    report = report_of(predictions_of([3.0], [5.0], "score"))
    [part] = report["targets"]["score"]["by_quantile"]
    assert (part["rows"], part["bias"]) == (1, {"value": 2.0, "low": 2.0, "high": 2.0})
    assert report["targets"]["score"]["metrics"]["pearson"] == {"value": None, "low": None, "high": None}


def test_a_report_has_a_table_a_scatter_and_a_histogram_for_each_target() -> None:
    one = sections(report_of(ramp(20, "score")))
    assert [type(section) for section in one] == [Table, Scatter, Histogram]
    several = sections(report_of(ramp(20, "grammar", "content")))
    assert [type(section) for section in several] == [Table, *[Table, Scatter, Histogram] * 2]
    by_target = several[0]
    assert isinstance(by_target, Table)
    assert [row[0] for row in by_target.rows] == ["grammar", "content"]
    assert all(len(row) == len(by_target.header) for row in by_target.rows)
    titles = [section.title for section in several]
    assert len(set(titles)) == len(titles)


def test_pictures_show_true_against_predicted_and_their_difference() -> None:
    predictions = ramp(20, "score")
    table, scatter, histogram = sections(report_of(predictions))
    assert isinstance(table, Table)
    assert all(len(row) == len(table.header) for row in table.rows)
    assert isinstance(scatter, Scatter)
    assert (list(scatter.x), scatter.diagonal) == (predictions.targets[:, 0].tolist(), True)
    assert isinstance(histogram, Histogram)
    assert histogram.values == pytest.approx((predictions.values - predictions.targets)[:, 0].tolist())


def test_of_very_many_rows_pictures_show_a_sample_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number_reports, "POINTS", 12)
    report = report_of(ramp(40, "score"))
    points = report["targets"]["score"]["points"]
    assert (len(points["true"]), points["true"] == sorted(points["true"])) == (12, True)
    assert sections(report)[1].note == "12 of 40 rows"
    assert report == report_of(ramp(40, "score"))


def test_the_worst_rows_are_those_with_the_largest_errors_in_deviations_of_each_target() -> None:
    predictions = predictions_of([[0, 0], [0, 0], [0, 0]], [[1, 0], [0, 30], [0, 100]], "a", "b", deviations=[1, 100])
    assert difficulty(predictions).argmax() in {0, 2}
    assert difficulty(predictions).tolist() == [0.5, 0.15, 0.5]


def test_an_example_reads_as_true_predicted_and_error_of_each_target() -> None:
    row = {"text": "a dish", "text_pair": "of soup", "score": 2.0}
    one = example(predictions_of([2.0], [3.5], "score"), 0, row)
    assert one == {"text": "a dish", "text_pair": "of soup", "score": 2.0, "predicted": 3.5, "error": 1.5}
    several = example(predictions_of([[2.0, 1.0]], [[3.5, 0.0]], "a", "b"), 0, {"text": "a dish"})
    assert several == {
        "text": "a dish", "a": 2.0, "predicted a": 3.5, "error a": 1.5, "b": 1.0, "predicted b": 0.0, "error b": -1.0,
    }  # fmt: skip
