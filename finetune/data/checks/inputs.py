"""What a check looks at, and what it gives back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from finetune.data.checks.columns_in_bulk import Entities, count_words, find_entities
from finetune.data.rows import Column
from finetune.data.values import read_label, read_marked

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

Severity = Literal["error", "warning", "note"]
SPLIT_NAMES = ("train", "validation", "test")
EXAMPLES_KEPT = 5
NAMES_LISTED = 10
TEXT_SHOWN = 200


@dataclass(frozen=True)
class Outcome:
    """What a check found: how many rows (or labels, columns, entities), one sentence, and a few examples.

    `severity` is there only where it differs from the check's own; the recipe's goes before both.
    """

    count: int
    message: str
    examples: Sequence[Mapping[str, Any]] = ()
    severity: Severity | None = None


@dataclass(frozen=True)
class LabelTable:
    """Which row has which labels: pairs of a row and an index into `names` (sorted), each pair once.

    For tags the labels are the types of the row's entities.
    """

    names: tuple[str, ...]
    rows: NDArray[Any]
    codes: NDArray[Any]

    @cached_property
    def counts(self) -> NDArray[Any]:
        """How many rows each label has, shape (labels,)."""
        import numpy as np

        counts: NDArray[Any] = np.bincount(self.codes, minlength=len(self.names))
        return counts

    def rows_of(self, code: int) -> NDArray[Any]:
        """Return the rows that have a label, in their order."""
        rows: NDArray[Any] = self.rows[self.codes == code]
        return rows


@dataclass(frozen=True)
class CheckInput:
    """The rows after cleaning and de-duplication, and what is known about how they came about.

    `values` has each role's values as Arrow, row by row (the types are those of `finetune.data.rows.Column`). `splits`
    has 0 for training, 1 for validation, 2 for test, or is None. `clusters` has for each row the lowest row of its
    cluster of equal texts. `where(row)` says where a row came from: `{"line": 12}`, with `file` if there are several.
    `dropped` counts the rows dropped before, by reason, of which `dropped_examples` has a few (`line` and `row`).
    `sample` has the first raw records with all of their columns, `used` the column of the file for each role;
    `label_map`, `label_separator` and `label_columns` say how labels are read from there.
    """

    columns: Mapping[str, Column]
    values: Mapping[str, pa.ChunkedArray]
    splits: NDArray[Any] | None
    clusters: NDArray[Any]
    where: Callable[[int], dict[str, Any]]
    dropped: Mapping[str, int]
    dropped_examples: Mapping[str, Sequence[Mapping[str, Any]]]
    sample: Sequence[Mapping[str, Any]]
    used: Mapping[str, str]
    classes: Sequence[str]
    given_labels: Sequence[str] | None = None
    label_map: Mapping[str, str] = field(default_factory=dict)
    label_separator: str | None = None
    label_columns: Sequence[str] = ()
    optional: Sequence[str] = ()  # roles that the task could read beside those of `columns`
    learned: str | None = None  # the role of the target, where it is not the first of a target's kind

    def __len__(self) -> int:
        return len(self.clusters)

    @property
    def rows_read(self) -> int:
        """How many rows there were before any was dropped."""
        return len(self) + sum(self.dropped.values())

    @property
    def target_role(self) -> str:
        """The role that a model learns to predict, or nothing."""
        if self.learned is not None:
            return self.learned
        kinds = ("label", "labels", "tags", "number")
        return next((role for role, column in self.columns.items() if column.kind in kinds and role in self.values), "")

    @property
    def target_roles(self) -> list[str]:
        """All roles that a model learns to predict: several where a row has several numbers."""
        kinds = (self.target_kind,) if self.target_kind == "number" else ()
        return [role for role, column in self.columns.items() if column.kind in kinds] or [self.target_role]

    @property
    def target_kind(self) -> str:
        """The kind of the target's column, or nothing."""
        return self.columns[self.target_role].kind if self.target_role else ""

    @property
    def text_roles(self) -> list[str]:
        """The roles that a model reads."""
        kinds = ("text", "tokens")
        return [role for role, column in self.columns.items() if column.kind in kinds and role in self.values]

    @cached_property
    def word_counts(self) -> NDArray[Any]:
        """How many words each row has, over all of its texts, shape (rows,)."""
        import numpy as np

        counts = np.zeros(len(self), dtype=np.int32)
        for role in self.text_roles:
            counts += count_words(self.values[role])
        return counts

    @cached_property
    def entities(self) -> Entities:
        """The entities in the tags of all rows."""
        assert self.target_kind == "tags"
        return find_entities(self.values[self.target_role])

    @cached_property
    def labels(self) -> LabelTable:
        """Which row has which labels, or entities of which types."""
        if self.target_kind == "tags":
            found = self.entities
            return LabelTable(found.types, *unique_pairs(found.rows, found.codes, len(found.types)))
        return _label_table(self.values[self.target_role])

    @cached_property
    def cluster_numbers(self) -> NDArray[Any]:
        """The cluster of each row, numbered from 0 without gaps, shape (rows,)."""
        import numpy as np

        numbers: NDArray[Any] = np.unique(self.clusters, return_inverse=True)[1]
        return numbers

    @property
    def split_codes(self) -> list[int]:
        """The splits that have rows."""
        import numpy as np

        return [] if self.splits is None else [int(code) for code in np.unique(self.splits)]

    def text(self, row: int) -> str:
        """Return what a model reads of a row, for people: words joined, several texts parted by a stroke, cut."""
        values = [self.values[role][row].as_py() for role in self.text_roles]
        texts = [" ".join(map(str, value)) if isinstance(value, list) else str(value or "") for value in values]
        return cut(" | ".join(texts))

    def example(self, row: int, **more: Any) -> dict[str, Any]:
        """Return a row as an example: where it came from, its text, and what else matters."""
        return {**self.where(int(row)), "text": self.text(int(row)), **more}

    def examples(self, rows: Iterable[int]) -> list[dict[str, Any]]:
        """Return the first of the given rows as examples."""
        return [self.example(row) for row, _ in zip(rows, range(EXAMPLES_KEPT), strict=False)]

    def dropped_as_examples(self, reasons: Iterable[str], target: str = "") -> list[dict[str, Any]]:
        """Return rows that were dropped for one of the reasons as examples; under `target` each has its raw target."""
        return [self._dropped_example(row, target) for row in self._dropped_rows(reasons)[:EXAMPLES_KEPT]]

    def dropped_places(self, reasons: Sequence[str]) -> str:
        """Return where rows dropped for one of the reasons came from: ` (line 3, 8 and 2 more)`, or nothing."""
        found = [_place(row) for row in self._dropped_rows(reasons)]
        count = sum(self.dropped.get(reason, 0) for reason in reasons)
        return f" ({list_places(found[:EXAMPLES_KEPT], count)})" if found else ""

    def dropped_labels(self, reason: str) -> list[tuple[dict[str, Any], list[str]]]:
        """Return where the examples of rows dropped for a reason came from, and the labels that each has."""
        role = self.target_role
        found = []
        for row in self._dropped_rows([reason]):
            value = _values_of(row).get(self.used.get(role, role))
            if self.label_columns:
                value, _ = read_marked(_values_of(row), self.label_columns)
            if self.label_separator and self.target_kind == "labels" and isinstance(value, str):
                value = value.split(self.label_separator)
            labels = [read_label(item)[0] for item in (value if isinstance(value, list) else [value])]
            found.append((_place(row), [self.label_map.get(label, label) for label in labels if label]))
        return found

    def _dropped_rows(self, reasons: Iterable[str]) -> list[Mapping[str, Any]]:
        return [row for reason in reasons for row in self.dropped_examples.get(reason, ())]

    def _dropped_example(self, found: Mapping[str, Any], target: str) -> dict[str, Any]:
        values = _values_of(found)
        names = [self.used.get(role, role) for role in self.text_roles]
        texts = [values[name] for name in names if values.get(name)]
        text = _shown(" | ".join(map(str, texts)) or found.get("row"))
        more = {target: _shown(values.get(self.used.get(self.target_role, self.target_role)))} if target else {}
        return {**_place(found), "text": text, **more}

    def places(self, rows: Sequence[int] | NDArray[Any], most: int = 3) -> str:
        """Return where rows came from, for a message: `line 3, 8 and 2 more`."""
        return list_places([self.where(int(row)) for row in rows[:most]], len(rows))


