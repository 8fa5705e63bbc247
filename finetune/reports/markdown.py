"""Markdown for people, made from the JSON reports; every text that came from data is escaped."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from finetune.evaluation.sections import UNITS, Cell, Section, Table

UNDEFINED = "not defined"
# Where a worst example comes from; the rest is what its task shows
PLACE = ("file", "line")

# Markup of Markdown within a line and a table cell, and the beginnings of what some renderers turn into links
_SPECIAL = re.compile(r"[\\`*_\[\]|~$@]|:(?=//)|(?<=[wW]{3})\.")


def escape(text: str, limit: int = 240) -> str:
    """Return text that Markdown shows as it is: one line, no markup, no HTML, no links, no control characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\g<0>", text)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """Return a Markdown table; the first `text_columns` are left-aligned, the others hold numbers."""
    aligned = ["---" if index < text_columns else "---:" for index in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, aligned, *rows])


def interval(value: Mapping[str, float | None]) -> str:
    """Return a value with its interval: `0.912 (0.881 to 0.941)`."""
    if value["value"] is None:
        return UNDEFINED
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def cell(value: Cell) -> str:
    """Return what stands in a cell of a table: text is escaped, numbers and intervals are rounded."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return interval(value)
    if isinstance(value, float):
        return UNDEFINED if math.isnan(value) else f"{value:.3f}"
    return escape(value) if isinstance(value, str) else str(value)


def evaluation_report(
    report: Mapping[str, Any],
    sections: Sequence[Section],
    pictures: Mapping[str, str],
    worst_means: str,
    curves: str | None = None,
) -> str:
    """Return an evaluation as Markdown.

    `sections` are what the task shows of it, `pictures` maps titles to file names beside the report, `worst_means`
    says by what the worst examples were chosen, and `curves` is the picture of the run's learning curves.
    """
    systems = {"model": report["metrics"], **report["baselines"]}
    parts = [
        f"# {escape(report['recipe'])}: evaluation on {escape(report['split'])}",
        f"Model {escape(report['model'])}, seed {report['seed']}, run {report['run_fingerprint'][:12]}.",
        _what_was_scored(report),
        table(
            ["metric", *systems],
            [[escape(name), *(interval(scores[name]) for scores in systems.values())] for name in report["metrics"]],
        ),
    ]
    if report["gains"]:
        parts += ["## Does fine-tuning pay?", _gains(report["gains"])]
    parts += _caveats(report)
    if report.get("gates"):
        parts += ["## Gates", gates_table(report["gates"])]
    for section in sections:
        if isinstance(section, Table):
            parts += [f"## {escape(section.title)}", *([section.note] if section.note else []), _section_table(section)]
    notes = {section.title: section.note for section in sections}
    for title, file in pictures.items():
        parts += [f"![{escape(title)}]({quote(file)})", *([notes[title]] if notes.get(title) else [])]
    parts += _learning_curves(report.get("diagnosis", []), curves)
    if report["worst"]:
        parts += [f"## The {len(report['worst'])} worst examples", worst_means, _worst(report["worst"])]
    return "\n\n".join(parts) + "\n"


def _learning_curves(findings: Sequence[Mapping[str, Any]], picture: str | None) -> list[str]:
    """Return the picture of the learning curves, and what was found in them."""
    shown = [f"![Loss by step]({quote(picture)})"] if picture else []
    if findings:
        shown.append("\n".join(map(_finding, findings)))
    return ["## Learning curves", *shown] if shown else []


def _finding(finding: Mapping[str, Any]) -> str:
    since = f" from step {finding['step']:,}" if finding["step"] is not None else ""
    change = f" To change: {escape('; '.join(finding['change']), limit=2000)}." if finding["change"] else ""
    return f"- **{escape(finding['name'])}**{since}: {escape(finding['evidence'], limit=2000)}.{change}"


def _gains(gains: Mapping[str, Mapping[str, Any]]) -> str:
    metrics = next(iter(gains.values()))
    rows = [[escape(name), *(interval(scores[name]) for scores in gains.values())] for name in metrics]
    return "The model's gain over each baseline on the same rows (paired bootstrap; positive is better).\n\n" + table(
        ["metric", *(f"over {baseline}" for baseline in gains)], rows
    )


