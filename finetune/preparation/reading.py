"""The first step: every record of every file, cleaned and on disk, or dropped with a reason."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune import registry
from finetune.data.cleaning import CleanerReport
from finetune.data.rows import Column, Record, column_names
from finetune.data.selection import (
    RawDrop,
    Selected,
    SelectionSettings,
    Selector,
    SelectorWork,
    check_columns,
    row_schema,
)
from finetune.data.sources import BATCH_CHARACTERS, BATCH_ROWS, FIXED_COLUMNS, Source, characters_of, open_source
from finetune.data.splitting import SPLITS
from finetune.data.store import RowStore, StreamWriter
from finetune.errors import FinetuneError
from finetune.progress import Progress
from finetune.recipe import Fill, Recipe
from finetune.workers import ordered_map

SAMPLE_RECORDS = 10_000
SAMPLE_CHARACTERS = 1000
EXAMPLES_OF_DROPS = 5


@dataclass
class Collected:
    """What was read: the usable rows on disk, and what there is to say about the others."""

    rows: RowStore
    early_drops: Path
    files: list[str]
    given: list[int]  # for each file the split that the recipe gives it to, or -1
    rows_read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[RawDrop]] = field(default_factory=dict)
    cleaners: list[CleanerReport] = field(default_factory=list)
    sample: list[Record] = field(default_factory=list)


def open_sources(recipe: Recipe) -> dict[str, Source]:
    """Return the recipe's sources by the split that they are given to; under "" when the rows are split here."""
    return {name: open_source(paths, recipe.data.form) for name, paths in recipe.data.sources.items()}


def selection_settings(recipe: Recipe, columns: Mapping[str, Column]) -> SelectionSettings:
    """Return what decides how the recipe's records become rows."""
    data = recipe.data
    spans = "spans" in data.columns
    known = with_span_roles(columns)
    names = column_names(known, {role: name for role, name in data.columns.items() if role in known})
    split = registry.splitters.get(data.split.name)
    needs = split.attributes.get("needs")
    extras = (*data.group_by, *(needs(data.split.options) if needs else ()))
    return SelectionSettings(
        columns=dict(columns),
        names={role: name for role, name in names.items() if spans or role in columns},
        clean=tuple((part.name, part.options) for part in data.clean),
        fill=_fills(data.missing, columns),
        labels=data.labels,
        label_map=data.label_map,
        label_separator=data.label_separator,
        label_columns=data.label_columns,
        tag_scheme=data.tag_scheme,
        spans=spans,
        extras=tuple(dict.fromkeys(extras)),
        groups=data.group_by,
    )


def with_span_roles(columns: Mapping[str, Column]) -> dict[str, Column]:
    """Return the roles that a recipe may map: rows of words may come as text with spans in characters."""
    if not any(column.kind == "tags" for column in columns.values()):
        return dict(columns)
    return {**columns, "text": Column("text"), "spans": Column("spans")}


def _fills(missing: Any, columns: Mapping[str, Column]) -> dict[str, Any]:
    each = missing if isinstance(missing, dict) else dict.fromkeys([*columns, "text"], missing)
    return {role: policy.fill for role, policy in each.items() if isinstance(policy, Fill)}


def needed_columns(settings: SelectionSettings) -> list[tuple[str, str]]:
    """Return what each column that the files have to have is for (a role, or a setting), and the column."""
    roles = ["text", "spans"] if settings.spans else list(settings.columns)
    marks = [("data.label_columns", name) for name in settings.label_columns]
    if marks:
        roles = [role for role in roles if settings.columns[role].kind != "labels"]
    extras = [("data.group_by" if name in settings.groups else "data.split", name) for name in settings.extras]
    return [*((role, settings.names[role]) for role in roles), *marks, *extras]


