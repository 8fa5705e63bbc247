"""The third stage: from a run to a report with intervals, baselines and the worst examples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import registry
from finetune.artifacts import (
    FORMAT_VERSION,
    QUANTIZATION_REPORT,
    FeatureTable,
    PreparedData,
    Run,
    Split,
    feature_table,
    fingerprint,
    has_manifest,
    write_json,
    write_text,
)
from finetune.data.duplicates import text_key
from finetune.data.rows import Column, Record, column_names, list_lines, list_reasons, used_columns
from finetune.data.selection import SelectionSettings, Selector, check_columns
from finetune.data.sources import read
from finetune.data.splitting import SPLITS
from finetune.errors import FinetuneError, RowError
from finetune.evaluation.baselines import BaselineInput, as_text
from finetune.evaluation.metrics import check_code
from finetune.evaluation.predictions import Predictions
from finetune.evaluation.sections import UNITS
from finetune.evaluation.statistics import LEVEL, RESAMPLES, Interval, score
from finetune.fingerprints import report_inputs
from finetune.gates import check_gates
from finetune.inference import Predictor, open_pretrained, open_run
from finetune.preparation.reading import needed_columns, selection_settings, with_span_roles
from finetune.progress import Progress, Silent
from finetune.recipe import Recipe
from finetune.reports.markdown import evaluation_report
from finetune.reports.plots import draw_sections
from finetune.runtime import Runtime
from finetune.tasks import TaskSpec, open_task

if TYPE_CHECKING:
    from numpy.typing import NDArray

WORST_EXAMPLES = 20
LINES_NAMED = 10


@dataclass(frozen=True)
class ScoredRows:
    """The rows of an evaluation with their features, and what was lost on the way."""

    name: str
    lines: Sequence[int]
    rows: Sequence[dict[str, Any]]
    features: FeatureTable
    truncated: dict[str, Any]
    dropped: dict[str, int] = field(default_factory=dict)
    files: Sequence[str] | None = None
    dropped_lines: dict[str, list[int]] = field(default_factory=dict)
    unknown_labels: list[str] = field(default_factory=list)


def evaluate(
    run: Run,
    *,
    split: str = "test",
    source: Path | None = None,
    recipe: Recipe | None = None,
    folder: Path | None = None,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a run on a split of its own data, or on new labelled rows; write the report and return it.

    `recipe` may bring other metrics and gates than the run's own; `folder` is where the report goes instead of the
    run's `reports/`. Raises FinetuneError when the data is gone or has no such split.
    """
    runtime, progress = runtime or Runtime(), progress or Silent()
    recipe = recipe or run.recipe
    names = metric_names(recipe, run)
    check_code(names, allow_code=runtime.allow_code)
    predictor = replace(open_run(run, runtime), generation=recipe.generation, seed=recipe.seed)
    spec = predictor.spec
    data = own_data(run)
    scored = _rows_of_file(source, run, recipe, predictor) if source else _rows_of_split(data, run, split)
    size = recipe.train.eval_batch_size
    predictions = predictor.predict(scored.rows, scored.features, size, progress)
    units = units_of(predictions, scored.rows, spec)

    def pretrained() -> Predictions:
        return open_pretrained(run, runtime).predict(scored.rows, scored.features, size)

    said = _baselines(data, scored, predictor, predictions, pretrained, progress)
    own = score(names, predictions, recipe.seed, units)
    baselines = {name: score(names, other, recipe.seed, units) for name, other in said.items()}
    report: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "task": recipe.task.name,
        "task_options": run.recipe.task.options,
        "recipe": recipe.name,
        "model": recipe.model.title,
        "seed": recipe.seed,
        "split": scored.name,
        "rows": len(scored.rows),
        "metrics": as_json(own.intervals()),
        "baselines": {name: as_json(scores.intervals()) for name, scores in baselines.items()},
        "gains": {name: as_json(own.lead(scores)) for name, scores in baselines.items()},
        "intervals": _intervals(spec, units, len(predictions)),
        "labels": run.labels or None,
        "fitted": dict(predictor.fitted) or None,
        "generation": generation_settings(recipe, spec),
        **spec.details(predictions, recipe.seed),
        "worst": worst_examples(predictions, scored, spec),
        "truncated": scored.truncated,
        "dropped": scored.dropped,
        "dropped_lines": scored.dropped_lines or None,
        "unknown_labels": scored.unknown_labels or None,
        "seen_in_training": _seen_in_training(data, scored, run, spec) if data else None,
        "diagnosis": run.manifest.get("diagnosis"),
        "run_fingerprint": run.fingerprint,
        "fingerprint": fingerprint(report_inputs(run, recipe, names, split, source, has_data=data is not None)),
    }
    report = with_gates({key: value for key, value in report.items() if value is not None}, recipe)
    write_report(report, folder or run.reports)
    return report


