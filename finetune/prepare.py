"""The first stage: from a file of raw rows to cleaned, split, tokenized data with a report on every row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune import registry
from finetune.artifacts import (
    PreparedData,
    building,
    fingerprint,
    publish,
    versions,
    write_json,
    write_split,
    write_text,
)
from finetune.data.cleaning import Pipeline
from finetune.data.duplicates import resolve_duplicates, text_key
from finetune.data.rows import Dropped, Row, column_names, count_reasons, list_lines, list_reasons, select
from finetune.data.sources import read
from finetune.data.splitting import SPLITS
from finetune.errors import FinetuneError
from finetune.fingerprints import rows_inputs, tokens_inputs
from finetune.models.loading import check_context, find_model, load_tokenizer
from finetune.progress import Progress, Silent
from finetune.recipe import Recipe
from finetune.reports.markdown import preparation_report
from finetune.tasks import Task, TaskSpec, open_task

# A note is due when cleaning throws away a larger share of the rows than this
MANY_DROPPED = 0.1


def prepare(
    recipe: Recipe, folder: Path, *, allow_code: bool = False, progress: Progress | None = None
) -> PreparedData:
    """Build the prepared data in `folder`, replacing what was there; return it.

    Raises FinetuneError for data that cannot be used as it is, with the lines at fault.
    """
    progress = progress or Silent()
    task, spec = open_task(recipe.task.name, recipe.task.options)
    model_folder = find_model(recipe.model, allow_code=allow_code)
    tokenizer = load_tokenizer(model_folder, allow_code=allow_code)
    check_context(model_folder, tokenizer, recipe.model.max_length)
    # described before it is read: a file that is edited meanwhile makes the result stale, never wrongly fresh
    inputs = tokens_inputs(recipe, allow_code=allow_code)
    with building(folder) as partial:
        rows_read, rows, clusters, dropped, pipeline = collect_rows(recipe, task, spec)
        labels = sorted({row.values[spec.label_role] for row in rows}) if spec.label_role else []
        assigned = _split(recipe, rows, clusters, spec)
        report = _report(recipe, rows_read, rows, dropped, assigned, spec, pipeline)
        report["truncated"], report["tokens"] = {}, {}
        for name in report["splits"]:
            chosen = [row for row, split in zip(rows, assigned, strict=True) if split == name]
            features, lost = task.encode([row.values for row in chosen], tokenizer, recipe.model.max_length, labels)
            values = {role: [row.values[role] for row in chosen] for role in task.columns}
            write_split(partial / f"{name}.arrow", [row.line for row in chosen], values, features)
            report["truncated"][name] = truncation(chosen, lost)
            report["tokens"][name] = _token_counts(features["input_ids"])
        write_text(
            partial / "dropped.jsonl", "".join(json.dumps(row.as_json(), ensure_ascii=True) + "\n" for row in dropped)
        )
        write_json(partial / "report.json", report)
        write_text(partial / "report.md", preparation_report(report))
        _note(report, progress)
        publish(folder, _manifest(recipe, task, labels, report["splits"], inputs))
    return PreparedData(folder)


def collect_rows(
    recipe: Recipe, task: Task, spec: TaskSpec
) -> tuple[int, list[Row], list[int], list[Dropped], Pipeline]:
    """Read, clean and de-duplicate: (rows read, rows kept, their clusters, rows dropped, the cleaners' reports)."""
    source = Path(recipe.data.source)
    records = read(source)
    pipeline = cleaning(recipe)
    names = column_names(task.columns, recipe.data.columns)
    rows, dropped = select(records, task.columns, names, pipeline, str(source))
    try:
        rows, clusters, repeated = resolve_duplicates(
            rows, spec.text_roles, spec.label_role, duplicates=recipe.data.duplicates, conflicts=recipe.data.conflicts
        )
    except FinetuneError as error:
        raise FinetuneError(f"{source}: {error}") from None
    dropped += repeated
    if spec.label_role:
        rows, clusters, rare = _rare_labels(recipe, rows, clusters, spec.label_role)
        dropped += rare
    if not rows:
        raise FinetuneError(
            f"{source}: expected usable rows, but all {len(records)} were dropped: {list_reasons(dropped)}"
        )
    raw = {record.line: record.values for record in records}
    dropped = sorted((replace(row, values=raw[row.line]) for row in dropped), key=lambda row: row.line)
    return len(records), rows, clusters, dropped, pipeline


def cleaning(recipe: Recipe) -> Pipeline:
    """Return the recipe's cleaners, to be run on one text after the other."""
    return Pipeline([(part.name, part.options) for part in recipe.data.clean])


def _rare_labels(
    recipe: Recipe, rows: Sequence[Row], clusters: Sequence[int], role: str
) -> tuple[list[Row], list[int], list[Dropped]]:
    """Refuse, or drop, labels with fewer texts than there are splits: such a label cannot be learned and judged."""
    needed = sum(bool(recipe.data.split.options.get(name, True)) for name in SPLITS)
    texts = Counter(
        label for label, _ in {(row.values[role], cluster) for row, cluster in zip(rows, clusters, strict=True)}
    )
    rare = {label for label, count in texts.items() if count < needed}
    if rare and recipe.data.rare_labels == "error":
        listed = "; ".join(
            f"{label!r} has {texts[label]} (line {list_lines(row for row in rows if row.values[role] == label)})"
            for label in sorted(rare)[:10]
        )
        raise FinetuneError(
            f"{recipe.data.source}: expected every label on at least {needed} different texts, one for each split; "
            f"{listed}. Add rows, correct the label, or set data.rare_labels: drop."
        )
    kept = [(row, cluster) for row, cluster in zip(rows, clusters, strict=True) if row.values[role] not in rare]
    if kept and len({row.values[role] for row, _ in kept}) < 2:
        raise FinetuneError(f"{recipe.data.source}: expected at least 2 labels, found only {kept[0][0].values[role]!r}")
    dropped = [Dropped(row.line, "rare_label", row.values) for row in rows if row.values[role] in rare]
    return [row for row, _ in kept], [cluster for _, cluster in kept], dropped


def _split(recipe: Recipe, rows: Sequence[Row], clusters: Sequence[int], spec: TaskSpec) -> list[str]:
    splitter = registry.splitters.get(recipe.data.split.name).build(recipe.data.split.options)
    labels = [str(row.values[spec.label_role]) if spec.label_role else "" for row in rows]
    assigned: list[str] = splitter(labels, clusters, recipe.seed)
    for name in ("train", "validation"):
        if name not in assigned:
            raise FinetuneError(
                f"data.split: expected rows in every split, found none for {name} ({len(rows)} rows in all)"
            )
    return assigned


def _report(
    recipe: Recipe,
    rows_read: int,
    rows: Sequence[Row],
    dropped: Sequence[Dropped],
    assigned: Sequence[str],
    spec: TaskSpec,
    pipeline: Pipeline,
) -> dict[str, Any]:
    sizes = Counter(assigned)
    report: dict[str, Any] = {
        "rows_read": rows_read,
        "rows_kept": len(rows),
        "dropped": count_reasons(dropped),
        "splits": {name: sizes[name] for name in SPLITS if sizes[name]},
        "cleaners": [
            {"name": item.name, "rows_touched": item.rows_touched, "examples": item.examples}
            for item in pipeline.reports
        ],
    }
    assert rows_read == len(rows) + len(dropped), "every row read is kept or dropped, once"
    if spec.label_role:
        counts = Counter((split, row.values[spec.label_role]) for split, row in zip(assigned, rows, strict=True))
        labels = sorted({row.values[spec.label_role] for row in rows})
        report["labels"] = {label: {name: counts[name, label] for name in report["splits"]} for label in labels}
    report |= {
        "name": recipe.name,
        "task": recipe.task.name,
        "seed": recipe.seed,
        "source": Path(recipe.data.source).name,
    }
    return report


def truncation(rows: Sequence[Row], lost: Sequence[int]) -> dict[str, Any]:
    """Return how many rows lost how many tokens, and the lines of the first of them."""
    cut = [(row.line, count) for row, count in zip(rows, lost, strict=True) if count]
    return {"rows": len(cut), "tokens_lost": sum(count for _, count in cut), "lines": [line for line, _ in cut[:20]]}


def _token_counts(input_ids: Sequence[Sequence[int]]) -> dict[str, float]:
    lengths = sorted(map(len, input_ids))
    return {"total": sum(lengths), "median": lengths[len(lengths) // 2], "longest": lengths[-1]}


def _note(report: dict[str, Any], progress: Progress) -> None:
    dropped = sum(report["dropped"].values())
    if dropped > MANY_DROPPED * report["rows_read"]:
        progress.note(f"{dropped} of {report['rows_read']} rows were dropped; dropped.jsonl says which and why")
    for name, cut in report["truncated"].items():
        if cut["rows"]:
            progress.note(
                f"{cut['rows']} rows of {name} are longer than model.max_length and lose {cut['tokens_lost']} tokens"
            )


def _manifest(
    recipe: Recipe, task: Task, labels: list[str], splits: dict[str, int], inputs: dict[str, Any]
) -> dict[str, Any]:
    return {
        "kind": "data",
        "task": recipe.task.resolved(),
        "labels": labels,
        "roles": list(task.columns),
        "splits": splits,
        "seed": recipe.seed,
        "fingerprint": fingerprint(inputs),
        "rows_fingerprint": fingerprint(rows_inputs(recipe)),
        "inputs": inputs,
        "versions": versions(),
    }


def text_keys(rows: Sequence[dict[str, Any]], spec: TaskSpec) -> set[str]:
    """Return the keys under which equal texts meet, to find rows that are in two places."""
    return {text_key([row[role] for role in spec.text_roles]) for row in rows}
