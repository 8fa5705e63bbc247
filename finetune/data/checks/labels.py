"""Checks of labels: missing, unknown, contradictory, or one label written in several ways."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from finetune.data.checks.columns_in_bulk import WINDOW, as_texts, take_rows
from finetune.data.checks.inputs import EXAMPLES_KEPT, CheckInput, Outcome, amount, list_places, listed
from finetune.registry import checks

if TYPE_CHECKING:
    from numpy.typing import NDArray

Share = Annotated[float, Field(ge=0, le=1)]
LABELS_NAMED = 5


@checks.register("missing-labels", severity="warning", kinds=("label", "labels", "tags", "number"))
def missing_labels(rows: CheckInput, *, share: Share = 0.5) -> list[Outcome]:
    """Find rows that were dropped for want of a label; above a share of the rows read it is an error."""
    reasons = [f"{word}_{role}" for word in ("missing", "blank", "empty") for role in rows.target_roles]
    reasons += ["missing_spans"] * (rows.target_kind == "tags")
    count = sum(rows.dropped.get(reason, 0) for reason in reasons)
    if not count:
        return []
    found = count / rows.rows_read
    message = (
        f"{amount(count, 'row', 'rows')} of {rows.rows_read} ({found:.1%}) had to be dropped for want of "
        f"{' or '.join(rows.target_roles)}{rows.dropped_places(reasons)}; fill the gaps, or say in data.missing what a "
        "missing value means."
    )
    return [Outcome(count, message, rows.dropped_as_examples(reasons), "error" if found > share else None)]


@checks.register("unknown-labels", severity="error", kinds=("label", "labels", "tags"))
def unknown_labels(rows: CheckInput) -> list[Outcome]:
    """Find labels that data.labels does not list, on rows kept or dropped for it, and listed ones that no row has."""
    import numpy as np

    if not rows.given_labels:
        return []
    given, table, outcomes = set(rows.given_labels), rows.labels, []
    unknown = [code for code, name in enumerate(table.names) if name not in given]
    kept = len(np.unique(table.rows[np.isin(table.codes, unknown)]))
    if count := rows.dropped.get("unknown_label", 0) + kept:
        examples = [rows.example(table.rows_of(code)[0], label=table.names[code]) for code in unknown[:EXAMPLES_KEPT]]
        examples += rows.dropped_as_examples(["unknown_label"], "label")
        message = (
            f"{amount(count, 'row has', 'rows have')} "
            f"a label that data.labels does not list{_where_unknown(rows, unknown, given)}; correct it, map it with "
            "data.label_map, or add it to data.labels."
        )
        outcomes.append(Outcome(count, message, examples))
    if len(rows) and (unused := sorted(given.difference(table.names))):
        message = (
            f"{amount(len(unused), 'label', 'labels')} "
            f"of data.labels found on no row: {listed(list(map(repr, unused)))}; "
            "add rows, or shorten the list."
        )
        outcomes.append(Outcome(len(unused), message, severity="warning"))
    return outcomes


def _where_unknown(rows: CheckInput, unknown: list[int], given: set[str]) -> str:
    """Return the first few unknown labels and where they stand, as far as the examples of dropped rows tell."""
    table = rows.labels
    named = [f"{table.names[code]!r} ({rows.places(table.rows_of(code))})" for code in unknown[:LABELS_NAMED]]
    dropped: dict[str, list[dict[str, Any]]] = {}
    for place, labels in rows.dropped_labels("unknown_label"):
        for label in dict.fromkeys(labels):
            if label not in given:
                dropped.setdefault(label, []).append(place)
    named += [f"{label!r} ({list_places(found, len(found))})" for label, found in dropped.items()]
    labels_more = max(len(unknown) + len(dropped) - LABELS_NAMED, 0)
    rows_more = rows.dropped.get("unknown_label", 0) - len(rows.dropped_examples.get("unknown_label", ()))
    more = [f"and {amount(labels_more, 'more label', 'more labels')}"] * (labels_more > 0)
    more += [f"and {amount(rows_more, 'more row', 'more rows')}"] * (rows_more > 0)
    return f": {'; '.join([*named[:LABELS_NAMED], *more])}" if named else ""


@checks.register("conflicting-labels", severity="warning", kinds=("label", "labels", "tags", "number"))
def conflicting_labels(rows: CheckInput) -> list[Outcome]:
    """Find equal texts under different labels, or with different numbers: rows dropped for it, and rows kept."""
    outcomes = []
    number = rows.target_kind == "number"
    under, which = ("with different numbers", "number") if number else ("under different labels", "label")
    if dropped := rows.dropped.get("conflicting_labels", 0):
        message = (
            f"{amount(dropped, 'row', 'rows')} had to be dropped because a text stands {under}"
            f"{rows.dropped_places(['conflicting_labels'])}; decide which {which} is right and correct the others."
        )
        outcomes.append(Outcome(dropped, message, rows.dropped_as_examples(["conflicting_labels"], which)))
    count, texts, found = _conflicts(rows)
    if count:
        values = rows.values[rows.target_role]
        examples = [rows.example(row, **{which: values[int(row)].as_py()}) for row in found[:EXAMPLES_KEPT]]
        message = (
            f"{amount(texts, 'text stands', 'texts stand')} {under}, on {count} rows that are kept "
            f"({rows.places(found)}); decide which {which} is right, or set data.conflicts: drop."
        )
        outcomes.append(Outcome(count, message, examples))
    return outcomes


def _conflicts(rows: CheckInput) -> tuple[int, int, NDArray[Any]]:
    """Return how many rows and texts stand under different labels, and one row for each label of each such text.

    Only rows that share a cluster are looked at. Their texts are compared again, since a cluster may also hold texts
    that are nearly the same, and those may well differ in their labels.
    """
    import numpy as np

    members = np.flatnonzero(np.bincount(rows.cluster_numbers)[rows.cluster_numbers] > 1)
    if not len(members):
        return 0, 0, members
    codes = np.stack([_codes(rows, role, members) for role in rows.target_roles], axis=1)
    labels = np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
    clusters = rows.cluster_numbers[members]
    suspects = _differing(clusters, labels)
    members, labels, clusters = members[suspects], labels[suspects], clusters[suspects]
    texts = _text_numbers(rows, members)
    conflicting = _differing(texts, labels)
    members, labels, texts = members[conflicting], labels[conflicting], texts[conflicting]
    _, first = np.unique(np.stack([texts, labels]), axis=1, return_index=True)
    by_row = first[np.lexsort((members[first], texts[first]))]
    return len(members), len(np.unique(texts)), members[by_row]


def _differing(groups: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Return which members are in a group with more than one label, shape (members,)."""
    import numpy as np

    numbers, first, group = np.unique(groups, return_index=True, return_inverse=True)
    differs = np.zeros(len(numbers), dtype=bool)
    differs[group[labels != labels[first][group]]] = True
    found: NDArray[Any] = differs[group]
    return found


