"""Rows on disk, memory-mapped: what a million rows need in memory is a few numbers each, not their texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


class StreamWriter:
    """Writes record batches as one Arrow IPC stream, the form that `datasets.Dataset.from_file` opens."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        import pyarrow as pa

        self.path, self.schema, self.rows = path, schema, 0
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_stream(self._sink, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch; one without rows leaves no trace."""
        if batch.num_rows:
            self._writer.write_batch(batch)
            self.rows += batch.num_rows

    def close(self) -> None:
        """Finish the stream."""
        self._writer.close()
        self._sink.close()

    def __enter__(self) -> StreamWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_stream(path: Path) -> pa.Table:
    """Return the table in an Arrow IPC stream, memory-mapped: nothing is copied until it is looked at."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        return reader.read_all()


class RowStore:
    """Rows in a file: each column a chunked array, every chunk as it was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.table = read_stream(path)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column, of as many values as there are rows."""
        return self.table[name]

    def numbers(self, name: str) -> NDArray[Any]:
        """Return a column of numbers as one array in memory."""
        return self.table[name].to_numpy()  # type: ignore[no-any-return]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows as they were written, batch after batch."""
        yield from self.table.to_batches()

    def keep(self, mask: NDArray[np.bool_], path: Path, without: tuple[str, ...] = ()) -> RowStore:
        """Return a store of the rows that the mask (one truth value a row) keeps, written to `path`."""
        import pyarrow as pa

        table = self.table.drop_columns([name for name in without if name in self.table.column_names])
        start = 0
        with StreamWriter(path, table.schema) as writer:
            for batch in table.to_batches():
                chosen = mask[start : start + batch.num_rows]
                writer.write(batch if chosen.all() else batch.filter(pa.array(chosen)))
                start += batch.num_rows
        return RowStore(path)
