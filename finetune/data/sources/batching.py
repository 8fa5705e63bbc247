"""Batches of records, bounded by rows and by characters, so that long documents fit into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from finetune.data.rows import Record

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 10_000
BATCH_CHARACTERS = 16_000_000


def batches_of(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Yield the records in lists of at most BATCH_ROWS records and BATCH_CHARACTERS characters.

    A record that is longer than that is a batch of its own.
    """
    batch: list[Record] = []
    most_rows, most_characters = BATCH_ROWS, BATCH_CHARACTERS
    held = 0
    for record in records:
        size = 0
        for value in record[1].values():  # not by a function: a call for each row costs as much as reading it
            kind = type(value)
            if kind is str:
                size += len(value)
            elif kind is list or kind is dict:
                size += _characters(value)
        held += size
        if batch and (held > most_characters or len(batch) == most_rows):
            yield batch
            batch, held = [], size
        batch.append(record)
    if batch:
        yield batch


def characters_of(records: Iterable[Record]) -> int:
    """Return about how many characters the records' values have; other values than text count little or nothing."""
    return sum(_characters(value) for record in records for value in record.values.values())


def rows_at_once(rows: int, size: int) -> int:
    """Return how many rows of a table with so many rows and bytes make a batch, if they are equally long."""
    return max(1, min(BATCH_ROWS, BATCH_CHARACTERS * rows // max(size, 1)))


def slices_of(batch: pa.RecordBatch | pa.Table) -> Iterator[pa.RecordBatch | pa.Table]:
    """Yield the slices of an Arrow batch or table that are small enough to become Python values at once.

    A slice has at most BATCH_ROWS rows, and BATCH_CHARACTERS bytes unless it is a single row.
    """
    if batch.num_rows <= BATCH_ROWS and (batch.num_rows <= 1 or batch.nbytes <= BATCH_CHARACTERS):
        yield batch
        return
    step = min(BATCH_ROWS, (batch.num_rows + 1) // 2)
    for start in range(0, batch.num_rows, step):
        yield from slices_of(batch.slice(start, step))


def _characters(value: Any) -> int:
    """Return about how many characters a value holds, however deep it is nested."""
    found, waiting = 0, [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            found += len(value)
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            found += len(value)
            try:
                found += len("".join(value))  # words and tags, which are many
            except TypeError:
                waiting += value
    return found
