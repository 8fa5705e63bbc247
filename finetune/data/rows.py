"""Rows: records with known columns, and the reasons why others were dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetune.data.sources import Record
from finetune.errors import FinetuneError, nearest


@dataclass(frozen=True)
class Column:
    """What a task needs under one role: text to be cleaned and read, or a label to be learned."""

    kind: Literal["text", "label"]


@dataclass(frozen=True)
class Row:
    """One usable row: the line that it came from, and its value for each role of the task."""

    line: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Dropped:
    """One row that is not used, and why."""

    line: int
    reason: str
    values: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return it as a line of `dropped.jsonl`."""
        return {"line": self.line, "reason": self.reason, "row": self.values}


def list_lines(rows: Iterable[Row], most: int = 10) -> str:
    """Return the rows' lines as text, the first few of them."""
    lines = [str(row.line) for row in rows]
    return ", ".join(lines[:most]) + (f" and {len(lines) - most} more" if len(lines) > most else "")


def list_reasons(dropped: Iterable[Dropped]) -> str:
    """Return the reasons and their counts as text."""
    return ", ".join(f"{reason} {count}" for reason, count in count_reasons(dropped).items())


def count_reasons(dropped: Iterable[Dropped]) -> dict[str, int]:
    """Count dropped rows by reason, the most frequent first."""
    return dict(Counter(row.reason for row in dropped).most_common())


def column_names(columns: Mapping[str, Column], given: Mapping[str, str]) -> dict[str, str]:
    """Return the file's column for each role of the task; a role that is not mapped is called as the role is."""
    unknown = [role for role in given if role not in columns]
    if unknown:
        raise FinetuneError(
            f"data.columns: expected the roles {', '.join(columns)}; "
            f"found {unknown[0]}. {nearest(unknown[0], columns)}Write `role: column in the file`."
        )
    return {role: given.get(role, role) for role in columns}


def select(
    records: Sequence[Record],
    columns: Mapping[str, Column],
    names: Mapping[str, str],
    clean: Callable[[str], str],
    source: str,
) -> tuple[list[Row], list[Dropped]]:
    """Return the usable rows, their texts cleaned, and the dropped ones with their reasons.

    Raises FinetuneError when no row has one of the columns: then the recipe, not the data, is wrong.
    """
    check_columns(records, names, source)
    rows: list[Row] = []
    dropped: list[Dropped] = []
    for record in records:
        reason, values = record.unreadable, {}
        for role, column in columns.items():
            if reason:
                break
            value = record.values.get(names[role])
            values[role], reason = read_text(value, clean) if column.kind == "text" else read_label(value)
            reason = reason and f"{reason}_{role}"
        if reason:
            dropped.append(Dropped(record.line, reason, record.values))
        else:
            rows.append(Row(record.line, values))
    return rows, dropped


def read_text(value: Any, clean: Callable[[str], str]) -> tuple[str, str]:
    """Return the cleaned text, or the reason why there is none."""
    if value is None:
        return "", "missing"
    if not isinstance(value, str):
        return "", "wrong_type_of"
    if not value.strip():
        return "", "blank"
    text = clean(_without_surrogates(value))
    return (text, "") if text.strip() else ("", "nothing_left_after_cleaning")


def read_label(value: Any) -> tuple[str, str]:
    """Return the label as text, blanks at its ends removed, or the reason why there is none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "", "missing"
    if isinstance(value, bool):
        return str(value).lower(), ""
    if isinstance(value, (str, int)):
        return _without_surrogates(str(value).strip()), ""
    return "", "wrong_type_of"


def _without_surrogates(text: str) -> str:
    """Replace lone surrogates: valid in JSON, but no text, since neither UTF-8 nor a tokenizer takes them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def check_columns(records: Sequence[Record], names: Mapping[str, str], source: str) -> None:
    """Raise FinetuneError if no row can be read, or if no row has one of the columns."""
    found: Counter[str] = Counter(key for record in records for key in record.values)
    readable = sum(not record.unreadable for record in records)
    if not readable:
        reasons = Counter(record.unreadable for record in records)
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        raise FinetuneError(f"{source}: none of its {len(records)} rows can be read ({listed})")
    for role, name in names.items():
        if name not in found:
            raise FinetuneError(
                f"{source}: expected a column {name!r} for {role}; found {', '.join(found) or 'no columns'}. "
                f"{nearest(name, found)}Rename it, or set data.columns.{role}."
            )
