"""The first stage: from raw rows to cleaned, split, tokenized data with a report on every row."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import registry
from finetune.artifacts import (
    PreparedData,
    building,
    damages,
    fingerprint,
    has_manifest,
    publish,
    versions,
    write_json,
    write_text,
)
from finetune.data.augmentation import Augmentation, plan_copies, preview
from finetune.data.checks import CheckInput, Finding, run_checks
from finetune.data.cleaning import Pipeline
from finetune.data.rows import Column, used_columns
from finetune.data.splitting import SPLITS
from finetune.data.store import read_stream
from finetune.data.tokenization import Encoder, Limits
from finetune.errors import FinetuneError
from finetune.fingerprints import rows_inputs, tokens_inputs
from finetune.models.loading import check_context, context_length, find_model, load_tokenizer
from finetune.preparation.deciding import Decided, Deciding, presentable
from finetune.preparation.encoding import (
    ORIGIN,
    Tokens,
    Work,
    augmented,
    text_batches,
    with_origin,
    write_splits,
)
from finetune.preparation.reading import Collected, open_sources, read_rows, selection_settings
from finetune.preparation.reporting import rows_report, tokens_report
from finetune.progress import Progress, Silent
from finetune.recipe import Recipe
from finetune.reports.next_steps import next_steps
from finetune.reports.preparation import preparation_report
from finetune.reports.preparation_plots import draw_preparation
from finetune.tasks import TaskSpec, open_task

if TYPE_CHECKING:
    import pyarrow as pa

Columns = Mapping[str, Column]

# A note is due when cleaning throws away a larger share of the rows than this
MANY_DROPPED = 0.1
# `max_length: auto` reads this many rows at most, and takes the length that this share of them keeps within
AUTO_LENGTH_ROWS = 50_000
AUTO_LENGTH_QUANTILE = 0.99
LEAKS, NEAR = "leaks.jsonl", "near_duplicates.jsonl"
TOKEN_KEYS = ("truncated", "tokens", "tokenizer", "augmented", "next_steps")


@dataclass(frozen=True)
class RowsPart:
    """Readable rows with their splits, wherever they come from, and what there is to say about them."""

    report: dict[str, Any]
    labels: list[str]
    work: Any  # () -> Iterator[Work], as often as one likes
    train: Any  # () -> Iterator[RecordBatch]: the rows to learn from, without those that augmentation made
    files: list[str]
    total: int


def prepare(
    recipe: Recipe, folder: Path, *, allow_code: bool = False, progress: Progress | None = None
) -> PreparedData:
    """Build the prepared data in `folder`, replacing what was there; return it.

    If only what decides the tokens has changed, the rows that are there are tokenized again, and not cleaned again.
    Raises FinetuneError for data that cannot be used as it is, with the lines at fault.
    """
    progress = progress or Silent()
    columns, spec = _columns(recipe)
    model_folder = find_model(recipe.model, allow_code=allow_code)
    # described before it is read: a file that is edited meanwhile makes the result stale, never wrongly fresh
    inputs = tokens_inputs(recipe, allow_code=allow_code)
    rows_fingerprint = fingerprint(rows_inputs(recipe))
    with building(folder) as partial:
        scratch = partial / "rows"
        scratch.mkdir()
        rows = _stored_rows(folder, partial, rows_fingerprint, progress)
        if rows is None:
            rows = _new_rows(recipe, columns, spec, scratch, partial, folder, progress)
        tokenizer = _tokenizer(recipe, columns, model_folder, rows, partial, allow_code)
        limits = _limits(recipe, columns, model_folder, tokenizer, rows)
        tokens = write_splits(
            rows.work(),
            Encoder.of(tokenizer, limits),
            partial,
            roles=list(columns),
            task=recipe.task.name,
            options=recipe.task.options,
            labels=rows.labels,
            files=rows.files,
            total=rows.total,
            workers=recipe.data.workers,
            progress=progress,
        )
        if limits.overflow == "error":
            _refuse_long_rows(tokens, limits)
        report = {**rows.report, **tokens_report(recipe, tokens, limits)}
        if recipe.tokenizer:
            report["tokenizer"] = {"name": recipe.tokenizer.name, "vocabulary": len(tokenizer)}
        report["next_steps"] = next_steps(report)
        write_json(partial / "report.json", report)
        pictures = draw_preparation(report, partial / "reports")
        named = {title: f"reports/{name}" for title, name in pictures.items()}
        write_text(partial / "report.md", preparation_report(report, named))
        _note(report, progress)
        shutil.rmtree(scratch)
        folder.with_name(LEAKS).unlink(missing_ok=True)  # of an attempt that was refused
        publish(folder, _manifest(recipe, columns, rows, tokens, limits, inputs, rows_fingerprint))
    return PreparedData(folder)


def check(recipe: Recipe, *, progress: Progress | None = None) -> dict[str, Any]:
    """Read, clean, decide and check as `prepare` does, in a temporary folder; return the report on the rows."""
    columns, spec = _columns(recipe)
    with tempfile.TemporaryDirectory(prefix="finetune-check-") as scratch:
        collected, decided, deciding = _decide(recipe, columns, spec, Path(scratch), progress or Silent())
        findings = _findings(recipe, columns, collected, decided, deciding)
        return rows_report(recipe, collected, decided, spec, deciding.kind, findings)


def preview_augmentation(recipe: Recipe, count: int, *, progress: Progress | None = None) -> list[tuple[str, str, str]]:
    """Return (operation, before, after) for the first rows that augmentation would make; write nothing."""
    if recipe.data.augment is None:
        raise FinetuneError("--preview: expected a recipe with data.augment, found none: nothing would be made")
    columns, spec = _columns(recipe)
    with tempfile.TemporaryDirectory(prefix="finetune-preview-") as scratch:
        _, decided, deciding = _decide(recipe, columns, spec, Path(scratch), progress or Silent())
        rows: list[dict[str, Any]] = []
        for batch in _of_split(decided, 0):
            rows += batch.select(list(columns)).to_pylist()
            if len(rows) >= count:
                break
        return preview(rows, _augmentation(recipe, columns, deciding.seed), count)


def _columns(recipe: Recipe) -> tuple[Columns, TaskSpec]:
    task, spec = open_task(recipe.task.name, recipe.task.options)
    return used_columns(task.columns, recipe.data.columns), spec


def _decide(
    recipe: Recipe, columns: Columns, spec: TaskSpec, scratch: Path, progress: Progress
) -> tuple[Collected, Decided, Deciding]:
    settings = selection_settings(recipe, columns)
    Pipeline(settings.clean, tokens=any(column.kind == "tokens" for column in columns.values()))
    collected = read_rows(open_sources(recipe), settings, scratch, workers=recipe.data.workers, progress=progress)
    deciding = Deciding(recipe, collected, columns, spec, scratch, progress)
    return collected, deciding.decide(), deciding


def _new_rows(
    recipe: Recipe, columns: Columns, spec: TaskSpec, scratch: Path, partial: Path, folder: Path, progress: Progress
) -> RowsPart:
    """Read, clean, decide and check; write what is known about the rows that go and those that are alike."""
    collected, decided, deciding = _decide(recipe, columns, spec, scratch, progress)
    findings = _findings(recipe, columns, collected, decided, deciding)
    _refuse(findings, decided, folder)
    deciding.write_dropped(partial / "dropped.jsonl")
    _write_lines(partial / NEAR, decided.near_pairs)
    _write_lines(partial / LEAKS, decided.leaks)
    report = rows_report(recipe, collected, decided, spec, deciding.kind, findings)

    def work() -> Iterator[Work]:
        first = 0
        for batch in decided.rows.batches():
            splits = decided.splits[first : first + batch.num_rows]
            yield Work(with_origin(batch) if recipe.data.augment else batch, splits)
            first += batch.num_rows
        if recipe.data.augment:
            yield from _augmented_work(recipe, columns, spec, decided, deciding.seed)

    return RowsPart(report, decided.labels, work, lambda: _of_split(decided, 0), collected.files, len(decided.rows))


def _of_split(decided: Decided, code: int) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    first = 0
    for batch in decided.rows.batches():
        mask = decided.splits[first : first + batch.num_rows] == code
        yield batch.filter(pa.array(mask))
        first += batch.num_rows


def _augmentation(recipe: Recipe, columns: Columns, seed: int) -> Augmentation:
    assert recipe.data.augment
    parts = [(part.name, part.options) for part in recipe.data.augment.operations]
    return Augmentation(parts, columns, seed=seed)


def _augmented_work(recipe: Recipe, columns: Columns, spec: TaskSpec, decided: Decided, seed: int) -> Iterator[Work]:
    import numpy as np

    settings = recipe.data.augment
    assert settings is not None
    train = int((decided.splits == 0).sum())
    labels = None
    if settings.balance:
        if not spec.label_role or columns[spec.label_role].kind != "label":
            raise FinetuneError(f"data.augment.balance: expected a task with one label a row, found {recipe.task.name}")
        chosen = decided.rows.column(spec.label_role).filter(_arrow(decided.splits == 0))
        labels = chosen.to_pylist()
    copies = plan_copies(labels, rows=train, copies=settings.copies, balance=settings.balance, target=settings.target)
    augmentation = _augmentation(recipe, columns, seed)
    for batch in augmented(_of_split(decided, 0), copies, augmentation, list(columns)):
        yield Work(batch, np.zeros(batch.num_rows, dtype=np.int8))


def _arrow(mask: Any) -> Any:
    import pyarrow as pa

    return pa.array(mask)


def _stored_rows(folder: Path, partial: Path, rows_fingerprint: str, progress: Progress) -> RowsPart | None:
    """Return the rows that are there already, if they were made from the same input and nothing has touched them."""
    if not has_manifest(folder):
        return None
    try:
        data = PreparedData(folder)
        manifest = data.manifest
    except FinetuneError:
        return None
    if manifest.get("rows_fingerprint") != rows_fingerprint or damages(folder, manifest, thorough=True):
        return None
    progress.note("the rows are there already: only their tokens are made anew")
    for name in ("dropped.jsonl", NEAR, LEAKS):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, partial / name)
    stored = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    report = {key: value for key, value in stored.items() if key not in TOKEN_KEYS}
    tables = {name: read_stream(folder / f"{name}.arrow") for name in manifest["splits"]}
    readable = {name: table.drop_columns([*manifest["features"], "length"]) for name, table in tables.items()}

    def work() -> Iterator[Work]:
        import numpy as np

        for name, table in readable.items():
            for batch in table.to_batches():
                yield Work(batch, np.full(batch.num_rows, SPLITS.index(name), dtype=np.int8))

    def train() -> Iterator[pa.RecordBatch]:
        for batch in readable["train"].to_batches():
            yield batch.filter(batch[ORIGIN].is_null()) if ORIGIN in batch.schema.names else batch

    total = sum(table.num_rows for table in readable.values())
    return RowsPart(report, data.labels, work, train, stored["source"], total)


def _findings(
    recipe: Recipe, columns: Columns, collected: Collected, decided: Decided, deciding: Deciding
) -> list[Finding]:
    """Run the checks; what deciding found comes with what they find, the worst first."""
    settings = {
        name: (value.get("severity"), {key: item for key, item in value.items() if key != "severity"})
        for name, value in recipe.data.checks.items()
    }
    if recipe.data.conflicts == "error":
        settings.setdefault("conflicting-labels", ("error", {}))
    rows = CheckInput(
        columns=columns,
        values={role: decided.rows.column(role) for role in columns},
        splits=decided.splits,
        clusters=decided.clusters if not recipe.data.group_by else _text_clusters(deciding),
        where=deciding.place,
        dropped=decided.dropped,
        dropped_examples=deciding.dropped_examples(),
        sample=[presentable(record.values) for record in collected.sample if not record.unreadable],
        used=selection_settings(recipe, columns).names,
        classes=decided.labels,
        given_labels=recipe.data.labels or None,
    )
    order = ("error", "warning", "note")
    found = [*decided.problems, *run_checks(rows, settings)]
    return sorted(found, key=lambda finding: order.index(finding.severity))


def _text_clusters(deciding: Deciding) -> Any:
    """Return the clusters of equal texts alone: a user's group is no reason why labels should agree."""
    from finetune.data.duplicates import clusters_of

    return clusters_of(deciding._keys())


