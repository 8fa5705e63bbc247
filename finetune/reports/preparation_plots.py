"""Pictures of a preparation, drawn from its JSON report: where rows went, labels by split, tokens by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.reports.next_steps import bins
from finetune.reports.plots import plain_label, save_figure
from finetune.reports.preparation import FUNNEL, LABELS, LENGTHS, frequent_first
from finetune.reports.wording import many, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

MAX_LABELS_WITH_NAMES = 60
MAX_REASONS = 12
KEPT, DROPPED, MADE = "#555555", "#c44e52", "#8172b3"
SPLIT_COLOURS = {"train": "#4c72b0", "validation": "#dd8452", "test": "#55a868"}


def draw_preparation(report: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draw the pictures that a `report.json` has data for into `folder`; return their file names by title."""
    drawn = {FUNNEL: "funnel.png"}
    plot_funnel(report, folder / "funnel.png")
    if report.get("labels"):
        drawn[LABELS] = "labels.png"
        plot_labels(report, folder / "labels.png")
    if sum(report.get("tokens", {}).get("histogram", {}).get("counts", [])):
        drawn[LENGTHS] = "lengths.png"
        plot_lengths(report, folder / "lengths.png")
    return drawn


def plot_funnel(report: Mapping[str, Any], target: Path) -> None:
    """Draw how the rows read became the rows of each split, a bar for each step, as a PNG."""
    from matplotlib.figure import Figure

    steps = list(_steps(report))
    figure = Figure(figsize=(8, 0.32 * len(steps) + 1), layout="constrained")
    axes = figure.add_subplot()
    end = max([1, *(start + size for _, start, size, _ in steps)])
    for place, (_, start, size, colour) in enumerate(steps):
        sliver = max(size, 0.003 * end if size else 0)  # a few rows among a million can still be seen
        axes.barh(place, sliver, left=start, color=colour, height=0.7)
        number = f"{size:,}" if colour == MADE or not place else f"{size:,} ({share(size, report['rows_read'])})"
        axes.text(start + sliver + 0.01 * end, place, number, va="center", fontsize=8, color="#333333")
    axes.set_yticks(range(len(steps)), [name for name, *_ in steps], fontsize=9)
    axes.set(xlim=(0, 1.2 * end), ylim=(len(steps) - 0.5, -0.5))
    _frame(axes, FUNNEL, "rows")
    save_figure(figure, target)


def _steps(report: Mapping[str, Any]) -> Iterator[tuple[str, int, int, str]]:
    """Yield each step's name, the row at which its bar begins, how many rows it has, and its colour."""
    left = report["rows_read"]
    yield "read", 0, left, KEPT
    reasons = sorted(report.get("dropped", {}).items(), key=lambda item: -item[1])
    if len(reasons) > MAX_REASONS:
        rest = reasons[MAX_REASONS - 1 :]
        reasons = [*reasons[: MAX_REASONS - 1], (f"{len(rest)} more reasons", sum(count for _, count in rest))]
    for reason, count in reasons:
        left -= count
        yield f"dropped: {plain_label(reason)}", left, count, DROPPED
    yield "kept", 0, report["rows_kept"], KEPT
    begin = 0
    for name, count in report.get("splits", {}).items():
        yield f"in {plain_label(name)}", begin, count, _colour(name)
        begin += count
    if made := report.get("augmented", {}).get("rows"):
        yield "made for train", report.get("splits", {}).get("train", 0), made, MADE


def _colour(split: str) -> str:
    return SPLIT_COLOURS.get(split, "#937860")


def plot_labels(report: Mapping[str, Any], target: Path) -> None:
    """Draw how often each label is in each split as a PNG; many labels become one curve without names.

    A label that the font cannot write is shown by its number in the table of the report.
    """
    labels: Mapping[str, Mapping[str, int]] = report["labels"]
    splits = list(report.get("splits", {})) or list(
        dict.fromkeys(name for counts in labels.values() for name in counts)
    )
    if len(labels) > MAX_LABELS_WITH_NAMES:
        _plot_many_labels(labels, splits, target)
    else:
        _plot_few_labels(labels, splits, target)


def _plot_few_labels(labels: Mapping[str, Mapping[str, int]], splits: Sequence[str], target: Path) -> None:
    import numpy as np
    from matplotlib.figure import Figure

    names = frequent_first(labels)
    figure = Figure(figsize=(8, 0.24 * max(len(names), 3) + 1.4), layout="constrained")
    axes = figure.add_subplot()
    begins = np.zeros(len(names))
    for split in splits:
        sizes = np.array([labels[name].get(split, 0) for name in names])
        axes.barh(range(len(names)), sizes, left=begins, color=_colour(split), label=plain_label(split), height=0.75)
        begins += sizes
    for place, total in enumerate(begins):
        axes.text(total + 0.01 * begins.max(), place, f"{int(total):,}", va="center", fontsize=8, color="#333333")
    axes.set_yticks(range(len(names)), _written(names), fontsize=9)
    axes.set(xlim=(0, 1.1 * begins.max() or 1), ylim=(max(len(names), 3) - 0.5, -0.5))
    _frame(axes, LABELS, "count")
    _legend_above(axes, len(splits))
    save_figure(figure, target)


