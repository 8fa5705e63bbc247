"""Checks of queries and their texts: without a relevant one, or a wrong one, there is nothing to tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from finetune.data.checks.inputs import EXAMPLES_KEPT, NAMES_LISTED, CheckInput, Outcome, amount
from finetune.registry import checks

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

QUERY, RELEVANCE = "query", "relevance"
ANCHOR, POSITIVE, NEGATIVE, NEGATIVES = "anchor", "positive", "negative", "negatives"


@checks.register("queries-without-positive", kinds=("number",), severity="error")
def queries_without_positive(rows: CheckInput) -> list[Outcome]:
    """Find queries none of whose texts has a relevance above 0."""
    import numpy as np

    if not {QUERY, RELEVANCE} <= rows.columns.keys():
        return []
    codes = np.asarray(rows.values[QUERY].combine_chunks().dictionary_encode().indices)
    relevant = np.asarray(rows.values[RELEVANCE]) > 0
    _, first = np.unique(codes, return_index=True)
    without = np.sort(first[np.bincount(codes, weights=relevant)[codes[first]] == 0])
    if not len(without):
        return []
    places = [rows.where(int(row)) for row in without[:NAMES_LISTED]]
    listed = ", ".join(
        f"{place['file']}: line {place['line']}" if "file" in place else f"line {place['line']}" for place in places
    )
    more = f" and {len(without) - NAMES_LISTED} more" if len(without) > NAMES_LISTED else ""
    message = (
        f"{amount(len(without), 'query has', 'queries have')} no text with a relevance above 0 (first rows: "
        f"{listed}{more}). Nothing can be learned from such a query, and no metric counts it."
    )
    shown = [
        {**place, QUERY: rows.values[QUERY][int(row)].as_py()} for place, row in zip(places, without, strict=False)
    ]
    return [Outcome(len(without), message, shown)]


@checks.register("rows-without-negative", severity="warning")
def rows_without_negative(rows: CheckInput) -> list[Outcome]:
    """Find rows without a text that is wrong beside their positive; it is an error if no row has one."""
    import numpy as np

    if not {POSITIVE, NEGATIVES} <= rows.values.keys():
        return []
    wrong = np.concatenate([_counts(parents, ~same, size) for parents, same, size in _compared(rows)])
    without = np.flatnonzero(wrong == 0)
    if not len(without):
        return []
    message = (
        f"{amount(len(without), 'row has', 'rows have')} no negative beside the positive ({rows.places(without)}): a "
        "text alone is always ranked first, which every metric counts as right."
    )
    if len(without) == len(rows):
        message = f"no row has a negative ({rows.places(without)}), so that there is nothing to learn, or to score."
    return [
        Outcome(len(without), message, rows.examples(without), severity="error" if len(without) == len(rows) else None)
    ]


@checks.register("negatives-equal-positive", severity="warning")
def negatives_equal_positive(rows: CheckInput) -> list[Outcome]:
    """Find rows whose positive is one of their negatives, but for case; it is an error if all are so."""
    import numpy as np

    if POSITIVE not in rows.values or not {NEGATIVE, NEGATIVES} & rows.values.keys():
        return []
    equal = np.concatenate([_counts(parents, same, size) for parents, same, size in _compared(rows)])
    found = np.flatnonzero(equal)
    if not len(found):
        return []
    message = (
        f"{amount(len(found), 'row has its', 'rows have their')} positive among the negatives ({rows.places(found)}): "
        "the same text is to be right and wrong. Correct or remove them."
    )
    return [Outcome(len(found), message, rows.examples(found), severity="error" if len(found) == len(rows) else None)]


@checks.register("shared-positives", severity="note")
def shared_positives(rows: CheckInput) -> list[Outcome]:
    """Find rows of validation and test whose positive is one of training too: under another anchor, a known answer."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if not {ANCHOR, POSITIVE} <= rows.values.keys() or rows.splits is None:
        return []
    positives = rows.values[POSITIVE]
    learned = pc.unique(positives.filter(pa.array(rows.splits == 0)))
    known = np.asarray(pc.is_in(positives, value_set=learned)) & (rows.splits > 0)
    found = np.flatnonzero(known)
    if not len(found):
        return []
    message = (
        f"{amount(len(found), 'row', 'rows')} of validation or test ask for a positive that training rows "
        f"have too ({rows.places(found)}): of these the scores say how well a known answer is found for a new "
        "anchor. data.group_by with the column of the positives keeps them in one split."
    )
    return [Outcome(len(found), message, rows.examples(found[:EXAMPLES_KEPT]))]


def _compared(rows: CheckInput) -> Iterator[tuple[NDArray[Any], NDArray[Any], int]]:
    """Yield the row (in its batch) of each negative, whether it is that row's positive, and how many rows there are."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    role = NEGATIVES if NEGATIVES in rows.values else NEGATIVE
    table = pa.table({POSITIVE: rows.values[POSITIVE], NEGATIVE: rows.values[role]})
    for batch in table.to_batches():
        negatives: pa.Array = batch.column(NEGATIVE)
        parents = np.arange(batch.num_rows)
        if role == NEGATIVES:
            parents = np.repeat(parents, pc.list_value_length(negatives).to_numpy())
            negatives = pc.list_flatten(negatives)
        positives = batch.column(POSITIVE).take(pa.array(parents))
        same = pc.equal(pc.utf8_lower(positives), pc.utf8_lower(negatives))
        yield parents, same.to_numpy(zero_copy_only=False), batch.num_rows


def _counts(parents: NDArray[Any], chosen: NDArray[Any], size: int) -> NDArray[Any]:
    """Return how many of a batch's negatives are chosen, by row, shape (size,)."""
    import numpy as np

    return np.bincount(parents[chosen], minlength=size)
