"""Checks of how often labels occur: rare, unequal, or in some of the splits only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from finetune.data.checks.inputs import (
    EXAMPLES_KEPT,
    NAMES_LISTED,
    SPLIT_NAMES,
    CheckInput,
    Outcome,
    Severity,
    amount,
    listed,
    unique_pairs,
)
from finetune.registry import checks

if TYPE_CHECKING:
    from numpy.typing import NDArray

Count = Annotated[int, Field(ge=1)]


def texts_per_label(rows: CheckInput) -> NDArray[Any]:
    """Return on how many different texts each label stands, shape (labels,)."""
    import numpy as np

    table = rows.labels
    clusters = rows.cluster_numbers[table.rows]
    _, codes = unique_pairs(clusters, table.codes, len(table.names))
    return np.bincount(codes, minlength=len(table.names))


def label_examples(rows: CheckInput, codes: NDArray[Any]) -> list[dict[str, Any]]:
    """Return the first row of each of the given labels as an example, with the label and its number of rows."""
    table = rows.labels
    return [
        rows.example(table.rows_of(code)[0], label=table.names[code], rows=int(table.counts[code]))
        for code in codes[:EXAMPLES_KEPT]
    ]


@checks.register("rare-labels", severity="error", kinds=("label", "labels"))
def rare_labels(rows: CheckInput, *, texts: Count | None = None) -> list[Outcome]:
    """Find labels on fewer different texts than there are splits: they cannot be learned and judged.

    `texts` is the least number wanted; without it as many as there are splits, or 2 where the rows are not split.
    Where rows have several labels it is a warning: the others can be learned and judged.
    """
    import numpy as np

    wanted = texts or len(rows.split_codes) or 2
    counts = texts_per_label(rows)
    rare = np.flatnonzero(counts < wanted)
    if not len(rare):
        return []
    table = rows.labels
    named = [
        f"{table.names[code]!r} has {counts[code]} ({rows.places(table.rows_of(code))})" for code in rare[:NAMES_LISTED]
    ]
    single = rows.target_kind == "label"
    cure = "correct the label, or set data.rare_labels: drop" if single else "or correct the label"
    message = (
        f"{amount(len(rare), 'label stands', 'labels stand')} on fewer than {wanted} different texts: "
        f"{listed(named, '; ', len(rare))}; add rows, {cure}."
    )
    return [Outcome(len(rare), message, label_examples(rows, rare), None if single else "warning")]


@checks.register("labels-seen-once", severity="note", kinds=("label", "labels"))
def labels_seen_once(rows: CheckInput) -> list[Outcome]:
    """Find labels that stand on a single row: often a slip of the pen."""
    import numpy as np

    once = np.flatnonzero(rows.labels.counts == 1)
    if not len(once):
        return []
    named = [repr(rows.labels.names[code]) for code in once]
    message = (
        f"{amount(len(once), 'label stands', 'labels stand')} "
        f"on a single row: {listed(named)}; see whether a name is misspelled."
    )
    return [Outcome(len(once), message, label_examples(rows, once))]


@checks.register("label-in-one-split", severity="warning", kinds=("label", "labels", "tags"))
def label_in_one_split(rows: CheckInput) -> list[Outcome]:
    """Find labels, or entity types, that some split lacks.

    A model cannot learn what train lacks: an error where each row has one label, so that all of its test rows are lost.
    """
    import numpy as np

    if len(rows.split_codes) < 2:
        return []
    assert rows.splits is not None
    table, outcomes = rows.labels, []
    counts = np.bincount(table.codes * 3 + rows.splits[table.rows], minlength=len(table.names) * 3).reshape(-1, 3)
    for split in rows.split_codes:
        absent = np.flatnonzero(counts[:, split] == 0)
        if not len(absent):
            continue
        listing = [f"{table.names[code]!r} ({rows.places(table.rows_of(code))})" for code in absent[:NAMES_LISTED]]
        named = listed(listing, of=len(absent))
        absence = amount(len(absent), "label has no row", "labels have no row")
        if split == 0:
            message = f"{absence} in train, where a model would learn from it: {named}; "
        else:
            message = f"{absence} in {SPLIT_NAMES[split]}, where a model would be judged by it: {named}; "
        message += "add rows, or split with data.split: stratified."
        severity: Severity | None = "error" if split == 0 and rows.target_kind == "label" else None
        outcomes.append(Outcome(len(absent), message, label_examples(rows, absent), severity))
    return outcomes


@checks.register("imbalance", severity="warning", kinds=("label", "labels"))
def imbalance(rows: CheckInput, *, ratio: Annotated[float, Field(gt=1)] = 10.0) -> list[Outcome]:
    """Find labels with at least `ratio` times fewer rows than the most frequent label."""
    import numpy as np

    counts, names = rows.labels.counts, rows.labels.names
    if not len(counts):
        return []
    most = int(np.argmax(counts))
    order = np.argsort(counts, kind="stable")
    few = order[counts[order] * ratio <= counts[most]]
    if not len(few):
        return []
    least = few[0]
    balance = ", or set data.augment.balance" if rows.target_kind == "label" else ""
    message = (
        f"The label {names[most]!r} has {counts[most]} rows, {counts[most] / counts[least]:.1f} times as many as "
        f"{names[least]!r} ({counts[least]}), and {amount(len(few), 'label has', 'labels have')} "
        f"at least {ratio:g} times fewer; judge by macro averages, or gather more rows{balance}."
    )
    return [Outcome(len(few), message, label_examples(rows, few))]


@checks.register("too-few-rows", severity="warning")
def too_few_rows(rows: CheckInput, *, rows_in_all: Count = 50, rows_per_label: Count = 10) -> list[Outcome]:
    """Find too few rows to learn from and to judge by: in all, and for single labels."""
    import numpy as np

    outcomes = []
    if len(rows) < rows_in_all:
        message = (
            f"Only {amount(len(rows), 'row is', 'rows are')} left, fewer than {rows_in_all}: no score of a model "
            "trained on so little can be trusted; add rows."
        )
        outcomes.append(Outcome(len(rows), message))
    if rows.target_kind in {"label", "labels"}:
        table = rows.labels
        order = np.argsort(table.counts, kind="stable")
        few = order[table.counts[order] < rows_per_label]
        if len(few):
            named = listed([f"{table.names[code]!r} ({table.counts[code]})" for code in few])
            message = f"{amount(len(few), 'label has', 'labels have')} fewer than {rows_per_label} rows: {named}; add "
            message += "rows, or merge labels with data.label_map."
            outcomes.append(Outcome(len(few), message, label_examples(rows, few)))
    return outcomes