def _plot_many_labels(labels: Mapping[str, Mapping[str, int]], splits: Sequence[str], target: Path) -> None:
    import numpy as np
    from matplotlib.figure import Figure

    names = frequent_first(labels)
    totals = np.array([sum(labels[name].values()) for name in names])
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    edges = np.arange(len(names) + 1) + 0.5
    axes.stairs(totals, edges, fill=True, color="#9bb8d3", label="all splits")
    median = float(np.median(totals))
    axes.axhline(median, color=KEPT, linestyle=":", label=f"median: {median:,.0f}")
    scale = " (logarithmic)" if totals[0] > 50 * max(median, 1) else ""
    if scale:
        axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter("{x:,.0f}")  # choosing a scale sets one
    for split in splits:
        absent = [rank for rank, name in enumerate(names, 1) if not labels[name].get(split)]
        if absent:
            text = f"not in {plain_label(split)}: {many(len(absent), 'label')}"
            axes.plot(absent, [0] * len(absent), "|", color=_colour(split), markersize=10, label=text, clip_on=False)
    most, least = _written([names[0], names[-1]], [1, len(names)])
    axes.set(xlim=(0.5, len(names) + 0.5), ylabel="count" + scale)
    axes.set_ylim(0, totals[0] * (2 if scale else 1.05) or 1)
    axes.set_xlabel(
        f"the {len(names):,} labels, the most frequent first (no. in the table)\n"
        f"most: {most} ({totals[0]:,}); least: {least} ({totals[-1]:,})",
        fontsize=9,
    )
    axes.set_title(LABELS, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    _legend_above(axes, 2)
    save_figure(figure, target)


def _written(labels: Sequence[str], numbers: Sequence[int] | None = None) -> list[str]:
    """Return labels as the font can write them: cut in the middle, or by number where it lacks a character."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap()
    shown = [plain_label(label if len(label) <= 30 else f"{label[:17]}…{label[-12:]}") for label in labels]
    return [
        label if label.strip() and all(ord(character) in known for character in label) else f"no. {number}"
        for number, label in zip(numbers or range(1, len(labels) + 1), shown, strict=True)
    ]


def plot_lengths(report: Mapping[str, Any], target: Path) -> None:
    """Draw a histogram of tokens by row with `model.max_length` as a line, as a PNG; what lies behind it is red."""
    from matplotlib.figure import Figure

    tokens = report["tokens"]
    edges, counts = bins(tokens["histogram"])
    most = tokens.get("max_length")
    end, hidden = _right_end(edges, counts)
    if most and end < most <= 2 * end:
        end = 1.02 * most
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.stairs(counts, edges, fill=True, color=SPLIT_COLOURS["train"])
    if most:
        _mark_most(axes, most, end, tokens.get("rows_cut"))
    axes.set_xlim(min(edges[0], end), end)
    axes.set_ylabel("rows")
    axes.set_title(LENGTHS, loc="left", fontsize=11)
    rest = f" ({many(hidden, 'longer row')}, up to {edges[-1]:,.0f}, not shown)" if hidden else ""
    axes.set_xlabel(f"tokens{rest}")
    _whole_numbers(axes.xaxis)
    _whole_numbers(axes.yaxis)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, target)


def _mark_most(axes: Axes, most: int, end: float, rows_cut: int | None) -> None:
    """Mark where the model stops reading, if the picture goes so far, and say how many rows go further."""
    text = f"model.max_length: {most:,}" + ("" if most <= end else " (further right)")
    text += "" if rows_cut is None else f"; {many(rows_cut, 'row')} cut"
    if most <= end:
        axes.axvline(most, color=DROPPED, linewidth=1.5, linestyle="--", label=text)
        axes.axvspan(most, end, color=DROPPED, alpha=0.12, linewidth=0, zorder=0)
    else:
        axes.plot([], [], " ", label=text)
    _legend_above(axes, 1)


def _right_end(edges: Sequence[float], counts: Sequence[float]) -> tuple[float, int]:
    """Return where to end the picture, and how many rows are longer: a few very long ones must not flatten the rest."""
    total, seen = sum(counts), 0.0
    for right, count in zip(edges[1:], counts, strict=True):
        seen += count
        if seen >= 0.995 * total and 3 * right < edges[-1]:
            return right, int(total - seen)
    last = max(right for right, count in zip(edges[1:], counts, strict=True) if count)
    return last, 0


def _frame(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(unit)
    _whole_numbers(axes.xaxis)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _whole_numbers(axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", integer=True))
    axis.set_major_formatter("{x:,.0f}")


def _legend_above(axes: Axes, columns: int) -> None:
    axes.legend(
        frameon=False, fontsize=9, ncols=max(columns, 1), loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0
    )