def list_places(places: Sequence[Mapping[str, Any]], count: int) -> str:
    """Return where rows came from, for a message; `count` has those not given too."""
    more = f" and {count - len(places)} more" if count > len(places) else ""
    if any("file" in place for place in places):
        return ", ".join(f"{place.get('file', '')} line {place['line']}" for place in places) + more
    return "line " + ", ".join(str(place["line"]) for place in places) + more


def _place(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("file", "line") if key in found}


def _values_of(found: Mapping[str, Any]) -> Mapping[str, Any]:
    row = found.get("row")
    return row if isinstance(row, Mapping) else {}


def unique_pairs(first: NDArray[Any], second: NDArray[Any], size: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return each pair once, sorted; `second` has numbers below `size`."""
    import numpy as np

    pairs = np.sort(first.astype(np.int64) * max(size, 1) + second, kind="stable")
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # np.unique builds a hash table, which takes forty times as long
    return pairs // max(size, 1), pairs % max(size, 1)


def _shown(value: Any) -> str:
    """Return a value of a raw record, which may hold lone surrogates, as an example shows it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return cut(text.encode("utf-8", "replace").decode("utf-8"))


def cut(text: str) -> str:
    """Return a text, or as much of it as an example shows."""
    return text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 1] + "…"


def amount(count: int, one: str, many: str) -> str:
    """Return a count and what is said of it: `1 row has`, `3 rows have`."""
    return f"{count} {one if count == 1 else many}"


def listed(names: Sequence[str], joined: str = ", ", of: int = 0) -> str:
    """Return the first few of some names as text, and how many there are besides; `of` counts those not given too."""
    others = max(len(names), of) - NAMES_LISTED
    more = f"{joined}and {others} more" if others > 0 else ""
    return joined.join(names[:NAMES_LISTED]) + more


def _label_table(column: pa.ChunkedArray) -> LabelTable:
    """Return the table of a column of labels, or of lists of labels."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    several = pa.types.is_list(column.type)
    if several:
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        rows = np.repeat(np.arange(len(column)), lengths)
        column = pc.list_flatten(column)
    else:
        rows = np.arange(len(column))
    encoded = pc.fill_null(column, "").dictionary_encode().unify_dictionaries().combine_chunks()
    found = encoded.dictionary.to_pylist()
    order = sorted(range(len(found)), key=found.__getitem__)
    rank = np.empty(len(found), dtype=np.int64)
    rank[order] = np.arange(len(found))
    codes = rank[encoded.indices.to_numpy()]
    if several:
        rows, codes = unique_pairs(rows, codes, len(found))
    return LabelTable(tuple(found[number] for number in order), rows, codes)