def units_of(predictions: Predictions, rows: Sequence[Mapping[str, Any]], spec: TaskSpec) -> NDArray[Any] | None:
    """Return for each answer the number of the unit that it belongs to; None: each is one."""
    import numpy as np

    if spec.unit_role is None:
        return None
    by_row = [row[spec.unit_role] for row in rows]
    values = [by_row[row] for row in predictions.rows.tolist()]
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return np.array([numbers[value] for value in values], dtype=np.int64)


def _intervals(spec: TaskSpec, units: NDArray[Any] | None, answers: int) -> dict[str, Any]:
    count = answers if units is None else int(units.max(initial=-1)) + 1
    return {
        "method": f"percentile bootstrap over {UNITS[spec.unit]}",
        "unit": spec.unit,
        "units": count,
        "level": LEVEL,
        "resamples": RESAMPLES,
    }


def generation_settings(recipe: Recipe, spec: TaskSpec) -> dict[str, Any] | None:
    """Return what decides how texts are written, if the task writes any."""
    return recipe.generation.deciding(recipe.seed) if spec.prompt is not None else None


def with_gates(report: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return a report with the recipe's gates held against it."""
    return {**report, "gates": check_gates([gate for gate in recipe.gates if not gate.quantized], report["metrics"])}


def report_name(split: str, source: Path | None) -> str:
    """Return the name of a report's files: the split's, or that of the file of new rows."""
    if source is None:
        return split
    return f"file-{source.stem}" if source.stem in {*SPLITS, QUANTIZATION_REPORT} else source.stem


def metric_names(recipe: Recipe, run: Run) -> list[str]:
    """Return the metrics of a report: the recipe's, or all of the task, and those that gates ask for."""
    _, spec = open_task(run.recipe.task.name, run.recipe.task.options)
    return asked_metrics(recipe, spec)


def asked_metrics(recipe: Recipe, spec: TaskSpec | None = None) -> list[str]:
    """Return the metrics that a recipe asks for; `spec` is the task's declaration, if it is not the recipe's own."""
    names = list(recipe.metrics or (spec or recipe.spec).metrics)
    names += [gate.keys[0] for gate in recipe.gates if gate.keys[0] not in {"agreement", "size_ratio"}]
    return list(dict.fromkeys(names))


def own_data(run: Run) -> PreparedData | None:
    """Return the data that the run was trained on, if it still lies beside it."""
    folder = run.data_folder()
    if not has_manifest(folder):
        return None
    data = PreparedData(folder)
    return data if data.fingerprint == run.manifest["data_fingerprint"] else None


def _rows_of_split(data: PreparedData | None, run: Run, name: str) -> ScoredRows:
    if data is None:
        raise FinetuneError(
            f"{run.data_folder()}: expected the data that {run.folder} was trained on; it was moved, or prepared again "
            "differently. Train again, or score a file with --data FILE."
        )
    split: Split = data.split(name)
    truncated = data.report["truncated"][name]
    return ScoredRows(name, split.lines, split.rows, split.features, truncated, files=split.files)


def _rows_of_file(source: Path, run: Run, recipe: Recipe, predictor: Predictor) -> ScoredRows:
    """Prepare new rows as the run's own were; only their columns may be called otherwise."""
    records = read(source, run.recipe.data.form)
    settings = _settings_for(records, run, recipe, predictor)
    check_columns(records, needed_columns(settings), str(source))
    values, reasons = Selector(settings).values(records)
    unknowns = _leave_out_unknown(values, reasons, records, run.labels, settings.columns, predictor.spec.label_role)
    kept = [index for index, reason in enumerate(reasons) if not reason]
    dropped = dict(Counter(reason for reason in reasons if reason).most_common())
    if not kept:
        raise FinetuneError(
            f"{source}: none of its rows can be scored ({list_reasons(dropped)}{_first(unknowns)}); expected "
            f"{_wanted(settings.names, settings.columns, run.labels)}. If its columns have other names, add "
            "--set data.columns.ROLE=COLUMN."
        )
    columns = {name: [column[index] for index in kept] for name, column in values.items()}
    lines = [records[index].line for index in kept]
    try:
        encoded = predictor.encode(columns)
    except RowError as error:
        raise FinetuneError(f"{source}: line {lines[error.row]}: {error}") from error
    if encoded.untrainable is not None and encoded.untrainable.any():
        at_fault = [line for line, nothing in zip(lines, encoded.untrainable.tolist(), strict=True) if nothing]
        raise FinetuneError(
            f"{source}: {len(at_fault)} rows have nothing to be scored within {run.limits['max_length']} tokens: line "
            f"{list_lines(at_fault)}. Shorten or remove them."
        )
    truncated = truncation(lines, encoded.tokens_lost.tolist())
    if run.limits["overflow"] == "error" and truncated["rows"]:
        raise FinetuneError(
            f"{source}: {truncated['rows']} rows are longer than the {run.limits['max_length']} tokens that this run "
            f"accepts (model.overflow: error): line {list_lines(truncated['lines'])}. Shorten or remove them."
        )
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return ScoredRows(
        report_name("", source),
        lines,
        rows,
        feature_table(encoded.features),
        truncated,
        dropped,
        dropped_lines={reason: _lines_of(reason, records, reasons) for reason in dropped},
        unknown_labels=sorted(unknowns),
    )


def _settings_for(records: Sequence[Record], run: Run, recipe: Recipe, predictor: Predictor) -> SelectionSettings:
    """Return how the run's own rows were read, with the names that the columns have now."""
    columns, spec = predictor.task.columns, predictor.spec
    known = with_span_roles(columns)
    names = column_names(known, {role: name for role, name in recipe.data.columns.items() if role in known})
    there = {name for record in records for name in record.values}
    # what nothing is learned from (the topic of an embedding) judges new rows only where they have it
    asked = {role for role, column in columns.items() if column.required} | {spec.label_role, *spec.text_roles}
    mapped = used_columns(columns, run.recipe.data.columns)
    used = {role: column for role, column in mapped.items() if role in asked or names[role] in there}
    settings = selection_settings(run.recipe, used)
    if settings.spans and names["spans"] not in there and {names[role] for role in used} <= there:
        settings = replace(settings, spans=False)  # words and tags, where the run had a text and spans
    return replace(settings, names={role: names[role] for role in settings.names}, extras=(), groups=())


def _leave_out_unknown(
    values: Mapping[str, Sequence[Any]],
    reasons: list[str],
    records: Sequence[Record],
    labels: Sequence[str],
    columns: Mapping[str, Column],
    role: str | None,
) -> dict[str, int]:
    """Give rows with labels that the run does not know a reason not to be scored; return these labels and lines."""
    unknowns: dict[str, int] = {}
    if not role or not labels:
        return unknowns
    for index, value in enumerate(values[role]):
        if not reasons[index] and (unknown := unknown_labels(value, columns[role].kind, labels)):
            reasons[index] = "unknown_label"
            for label in unknown:
                unknowns.setdefault(label, records[index].line)
    return unknowns


def _lines_of(reason: str, records: Sequence[Record], reasons: Sequence[str]) -> list[int]:
    """Return the first lines that were left out for a reason."""
    return [record.line for record, why in zip(records, reasons, strict=True) if why == reason][:LINES_NAMED]


def truncation(lines: Sequence[int], lost: Sequence[int]) -> dict[str, Any]:
    """Return how many rows lost how many tokens, and the lines of the first of them."""
    cut = [(line, count) for line, count in zip(lines, lost, strict=True) if count]
    return {"rows": len(cut), "tokens_lost": sum(count for _, count in cut), "lines": [line for line, _ in cut[:20]]}


def unknown_labels(value: Any, kind: str, labels: Sequence[str]) -> list[str]:
    """Return the labels, or types of entities, of one row that a run does not know."""
    if kind == "label":
        found = [value]
    elif kind == "labels":
        found = value
    else:
        found = [tag[2:] for tag in value if tag[:2] in {"B-", "I-"}] if kind == "tags" else []
    return [label for label in found if label not in labels]


def _first(unknowns: Mapping[str, int]) -> str:
    """Return the first labels that a run does not know, with their lines, for a message."""
    listed = ", ".join(f"{label!r} in line {line}" for label, line in list(unknowns.items())[:5])
    return f"; {listed}" if listed else ""


def _wanted(names: Mapping[str, str], used: Mapping[str, Column], labels: Sequence[str]) -> str:
    listed = ", ".join(f"{role} in the column {names[role]!r}" for role in used)
    return f"{listed}{f', and of the labels {list_some(labels)}' if labels else ''}"


def list_some(labels: Sequence[str], most: int = 20) -> str:
    """Return the first labels, and how many more there are."""
    return ", ".join(labels[:most]) + (f" and {len(labels) - most} more" if len(labels) > most else "")


def _baselines(
    data: PreparedData | None,
    scored: ScoredRows,
    predictor: Predictor,
    predictions: Predictions,
    pretrained: Callable[[], Predictions],
    progress: Progress,
) -> dict[str, Predictions]:
    """Fit each baseline of the task on the run's training split and return what it says about the scored rows."""
    spec = predictor.spec
    if not spec.baselines:
        return {}
    if data is None:
        progress.note("no baselines: the data that the run was trained on is not beside it")
        return {}
    given = BaselineInput(
        train=list(data.split("train").rows),
        validation=list(data.split("validation").rows),
        rows=list(scored.rows),
        labels=tuple(predictor.labels),
        text_roles=spec.text_roles,
        label_role=spec.label_role,
        like=predictions,
        pretrained=pretrained,
        train_features=data.split("train").features,
        vocabulary=len(predictor.tokenizer),
    )
    found = {}
    for name in spec.baselines:
        progress.detail(f"fitting the baseline {name}")
        try:
            found[name] = registry.baselines.get(name).build({})(given)
        except FinetuneError as error:  # such as a pretrained model that is gone: the run is judged without it
            progress.note(f"no baseline {name}: {error}")
    return found


def worst_examples(predictions: Predictions, scored: ScoredRows, spec: TaskSpec) -> list[dict[str, Any]]:
    """Return the answers that were furthest from the truth, the worst first, as the task shows them."""
    import numpy as np

    examples = []
    rows = predictions.rows
    for answer in np.argsort(-spec.difficulty(predictions), kind="stable")[:WORST_EXAMPLES].tolist():
        row = int(rows[answer])
        place = {**({"file": scored.files[row]} if scored.files else {}), "line": scored.lines[row]}
        examples.append({**place, **spec.example(predictions, answer, scored.rows[row])})
    return examples


def _seen_in_training(data: PreparedData, scored: ScoredRows, run: Run, spec: TaskSpec) -> int:
    """Count scored rows whose text stands in the training split; the models of folds were trained on validation too."""
    trained = ("train", "validation") if run.recipe.folds else ("train",)
    if scored.name in trained:
        return len(scored.rows)
    known = {_key(row, spec) for name in trained for row in data.split(name).rows}
    return sum(_key(row, spec) in known for row in scored.rows)


def _key(row: Mapping[str, Any], spec: TaskSpec) -> str:
    """Return the key under which equal texts meet."""
    return text_key([as_text(row[role]) for role in spec.text_roles if role in row])


def as_json(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    """Return intervals as reports hold them."""
    return {name: interval.as_json() for name, interval in intervals.items()}


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write an evaluation for people, with its pictures, and for machines."""
    name = report["split"]
    _, spec = open_task(report["task"], report.get("task_options", {}))
    sections = spec.sections(report)
    pictures = draw_sections(sections, folder, name)
    curves = "loss.png" if (folder / "loss.png").is_file() else None
    write_text(folder / f"{name}.md", evaluation_report(report, sections, pictures, spec.worst_means, curves))
    write_json(folder / f"{name}.json", report)


def read_report(path: Path) -> dict[str, Any] | None:
    """Return a written report, or None if there is none that can be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
