"""A learning-rate range test for people: what its curve says, and a picture of it, made from the test's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.reports.plots import save_figure
from finetune.training.range_test import HIGHEST_RATE

NEAR = 2.0  # times: within this two rates are much the same
HIGH_RATES = {"sgd", "adafactor"}  # optimizers whose usual rates are of the order of 1e-2
OFTEN = 3  # epochs: rows that come back so often are known by heart


def rate(value: float) -> str:
    """Return a learning rate as people and recipes write it: `3.4e-4`, `0.05`."""
    if value >= 0.01:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def findings(report: Mapping[str, Any]) -> list[str]:
    """Return what the curve says, as sentences."""
    lines = [_falls(report) if report["advice"]["verdict"] == "falls" else _nothing(report)]
    if ended := report.get("ended_early"):
        lines.append(f"The test ended at {rate(ended['learning_rate'])}: {ended['because']}.")
    return [*lines, _own_rate(report)]


def _nothing(report: Mapping[str, Any]) -> str:
    """Say why a curve names no rate, and what may help."""
    sweep, verdict = report["sweep"], report["advice"]["verdict"]
    if verdict == "still-falling":
        return f"The loss falls fastest at {rate(sweep['to'])}, where the test ends: no rate to name. {_higher(report)}"
    if verdict == "flat":
        between = f"between {rate(sweep['from'])} and {rate(sweep['to'])}"
        return f"The loss does not clearly fall {between}: the curve is flat and says nothing. {_higher(report)}"
    if verdict == "noisy":
        return (
            "The loss differs more from step to step than it falls: the curve is too noisy and says nothing. "
            "Try more --steps over a narrower range, or a larger train.batch_size."
        )
    return "The loss rises without having fallen: no rate to name. Try a lower --from, and look at the targets."


def _falls(report: Mapping[str, Any]) -> str:
    advice = report["advice"]
    lowest, steepest = advice.get("lowest"), advice.get("steepest")
    where = (
        f"between {rate(advice['falls_from'])} and {rate(lowest)}"
        if lowest
        else f"from {rate(advice['falls_from'])} on"
    )
    text = f"The loss falls {where}, "
    text += f"fastest at {rate(steepest)}." if steepest else "fastest right before it ends."
    if not lowest:
        text += f" It has no lowest point up to {rate(report['sweep']['to'])}. {_higher(report)}"
    return text


def _higher(report: Mapping[str, Any]) -> str:
    higher = min(HIGHEST_RATE, 10 * report["sweep"]["to"])
    if higher == report["sweep"]["to"]:
        return "Higher rates are none that a recipe takes."
    usual = f" (usual rates of {report['optimizer']} are high)" if report["optimizer"] in HIGH_RATES else ""
    return f"Try --to {rate(higher)}{usual}."


def _own_rate(report: Mapping[str, Any]) -> str:
    """Compare the recipe's rate with what was found."""
    own, advice = report["learning_rate"], report["advice"]
    text = f"train.learning_rate is {rate(own)}"
    if advice.get("lowest") and own > advice["lowest"]:
        return f"{text}: above {rate(advice['lowest'])}, where the loss begins to rise."
    if not (steepest := advice.get("steepest")):
        return f"{text}."
    if max(own, steepest) <= NEAR * min(own, steepest):
        return f"{text}: near where the loss falls fastest."
    times, which = (steepest / own, "lower") if own < steepest else (own / steepest, "higher")
    return f"{text}: {times:,.1f} times {which} than where the loss falls fastest."


def suggestions(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what to try, as `--set` takes it, and why; nothing if the curve says nothing."""
    reasons = {"steepest": "where the loss falls fastest", "tenth_of_lowest": "a tenth of where it is lowest"}
    advice = report["advice"]
    return [(f"--set train.learning_rate={rate(advice[name])}", why) for name, why in reasons.items() if name in advice]


def caveats(report: Mapping[str, Any]) -> list[str]:
    """Return what the test cannot tell."""
    lines = [
        f"These are {len(report['points'])} first steps, each at another rate, without validation: where a search may "
        "begin, not what is best. The recipe is as it was."
    ]
    if report["rates_differ"]:
        lines.append("Parts of the model learn at a factor of these rates (layer_decay, freeze).")
    if report["epochs"] >= OFTEN:
        lines.append(
            f"The training rows were read {report['epochs']:.3g} times: the loss also falls because they come back. "
            "Fewer --steps would show less of that."
        )
    return lines


def plot_range_test(report: Mapping[str, Any], target: Path) -> None:
    """Draw the loss by learning rate, on a logarithmic axis, with the advised rates and the recipe's own."""
    from matplotlib.figure import Figure

    advice, points, sweep = report["advice"], report["points"], report["sweep"]
    rates, losses, smoothed = ([point[name] for point in points] for name in ("learning_rate", "loss", "smoothed"))
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(rates, losses, color="#9bb8d3", linewidth=1, label="loss of a step")
    axes.plot(rates, smoothed, color="#3b6ea5", linewidth=2.2, label="smoothed")
    if "lowest" in advice:
        axes.axvspan(advice["falls_from"], advice["lowest"], color="#55a868", alpha=0.12, label="the loss falls")
    marks = (
        ("falls fastest", advice.get("steepest"), "#c44e52", "-"),
        ("a tenth of the lowest point's", advice.get("tenth_of_lowest"), "#dd8452", "--"),
        ("the recipe's", report["learning_rate"], "#555555", ":"),
    )
    for label, value, colour, style in marks:
        if value is not None and sweep["from"] <= value <= sweep["to"]:
            axes.axvline(value, color=colour, linestyle=style, label=f"{label}: {rate(value)}")
    axes.set(xscale="log", xlim=(sweep["from"], sweep["to"]), ylim=_limits(losses, smoothed))
    axes.set(xlabel="learning rate", ylabel="training loss", title="Learning-rate range test")
    axes.legend(edgecolor="none", framealpha=0.85, fontsize=9)
    save_figure(figure, target)


def _limits(losses: list[float], smoothed: list[float]) -> tuple[float, float]:
    """Return the loss's range in the picture: that of the smoothed curve and of all but the wildest losses."""
    import numpy as np

    low, high = min(*np.percentile(losses, [1, 97]), *smoothed), max(*np.percentile(losses, [1, 97]), *smoothed)
    room = 0.08 * (high - low) or 1.0
    return float(low - room), float(high + room)
