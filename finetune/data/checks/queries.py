"""A check of queries with graded texts: without a relevant one there is nothing to rank first."""

from __future__ import annotations

from finetune.data.checks.inputs import NAMES_LISTED, CheckInput, Outcome, amount
from finetune.registry import checks

QUERY, RELEVANCE = "query", "relevance"


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
