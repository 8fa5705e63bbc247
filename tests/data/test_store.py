"""Rows on disk: what is written is what is read, a part of it too, and other libraries open the same file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.data.store import RowStore, StreamWriter, read_stream

SCHEMA = pa.schema(
    [("number", pa.int64()), ("text", pa.string()), ("words", pa.list_(pa.string())), ("raw", pa.binary())]
)


def write(path: Path, rows: list[dict[str, object]], batch: int) -> StreamWriter:
    with StreamWriter(path, SCHEMA) as writer:
        for start in range(0, len(rows) + 1, batch):  # the last one may be empty
            writer.write(pa.RecordBatch.from_pylist(rows[start : start + batch], schema=SCHEMA))
    return writer


def as_rows(values: list[tuple[int, str | None, list[str]]]) -> list[dict[str, object]]:
    return [{"number": number, "text": text, "words": words, "raw": b"\xff\x00"} for number, text, words in values]


UTF8 = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(
        st.tuples(st.integers(-(2**63), 2**63 - 1), st.none() | UTF8, st.lists(UTF8, max_size=3)), max_size=30
    ),
    batch=st.integers(1, 7),
    data=st.data(),
)
def test_what_is_kept_is_what_the_mask_says(
    tmp_path: Path, values: list[tuple[int, str | None, list[str]]], batch: int, data: st.DataObject
) -> None:
    rows = as_rows(values)
    writer = write(tmp_path / "rows.arrow", rows, batch)
    store = RowStore(tmp_path / "rows.arrow")
    assert (writer.rows, len(store), store.table.to_pylist()) == (len(rows), len(rows), rows)
    assert [row for found in store.batches() for row in found.to_pylist()] == rows
    assert all(found.num_rows for found in store.batches())
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), dtype=bool)
    kept = store.keep(mask, tmp_path / "kept.arrow", without=("raw", "no such column"))
    expected = [{name: value for name, value in row.items() if name != "raw"} for row, stays in zip(rows, mask, strict=True) if stays]  # fmt: skip  # noqa: E501
    assert kept.table.to_pylist() == expected
    assert len(kept) == int(mask.sum())
    assert store.table.to_pylist() == rows, "the store that it came from is as it was"
    assert kept.numbers("number").tolist() == [row["number"] for row in expected]
    assert kept.column("text").to_pylist() == [row["text"] for row in expected]


def test_a_stream_opens_as_a_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = as_rows([(number, f"text {number}", ["a", "b"]) for number in range(20)])
    write(tmp_path / "rows.arrow", rows, 6)
    opened = datasets.Dataset.from_file(str(tmp_path / "rows.arrow"))
    assert opened["text"][:] == [row["text"] for row in rows]
    assert opened.column_names == SCHEMA.names


def test_a_store_lies_on_disk_and_not_in_memory(tmp_path: Path) -> None:
    with StreamWriter(tmp_path / "rows.arrow", pa.schema([("text", pa.string())])) as writer:
        for _ in range(20):
            writer.write(pa.RecordBatch.from_pydict({"text": ["x" * 1000] * 1000}))
    before = pa.total_allocated_bytes()
    store = RowStore(tmp_path / "rows.arrow")
    assert len(store) == 20_000
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert store.column("text")[19_999].as_py() == "x" * 1000


def test_a_table_outlives_the_name_of_its_file(tmp_path: Path) -> None:
    rows = as_rows([(number, "text", []) for number in range(10)])
    write(tmp_path / "rows.arrow", rows, 3)
    table = read_stream(tmp_path / "rows.arrow")
    (tmp_path / "rows.arrow").unlink()
    assert table.to_pylist() == rows


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = as_rows([(number, "ü" * number, ["a"] * (number % 3)) for number in range(50)])
    for name in ("one", "two"):
        write(tmp_path / name, rows, 9)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
