"""The preparation report for people: can this data be trusted, what became of every row, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from finetune.data.rows import list_lines
from finetune.reports.markdown import escape, table
from finetune.reports.next_steps import SEVERITIES, by_severity, next_steps, open_leaks
from finetune.reports.wording import as_text, difference, examples_table, list_names, many, share

FUNNEL, LABELS, LENGTHS = "Rows, from the source to the splits", "Labels by split", "Tokens by row"

# A table of labels that is longer than both of its ends together shows only these ends
ENDS_SHOWN = 30
MESSAGE_LIMIT = 1000
DIFFERENCES = "What differs is bold; where it cannot be seen, `␣` is a blank and codes stand for other characters."


def preparation_report(report: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Return a preparation's `report.json` as Markdown; `pictures` maps titles to file names beside the report.

    Only `name`, `rows_read` and `rows_kept` must be there; a section whose key is absent is left out.
    """
    parts = [
        *_summary(report),
        *_findings(report.get("warnings", [])),
        *_funnel(report, pictures),
        *_labels(report, pictures),
        *_target(report),
        *_duplicates(report),
        *_leaks(report),
        *_tokens(report, pictures),
        *_cleaners(report),
        *_augmentation(report),
        "## What to do next",
        "\n".join(f"{number}. {step}" for number, step in enumerate(next_steps(report), 1)),
    ]
    return "\n\n".join(parts) + "\n"


