"""The first stage: from raw rows to cleaned, split, tokenized data with a report on every row."""

from __future__ import annotations

import shutil
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.artifacts import PreparedData, building, fingerprint, publish, versions, write_json, write_text
from finetune.data.checks import Finding
from finetune.data.splitting import KEPT_FOR_TEST
from finetune.data.tokenization import Encoder, Limits
from finetune.errors import FinetuneError
from finetune.fingerprints import rows_part, tokens_inputs
from finetune.models.families import Kind
from finetune.models.loading import (
    check_kind,
    check_length,
    config_context,
    context_length,
    find_model,
    load_tokenizer,
    read_json,
)
from finetune.models.scratch import scratch_config, scratch_context
from finetune.preparation.deciding import Deciding
from finetune.preparation.encoding import Tokens, text_batches, write_splits
from finetune.preparation.reporting import rows_report, short_report, tokens_report
from finetune.preparation.rows import (
    LEAKS,
    Columns,
    RowsPart,
    augment_rows,
    augmentation_of,
    collect_rows,
    columns_of,
    decide_rows,
    find_faults,
    making_of,
    new_rows,
    stored_rows,
)
from finetune.progress import Progress, Silent
from finetune.recipe import Recipe
from finetune.reports.next_steps import next_steps
from finetune.reports.preparation import preparation_report
from finetune.reports.preparation_plots import draw_preparation
from finetune.tasks import open_task, prepare_tokenizer

# A note is due when cleaning throws away a larger share of the rows than this
MANY_DROPPED = 0.1
DEFAULT_STRIDE = 32  # tokens that two windows share, at most a quarter of a window
# `max_length: auto` reads this many rows at most, and takes the length that this share of them keeps within
AUTO_LENGTH_ROWS = 50_000
AUTO_LENGTH_QUANTILE = 0.99


