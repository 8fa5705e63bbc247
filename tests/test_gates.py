from __future__ import annotations

import math
from typing import Any

import pytest

from finetune.errors import FinetuneError, GateFailed
from finetune.gates import check_gates, require
from finetune.recipe import Gate

RESULTS = {
    "accuracy": {"value": 0.9, "low": 0.85, "high": 0.95, "drop": {"value": 0.01, "low": -0.01, "high": 0.03}},
    "agreement": 0.98,
}


def check(path: str, comparison: str, bound: float, results: dict[str, Any] = RESULTS) -> dict[str, Any]:
    return check_gates([Gate(path=path, comparison=comparison, bound=bound)], results)[0]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("accuracy", 0.9),
        ("accuracy.low", 0.85),
        ("accuracy.high", 0.95),
        ("accuracy.value", 0.9),
        ("quantized.accuracy", 0.9),
        ("quantized.accuracy.drop", 0.01),
        ("quantized.accuracy.drop.high", 0.03),
        ("quantized.agreement", 0.98),
    ],
)
def test_a_gate_reads_the_point_estimate_unless_it_names_a_bound(path: str, value: float) -> None:
    assert check(path, ">=", 0.0)["value"] == value


@pytest.mark.parametrize(
    ("comparison", "bound", "holds"),
    [
        (">=", 0.9, True),
        (">", 0.9, False),
        ("<=", 0.9, True),
        ("<", 0.9, False),
        (">=", 0.91, False),
        ("<=", 0.89, False),
        (">", 0.89, True),
        ("<", 0.91, True),
    ],
)
def test_comparisons_hold_at_their_bound_or_do_not(comparison: str, bound: float, holds: bool) -> None:
    assert check("accuracy", comparison, bound)["holds"] is holds


@pytest.mark.parametrize(
    ("path", "comparison", "bound", "margin"),
    [
        ("accuracy", ">=", 0.85, 0.05),
        ("accuracy", ">=", 0.95, -0.05),
        ("quantized.accuracy.drop", "<=", 0.03, 0.02),
        ("quantized.accuracy.drop", "<", 0.0, -0.01),
    ],
)
def test_the_margin_is_negative_by_how_much_a_gate_fails(
    path: str, comparison: str, bound: float, margin: float
) -> None:
    assert check(path, comparison, bound)["margin"] == pytest.approx(margin)


def test_a_checked_gate_is_written_as_the_recipe_writes_it() -> None:
    assert check("accuracy.low", ">=", 0.85)["gate"] == "accuracy.low >= 0.85"


@pytest.mark.parametrize("comparison", [">=", "<="])
def test_a_result_that_is_not_a_number_holds_no_gate(comparison: str) -> None:
    assert check("accuracy", comparison, 0.5, {"accuracy": math.nan})["holds"] is False


def test_a_gate_on_a_result_that_is_not_there_says_what_is() -> None:
    with pytest.raises(FinetuneError, match=r"gates\.f1-macro: expected a result of that name; found accuracy, agree"):
        check("f1-macro", ">=", 0.5)


def test_a_gate_on_a_bound_that_a_result_does_not_have_is_refused() -> None:
    with pytest.raises(FinetuneError, match=r"gates\.quantized\.agreement\.low"):
        check("quantized.agreement.low", ">=", 0.5)


def test_failed_gates_are_listed_together_and_exit_3() -> None:
    gates = [
        Gate(path="accuracy", comparison=">=", bound=0.95),
        Gate(path="accuracy", comparison=">=", bound=0.5),
        Gate(path="quantized.agreement", comparison=">=", bound=0.99),
    ]
    with pytest.raises(GateFailed) as caught:
        require(check_gates(gates, RESULTS))
    assert caught.value.exit_code == 3
    assert str(caught.value).splitlines() == [
        "2 quality gates failed:",
        "  accuracy >= 0.95: found 0.9000, 0.0500 short of it",
        "  quantized.agreement >= 0.99: found 0.9800, 0.0100 short of it",
    ]


def test_a_strict_gate_missed_by_nothing_is_not_short_by_minus_nothing() -> None:
    with pytest.raises(GateFailed) as caught:
        require([check("accuracy", ">", 0.9)])
    assert "-0.0000" not in str(caught.value)


def test_gates_that_hold_let_the_work_pass() -> None:
    require(check_gates([Gate(path="accuracy", comparison=">=", bound=0.9)], RESULTS))