def frequent_first(labels: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the labels, those with the most rows first and equal ones by name."""
    return sorted(labels, key=lambda label: (-sum(labels[label].values()), label))


def _summary(report: Mapping[str, Any]) -> list[str]:
    source = [report["source"]] if isinstance(report.get("source"), str) else report.get("source", [])
    facts = [
        f"{many(report['rows_read'], 'row')} read",
        f"{report['rows_kept']:,} kept ({share(report['rows_kept'], report['rows_read'])})",
        *(f"{escape(name)} {count:,}" for name, count in report.get("splits", {}).items()),
    ]
    origin = [list_names(source)] if source else []
    origin += [f"{key} {escape(str(report[key]))}" for key in ("task", "seed") if key in report]
    return [
        f"# {escape(report['name'])}: data preparation",
        f"{', '.join(facts)}.",
        f"**{_verdict(report)}**",
        *([f"Made from {', '.join(origin)}."] if origin else []),
        table(["question", "answer"], _glance(report), text_columns=2),
    ]


def _verdict(report: Mapping[str, Any]) -> str:
    counts = [sum(finding["severity"] == severity for finding in report.get("warnings", [])) for severity in SEVERITIES]
    found = ", ".join(many(count, severity) for severity, count in zip(SEVERITIES, counts, strict=True) if count)
    if counts[0]:
        return f"Do not trust this data yet: {found}."
    if open_leaks(report) or _unaccounted(report) or _unassigned(report):
        return f"Do not trust this data yet: see the table{f'; {found}' if found else ''}."
    if counts[1]:
        return f"Usable, but read the findings first: {found}."
    if any("**" in answer for _, answer in _glance(report)):
        return f"Usable, but look first at what is bold below{f': {found}' if found else ''}."
    return f"Nothing stands against training on this data{f': {found}' if found else ''}."


def _unaccounted(report: Mapping[str, Any]) -> int:
    """Return how many rows read are neither kept nor dropped; anything but 0 is our bug, and is shown."""
    dropped: int = sum(report.get("dropped", {}).values())
    return int(report["rows_read"]) - int(report["rows_kept"]) - dropped


def _unassigned(report: Mapping[str, Any]) -> int:
    """Return how many rows kept are in no split; splits may count the rows made by augmentation or not."""
    if not report.get("splits"):
        return 0
    beside = int(report["rows_kept"]) - int(sum(report["splits"].values()))
    return 0 if -beside == report.get("augmented", {}).get("rows", 0) else beside


def _glance(report: Mapping[str, Any]) -> list[list[str]]:
    """Return the questions that decide whether to trust the data; what needs a look is bold."""
    missing = _unaccounted(report) or _unassigned(report)
    dropped = sum(report.get("dropped", {}).values())
    total = f"{report['rows_kept']:,} kept + {dropped:,} dropped"
    rows = [
        ["Is every row accounted for?", f"**no: {missing:+,} rows**" if missing else f"yes: {total}"],
        ["How much was dropped?", f"{many(dropped, 'row')} ({share(dropped, report['rows_read'])})"],
    ]
    if "leaks" in report:
        leaks = open_leaks(report)
        rows.append(["Is a text in two splits?", f"**yes: {many(leaks, 'row')}**" if leaks else "no"])
    if report.get("labels") and report.get("splits"):
        gaps = sum(any(not counts.get(name) for name in report["splits"]) for counts in report["labels"].values())
        answer = (
            f"**no: {gaps:,} of {len(report['labels']):,} miss one**" if gaps else f"yes: {len(report['labels']):,}"
        )
        rows.append(["Is every label in every split?", answer])
    if "rows_cut" in (tokens := report.get("tokens", {})):
        cut = f"{many(tokens['rows_cut'], 'row')} ({share(tokens['rows_cut'], report['rows_kept'])})"
        rows.append(["Does the model read all of each row?", f"**no: {cut} cut**" if tokens["rows_cut"] else "yes"])
    return rows


def _findings(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    if not findings:
        return []
    findings = by_severity(findings)
    rows = [
        [
            finding["severity"] if finding["severity"] == "note" else f"**{escape(finding['severity'])}**",
            escape(finding["check"]),
            escape(finding["message"], limit=MESSAGE_LIMIT),
            f"{finding['count']:,}",
        ]
        for finding in findings
    ]
    parts = ["## Findings", table(["severity", "check", "what was found", "count"], rows, text_columns=3)]
    for finding in findings:
        if finding.get("examples"):
            parts += [f"### {escape(finding['severity'].capitalize())}: {escape(finding['check'])}"]
            parts += [examples_table(finding["examples"])]
    return parts


def _funnel(report: Mapping[str, Any], pictures: Mapping[str, str]) -> list[str]:
    read = report["rows_read"]
    rows = [["**read**", f"{read:,}", share(read, read)]]
    for reason, count in sorted(report.get("dropped", {}).items(), key=lambda item: -item[1]):
        rows.append([f"dropped: {escape(reason)}", f"-{count:,}", share(count, read)])
    if missing := _unaccounted(report):
        rows.append(["**neither kept nor dropped**", f"**{missing:,}**", share(missing, read)])
    rows.append(["**kept**", f"{report['rows_kept']:,}", share(report["rows_kept"], read)])
    rows += [
        [f"in {escape(name)}", f"{count:,}", share(count, read)] for name, count in report.get("splits", {}).items()
    ]
    if made := report.get("augmented", {}).get("rows"):
        rows.append(["added to train by augmentation", f"+{made:,}", ""])
    if unassigned := _unassigned(report):
        rows.append(["**kept, but in no split**", f"**{unassigned:,}**", ""])
    parts = ["## From the source to the splits", table(["step", "rows", "of the rows read"], rows)]
    if report.get("dropped"):
        parts.append("`dropped.jsonl` has every dropped row with its line and reason.")
    if split := report.get("split"):
        options = [
            f"{escape(key)} {escape(as_text(value))}"
            for key, value in split.items()
            if key != "name" and value is not None
        ]
        parts.append(f"Split: {', '.join([escape(split['name']), *options])}.")
    return [*parts, *_picture(pictures, FUNNEL)]


def _picture(pictures: Mapping[str, str], title: str) -> list[str]:
    return [f"![{escape(title)}]({quote(pictures[title])})"] if title in pictures else []


def _labels(report: Mapping[str, Any], pictures: Mapping[str, str]) -> list[str]:
    labels: Mapping[str, Mapping[str, int]] = report.get("labels", {})
    if not labels:
        return []
    splits = list(report.get("splits", {})) or list(
        dict.fromkeys(name for counts in labels.values() for name in counts)
    )
    sums = {name: sum(counts.get(name, 0) for counts in labels.values()) for name in splits}
    names = frequent_first(labels)
    rows = [_label(number, name, labels[name], sums) for number, name in enumerate(names, 1)]
    note = f"{many(len(labels), 'label')}, the most frequent first."
    if len(rows) > 2 * ENDS_SHOWN:
        note += f" Shown are the {ENDS_SHOWN} most and the {ENDS_SHOWN} least frequent; `report.json` has all."
        hidden = ["…", f"{len(rows) - 2 * ENDS_SHOWN:,} more", *["…"] * (len(splits) + 1)]
        rows = [*rows[:ENDS_SHOWN], hidden, *rows[-ENDS_SHOWN:]]
    if sums != {name: report.get("splits", {}).get(name) for name in splits}:
        note += " A row may have several labels or none: shares are of all labels of the split."
    rows.append(["", "**all**", *(f"{count:,}" for count in sums.values()), f"{sum(sums.values()):,}"])
    header = ["no.", "label", *map(escape, splits), "all"]
    return ["## Labels", note, table(header, rows, text_columns=2), *_picture(pictures, LABELS)]


def _label(number: int, label: str, counts: Mapping[str, int], sums: Mapping[str, int]) -> list[str]:
    cells = [
        f"{count:,} ({share(count, total)})" if (count := counts.get(name, 0)) else "**0**"
        for name, total in sums.items()
    ]
    total = sum(counts.values())
    return [str(number), escape(label), *cells, f"{total:,} ({share(total, sum(sums.values()))})"]


def _target(report: Mapping[str, Any]) -> list[str]:
    if not report.get("target"):
        return []
    keys = {"min": "smallest", "mean": "mean", "max": "largest", "deviation": "standard deviation"}
    sections = []
    for name, target in report.get("targets", {"": report["target"]}).items():
        rows = [
            [escape(split), *("-" if found.get(key) is None else f"{found[key]:.4g}" for key in keys)]
            for split, found in target.items()
        ]
        sections += [f"## Target {escape(name)}".rstrip(), table(["split", *keys.values()], rows)]
    return sections


def _duplicates(report: Mapping[str, Any]) -> list[str]:
    found = report.get("duplicates", {})
    if not found:
        return []
    sentence = f"Rows that repeat the text of an earlier one: {found.get('exact', 0):,}."
    if found.get("searched") is False:
        sentence += " Near-duplicates were not searched for."
    elif "near" in found:
        at = f" (similarity {found['threshold']} or more)" if "threshold" in found else ""
        sentence += f" Texts that nearly repeat one{at}: {found['near']:,}."
    examples = found.get("examples")
    return ["## Duplicates", sentence, *([DIFFERENCES, examples_table(examples)] if examples else [])]


def _leaks(report: Mapping[str, Any]) -> list[str]:
    if not report.get("leaks"):
        return []
    what = f"Rows of a later split with a text that an earlier split has too: {report['leaks']:,}."
    parts = ["## Texts in two splits", f"**{what}** The model would be judged on what it was trained on."]
    if not open_leaks(report):
        parts = ["## Texts in two splits", f"{what} The rows of the earlier split were dropped."]
    examples = report.get("leak_examples")
    return [*parts, examples_table(examples)] if examples else parts


def _tokens(report: Mapping[str, Any], pictures: Mapping[str, str]) -> list[str]:
    tokens, cut = report.get("tokens", {}), report.get("truncated", {})
    splits = tokens.get("splits", {})
    if not tokens and not cut and not report.get("tokenizer"):
        return []
    parts = ["## Tokens"]
    if tokenizer := report.get("tokenizer"):
        size = f", {tokenizer['vocabulary']:,} entries" if "vocabulary" in tokenizer else ""
        parts.append(f"The tokenizer was trained on the texts of train: {escape(tokenizer['name'])}{size}.")
    if facts := _token_facts(tokens):
        parts.append(table(["", "value"], facts))
    rows = [
        [
            escape(name),
            *(_number(splits.get(name, {}).get(key)) for key in ("total", "median", "longest")),
            *(_number(cut.get(name, {}).get(key)) for key in ("rows", "tokens_lost")),
            escape(list_lines(cut.get(name, {}).get("lines", []))),
        ]
        for name in dict.fromkeys([*splits, *cut])
    ]
    if rows:
        header = ["split", "tokens", "median of a row", "longest row", "rows cut", "tokens lost", "lines cut"]
        parts.append(table(header, rows))
    return [*parts, *_picture(pictures, LENGTHS)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,}"


def _token_facts(tokens: Mapping[str, Any]) -> list[list[str]]:
    """Return the counts over all splits that the report has, each with its name."""
    of = f" of {tokens['batch_size']:,} (`train.batch_size`)" if "batch_size" in tokens else ""
    formats: Iterable[tuple[str, str, str]] = [
        ("max_length", "most tokens that the model reads at once (`model.max_length`)", ",}"),
        ("overflow", "what is done with longer rows (`model.overflow`)", "}"),
        ("rows_cut", "rows cut", ",}"),
        ("tokens_lost", "tokens lost by cutting", ",}"),
        ("entities_lost", "entities lost by cutting", ",}"),
        ("windows", "windows made of the rows", ",}"),
        ("stride", "tokens that two windows share (`model.stride`)", ",}"),
        ("unknown_rate", "tokens that the tokenizer does not know", ".2%}"),
        ("tokens_per_word", "tokens for a word", ".2f}"),
        ("padding", f"padding in batches{of}", ".1%}"),
    ]
    return [
        [name, escape(("{:" + form).format(tokens[key]))] for key, name, form in formats if tokens.get(key) is not None
    ]


def _cleaners(report: Mapping[str, Any]) -> list[str]:
    cleaners = report.get("cleaners", [])
    if not cleaners:
        return []
    rows = [
        [escape(item["name"]), f"{item['rows_touched']:,}", f"{item.get('rows_rejected', 0):,}"] for item in cleaners
    ]
    parts = ["## Cleaning", table(["cleaner", "rows changed", "rows rejected"], rows)]
    if any(item.get("examples") for item in cleaners):
        parts.append(DIFFERENCES)
    for item in cleaners:
        if item.get("examples"):
            pairs = [difference(example["before"], example["after"]) for example in item["examples"]]
            parts += [f"### Cleaner: {escape(item['name'])}", table(["before", "after"], pairs, text_columns=2)]
    return parts


def _augmentation(report: Mapping[str, Any]) -> list[str]:
    made = report.get("augmented", {})
    if not made.get("rows"):
        return []
    train = report.get("splits", {}).get("train")
    beside = f" beside its {train:,} real ones" if train else ""
    rows = [[escape(name), f"{count:,}"] for name, count in made.get("operations", {}).items()]
    return [
        "## Augmentation",
        f"{many(made['rows'], 'row')} made for train{beside}. Validation and test have only real rows.",
        *([table(["operation", "rows made"], rows)] if rows else []),
    ]