def prepare(
    recipe: Recipe,
    folder: Path,
    *,
    allow_code: bool = False,
    inputs: dict[str, Any] | None = None,
    reuse_rows: bool = True,
    progress: Progress | None = None,
) -> PreparedData:
    """Build the prepared data in `folder`, replacing what was there; return it.

    `inputs` are the recipe's `tokens_inputs`, if they are known already: large files are not read twice to hash them.
    If only what decides the tokens has changed, the rows that are there are tokenized again, and not cleaned again,
    unless `reuse_rows` says otherwise.
    Raises FinetuneError for data that cannot be used as it is, with the lines at fault.
    """
    progress = progress or Silent()
    columns, spec = columns_of(recipe)
    model_folder = find_model(recipe.model, allow_code=allow_code) if recipe.model.id else None
    task, _ = open_task(recipe.task.name, recipe.task.options)
    _check_model(recipe, model_folder, task.head(()).kind, allow_code)
    # described before it is read: a file that is edited meanwhile makes the result stale, never wrongly fresh
    inputs = inputs or tokens_inputs(recipe, allow_code=allow_code)
    rows_fingerprint = fingerprint(rows_part(inputs))
    with building(folder) as partial:
        scratch = partial / "rows"
        scratch.mkdir()
        rows = stored_rows(folder, partial, rows_fingerprint, progress) if reuse_rows else None
        if rows is None:
            rows = new_rows(recipe, columns, spec, scratch, partial, folder, progress)
        tokenizer = _tokenizer(recipe, columns, model_folder, rows, partial, allow_code)
        limits = _limits(recipe, columns, model_folder, tokenizer, rows)
        _check_targets(recipe, model_folder, getattr(task, "max_target_length", None))
        tokens = write_splits(
            rows.work(),
            Encoder.of(tokenizer, limits, whole=spec.whole_tokenizer),
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
            _refuse_long_rows(tokens, limits, getattr(task, "max_target_length", None))
        _refuse_untrainable(tokens, limits)
        report = {**rows.report, "name": recipe.name, **tokens_report(recipe, tokens, limits)}
        if max_target_length := getattr(task, "max_target_length", None):
            report["tokens"]["max_target_length"] = max_target_length
        report["windows"] = spec.windows and "text_pair" not in recipe.data.columns
        report["trains"] = not recipe.tokenizer or recipe.model.scratch is not None
        if limit := _model_limit(recipe, model_folder, tokenizer):
            report["tokens"]["model_limit"] = limit
        _report_misses(report, rows.missed)
        _report_asked_otherwise(report, tokens.asked_otherwise)
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
    """Read, clean, decide and check as `prepare` does, in a temporary folder; return the report on the rows.

    Data that can be read but not divided is an error among the findings too. Raises FinetuneError for data that cannot
    be read.
    """
    columns, spec = columns_of(recipe)
    with tempfile.TemporaryDirectory(prefix="finetune-check-") as scratch:
        collected = collect_rows(recipe, columns, Path(scratch), progress or Silent())
        deciding = Deciding(recipe, collected, columns, spec, Path(scratch), progress or Silent())
        try:
            decided = deciding.decide()
        except FinetuneError as error:
            findings = [*deciding.problems, Finding("splits", "error", len(deciding.left), str(error), [])]
            return short_report(recipe, collected, deciding.left.dropped(), findings)
        findings = find_faults(recipe, columns, collected, decided, deciding)
        return rows_report(recipe, collected, decided, spec, deciding.kind, findings)


def preview_augmentation(recipe: Recipe, count: int, *, progress: Progress | None = None) -> list[tuple[str, str, str]]:
    """Return (operation, before, after) for the first rows that augmentation would make; write nothing."""
    if recipe.data.augment is None:
        raise FinetuneError("--preview: expected a recipe with data.augment, found none: nothing would be made")
    columns, spec = columns_of(recipe)
    with tempfile.TemporaryDirectory(prefix="finetune-preview-") as scratch:
        _, decided, deciding = decide_rows(recipe, columns, spec, Path(scratch), progress or Silent())
        augmentation = augmentation_of(recipe, columns, deciding.seed)
        making = making_of(decided, columns)
        made = islice(augment_rows(recipe, columns, spec, decided, augmentation, making), count)
        return [(new.operation, augmentation.show(row), augmentation.show(new.values)) for row, new in made]


def _tokenizer(
    recipe: Recipe, columns: Columns, model_folder: Path | None, rows: RowsPart, partial: Path, allow_code: bool
) -> Any:
    """Return the model's own tokenizer, or one trained on the train split and saved beside the data."""
    words = any(column.kind == "tokens" for column in columns.values())
    task, _ = open_task(recipe.task.name, recipe.task.options)
    if recipe.tokenizer is None:
        assert model_folder is not None, "a recipe has a model or a tokenizer"
        tokenizer = load_tokenizer(model_folder, allow_code=allow_code, pretokenized=words)
        prepare_tokenizer(task, tokenizer)
        return tokenizer
    from finetune.data.tokenizer_training import save_tokenizer, train_tokenizer

    options = dict(recipe.tokenizer.options)
    if words and "prefix_space" in options:
        options["prefix_space"] = True  # a row of words has no blanks of its own
    tokenizer = train_tokenizer(recipe.tokenizer.name, options, text_batches(rows.train(), columns))
    prepare_tokenizer(task, tokenizer)
    save_tokenizer(tokenizer, partial / "tokenizer")
    return tokenizer


def _limits(recipe: Recipe, columns: Columns, model_folder: Path | None, tokenizer: Any, rows: RowsPart) -> Limits:
    """Return how long a row may become; raise FinetuneError if that is more than the model reads."""
    model = recipe.model
    most = _model_limit(recipe, model_folder, tokenizer)
    if model.max_length == "auto":
        length = _auto_length(
            recipe, Encoder.of(tokenizer, Limits(10**9), whole=recipe.spec.whole_tokenizer), columns, rows, most
        )
    else:
        length = model.max_length
        check_length(most, length)
    stride = min(DEFAULT_STRIDE, length // 4) if model.stride is None else model.stride
    return Limits(length, model.overflow, stride if model.overflow == "window" else 0)


def _model_limit(recipe: Recipe, model_folder: Path | None, tokenizer: Any) -> int | None:
    """Return how many tokens the model reads, if that is known and it reads this tokenizer's."""
    if recipe.model.scratch is not None:
        return scratch_context(recipe.model.scratch)
    assert model_folder is not None
    return context_length(model_folder, tokenizer) if recipe.tokenizer is None else None


def _check_targets(recipe: Recipe, model_folder: Path | None, max_target_length: int | None) -> None:
    """Raise FinetuneError if targets may become longer than the decoder has positions for."""
    if recipe.model.scratch is not None:
        most = scratch_context(recipe.model.scratch)
    else:
        assert model_folder is not None
        most = config_context(read_json(model_folder / "config.json"))
    if max_target_length is not None and most is not None and max_target_length > most:
        raise FinetuneError(
            f"task.max_target_length: expected at most {most} tokens, the longest that this model writes; found "
            f"{max_target_length}. Set it to {most} or less"
        )


def _check_model(recipe: Recipe, model_folder: Path | None, kind: Kind, allow_code: bool) -> None:
    """Raise FinetuneError, before a row is read, for a model that cannot do what the task needs."""
    if recipe.model.scratch is not None:
        scratch_config(recipe.model.scratch, None, kind)
    elif model_folder is not None:
        check_kind(model_folder, kind, allow_code=allow_code)


def _auto_length(recipe: Recipe, encoder: Encoder, columns: Columns, rows: RowsPart, most: int | None) -> int:
    """Return the length within which 99 % of the training rows keep, rounded up to a multiple of 8."""
    import numpy as np

    lengths: list[int] = []
    step = -(-sum(batch.num_rows for batch in rows.train()) // AUTO_LENGTH_ROWS)
    position = 0
    roles = [role for role, column in columns.items() if column.kind in {"text", "texts", "tokens", "messages"}]
    task, _ = open_task(recipe.task.name, recipe.task.options)
    for batch in rows.train():
        chosen = {role: batch[role].to_pylist()[-position % step :: step] for role in roles}
        if chosen[roles[0]]:
            lengths += task.encode(chosen, encoder, ()).whole_lengths.tolist()
        position += batch.num_rows
    wanted = int(np.quantile(np.asarray(lengths), AUTO_LENGTH_QUANTILE, method="higher"))
    rounded = max(8, -(-wanted // 8) * 8)
    return rounded if most is None else min(rounded, most)


def _refuse_untrainable(tokens: Tokens, limits: Limits) -> None:
    found = {name: facts.untrainable for name, facts in tokens.splits.items() if facts.untrainable}
    if found:
        listed = "; ".join(
            f"{len(lines)} of {name} (lines {', '.join(map(str, lines[:5]))})" for name, lines in found.items()
        )
        raise FinetuneError(
            "model.max_length: expected rows of which something can be learned, found some whose answer is empty or "
            f"does not begin within {limits.max_length} tokens: {listed}. Raise model.max_length, or remove them."
        )


def _refuse_long_rows(tokens: Tokens, limits: Limits, max_target_length: int | None) -> None:
    targets = f" (or, for long targets, task.max_target_length: {max_target_length})" if max_target_length else ""
    long = {name: facts for name, facts in tokens.splits.items() if facts.cut}
    if long:
        listed = "; ".join(
            f"{facts.cut} of {name} (lines {', '.join(map(str, facts.lines[:5]))})" for name, facts in long.items()
        )
        raise FinetuneError(
            f"model.overflow: expected rows of at most {limits.max_length} tokens, found longer ones: {listed}. Raise "
            f"model.max_length{targets}, or set model.overflow: window, or truncate."
        )


def _report_misses(report: dict[str, Any], missed: int) -> None:
    """Say how many rows augmentation could not make; if those are most of them, that is a finding."""
    if not missed:
        return
    made = report.setdefault("augmented", {"rows": 0, "operations": {}})
    made["not_made"] = missed
    if missed > made["rows"]:
        message = (
            f"{missed} of {missed + made['rows']} rows of data.augment were not made: its operations change nothing in "
            "their texts, or give texts that are there already; choose other operations, or fewer copies."
        )
        finding = Finding("augmentation", "warning", missed, message, [])
        report["warnings"] = [*report["warnings"], finding.as_json()]


def _report_asked_otherwise(report: dict[str, Any], count: int) -> None:
    """Warn of rows whose answers will be asked for otherwise than they are learned."""
    if count:
        message = (
            f"in {count} rows the tokenizer joins the end of the prompt with the beginning of the answer, so that the "
            "answer is learned after other tokens than those after which it will be asked for; name another chat "
            "template (task.template: chatml or plain)."
        )
        finding = Finding("prompts", "warning", count, message, [])
        report["warnings"] = [*report["warnings"], finding.as_json()]


def _note(report: dict[str, Any], progress: Progress) -> None:
    dropped = sum(report["dropped"].values()) - report["dropped"].get(KEPT_FOR_TEST, 0)
    if dropped > MANY_DROPPED * report["rows_read"]:
        progress.note(f"{dropped} of {report['rows_read']} rows were dropped; dropped.jsonl says which and why")
    if missed := report.get("augmented", {}).get("not_made"):
        progress.note(f"{missed} rows of data.augment were not made: nothing new could be made of their rows")
    for name, cut in report["truncated"].items():
        if cut["rows"]:
            tokens = report["tokens"]
            targets = f", or their targets than {limit}," if (limit := tokens.get("max_target_length")) else ""
            progress.note(
                f"{cut['rows']} rows of {name} are longer than {tokens['max_length']} tokens{targets} and lose "
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
