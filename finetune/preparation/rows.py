"""The rows of an artifact, made anew or taken from the one that is there, and what is wrong with them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import registry
from finetune.artifacts import PreparedData, damages, has_manifest, write_text
from finetune.data.augmentation import Augmentation, Augmented, plan_copies
from finetune.data.checks import CheckInput, Finding, run_checks
from finetune.data.duplicates import clusters_of
from finetune.data.rows import Column, used_columns
from finetune.data.selection import KEY_HIGH
from finetune.data.splitting import SPLITS
from finetune.data.store import read_stream
from finetune.errors import FinetuneError
from finetune.preparation.deciding import MOST_PAIRS_LISTED, Decided, Deciding
from finetune.preparation.encoding import ORIGIN, Making, Work, made_batches, made_rows, with_origin
from finetune.preparation.reading import Collected, open_sources, read_rows, selection_settings
from finetune.preparation.remaining import describe_place, presentable
from finetune.preparation.reporting import TOKEN_KEYS, rows_report
from finetune.progress import Progress
from finetune.recipe import Recipe
from finetune.tasks import TaskSpec, open_task

if TYPE_CHECKING:
    import pyarrow as pa

Columns = Mapping[str, Column]
LEAKS, NEAR = "leaks.jsonl", "near_duplicates.jsonl"


@dataclass(frozen=True)
class RowsPart:
    """Readable rows with their splits, wherever they come from, and what there is to say about them."""

    report: dict[str, Any]
    labels: list[str]
    work: Any  # () -> Iterator[Work], as often as one likes
    train: Any  # () -> Iterator[RecordBatch]: the rows to learn from, without those that augmentation made
    files: list[str]
    total: int
    making: Making | None = None
    not_made: int = 0

    @property
    def missed(self) -> int:
        """How many rows augmentation could not make; known when all the work is done."""
        return self.making.missed if self.making else self.not_made


def columns_of(recipe: Recipe) -> tuple[Columns, TaskSpec]:
    """Return the columns that the recipe uses of its task, and the task's declaration."""
    task, spec = open_task(recipe.task.name, recipe.task.options)
    return used_columns(task.columns, recipe.data.columns), spec


def collect_rows(recipe: Recipe, columns: Columns, scratch: Path, progress: Progress) -> Collected:
    """Read and clean all records; the usable rows are kept in `scratch`."""
    settings = selection_settings(recipe, columns)
    return read_rows(open_sources(recipe), settings, scratch, workers=recipe.data.workers, progress=progress)


def decide_rows(
    recipe: Recipe, columns: Columns, spec: TaskSpec, scratch: Path, progress: Progress
) -> tuple[Collected, Decided, Deciding]:
    """Read and clean all records, and decide which rows stay and where; the rows are kept in `scratch`."""
    collected = collect_rows(recipe, columns, scratch, progress)
    deciding = Deciding(recipe, collected, columns, spec, scratch, progress)
    return collected, deciding.decide(), deciding


def new_rows(
    recipe: Recipe, columns: Columns, spec: TaskSpec, scratch: Path, partial: Path, folder: Path, progress: Progress
) -> RowsPart:
    """Read, clean, decide and check; write what is known about the rows that go and those that are alike."""
    collected, decided, deciding = decide_rows(recipe, columns, spec, scratch, progress)
    findings = find_faults(recipe, columns, collected, decided, deciding)
    _refuse(findings, decided, folder)
    deciding.left.write_dropped(partial / "dropped.jsonl")
    _write_lines(partial / NEAR, decided.near_pairs)
    _write_lines(partial / LEAKS, decided.leaks)
    report = rows_report(recipe, collected, decided, spec, deciding.kind, findings)

    making = making_of(decided, columns) if recipe.data.augment else None

    def work() -> Iterator[Work]:
        import numpy as np

        first = 0
        for batch in decided.rows.batches():
            splits = decided.splits[first : first + batch.num_rows]
            yield Work(with_origin(batch) if recipe.data.augment else batch, splits)
            first += batch.num_rows
        if recipe.data.augment:
            assert making is not None
            augmentation = augmentation_of(recipe, columns, deciding.seed)
            made = augment_rows(recipe, columns, spec, decided, augmentation, making)
            for batch in made_batches(made, decided.rows.table.schema):
                yield Work(batch, np.zeros(batch.num_rows, dtype=np.int8))

    total = len(decided.rows)
    return RowsPart(report, decided.labels, work, lambda: rows_of_split(decided, 0), collected.files, total, making)


