"""What to do next, from the findings and counts of a preparation: settings and files by their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune.reports.wording import many

SEVERITIES = ("error", "warning", "note")

# What to do about an error or a warning of a check; a check that is not here has said it in its message
ADVICE = {
    "conflicting-answers": "Put all answers of a question into one row, or set `data.conflicts: keep`.",
    "nothing-to-answer": "See whether `data.columns.answers` names the right column.",
    "faulty-targets": "Mend the rows whose lines the check names.",
    "queries-without-positive": "Give each query a text that is relevant, or remove it.",
    "rows-without-negative": "Give each query texts that do not answer it: without them nothing can be ranked.",
    "missing-labels": "Give the rows without a label one.",
    "unknown-labels": "Correct the unknown labels, map them with `data.label_map`, or add them to `data.labels`.",
    "rare-labels": "Add rows for the rare labels, merge labels with `data.label_map`, or, where each row has one "
    "label, set `data.rare_labels: drop`.",
    "label-in-one-split": "Split with `data.split: stratified`, or add rows for the labels that a split lacks.",
    "imbalance": "Add rows for the rare labels, or, where each row has one label, let `data.augment` with "
    "`balance: true` make some; judge the model by a macro average, not by accuracy.",
    "conflicting-labels": "Decide on one label, or number, for each text that has several, and correct the source.",
    "label-variants": "Merge the spellings of a label with `data.label_map`.",
    "invalid-tags": "Correct the tags, or name the scheme that they follow with `data.tag_scheme`.",
    "entity-boundaries": "Correct where the entities begin and end in the source.",
    "rare-entities": "Add rows with the rare entity types: the model can hardly learn them.",
    "short-rows": "Read the shortest rows; `data.clean` can reject rows by their length.",
    "long-rows": "Read the longest rows; `data.clean` can reject rows by their length.",
    "encoding-damage": "Add `unicode` to `data.clean`, or save the source again as UTF-8.",
    "constant-columns": "Check `data.columns`: a column that never changes teaches nothing.",
    "id-like-columns": "Check `data.columns`: a column with a new value in every row teaches nothing.",
    "unread-columns": "Name the columns that the task can read in `data.columns`, or turn the check off.",
    "label-leakage": "Take the label's name out of the texts, or be sure that it will be there in use, too.",
    "too-few-rows": "Add rows: with so few, scores say little and the model learns little.",
    "missing-values": "Give the rows their missing values, or say in `data.missing` what to do without them.",
    "number-range": "Look at the targets that stand apart, and correct those that are wrong.",
}

# Reasons for dropping a row that the same advice answers
ADVISED_REASONS = {
    "missing_label": "missing-labels",
    "unknown_label": "unknown-labels",
    "conflicting_labels": "conflicting-labels",
    "rare_label": "rare-labels",
}

# Findings that have a step of their own, with the counts of the report
COUNTED = {"leaks", "duplicates", "near-duplicates", "many-dropped"}

NOT_TRAINED = "The data is ready to be used; `finetune train` does not train this recipe yet."
MANY_UNKNOWN = 0.01
MANY_TOKENS_PER_WORD = 3.0


def next_steps(report: Mapping[str, Any]) -> list[str]:
    """Return what to do next, the most urgent first, as sentences with settings in backticks and no text from data.

    Reads a preparation's `report.json`; absent keys say nothing. The last step is always a command. A report without
    `tokens` is that of `prepare --check`, which writes no files to look at and nothing to train on.
    """
    findings = [finding for finding in by_severity(report.get("warnings", [])) if finding["severity"] != "note"]
    answered = [finding["check"] for finding in findings]
    reasons = {} if "conflicting-answers" in answered else ADVISED_REASONS
    answered += [check for reason, check in reasons.items() if report.get("dropped", {}).get(reason)]
    steps = [*_leaks(report), *(ADVICE[check] for check in dict.fromkeys(answered) if check in ADVICE)]
    if other := sum(check not in ADVICE and check not in COUNTED for check in answered):
        steps.append("Do what the message of the other finding says." if other == 1 else
                     f"Do what the messages of the {other} other findings say.")  # fmt: skip
    steps += [*_repeats(report), *_lengths(report), *_vocabulary(report), *_dropped(report)]
    must_change = open_leaks(report) or any(finding["severity"] == "error" for finding in findings)
    if only_checked(report):
        again = "Then run `finetune prepare RECIPE --check` again."
        return [*steps, again if must_change else "Run `finetune prepare RECIPE`."]
    if must_change:
        return [*steps, "Then run `finetune prepare RECIPE` again."]
    return [*steps, "Run `finetune train RECIPE`." if report.get("trains", True) else NOT_TRAINED]


def only_checked(report: Mapping[str, Any]) -> bool:
    """Return whether a report comes from `prepare --check`, so that there are no files beside it."""
    return "tokens" not in report


def by_severity(findings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return findings with errors first, then warnings, then notes; their order within these stays."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding["severity"]))


def open_leaks(report: Mapping[str, Any]) -> int:
    """Return how many rows still have a text that another split has too: those that were found and not dropped."""
    return 0 if report.get("dropped", {}).get("leak") else int(report.get("leaks", 0))


def _leaks(report: Mapping[str, Any]) -> Iterator[str]:
    if open_leaks(report):
        yield (
            "Set `data.leaks: drop-from-train`, or take rows out of the source: the text of "
            f"{many(report['leaks'], 'row')} of a later split is in an earlier one, too."
        )


def _repeats(report: Mapping[str, Any]) -> Iterator[str]:
    found, dropped = report.get("duplicates", {}), report.get("dropped", {})
    if found.get("exact", 0) > dropped.get("duplicate", 0) + dropped.get("conflicting_labels", 0):
        yield f"Set `data.duplicates: drop`: repeated texts ({many(found['exact'], 'row')}) count more than once."
    if found.get("near") and not any(reason.startswith("near") for reason in dropped):
        repeating = f"{many(found['near'], 'text')} nearly repeating another"
        look = repeating if only_checked(report) else f"`near_duplicates.jsonl` ({repeating})"
        yield f"Look at {look}; `data.near_duplicates: drop` keeps one of those that are alike."


def _lengths(report: Mapping[str, Any]) -> Iterator[str]:
    tokens = report.get("tokens", {})
    if not tokens.get("rows_cut"):
        return
    longest = longest_row(tokens)
    target = f" to {longest:,} (enough for the longest row)" if longest else ""
    limit = tokens.get("model_limit")
    windows = report.get("windows", True)
    taken = f"cutting takes {many(tokens.get('tokens_lost', 0), 'token')} from {many(tokens['rows_cut'], 'row')}."
    if limit and tokens.get("max_length") == limit:
        advice = "Set `model.overflow: window`" if windows else "Shorten the longest texts, or take another model"
        yield f"{advice}: the model reads at most {limit:,} tokens, and {taken}"
        return
    if limit and longest > limit:
        target = f" to at most {limit:,}, which is what the model reads"
    elif not limit:
        target += " if the model can read as much"
    yield f"Raise `model.max_length`{target}{', or set `model.overflow: window`' * windows}: {taken}"


def longest_row(tokens: Mapping[str, Any]) -> int:
    """Return how many tokens the longest row has before it is cut, at most a histogram's bin too many; 0: unknown."""
    found = max((split.get("longest", 0) for split in tokens.get("splits", {}).values()), default=0)
    if "max_length" not in tokens or found > tokens["max_length"]:
        return int(found)
    edges, counts = bins(tokens.get("histogram", {}))
    last = max((right - 1 for right, count in zip(edges[1:], counts, strict=True) if count), default=0)
    return int(last) if last > tokens["max_length"] else 0


