"""Rows: what a task needs under each of its roles, and the reasons why rows are not used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from finetune.errors import FinetuneError, nearest

Kind = Literal["text", "texts", "label", "labels", "tokens", "tags", "spans", "number", "answers", "messages"]


@dataclass(frozen=True)
class Column:
    """What a task needs under one role.

    | kind   | a value is                                            | stored in Arrow as       |
    | ------ | ----------------------------------------------------- | ------------------------ |
    | text   | text, cleaned                                         | string                   |
    | texts  | several texts, or none, each cleaned                  | list of string           |
    | label  | one label                                             | string                   |
    | labels | several labels, or none                               | list of string           |
    | tokens | words, cleaned                                        | list of string           |
    | tags   | one IOB2 tag for each of the row's tokens             | list of string           |
    | spans  | `{start, end, label}` in characters of the row's text | becomes tokens and tags  |
    | number | one number                                            | float64                  |
    | answers| the places of answers in the row's context, or none   | list of {text, start}    |
    | messages | a conversation that ends with the assistant         | list of {role, content}  |

    A number outside of `minimum` to `maximum` is a fault of its row; of texts there have to be `least`.
    """

    kind: Kind
    required: bool = True
    minimum: float | None = None
    maximum: float | None = None
    least: int = 0


class Record(NamedTuple):
    """One raw row: where it came from (its line, or its number, from 1), its values, or why it cannot be read."""

    line: int
    values: dict[str, Any]
    unreadable: str = ""


def used_columns(columns: Mapping[str, Column], mapped: Mapping[str, str]) -> dict[str, Column]:
    """Return the columns that a recipe uses: all that the task requires, and the optional ones that it maps."""
    return {
        role: replace(column, required=True) for role, column in columns.items() if column.required or role in mapped
    }


def list_lines(lines: Iterable[int], most: int = 10) -> str:
    """Return line numbers as text, the first few of them."""
    shown = [str(line) for line in lines]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def list_reasons(counts: Mapping[str, int]) -> str:
    """Return reasons and their counts as text."""
    return ", ".join(f"{reason} {count}" for reason, count in counts.items())


def column_names(columns: Mapping[str, Column], given: Mapping[str, str]) -> dict[str, str]:
    """Return the file's column for each role of the task; a role that is not mapped is called as the role is."""
    unknown = [role for role in given if role not in columns]
    if unknown:
        raise FinetuneError(
            f"data.columns: expected the roles {', '.join(columns)}; "
            f"found {unknown[0]}. {nearest(unknown[0], columns)}Write `role: column in the file`."
        )
    return {role: given.get(role, role) for role in columns}
