"""What people read of a range test: every verdict in words, what to try, and the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune.recipe import load_recipe
from finetune.reports.range_test import caveats, findings, plot_range_test, rate, suggestions
from tests.conftest import RecipeMaker

FALLS = {"verdict": "falls", "steepest": 2e-4, "lowest": 1e-3, "tenth_of_lowest": 1e-4, "falls_from": 3e-5}


def report_of(advice: dict[str, Any], **changes: Any) -> dict[str, Any]:
    report = {
        "optimizer": "adamw",
        "learning_rate": 5e-5,
        "rates_differ": False,
        "sweep": {"from": 1e-7, "to": 1e-2, "steps": 20},
        "epochs": 1.0,
        "advice": advice,
        "points": [
            {"learning_rate": 10 ** (-7 + step / 3.8), "loss": 2.0 - 0.03 * step, "smoothed": 2.0 - 0.03 * step}
            for step in range(20)
        ],
    }
    return {**report, **changes}


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.4e-4, "3.4e-4"), (5e-5, "5e-5"), (1e-7, "1e-7"), (1.23456e-5, "1.23e-5"), (0.01, "0.01"), (0.05, "0.05"),
     (9.999e-3, "1e-2"), (1.0, "1"), (10.0, "10")],
)  # fmt: skip
def test_rates_are_written_as_recipes_have_them(value: float, text: str) -> None:
    assert rate(value) == text


@pytest.mark.parametrize("value", [3.4e-4, 5e-5, 1e-7, 1.2, 0.05, 8.0, 0.0099])
def test_what_to_try_is_what_a_recipe_understands(make_recipe: RecipeMaker, value: float) -> None:
    [(setting, why)] = suggestions(report_of({"verdict": "falls", "steepest": value, "falls_from": 1e-7}))
    option, _, assignment = setting.partition(" ")
    assert (option, why) == ("--set", "where the loss falls fastest")
    assert load_recipe(make_recipe(), [assignment]).train.learning_rate == pytest.approx(value)


def test_a_fall_is_told_with_the_recipes_own_rate_and_both_rates_to_try() -> None:
    report = report_of(FALLS)
    assert findings(report) == [
        "The loss falls between 3e-5 and 1e-3, fastest at 2e-4.",
        "train.learning_rate is 5e-5: 4.0 times lower than where the loss falls fastest.",
    ]
    assert suggestions(report) == [
        ("--set train.learning_rate=2e-4", "where the loss falls fastest"),
        ("--set train.learning_rate=1e-4", "a tenth of where it is lowest"),
    ]


@pytest.mark.parametrize(
    ("own", "told"),
    [(1.5e-4, ": near where the loss falls fastest."), (9e-4, ": 4.5 times higher than where the loss falls fastest."),
     (2e-3, ": above 1e-3, where the loss begins to rise.")],
)  # fmt: skip
def test_the_recipes_own_rate_is_compared(own: float, told: str) -> None:
    assert findings(report_of(FALLS, learning_rate=own))[-1] == f"train.learning_rate is {rate(own)}{told}"


@pytest.mark.parametrize(
    ("advice", "told"),
    [
        (
            {"verdict": "falls", "steepest": 2e-4, "falls_from": 3e-5},
            "The loss falls from 3e-5 on, fastest at 2e-4. It has no lowest point up to 0.01. Try --to 0.1.",
        ),
        (
            {"verdict": "falls", "lowest": 1e-3, "tenth_of_lowest": 1e-4, "falls_from": 3e-5},
            "The loss falls between 3e-5 and 1e-3, fastest right before it ends.",
        ),
        (
            {"verdict": "still-falling", "falls_from": 3e-5},
            "The loss falls fastest at 0.01, where the test ends: no rate to name. Try --to 0.1.",
        ),
        (
            {"verdict": "flat"},
            "The loss does not clearly fall between 1e-7 and 0.01: the curve is flat and says nothing. Try --to 0.1.",
        ),
        (
            {"verdict": "noisy"},
            "The loss differs more from step to step than it falls: the curve is too noisy and says nothing. "
            "Try more --steps over a narrower range, or a larger train.batch_size.",
        ),
        (
            {"verdict": "rises"},
            "The loss rises without having fallen: no rate to name. Try a lower --from, and look at the targets.",
        ),
    ],
    ids=lambda value: value["verdict"] if isinstance(value, dict) else "",
)
def test_every_verdict_has_its_words(advice: dict[str, Any], told: str) -> None:
    assert findings(report_of(advice))[0] == told


@pytest.mark.parametrize("verdict", ["still-falling", "flat", "noisy", "rises"])
def test_a_curve_that_says_nothing_gives_nothing_to_try(verdict: str) -> None:
    report = report_of({"verdict": verdict})
    assert suggestions(report) == []
    assert findings(report)[-1] == "train.learning_rate is 5e-5."


def test_optimizers_of_high_rates_are_told_so_and_no_rate_beyond_a_recipes_is_named() -> None:
    flat = {"verdict": "flat"}
    assert findings(report_of(flat, optimizer="sgd"))[0].endswith("Try --to 0.1 (usual rates of sgd are high).")
    highest = report_of(flat, sweep={"from": 1e-7, "to": 10.0, "steps": 20})
    assert findings(highest)[0].endswith("Higher rates are none that a recipe takes.")


def test_an_early_end_is_told() -> None:
    report = report_of(FALLS, ended_early={"because": "the loss exploded", "learning_rate": 3.2e-3})
    assert "The test ended at 3.2e-3: the loss exploded." in findings(report)


def test_what_the_test_cannot_tell_is_said() -> None:
    assert [line.partition(",")[0] for line in caveats(report_of(FALLS))] == ["These are 20 first steps"]
    more = caveats(report_of(FALLS, rates_differ=True, epochs=7.7))
    assert len(more) == 3
    assert "at a factor of these rates (layer_decay, freeze)" in more[1]
    assert "read 7.7 times" in more[2]


@pytest.mark.parametrize("advice", [FALLS, {"verdict": "flat"}], ids=["falls", "flat"])
def test_the_picture_is_drawn_and_the_same_again(tmp_path: Path, advice: dict[str, Any]) -> None:
    for name in ("first", "second"):
        plot_range_test(report_of(advice), tmp_path / name)
    drawn = (tmp_path / "first").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert drawn == (tmp_path / "second").read_bytes()
    plot_range_test(report_of({"verdict": "flat"}, learning_rate=5.0), tmp_path / "without")
    assert (tmp_path / "without").read_bytes() != drawn
