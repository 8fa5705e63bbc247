"""The third stage: from a run to a report with intervals, baselines and the worst examples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
from finetune.data.rows import column_names, list_lines, list_reasons, used_columns
from finetune.data.selection import Selector, check_columns
from finetune.data.sources import read
from finetune.data.splitting import SPLITS
from finetune.errors import FinetuneError
from finetune.evaluation.baselines import LabelledTexts
from finetune.evaluation.metrics import check_code
from finetune.evaluation.predictions import Predictions
from finetune.evaluation.statistics import LEVEL, RESAMPLES, bootstrap, confusion_matrix, paired_bootstrap, per_label
from finetune.fingerprints import report_inputs
from finetune.gates import check_gates
from finetune.inference import Predictor, open_run
from finetune.preparation.reading import selection_settings
from finetune.progress import Progress, Silent
from finetune.recipe import Recipe
from finetune.reports.markdown import evaluation_report
from finetune.reports.plots import plot_confusion
from finetune.runtime import Runtime
from finetune.tasks import TaskSpec, open_task

WORST_EXAMPLES = 20


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
    predictor = open_run(run, runtime)
    data = own_data(run)
    scored = _rows_of_file(source, run, recipe, predictor) if source else _rows_of_split(data, run, split)
    predictions = predictor.predict(scored.rows, scored.features, recipe.train.eval_batch_size, progress)
    baselines = _baselines(data, scored, predictor, progress)
    report: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "task": recipe.task.name,
        "recipe": recipe.name,
        "model": Path(recipe.model.id).name if Path(recipe.model.id).is_absolute() else recipe.model.id,
        "seed": recipe.seed,
        "split": scored.name,
        "rows": len(scored.rows),
        "metrics": _as_json(bootstrap(names, predictions, recipe.seed)),
        "baselines": {name: _as_json(bootstrap(names, other, recipe.seed)) for name, other in baselines.items()},
        "gains": {
            name: _as_json(paired_bootstrap(names, predictions, other, recipe.seed))
            for name, other in baselines.items()
        },
        "intervals": {"method": "percentile bootstrap over rows", "level": LEVEL, "resamples": RESAMPLES},
        "labels": run.labels,
        "confusion": confusion_matrix(predictions),
        "per_label": per_label(predictions, recipe.seed),
        "worst": worst_examples(predictions, scored),
        "truncated": scored.truncated,
        "dropped": scored.dropped,
        "seen_in_training": _seen_in_training(data, scored, predictor.spec) if data else None,
        "run_fingerprint": run.fingerprint,
        "fingerprint": fingerprint(report_inputs(run, recipe, names, split, source, has_data=data is not None)),
    }
    report = with_gates({key: value for key, value in report.items() if value is not None}, recipe)
    write_report(report, folder or run.reports)
    return report


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
    names = list(recipe.metrics or spec.metrics)
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
    task, role = predictor.task, predictor.spec.label_role
    used = used_columns(task.columns, run.recipe.data.columns)
    names = column_names(task.columns, recipe.data.columns)
    settings = selection_settings(run.recipe, used)
    settings = replace(settings, names={role: names[role] for role in used}, extras=())
    records = read(source, run.recipe.data.form)
    check_columns(records, settings.names.items(), str(source))
    values, reasons = Selector(settings).values(records)
    if role:
        for index, label in enumerate(values[role]):
            if not reasons[index] and label not in run.labels:
                reasons[index] = "unknown_label"
    kept = [index for index, reason in enumerate(reasons) if not reason]
    dropped = dict(Counter(reason for reason in reasons if reason).most_common())
    if not kept:
        raise FinetuneError(
            f"{source}: none of its rows can be scored ({list_reasons(dropped)}); expected text in the column "
            f"{settings.names[predictor.spec.text_roles[0]]!r} and the run's labels ({', '.join(run.labels[:20])}). If "
            "its columns have other names, add --set data.columns.ROLE=COLUMN."
        )
    columns = {name: [column[index] for index in kept] for name, column in values.items()}
    lines = [records[index].line for index in kept]
    encoded = predictor.encode(columns)
    truncated = truncation(lines, encoded.tokens_lost.tolist())
    if run.limits["overflow"] == "error" and truncated["rows"]:
        raise FinetuneError(
            f"{source}: {truncated['rows']} rows are longer than the {run.limits['max_length']} tokens that this run "
            f"accepts (model.overflow: error): line {list_lines(truncated['lines'])}. Shorten or remove them."
        )
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return ScoredRows(report_name("", source), lines, rows, feature_table(encoded.features), truncated, dropped)


def truncation(lines: Sequence[int], lost: Sequence[int]) -> dict[str, Any]:
    """Return how many rows lost how many tokens, and the lines of the first of them."""
    cut = [(line, count) for line, count in zip(lines, lost, strict=True) if count]
    return {"rows": len(cut), "tokens_lost": sum(count for _, count in cut), "lines": [line for line, _ in cut[:20]]}


def _baselines(
    data: PreparedData | None, scored: ScoredRows, predictor: Predictor, progress: Progress
) -> dict[str, Predictions]:
    """Fit each baseline of the task on the run's training split and return what it says about the scored rows."""
    import numpy as np

    spec, labels = predictor.spec, predictor.labels
    if not spec.baselines:
        return {}
    if data is None:
        progress.note("no baselines: the data that the run was trained on is not beside it")
        return {}
    train, validation = (_labelled(data.split(name).rows, spec, labels) for name in ("train", "validation"))
    here = _labelled(scored.rows, spec, labels)
    found = {}
    for name in spec.baselines:
        progress.detail(f"fitting the baseline {name}")
        probabilities = registry.baselines.get(name).build({})(train, validation, here.texts, len(labels))
        found[name] = Predictions(tuple(labels), np.asarray(here.targets), probabilities)
    return found