def _refuse(findings: Sequence[Finding], decided: Decided, folder: Path) -> None:
    """Raise FinetuneError if anything was found that the recipe calls an error."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    lines = [f"  {finding.check}: {finding.message}" for finding in errors]
    if decided.leaks and any(finding.check == "leaks" for finding in errors):
        listed = folder.with_name(LEAKS)
        _write_lines(listed, decided.leaks)
        lines.append(f"  The leaks are listed in {listed}.")
    lowered = [name for name in dict.fromkeys(finding.check for finding in errors) if name in registry.checks.names()]
    way_out = f", or lower what you accept: data.checks.{lowered[0]}: warning" if lowered else ""
    heading = f"the data has {len(errors)} error{'s' * (len(errors) > 1)}:"
    raise FinetuneError("\n".join([heading, *lines, f"Mend the data{way_out}."]))


def _write_lines(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    if values:
        write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def _tokenizer(
    recipe: Recipe, columns: Columns, model_folder: Path, rows: RowsPart, partial: Path, allow_code: bool
) -> Any:
    """Return the model's own tokenizer, or one trained on the train split and saved beside the data."""
    words = any(column.kind == "tokens" for column in columns.values())
    if recipe.tokenizer is None:
        return load_tokenizer(model_folder, allow_code=allow_code, pretokenized=words)
    from finetune.data.tokenizer_training import save_tokenizer, train_tokenizer

    options = dict(recipe.tokenizer.options)
    if words and "prefix_space" in options:
        options["prefix_space"] = True  # a row of words has no blanks of its own
    tokenizer = train_tokenizer(recipe.tokenizer.name, options, text_batches(rows.train(), columns))
    save_tokenizer(tokenizer, partial / "tokenizer")
    return tokenizer