def bins(histogram: Mapping[str, Sequence[float]]) -> tuple[list[float], list[float]]:
    """Return a histogram's edges, one more than counts, and its counts; an open last bin gets its neighbour's width."""
    edges, counts = list(histogram.get("edges", [])), list(histogram.get("counts", []))
    if edges and len(edges) == len(counts):
        edges.append(edges[-1] + (edges[-1] - edges[-2] if len(edges) > 1 else 1))
    return edges, counts


def _vocabulary(report: Mapping[str, Any]) -> Iterator[str]:
    tokens = report.get("tokens", {})
    unknown, pieces = tokens.get("unknown_rate") or 0, tokens.get("tokens_per_word") or 0
    if unknown > MANY_UNKNOWN:
        yield f"Choose a model that knows these characters: its tokenizer does not know {unknown:.1%} of the tokens."
    elif pieces > MANY_TOKENS_PER_WORD:
        yield f"Consider a model made for this language or field: a word takes {pieces:.1f} tokens."


def _dropped(report: Mapping[str, Any]) -> Iterator[str]:
    dropped = sum(report.get("dropped", {}).values())
    if dropped:
        part = f"{dropped:,} of {many(report['rows_read'], 'row')}"
        yield (
            f"See why {part} are dropped." if only_checked(report) else f"Look through `dropped.jsonl`: {part} dropped."
        )
    if report.get("dropped", {}).get("not_utf8"):
        yield "Name the encoding of the files in `data.format`, or save them as UTF-8: some rows could not be decoded."