def rows_of_split(decided: Decided, code: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one split, by its code, batch after batch."""
    import pyarrow as pa

    first = 0
    for batch in decided.rows.batches():
        mask = decided.splits[first : first + batch.num_rows] == code
        yield batch.filter(pa.array(mask))
        first += batch.num_rows


def augmentation_of(recipe: Recipe, columns: Columns, seed: int) -> Augmentation:
    """Return the recipe's augmentation; raise FinetuneError if an augmenter cannot run on rows of this kind."""
    assert recipe.data.augment is not None
    operations = [(part.name, part.options) for part in recipe.data.augment.operations]
    _, spec = open_task(recipe.task.name, recipe.task.options)
    return Augmentation(operations, columns, seed=seed, fixed={spec.unit_role} if spec.unit_role else ())


def augment_rows(
    recipe: Recipe, columns: Columns, spec: TaskSpec, decided: Decided, augmentation: Augmentation, making: Making
) -> Iterator[tuple[dict[str, Any], Augmented]]:
    """Yield the rows that the recipe's augmentation makes, each with the row that it is made of."""
    settings = recipe.data.augment
    assert settings is not None
    labels = None
    if settings.balance:
        if not spec.label_role or columns[spec.label_role].kind != "label":
            raise FinetuneError(f"data.augment.balance: expected a task with one label a row, found {recipe.task.name}")
        labels = decided.rows.column(spec.label_role).filter(_arrow(decided.splits == 0)).to_pylist()
    copies = plan_copies(
        labels,
        rows=int((decided.splits == 0).sum()),
        copies=settings.copies,
        balance=settings.balance,
        target=settings.target,
    )
    return made_rows(rows_of_split(decided, 0), copies, augmentation, making)


def making_of(decided: Decided, columns: Columns) -> Making:
    """Return what augmentation must not make again: the texts of all rows, whatever their split."""
    import numpy as np

    return Making(np.sort(decided.rows.numbers(KEY_HIGH)), columns)


def _arrow(mask: Any) -> Any:
    import pyarrow as pa

    return pa.array(mask)


def stored_rows(folder: Path, partial: Path, rows_fingerprint: str, progress: Progress) -> RowsPart | None:
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
    report["warnings"] = [finding for finding in report["warnings"] if finding["check"] != "augmentation"]
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
    missed = stored.get("augmented", {}).get("not_made", 0)
    return RowsPart(report, data.labels, work, train, stored["source"], total, not_made=missed)


def find_faults(
    recipe: Recipe, columns: Columns, collected: Collected, decided: Decided, deciding: Deciding
) -> list[Finding]:
    """Run the checks; what deciding found comes with what they find, the worst first."""
    settings = {
        name: (value.get("severity"), {key: item for key, item in value.items() if key != "severity"})
        for name, value in recipe.data.checks.items()
    }
    if recipe.data.conflicts == "error":
        settings["conflicting-labels"] = ("off", {})  # it stands among the problems already, with its lines
    task, _ = open_task(recipe.task.name, recipe.task.options)
    rows = CheckInput(
        columns=columns,
        values={role: decided.rows.column(role) for role in columns},
        splits=decided.splits,
        # of equal texts alone: near-duplicates and a user's groups are different texts
        clusters=clusters_of(deciding.left.keys()),
        where=deciding.left.place,
        dropped=decided.dropped,
        dropped_examples=deciding.left.dropped_examples(),
        sample=[presentable(record.values) for record in collected.sample if not record.unreadable],
        used=selection_settings(recipe, columns).names,
        classes=decided.labels,
        given_labels=recipe.data.labels or None,
        label_map=recipe.data.label_map,
        label_separator=recipe.data.label_separator,
        label_columns=recipe.data.label_columns,
        optional=[role for role in task.columns if role not in columns],
        learned=deciding.spec.label_role or "",
    )
    order = ("error", "warning", "note")
    found = [*decided.problems, *run_checks(rows, settings)]
    return sorted(found, key=lambda finding: order.index(finding.severity))


def _refuse(findings: Sequence[Finding], decided: Decided, folder: Path) -> None:
    """Raise FinetuneError if anything was found that the recipe calls an error."""
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    lines = [f"  {finding.check}: {finding.message}{_places(finding)}" for finding in errors]
    if decided.leaks and any(finding.check == "leaks" for finding in errors):
        listed = folder.with_name(LEAKS)
        _write_lines(listed, decided.leaks)
        lines.append(f"  The leaks are listed in {listed} (the first {MOST_PAIRS_LISTED:,}, if there are more).")
    checks = [finding.check for finding in errors if finding not in decided.problems]
    lowered = [name for name in dict.fromkeys(checks) if name in registry.checks.names()]
    way_out = f", or lower what you accept: data.checks.{lowered[0]}: warning" if lowered else ""
    heading = f"the data has {len(errors)} error{'s' * (len(errors) > 1)}:"
    raise FinetuneError("\n".join([heading, *lines, f"Mend the data{way_out}."]))


def _places(finding: Finding) -> str:
    """Return where the first examples of a finding are, unless its message says it."""
    places = [describe_place(example) for example in finding.examples if "line" in example]
    return f" ({', '.join(places)})" if places and not re.search(r"\blines? \d", finding.message) else ""


def _write_lines(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    if values:
        write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))