def _limits(recipe: Recipe, columns: Columns, model_folder: Path, tokenizer: Any, rows: RowsPart) -> Limits:
    """Return how long a row may become; raise FinetuneError if that is more than the model reads."""
    model = recipe.model
    most = context_length(model_folder, tokenizer) if recipe.tokenizer is None else None
    if model.max_length == "auto":
        length = _auto_length(Encoder.of(tokenizer, Limits(10**9)), columns, rows, most)
    else:
        length = model.max_length
        if recipe.tokenizer is None:
            check_context(model_folder, tokenizer, length)
    return Limits(length, model.overflow, model.stride if model.overflow == "window" else 0)


def _auto_length(encoder: Encoder, columns: Mapping[str, Column], rows: RowsPart, most: int | None) -> int:
    """Return the length within which 99 % of the training rows keep, rounded up to a multiple of 8."""
    import numpy as np

    lengths: list[int] = []
    step = -(-max(rows.total, 1) // AUTO_LENGTH_ROWS)
    position = 0
    roles = [role for role, column in columns.items() if column.kind in {"text", "tokens"}]
    for batch in rows.train():
        chosen = [batch[role].to_pylist()[-position % step :: step] for role in roles]
        lengths += encoder.lengths(*chosen) if chosen[0] else []
        position += batch.num_rows
    wanted = int(np.quantile(np.asarray(lengths), AUTO_LENGTH_QUANTILE, method="higher"))
    rounded = max(8, -(-wanted // 8) * 8)
    return rounded if most is None else min(rounded, most)


def _refuse_long_rows(tokens: Tokens, limits: Limits) -> None:
    long = {name: facts for name, facts in tokens.splits.items() if facts.cut}
    if long:
        listed = "; ".join(
            f"{facts.cut} of {name} (lines {', '.join(map(str, facts.lines[:5]))})" for name, facts in long.items()
        )
        raise FinetuneError(
            f"model.overflow: expected rows of at most {limits.max_length} tokens, found longer ones: {listed}. Raise "
            "model.max_length, or set model.overflow: window, or truncate."
        )


def _note(report: dict[str, Any], progress: Progress) -> None:
    dropped = sum(report["dropped"].values())
    if dropped > MANY_DROPPED * report["rows_read"]:
        progress.note(f"{dropped} of {report['rows_read']} rows were dropped; dropped.jsonl says which and why")
    for name, cut in report["truncated"].items():
        if cut["rows"]:
            progress.note(
                f"{cut['rows']} rows of {name} are longer than {report['tokens']['max_length']} tokens and lose "
                f"{cut['tokens_lost']} of them"
            )


def _manifest(
    recipe: Recipe,
    columns: Columns,
    rows: RowsPart,
    tokens: Tokens,
    limits: Limits,
    inputs: dict[str, Any],
    rows_fingerprint: str,
) -> dict[str, Any]:
    return {
        "kind": "data",
        "task": recipe.task.resolved(),
        "labels": rows.labels,
        "roles": list(columns),
        "features": tokens.features,
        "splits": {name: facts.rows for name, facts in tokens.splits.items()},
        "limits": {"max_length": limits.max_length, "overflow": limits.overflow, "stride": limits.stride},
        "tokenizer": "tokenizer" if recipe.tokenizer else None,
        "seed": recipe.seed,
        "fingerprint": fingerprint(inputs),
        "rows_fingerprint": rows_fingerprint,
        "inputs": inputs,
        "versions": versions(),
    }
