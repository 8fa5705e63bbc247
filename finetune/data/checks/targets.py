"""A check of rows that were dropped since what a model should learn from them is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.data.checks.inputs import CheckInput, Outcome, Severity, amount
from finetune.data.rows import Column
from finetune.registry import checks

# The reasons for which such rows are dropped while reading, and what each means
MEANINGS = {
    "out_of_range_": "outside of the range that the task declares",
    "answer_not_in_context": "an answer that does not stand in its context at its place",
    "tokens_and_": "not one tag for each word",
    "invalid_spans": "spans that are none",
    "span_out_of_text": "a span that ends behind its text",
    "empty_span": "a span without a character",
    "overlapping_spans": "spans that overlap",
    "not_a_number_in_": "a value that is no number",
}
# a few rows of which say nothing about the others; a wrong scale or wrong places do
LIKELY_SINGLE = (
    "tokens_and_",
    "invalid_spans",
    "span_out_of_text",
    "empty_span",
    "overlapping_spans",
    "not_a_number_in_",
)


@checks.register("faulty-targets", severity="error")
def faulty_targets(rows: CheckInput) -> list[Outcome]:
    """Find rows that were dropped for a target that cannot be right: a score out of range, an answer out of place."""
    outcomes = []
    for reason, count in rows.dropped.items():
        meaning = next((text for start, text in MEANINGS.items() if reason.startswith(start)), None)
        if meaning is None or not count:
            continue
        examples = [dict(example) for example in rows.dropped_examples.get(reason, ())]
        lines = ", ".join(_place(example) for example in examples)
        role = reason.removeprefix("out_of_range_") if reason.startswith("out_of_range_") else ""
        column = rows.columns.get(role)
        subject = f"{amount(count, 'row has', 'rows have')} {f'a {role} ' if role else ''}{meaning}{_range(column)}"
        shown = f" (first: {lines})" if lines else ""
        message = f"{subject}{shown}; {'it is' if count == 1 else 'they are'} dropped ({reason})."
        severity: Severity | None = "warning" if reason.startswith(LIKELY_SINGLE) else None
        outcomes.append(Outcome(count, message, examples, severity))
    return outcomes


def _place(example: Mapping[str, Any]) -> str:
    """Return where a dropped row came from."""
    return f"{example['file']}: line {example['line']}" if "file" in example else f"line {example['line']}"


def _range(column: Column | None) -> str:
    """Return the range that a column declares."""
    if column is None or (column.minimum is None and column.maximum is None):
        return ""
    if column.maximum is None:
        return f" ({column.minimum:g} or more)"
    if column.minimum is None:
        return f" ({column.maximum:g} or less)"
    return f" ({column.minimum:g} to {column.maximum:g})"
