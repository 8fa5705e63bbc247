"""Pictures for the reports: the loss curve, and what tasks show: confusion matrices, points, histograms."""

from __future__ import annotations

import io
import itertools
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.evaluation.sections import Histogram, Matrix, Scatter, Section, Table
from finetune.training.curves import LOSS, Curve, Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from finetune.training.diagnosis import Finding

MAX_LABELS_WITH_NUMBERS = 25
MAX_MARKED_STEPS = 40
COLOURS = ("#55a868", "#8172b3", "#937860", "#da8bc3", "#8c8c8c")


def plot_loss_curve(curve: Curve, target: Path, findings: Sequence[Finding] = ()) -> None:
    """Draw the losses by step, below them the validation metrics and the learning rate.

    Training loss is drawn step by step, faint, and smoothed; the step of the model that was kept, and where a finding
    of overfitting begins, are marked in all of them. Metrics between 0 and 1 share a picture, others have their own.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    groups = _metric_groups(curve)
    heights = [3.2, *(1.5 for _ in groups), 1.1]
    figure = Figure(figsize=(7.5, 0.6 + sum(heights)), layout="constrained")
    rows = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    _draw_losses(rows[0], curve)
    for axes, group in zip(rows[1:-1], groups, strict=True):
        for scores, colour in zip(group, COLOURS, strict=False):
            _draw_scores(axes, scores, colour, plain_label(scores.name))
        axes.set(ylabel="validation")
    rows[-1].plot(
        curve.steps, curve.learning_rates, color="#555555", linewidth=1, marker=_marker(curve.steps), markersize=3
    )
    rows[-1].ticklabel_format(axis="y", style="scientific", scilimits=(-2, 2))
    rows[-1].set(xlabel="optimizer step", ylabel="learning rate")
    rows[-1].set_ylim(bottom=0)
    rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    since = next((finding.step for finding in findings if finding.name == "overfitting"), None)
    for axes in rows:
        _mark_steps(axes, curve, since, named=axes is rows[0])
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    save_figure(figure, target)


def _metric_groups(curve: Curve) -> list[list[Scores]]:
    """Return the validation metrics that can share an axis: those between 0 and 1; each other by itself."""
    metrics = [scores for name, scores in curve.scores.items() if name != LOSS and scores.values]
    shares = [scores for scores in metrics if min(scores.values) >= 0 and max(scores.values) <= 1]
    return [*([shares] if shares else []), *([scores] for scores in metrics if scores not in shares)]


def _draw_losses(axes: Axes, curve: Curve) -> None:
    smoothed = curve.smoothed
    faint = smoothed is not None
    axes.plot(
        curve.steps, curve.losses, color="#c3d3e3" if faint else "#3b6ea5", linewidth=0.8 if faint else 1.5,
        marker=_marker(curve.steps), markersize=3, label="training, each step",
    )  # fmt: skip
    if smoothed is not None:
        label = f"training, mean of {smoothed.window:,} steps"
        half = smoothed.window // 2  # nearer to the ends the means are of steps on one side
        within = slice(half, len(curve.steps) - half + 1)
        axes.plot(curve.steps[within], smoothed.means[within], color="#3b6ea5", linewidth=1.8, label=label)
    if LOSS in curve.scores:
        _draw_scores(axes, curve.scores[LOSS], "#c44e52", "validation")
    axes.set(ylabel="loss", title="Learning curves")
    axes.set_ylim(0, 1.05 * axes.dataLim.ymax if axes.has_data() else 1)


def _draw_scores(axes: Axes, scores: Scores, colour: str, label: str) -> None:
    axes.plot(scores.steps, scores.values, color=colour, marker=_marker(scores.steps), markersize=4, label=label)


def _marker(steps: Sequence[int]) -> str:
    """Return the mark of each value, where they are few enough to be told apart."""
    return "o" if len(steps) <= MAX_MARKED_STEPS else ""


def _mark_steps(axes: Axes, curve: Curve, overfitting: int | None, *, named: bool) -> None:
    """Mark the step of the model that was kept, and those from which on it overfits; the legend says so if `named`."""
    if curve.best_step:
        label = f"best model (step {curve.best_step:,})" if named else None
        axes.axvline(curve.best_step, color="#555555", linestyle=":", label=label)
    if overfitting is not None:
        label = f"overfitting from step {overfitting:,}" if named else None
        axes.axvspan(overfitting, max(*curve.steps, overfitting), color="#dd8452", alpha=0.15, linewidth=0, label=label)


def plot_confusion(
    labels: Sequence[str], matrix: Sequence[Sequence[int]], target: Path, title: str = "Confusion matrix"
) -> None:
    """Draw a confusion matrix, coloured by the share of each true label."""
    import numpy as np
    from matplotlib.figure import Figure

    counts = np.asarray(matrix, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.5, 0.6 * len(labels) + 2.5) if len(labels) <= MAX_LABELS_WITH_NUMBERS else 14
    figure = Figure(figsize=(side, side * 0.9), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(labels))
    size = 9 if len(labels) <= MAX_LABELS_WITH_NUMBERS else 5
    shown = [plain_label(label) for label in labels]
    axes.set_xticks(ticks, shown, rotation=60, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(ticks, shown, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true", title=plain_label(title))
    if len(labels) <= MAX_LABELS_WITH_NUMBERS:
        for true, predicted in np.argwhere(counts > 0):
            colour = "white" if shares[true, predicted] > 0.5 else "#333333"
            axes.text(
                predicted, true, str(int(counts[true, predicted])), ha="center", va="center", color=colour, fontsize=8
            )
    figure.colorbar(image, ax=axes, label="share of the true label", shrink=0.8)
    save_figure(figure, target)


def plot_scatter(scatter: Scatter, target: Path) -> None:
    """Draw points, faint where there are many, and the line on which both numbers are equal if it is asked for."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.add_subplot()
    alpha = min(0.8, max(0.1, 150 / max(1, len(scatter.x))))
    axes.scatter(scatter.x, scatter.y, s=14, color="#3b6ea5", alpha=alpha, linewidths=0)
    if scatter.diagonal and scatter.x:
        ends = [min(*scatter.x, *scatter.y), max(*scatter.x, *scatter.y)]
        axes.plot(ends, ends, color="#c44e52", linestyle=":", label="equal")
        axes.legend(frameon=False)
    axes.set(xlabel=plain_label(scatter.x_label), ylabel=plain_label(scatter.y_label), title=plain_label(scatter.title))
    save_figure(figure, target)


