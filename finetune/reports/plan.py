"""A plan for people: Markdown and a picture of the schedule, made from the plan's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.reports.markdown import escape, table
from finetune.reports.plots import save_figure
from finetune.reports.wording import share

# The parts of the memory by their keys, and what they are
PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer's state",
    "activations": "activations of the largest micro-batch",
    "scoring": "largest batch of an evaluation",
    "caches": "cache while writing",
    "process": "the program itself",
}


def size(count: float) -> str:
    """Return bytes as people read them: `1.4 GB`, a GB being 10^9 bytes."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}" if count < 10 * unit else f"{count / unit:,.0f} {name}"
    return f"{count / 1e3:,.0f} kB"


def duration(seconds: float) -> str:
    """Return seconds as people read them: `1 h 20 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def advised(report: Mapping[str, Any]) -> list[str]:
    """Return the warnings of a plan as sentences, with what would help and the peak that it would bring."""
    lines = []
    for warned in report["warnings"]:
        parts = [item["set"] + (f" (peak {size(item['peak'])})" if "peak" in item else "") for item in warned["advice"]]
        lines.append(f"{warned['message']}." + (f" Try {', or '.join(parts)}." if parts else ""))
    return lines


def memory_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the parts of the memory that there are, and what they come to."""
    memory = report["memory"]
    rows = [(title, size(memory[part])) for part, title in PARTS.items() if memory[part]]
    return [*rows, ("peak", size(memory["peak"])), ("there is", size(memory["available"]))]


def work_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a training does."""
    work, disk = report["work"], report["disk"]
    windows = f" in {work['windows']:,} windows" if work["windows"] != work["rows"] else ""
    written = f", {work['writes']:,} of them answered by writing" if work["writes"] else ""
    rows = [
        ("training rows", f"{work['rows']:,}{windows}"),
        ("optimizer steps", f"{work['steps']:,} ({work['epochs']:g} epochs of {work['steps_per_epoch']:,})"),
        ("tokens", f"{work['tokens']:,} ({work['tokens_per_epoch']:,} an epoch)"),
        ("padding", share(work["padding"], 1)),
        ("evaluations", f"{work['evaluations']:,} of {work['validation_rows']:,} rows{written}"),
        ("disk", f"{size(disk['model'])} for the model, up to {size(disk['checkpoints'])} for checkpoints on the way; "
                 f"{size(disk['free'])} are free"),
    ]  # fmt: skip
    if "time" in report:
        times = report["time"]
        parts = [f"training {duration(times['training'])}", f"scoring {duration(times['scoring'])}"]
        parts += [f"writing at most {duration(times['writing'])}"] if times["writing"] else []
        rows.append(("time", f"about {duration(times['total'])}: {', '.join(parts)}"))
        rows.append(("peak, measured", size(times["peak"])))
    return rows


def plan_report(report: Mapping[str, Any], picture: str) -> str:
    """Return a plan as Markdown; `picture` is the schedule's file beside it."""
    parameters, memory = report["parameters"], report["memory"]
    groups = [(row["group"], f"{row['total']:,}", f"{row['trainable']:,}") for row in parameters["groups"]]
    groups.append(("all", f"{parameters['total']:,}", f"{parameters['trainable']:,}"))
    warned = [f"- {escape(line, limit=2000)}" for line in advised(report)]
    return "\n".join(
        [
            f"# Plan of {escape(report['name'])}",
            "",
            f"{escape(report['task'])} with {escape(report['model'])} on {report['device']}; nothing is trained yet.",
            *(["", "## Before you begin", "", *warned] if warned else []),
            "",
            "## Work",
            "",
            table(("", ""), work_rows(report), text_columns=2),
            "",
            "## Memory",
            "",
            f"The parts, each at its largest; they are not all there at once. The largest micro-batch has "
            f"{memory['rows']:,} windows and {memory['tokens']:,} ids with padding.",
            "",
            table(("part", "memory"), memory_rows(report)),
            "",
            "## Parameters",
            "",
            table(("group", "all", "trainable"), [(escape(name), *counts) for name, *counts in groups]),
            "",
            "## Learning rate",
            "",
            f"![The learning rate by step]({picture})",
            "",
        ]
    )


def plot_schedule(schedule: Sequence[Mapping[str, float]], target: Path) -> None:
    """Draw the learning rate by optimizer step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([one["step"] for one in schedule], [one["learning_rate"] for one in schedule], color="#4c72b0")
    axes.set(xlabel="optimizer step", ylabel="learning rate", title="Schedule")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="scientific", scilimits=(-2, 2))
    save_figure(figure, target)
