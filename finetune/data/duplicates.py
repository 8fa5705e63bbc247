"""Rows whose text is the same after normalization: counted, dropped or kept together, never spread over splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from finetune.data.rows import Dropped, Row, list_lines
from finetune.errors import FinetuneError


def text_key(texts: Sequence[str]) -> str:
    """Return the hash under which equal texts meet: case and white space do not count."""
    normalized = "\x1f".join(" ".join(text.casefold().split()) for text in texts)
    return hashlib.sha256(normalized.encode("utf-8", "replace")).hexdigest()[:16]


def resolve_duplicates(
    rows: Sequence[Row],
    text_roles: Sequence[str],
    label_role: str | None,
    *,
    duplicates: Literal["drop", "keep", "error"],
    conflicts: Literal["drop", "error"],
) -> tuple[list[Row], list[int], list[Dropped]]:
    """Return the rows kept, the cluster of each, and the rows dropped.

    A text under two labels is a conflict: nobody can know which is right, so all of its rows are dropped, or it is an
    error. Of a text repeated under one label the first row is kept; with `keep` all are, as one cluster.
    """
    keys = [text_key([row.values[role] for role in text_roles]) for row in rows]
    members: dict[str, list[Row]] = {}
    for key, row in zip(keys, rows, strict=True):
        members.setdefault(key, []).append(row)
    conflicting = {
        key for key, group in members.items() if label_role and len({row.values[label_role] for row in group}) > 1
    }
    if conflicting and conflicts == "error":
        raise FinetuneError(
            _listing(
                "texts under different labels", [members[key] for key in members if key in conflicting], "conflicts"
            )
        )
    repeated = [group for key, group in members.items() if len(group) > 1 and key not in conflicting]
    if repeated and duplicates == "error":
        raise FinetuneError(_listing("repeated texts", repeated, "duplicates"))

    kept: list[Row] = []
    clusters: list[int] = []
    dropped: list[Dropped] = []
    numbers = {key: number for number, key in enumerate(members)}
    for key, row in zip(keys, rows, strict=True):
        if key in conflicting:
            dropped.append(Dropped(row.line, "conflicting_labels", row.values))
        elif duplicates == "drop" and members[key][0] is not row:
            dropped.append(Dropped(row.line, "duplicate", row.values))
        else:
            kept.append(row)
            clusters.append(numbers[key])
    return kept, clusters, dropped


def _listing(what: str, groups: Sequence[Sequence[Row]], setting: str) -> str:
    shown = "; ".join(f"lines {list_lines(group)}" for group in groups[:5])
    more = f" and {len(groups) - 5} more" if len(groups) > 5 else ""
    return f"expected no {what}, found {len(groups)}: {shown}{more}. Mend the data, or set data.{setting}: drop."
