"""Columnar files: Parquet and Arrow, as plain Python values."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from finetune.data.rows import Record
from finetune.data.sources.batching import rows_at_once, slices_of
from finetune.data.sources.files import SourceFile
from finetune.errors import FinetuneError
from finetune.registry import sources
from finetune.urls import details_of

if TYPE_CHECKING:
    import pyarrow as pa

_ARROW_FILE = b"ARROW1"  # how the file format starts, and the stream format does not


@sources.register("parquet", suffixes=("parquet",))
def parquet(file: SourceFile) -> Iterator[Record]:
    """Parquet: dates become ISO text, decimals numbers, bytes text; a record's line is its number in the file."""
    import pyarrow.parquet

    def batches() -> Iterator[pa.RecordBatch]:
        with pyarrow.parquet.ParquetFile(_opened(file)) as opened:
            for index in range(opened.num_row_groups):
                group = opened.metadata.row_group(index)
                rows = rows_at_once(group.num_rows, group.total_byte_size)
                yield from opened.iter_batches(batch_size=rows, row_groups=[index])

    return _safely(file, batches(), "Parquet")


@sources.register("arrow", suffixes=("arrow", "feather"))
def arrow(file: SourceFile) -> Iterator[Record]:
    """Arrow's file and stream formats, and Feather: values become as those of `parquet`."""
    import pyarrow as pa

    def batches() -> Iterator[pa.RecordBatch]:
        opened = _opened(file)
        is_file = opened.read(len(_ARROW_FILE)) == _ARROW_FILE
        opened.seek(0)
        if is_file:
            reader = pa.ipc.open_file(opened)
            yield from (_validated(reader.get_batch(index)) for index in range(reader.num_record_batches))
        else:
            yield from map(_validated, pa.ipc.open_stream(opened))

    return _safely(file, batches(), "Arrow")


def _validated(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch if its offsets lie within its buffers, which nobody else checks and which crash the process.

    Text is looked at as bytes, because a row that is not UTF-8 is no reason to refuse the others.
    """
    import pyarrow as pa

    views = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    for column in batch.columns:
        column.view(views.get(column.type, column.type)).validate(full=True)
    return batch


def records_of(batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[Record]:
    """Yield the rows of Arrow batches or tables as records, numbered from 1."""
    number = 0
    for batch in batches:
        for part in slices_of(batch):
            for values, reason in _rows(part):
                number += 1
                yield Record(number, {} if reason else values, reason)


def _opened(file: SourceFile) -> Any:
    """Return what Arrow reads: the file itself where it lies, the whole content of a compressed one."""
    import pyarrow as pa

    if file.is_compressed:
        with file.open() as stream:
            return pa.BufferReader(stream.read())
    if file.is_remote:
        return pa.PythonFile(file.open(), mode="r")
    return pa.OSFile(file.path)


def _safely(file: SourceFile, batches: Iterator[pa.RecordBatch], kind: str) -> Iterator[Record]:
    import pyarrow as pa

    try:
        yield from records_of(batches)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        details = details_of(error, file.path)
        raise FinetuneError(f"expected a whole {kind} file, found something else ({details})") from None


def _rows(batch: pa.RecordBatch | pa.Table) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each row's values with the reason why they cannot be read, if there is one."""
    names = batch.schema.names
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise FinetuneError(f"expected different column names, found {repeated[0]!r} more than once")
    reasons: dict[int, str] = {}
    columns = [_values(column, reasons) for column in batch.columns]
    rows = zip(*columns, strict=True) if columns else iter([()] * batch.num_rows)
    for index, values in enumerate(rows):
        yield dict(zip(names, values, strict=True)), reasons.get(index, "")


def _values(column: Any, reasons: dict[int, str]) -> list[Any]:
    """Return a column as plain values; what cannot be read becomes None, and its row gets a reason."""
    convert = _plain if not _is_plain(column.type) else None
    try:
        values = column.to_pylist()
        return values if convert is None else [convert(value) for value in values]
    except (ValueError, ArithmeticError):  # text that is not UTF-8, a date beyond the year 9999
        return [_value(column[index], index, reasons) for index in range(len(column))]


def _value(scalar: Any, index: int, reasons: dict[int, str]) -> Any:
    try:
        return _plain(scalar.as_py())
    except UnicodeDecodeError:
        reasons[index] = "not_utf8"
    except (ValueError, ArithmeticError):
        reasons[index] = "not_a_value"
    return None


def _is_plain(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind):
        return _is_plain(kind.value_type)
    tests = (
        *(types.is_string, types.is_large_string, types.is_integer, types.is_floating),
        *(types.is_boolean, types.is_null),
    )
    return any(test(kind) for test in tests)


def _plain(value: Any) -> Any:
    """Return a value as JSON could have had it."""
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