def read_rows(
    sources: Mapping[str, Source], settings: SelectionSettings, folder: Path, *, workers: int, progress: Progress
) -> Collected:
    """Read, select and clean all records; the usable ones go to `folder` as they come.

    Raises FinetuneError when no record can be read, or when none has one of the columns.
    """
    given = [SPLITS.index(name) if name else -1 for name, source in sources.items() for _ in source.files]
    reading = _Reading(sources, needed_columns(settings))
    drops = folder / "dropped-early.jsonl"
    found = Collected(None, drops, _file_names(sources), given)  # type: ignore[arg-type]
    with (
        StreamWriter(folder / "rows.arrow", row_schema(settings)) as writer,
        drops.open("wb") as sink,
        progress.bar("reading", None) as bar,
    ):
        selected: Selected
        for selected in ordered_map(functools.partial(Selector, settings), reading.work(), workers):
            writer.write(selected.rows)
            for drop in selected.dropped:
                sink.write(drop_line(drop, found.files))
                found.dropped[drop.reason] += 1
                examples = found.examples.setdefault(drop.reason, [])
                if len(examples) < EXAMPLES_OF_DROPS:
                    examples.append(drop)
            _merge(found.cleaners, selected.reports)
            bar.advance(selected.rows.num_rows + len(selected.dropped))
    name = ", ".join(found.files[:3])
    if not reading.rows:
        why = next(iter(sources.values())).why_empty()
        raise FinetuneError(f"{name}: expected rows, found {why}")
    if reading.unseen or not writer.rows:
        check_columns(reading.sample, needed_columns(settings), name)
    found.rows, found.rows_read, found.sample = RowStore(folder / "rows.arrow"), reading.rows, reading.sample
    return found


def _file_names(sources: Mapping[str, Source]) -> list[str]:
    """Return the files' names; where two are called the same, with the split that each is given to in front."""
    names = [(split, file.name) for split, source in sources.items() for file in source.files]
    same = len({name for _, name in names}) < len(names)
    return [f"{split}/{name}" if same and split else name for split, name in names]


class _Reading:
    """Goes through the sources, and remembers a sample and which columns were seen."""

    def __init__(self, sources: Mapping[str, Source], needed: Iterable[tuple[str, str]]) -> None:
        self._sources = sources
        self._needed = list(needed)
        self.unseen = {name for _, name in self._needed}
        self.sample: list[Record] = []
        self.rows = 0

    def work(self) -> Iterator[SelectorWork]:
        """Yield batches of records; those of small files are put together."""
        files: list[tuple[int, int]] = []
        pending: list[Record] = []
        held = 0
        for file, records in self._batches():
            size = characters_of(records) if len(records) < BATCH_ROWS else BATCH_CHARACTERS
            if pending and (len(pending) + len(records) > BATCH_ROWS or held + size > BATCH_CHARACTERS):
                yield self._work(files, pending)
                files, pending, held = [], [], 0
            held += size
            files.append((file, len(records)))
            pending = pending + records if pending else records
        if pending:
            yield self._work(files, pending)

    def _work(self, files: list[tuple[int, int]], records: list[Record]) -> SelectorWork:
        work = SelectorWork(self.rows, files, records)
        self.sample += map(_cut, records[: max(0, SAMPLE_RECORDS - len(self.sample))])
        for record in records:
            if not self.unseen:
                break
            self.unseen -= record.values.keys()
        self.rows += len(records)
        return work

    def _batches(self) -> Iterator[tuple[int, list[Record]]]:
        first_file = 0
        for source in self._sources.values():
            checked = -1  # the last file whose columns were looked at
            for file, records in source.batches():
                readable = [record for record in records if not record.unreadable][:1]
                # every row of such a file has the same columns, so a missing one is seen at the first
                if source.format in FIXED_COLUMNS and file != checked and readable:
                    check_columns(readable, self._needed, source.files[file].name)
                    checked = file
                yield first_file + file, records
            first_file += len(source.files)


def _merge(reports: list[CleanerReport], more: list[CleanerReport]) -> None:
    if not reports:
        reports += more
        return
    for report, other in zip(reports, more, strict=True):
        report.merge(other)


def _cut(record: Record) -> Record:
    """Return a record whose texts are not longer than what a check of columns needs."""
    values = {
        name: value[:SAMPLE_CHARACTERS] if isinstance(value, (str, list)) else value
        for name, value in record.values.items()
    }
    return record._replace(values=values)


def drop_line(drop: RawDrop, files: list[str]) -> bytes:
    """Return a dropped row as a line of `dropped.jsonl`, in front of it its number, by which lines are put in order."""
    import orjson

    place = {"file": files[drop.file], "line": drop.line} if len(files) > 1 else {"line": drop.line}
    head = orjson.dumps({**place, "reason": drop.reason})
    return b'%d\t%s,"row":%s}\n' % (drop.number, head[:-1], drop.raw)
