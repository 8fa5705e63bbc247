"""Markdown for people, made from the JSON reports; every text that came from data is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

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


def interval(value: Mapping[str, float]) -> str:
    """Return a value with its interval: `0.912 (0.881 to 0.941)`."""
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def evaluation_report(report: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Return an evaluation as Markdown; `pictures` maps titles to file names beside the report."""
    systems = {"model": report["metrics"], **report["baselines"]}
    parts = [
        f"# {escape(report['recipe'])}: evaluation on {escape(report['split'])}",
        f"Model {escape(report['model'])}, seed {report['seed']}, run {report['run_fingerprint'][:12]}.",
        f"{report['rows']} rows, task {report['task']}. In brackets: {report['intervals']['level']:.0%} bootstrap "
        f"intervals ({report['intervals']['resamples']} resamples of rows).",
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
    parts += ["## By label", _labels(report["per_label"])]
    parts += [f"![{title}]({quote(file)})" for title, file in pictures.items()]
    if report["worst"]:
        parts += [
            f"## The {len(report['worst'])} worst examples",
            "The rows on which the model gave the true label the least probability.",
            _worst(report["worst"]),
        ]
    return "\n\n".join(parts) + "\n"


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
        reasons = ", ".join(f"{escape(reason)} {count}" for reason, count in report["dropped"].items())
        lines.append(f"- Rows that could not be scored: {reasons}.")
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


def gates_table(gates: Sequence[Mapping[str, Any]]) -> str:
    """Return the gates with what was found and by how much each holds or fails."""
    rows = [
        [
            escape(gate["gate"]),
            f"{gate['value']:.4f}",
            f"{gate['margin']:+.4f}",
            "holds" if gate["holds"] else "**fails**",
        ]
        for gate in gates
    ]
    return table(["gate", "found", "margin", ""], rows)


def _labels(labels: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [escape(label), str(scores["rows"]), *(interval(scores[kind]) for kind in ("precision", "recall", "f1"))]
        for label, scores in labels.items()
    ]
    return table(["label", "rows", "precision", "recall", "F1"], rows)


def _worst(examples: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            escape(example["text"]),
            escape(example["label"]),
            escape(example["predicted"]),
            f"{example['probability_of_label']:.3f}",
            f"{escape(example['file'])}: {example['line']}" if "file" in example else str(example["line"]),
        ]
        for example in examples
    ]
    return table(["text", "true label", "predicted", "probability of the true label", "line"], rows, text_columns=3)


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
        f"- Both models choose the same label on {report['agreement']:.1%} of the rows.\n"
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
