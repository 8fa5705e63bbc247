"""Pictures for the reports: the loss curve, and what tasks show: confusion matrices, points, histograms."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.evaluation.sections import Histogram, Matrix, Scatter, Section, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_LABELS_WITH_NUMBERS = 25


def plot_loss_curve(log: Path, target: Path) -> None:
    """Draw training and validation loss by step from a `log.jsonl`, the restored step marked."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "validation" in line]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([s["step"] for s in steps], [s["loss"] for s in steps], color="#9bb8d3", linewidth=1, label="training")
    axes.plot(
        [e["step"] for e in evaluations], [e["validation"]["loss"] for e in evaluations],
        color="#c44e52", marker="o", label="validation",
    )  # fmt: skip
    restored = next((line["restored_step"] for line in lines if "restored_step" in line), None)
    if restored:
        axes.axvline(restored, color="#555555", linestyle=":", label=f"best model (step {restored})")
    axes.set(xlabel="optimizer step", ylabel="loss", title="Loss")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    save_figure(figure, target)


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
