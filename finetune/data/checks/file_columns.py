"""Checks of the file's columns, used or not: constant ones, those that only number the rows, and those passed over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from finetune.data.checks.inputs import CheckInput, Outcome, listed
from finetune.registry import checks

Count = Annotated[int, Field(ge=2)]

_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/#@-]{0,63}")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
# Which share of the values has to look like codes with a digit: words that differ in every row are no identifiers
CODES = 0.9


@checks.register("constant-columns", severity="note")
def constant_columns(rows: CheckInput, *, rows_at_least: Count = 20) -> list[Outcome]:
    """Find columns with one value in every row of the sample: a constant label is an error, a constant text a warning.

    Of a role it is asked of all rows, since a file may be sorted. Fewer than `rows_at_least` rows tell nothing.
    """
    if len(rows.sample) < rows_at_least:
        return []
    outcomes, unused = [], []
    roles = {rows.used.get(role, role): role for role in rows.columns}
    for column in _columns(rows):
        values = {_key(row.get(column)) for row in rows.sample}
        if len(values) > 1:
            continue
        role = roles.get(column)
        if role is None:
            unused.append(f"{column!r} ({_shown(rows.sample[0].get(column))})")
        elif rows.columns[role].kind in {"text", "tokens"} and _constant(rows, role):
            message = (
                f"The column {column!r} has the same value in every row, {_shown(rows.sample[0].get(column))}; see "
                f"whether data.columns.{role} names the right one."
            )
            outcomes.append(Outcome(1, message, severity="warning"))
    outcomes += _constant_label(rows)
    if unused:
        message = f"{len(unused)} of the unused columns have the same value in all of the {len(rows.sample)} rows "
        message += f"looked at: {listed(unused)}; nothing to do, unless you meant to use one."
        outcomes.append(Outcome(len(unused), message))
    return outcomes


def _constant_label(rows: CheckInput) -> list[Outcome]:
    """Find that all rows have the same label; numbers and tags have checks of their own."""
    if rows.target_kind not in {"label", "labels"} or len(rows) < 2:
        return []
    table = rows.labels
    if len(table.codes) == 0:
        message = f"No row has any label, so there is nothing to learn; see whether data.columns.{rows.target_role} "
        return [Outcome(len(rows), message + "names the right column.", rows.examples(range(len(rows))), "error")]
    if not all(count == len(rows) for count in table.counts):
        return []
    message = f"All {len(rows)} rows have the same label, {listed([repr(name) for name in table.names])}, so there is "
    message += f"nothing to learn; see whether data.columns.{rows.target_role} names the right column."
    return [Outcome(len(rows), message, rows.examples(range(len(rows))), "error")]


def _constant(rows: CheckInput, role: str) -> bool:
    column = rows.values.get(role)
    return column is None or len(column) < 2 or all(value == column[0] for chunk in column.chunks for value in chunk)


@checks.register("unread-columns", severity="warning")
def unread_columns(rows: CheckInput) -> list[Outcome]:
    """Find columns that are called as something that the task can read, and that the recipe does not name."""
    used = set(rows.used.values())
    found = [
        role for role in rows.optional if role not in used and any(row.get(role) is not None for row in rows.sample)
    ]
    named = ", ".join(f"{role}: {role}" for role in found)
    message = (
        f"The task can read {listed([repr(role) for role in found])}, which the file has and the recipe does not name: "
        f"nothing is learned from it. Set data.columns: {{{named}}}, or data.checks.unread-columns: off."
    )
    return [Outcome(len(found), message)] if found else []


@checks.register("id-like-columns", severity="note")
def id_like_columns(rows: CheckInput, *, rows_at_least: Count = 20) -> list[Outcome]:
    """Find columns with another integer or code in every row of the sample; it is a warning where a role has one.

    Numbers to predict may well differ in every row; of them only running numbers count. Dates do not.
    """
    if len(rows.sample) < rows_at_least:
        return []
    outcomes, unused = [], []
    roles = {rows.used.get(role, role): role for role in rows.columns}
    for column in _columns(rows):
        role = roles.get(column)
        values = [row.get(column) for row in rows.sample]
        running = role is not None and rows.columns[role].kind == "number"
        if not _identifies(values, running):
            continue
        if role is None:
            unused.append(f"{column!r} ({_shown(values[0])}, …)")
            continue
        message = f"The column {column!r} has another value in every row, like an identifier ({_shown(values[0])}, "
        message += f"{_shown(values[1])}, …); see whether data.columns.{role} names the right one."
        outcomes.append(Outcome(1, message, severity="warning"))
    if unused:
        message = (
            f"{len(unused)} of the unused columns have another value in each of the {len(rows.sample)} rows looked "
            f"at, like an identifier: {listed(unused)}; data.split can hash by one, so that no row ever moves."
        )
        outcomes.append(Outcome(len(unused), message))
    return outcomes


def _identifies(values: list[Any], running: bool) -> bool:
    if len({_key(value) for value in values}) < len(values):
        return False
    if all(type(value) is int for value in values):
        return not running or max(values) - min(values) == len(values) - 1
    if running or not all(type(value) is str for value in values):
        return False
    codes = sum(
        bool(_CODE.fullmatch(value)) and any(letter in "0123456789" for letter in value) and not _DATE.match(value)
        for value in values
    )
    return codes >= CODES * len(values)


def _columns(rows: CheckInput) -> Iterator[str]:
    """Yield the file's columns in the order in which they appear."""
    yield from dict.fromkeys(key for row in rows.sample for key in row)


def _key(value: object) -> object:
    return value if isinstance(value, str) else repr(value)  # lists and objects cannot be hashed


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"