def plot_histogram(histogram: Histogram, target: Path) -> None:
    """Draw how often values occur; several series over each other, in the same bins."""
    import numpy as np
    from matplotlib.figure import Figure

    series = histogram.values if isinstance(histogram.values, Mapping) else {"": histogram.values}
    everything = [value for values in series.values() for value in values]
    edges = np.histogram_bin_edges(everything or [0.0], bins=30).tolist()
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, values in series.items():
        axes.hist(values, bins=edges, alpha=0.6 if len(series) > 1 else 1.0, label=plain_label(name))
    if len(series) > 1:
        axes.legend(frameon=False)
    axes.set(xlabel=plain_label(histogram.x_label), ylabel="count", title=plain_label(histogram.title))
    save_figure(figure, target)


def _file_name(prefix: str, title: str, taken: Iterable[str]) -> str:
    """Return a file name that says what the picture shows, in plain letters, and is not taken."""
    stem = f"{prefix}-{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')}"
    names = (f"{stem}{f'-{number}' if number > 1 else ''}.png" for number in itertools.count(1))
    known = set(taken)
    return next(name for name in names if name not in known)


def draw_sections(sections: Iterable[Section], folder: Path, prefix: str) -> dict[str, str]:
    """Draw the pictures among a report's sections; return their file names by title."""
    pictures: dict[str, str] = {}
    for section in sections:
        if isinstance(section, Table):
            continue
        name = _file_name(prefix, section.title, taken=pictures.values())
        if isinstance(section, Matrix):
            plot_confusion(section.labels, section.counts, folder / name, section.title)
        elif isinstance(section, Scatter):
            plot_scatter(section, folder / name)
        else:
            plot_histogram(section, folder / name)
        pictures[section.title] = name
    return pictures


def plain_label(label: str) -> str:
    """Keep a label from being read as a formula, from being endless, and from moving the text around it."""
    label = "".join(character if character.isprintable() else " " for character in label)
    return (label if len(label) <= 30 else label[:29] + "…").replace("$", r"\$")


def save_figure(figure: Figure, target: Path) -> None:
    """Write the picture atomically, without a date in it, so that equal runs give equal files."""
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"Software": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a label in a script that the font lacks
        figure.savefig(buffer, format="png", dpi=120, metadata=metadata)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(target)