def _caveats(report: Mapping[str, Any]) -> list[str]:
    lines = []
    if report.get("truncated", {}).get("rows"):
        cut = report["truncated"]
        lines.append(f"- {cut['rows']} rows were cut to the model's length and lost {cut['tokens_lost']} tokens.")
    if report.get("dropped"):
        places = report.get("dropped_lines", {})
        reasons = ", ".join(
            f"{escape(reason)} {count}{_first_lines(places.get(reason), count)}"
            for reason, count in report["dropped"].items()
        )
        lines.append(f"- Rows that could not be scored: {reasons}.")
    if report.get("unknown_labels"):
        listed = ", ".join(escape(label, limit=60) for label in report["unknown_labels"][:20])
        lines.append(f"- Labels that the model does not know: {listed}.")
    if report["split"] == "validation":
        lines.append(
            "- The best step, and the baselines' settings, were chosen on this split: its scores are flattered."
        )
    if report.get("seen_in_training"):
        lines.append(
            f"- **{report['seen_in_training']} rows have a text that the model was trained on:** "
            "the score is flattered."
        )
    return ["## Read this with the numbers", "\n".join(lines)] if lines else []


def _first_lines(lines: Sequence[int] | None, count: int) -> str:
    """Return the lines of rows behind their count: ` (lines 3, 8 and more)`."""
    if not lines:
        return ""
    more = " and more" if count > len(lines) else ""
    return f" (line{'s' * (len(lines) > 1)} {', '.join(map(str, lines))}{more})"


def gates_table(gates: Sequence[Mapping[str, Any]]) -> str:
    """Return the gates with what was found and by how much each holds or fails."""
    rows = [
        [
            escape(gate["gate"]),
            UNDEFINED if gate["value"] is None else f"{gate['value']:.4f}",
            "" if gate["margin"] is None else f"{gate['margin']:+.4f}",
            "holds" if gate["holds"] else "**fails**",
        ]
        for gate in gates
    ]
    return table(["gate", "found", "margin", ""], rows)


def _what_was_scored(report: Mapping[str, Any]) -> str:
    intervals = report["intervals"]
    units = UNITS[intervals["unit"]]
    of_units = "" if units == "rows" else f" of {intervals['units']} {units}"
    return (
        f"{report['rows']} rows{of_units}, task {report['task']}. In brackets: {intervals['level']:.0%} bootstrap "
        f"intervals ({intervals['resamples']} resamples of {units})."
    )


def _section_table(section: Table) -> str:
    rows = [[cell(value) for value in row] for row in section.rows]
    return table([escape(name) for name in section.header], rows, text_columns=section.text_columns)


def _worst(examples: Sequence[Mapping[str, Any]]) -> str:
    """Return the worst examples as a table: what the task shows of each, texts first, and its line at the end."""
    names = [name for name in dict.fromkeys(key for example in examples for key in example) if name not in PLACE]
    texts = [name for name in names if any(isinstance(example.get(name), str) for example in examples)]
    columns = [*texts, *(name for name in names if name not in texts)]
    rows = [
        [
            *(cell(example.get(name)) for name in columns),
            f"{escape(example['file'])}: {example['line']}" if "file" in example else str(example["line"]),
        ]
        for example in examples
    ]
    header = [escape(name.replace("_", " ")) for name in columns]
    return table([*header, "line"], rows, text_columns=len(texts))


def quantization_report(report: Mapping[str, Any]) -> str:
    """Return a before/after report as Markdown."""
    scores = [
        [escape(name), interval(report["before"][name]), interval(report["after"][name]), interval(drop)]
        for name, drop in report["drop"].items()
    ]
    size = report["size_bytes"]
    parts = [
        f"# {escape(report['recipe'])}: quantization with {escape(report['backend'])}",
        f"{report['rows']} rows of {escape(report['split'])}, the same for both models. Positive drop is worse.",
        table(["metric", "before", "after", "drop"], scores),
        f"- Both models agree ({escape(report['agreement_means'])}) in {report['agreement']:.1%} of the cases.\n"
        f"- Weights: {size['before'] / 1e6:.1f} MB before, {size['after'] / 1e6:.1f} MB after "
        f"(ratio {report['size_ratio']:.2f}).",
        "## Speed",
        f"{report['speed']['threads']} thread, {report['speed']['tokens']} tokens a row at the median, both models in "
        "turns in one process; times are the machine's, the ratio is what to compare.",
        _speed(report["speed"]),
    ]
    if report.get("gates"):
        parts += ["## Gates", gates_table(report["gates"])]
    return "\n\n".join(parts) + "\n"


def _speed(speed: Mapping[str, Any]) -> str:
    rows = []
    for name, unit in (
        ("batch_1", "latency, batch 1 (ms)"),
        ("batch_32", "throughput, batch 32 (rows/s; its p95 is the slow end)"),
    ):
        before, after = speed[name]["before"], speed[name]["after"]
        rows.append(
            [
                unit,
                f"{before['median']:.1f} (p95 {before['p95']:.1f})",
                f"{after['median']:.1f} (p95 {after['p95']:.1f})",
                f"{speed[name]['speedup']:.2f}",
            ]
        )
    return table(["", "before", "after", "times faster"], rows)
