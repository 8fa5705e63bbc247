"""Checks of questions about contexts: answers that contradict each other, and none at all to learn from."""

from __future__ import annotations

from finetune.data.checks.inputs import EXAMPLES_KEPT, CheckInput, Outcome, amount
from finetune.registry import checks

CONFLICTING = (
    "conflicting_labels"  # the reason for which rows with contradicting targets are dropped, whatever these are
)


def _role(rows: CheckInput) -> str:
    """Return the role of the answers, or nothing."""
    return next((role for role, column in rows.columns.items() if column.kind == "answers"), "")


@checks.register("nothing-to-answer", severity="error")
def nothing_to_answer(rows: CheckInput) -> list[Outcome]:
    """Find that no training row has an answer (no row at all, where there are no splits)."""
    import numpy as np
    import pyarrow.compute as pc

    role = _role(rows)
    if not role:
        return []
    counts = np.asarray(pc.fill_null(pc.list_value_length(rows.values[role]), 0))
    learned = np.ones(len(rows), dtype=bool) if rows.splits is None else rows.splits == 0
    shown = np.flatnonzero(learned)
    if not len(shown) or counts[learned].any():
        return []
    message = (
        f"None of {amount(len(shown), 'training row', 'training rows')} has an answer, so there is nothing to learn; "
        f"see whether data.columns.{role} names the right column."
    )
    return [Outcome(len(shown), message, rows.examples(shown[:EXAMPLES_KEPT]))]


@checks.register("conflicting-answers", severity="warning")
def conflicting_answers(rows: CheckInput) -> list[Outcome]:
    """Find rows that were dropped since the same context and question stand with different answers."""
    dropped = rows.dropped.get(CONFLICTING, 0)
    if not dropped or not _role(rows):
        return []
    message = (
        f"{amount(dropped, 'row', 'rows')} had to be dropped because a question about the same context stands with "
        f"different answers{rows.dropped_places([CONFLICTING])}; put the answers of a question into one row, or set "
        "data.conflicts: keep."
    )
    return [Outcome(dropped, message, rows.dropped_as_examples([CONFLICTING]))]