def _labelled(rows: Iterable[dict[str, Any]], spec: TaskSpec, labels: Sequence[str]) -> LabelledTexts:
    assert spec.label_role is not None
    index = {label: number for number, label in enumerate(labels)}
    pairs = [
        (" ".join(row[role] for role in spec.text_roles if role in row), index[row[spec.label_role]]) for row in rows
    ]
    return LabelledTexts([text for text, _ in pairs], [label for _, label in pairs])


def worst_examples(predictions: Predictions, scored: ScoredRows) -> list[dict[str, Any]]:
    """Return the rows on which the model gave the true label the least probability, the worst first."""
    import numpy as np

    true = predictions.probabilities[np.arange(len(predictions)), predictions.targets]
    examples = []
    for row in np.argsort(true, kind="stable")[:WORST_EXAMPLES]:
        predicted = int(predictions.predicted[row])
        examples.append(
            {
                **({"file": scored.files[row]} if scored.files else {}),
                "line": scored.lines[row],
                **scored.rows[row],
                "predicted": predictions.labels[predicted],
                "probability": float(predictions.probabilities[row, predicted]),
                "probability_of_label": float(true[row]),
            }
        )
    return examples


def _seen_in_training(data: PreparedData, scored: ScoredRows, spec: TaskSpec) -> int:
    """Count scored rows whose text stands in the training split."""
    if scored.name == "train":
        return len(scored.rows)
    known = {_key(row, spec) for row in data.split("train").rows}
    return sum(_key(row, spec) in known for row in scored.rows)


def _key(row: Mapping[str, Any], spec: TaskSpec) -> str:
    """Return the key under which equal texts meet."""
    return text_key([row[role] for role in spec.text_roles if role in row])


def _as_json(intervals: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {name: interval.as_json() for name, interval in intervals.items()}


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write an evaluation for people, with its pictures, and for machines."""
    name = report["split"]
    picture = f"{name}-confusion.png"
    plot_confusion(report["labels"], report["confusion"], folder / picture)
    pictures = {"Confusion matrix": picture}
    if (folder / "loss.png").is_file():
        pictures["Loss by step"] = "loss.png"
    write_text(folder / f"{name}.md", evaluation_report(report, pictures))
    write_json(folder / f"{name}.json", report)


def read_report(path: Path) -> dict[str, Any] | None:
    """Return a written report, or None if there is none that can be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