def _codes(rows: CheckInput, role: str, members: NDArray[Any]) -> NDArray[Any]:
    """Return a number for each member's label, number, or list of labels or tags: equal ones have the same."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = take_rows(rows.values[role], members)
    if pa.types.is_list(values.type):
        values = pc.binary_join(values, "\x1f")
    codes: NDArray[Any] = values.dictionary_encode("encode").indices.to_numpy()
    return codes


def _text_numbers(rows: CheckInput, members: NDArray[Any]) -> NDArray[Any]:
    """Return a number for each member's text: those that are the same after normalization have the same."""
    import numpy as np

    from finetune.data.duplicates import text_keys

    keys = [np.empty((0, 2), dtype=np.uint64)]
    for start in range(0, len(members), WINDOW):
        part = members[start : start + WINDOW]
        keys.append(text_keys([as_texts(take_rows(rows.values[role], part)).to_pylist() for role in rows.text_roles]))
    numbers: NDArray[Any] = np.unique(np.concatenate(keys), axis=0, return_inverse=True)[1]
    return numbers.reshape(-1)


@checks.register("label-variants", severity="warning", kinds=("label", "labels", "tags"))
def label_variants(rows: CheckInput) -> list[Outcome]:
    """Find labels that differ only in case, white space, hyphens or underscores: most likely one label."""
    table = rows.labels
    variants: dict[str, list[int]] = {}
    for code, name in enumerate(table.names):
        variants.setdefault(_spelling(name), []).append(code)
    groups = [sorted(codes, key=lambda code: -table.counts[code]) for codes in variants.values() if len(codes) > 1]
    if not groups:
        return []
    spelled = [", ".join(f"{table.names[code]!r} ({table.counts[code]})" for code in codes) for codes in groups]
    mapping = [f"{table.names[code]!r}: {table.names[codes[0]]!r}" for codes in groups for code in codes[1:]]
    cure = (
        "rename all but one in the data" if rows.target_kind == "tags" else f"set data.label_map: {{{listed(mapping)}}}"
    )
    examples = [rows.example(table.rows_of(code)[0], label=table.names[code]) for codes in groups for code in codes[:2]]
    message = (
        f"{amount(len(groups), 'label is', 'labels are')} written in several ways: {listed(spelled, '; ')}; {cure}."
    )
    return [Outcome(len(groups), message, examples)]


def _spelling(name: str) -> str:
    """Return what is left of a label's name without case, white space, hyphens and underscores."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\s_-]+", "", plain) or name
