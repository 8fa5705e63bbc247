"""The third step: the rows of each split with their token ids, and with more rows for training if the recipe asks."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from finetune.data.augmentation import Augmentation, Augmented
from finetune.data.duplicates import text_keys
from finetune.data.rows import Column
from finetune.data.splitting import SPLITS
from finetune.data.store import StreamWriter
from finetune.data.tokenization import Encoder
from finetune.errors import FinetuneError, RowError
from finetune.progress import Progress
from finetune.tasks import open_task
from finetune.workers import ordered_map

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

LINES_KEPT = 20
AUGMENT_BATCH_ROWS = 1000
AUGMENT_ATTEMPTS = 5
ANOTHER_DRAW = 1_000_000  # beyond the number of any copy
ORIGIN, OPERATION = "origin", "operation"
HISTOGRAM_BINS = 20


class Work(NamedTuple):
    """Readable rows, and the split of each (or of all)."""

    rows: Any
    splits: Any


class EncodedRows(NamedTuple):
    """Features of some rows as Arrow, and for each row what was lost."""

    features: Any
    whole_lengths: Any
    tokens_lost: Any
    entities_lost: Any
    unknown_tokens: int
    words: int
    text_tokens: int
    untrainable: Any
    asked_otherwise: int


class RowEncoder:
    """Encodes batches of readable rows with a task; it can be made in another process."""

    def __init__(self, task: str, options: Mapping[str, Any], encoder: Encoder, labels: Sequence[str]) -> None:
        self._task, _ = open_task(task, options)
        self._encoder, self._labels = encoder, labels

    def __call__(self, rows: pa.RecordBatch) -> EncodedRows:
        """Return the features of the rows, `length` (tokens) among them."""
        import pyarrow as pa

        columns = {role: python_values(rows[role]) for role in self._task.columns if role in rows.schema.names}
        try:
            encoded = self._task.encode(columns, self._encoder, self._labels)
        except RowError as error:
            raise FinetuneError(f"line {rows['line'][error.row].as_py()}: {error}") from error
        features = {**encoded.features, "length": row_lengths(encoded.features["input_ids"])}
        batch = pa.RecordBatch.from_arrays(list(features.values()), names=list(features))
        counts = (encoded.unknown_tokens, encoded.words, encoded.text_tokens)
        lost = (encoded.whole_lengths, encoded.tokens_lost, encoded.entities_lost)
        return EncodedRows(batch, *lost, *counts, encoded.untrainable, encoded.asked_otherwise)


def python_values(column: pa.Array) -> list[Any]:
    """Return an Arrow column as Python values; texts by way of numpy, which is several times faster."""
    import pyarrow as pa

    if pa.types.is_string(column.type):
        return column.to_numpy(zero_copy_only=False).tolist()  # type: ignore[no-any-return]
    return column.to_pylist()  # type: ignore[no-any-return]


def row_lengths(ids: pa.Array) -> pa.Array:
    """Return the tokens of each row, of all its windows together."""
    import numpy as np
    import pyarrow as pa

    offsets = np.asarray(ids.offsets)
    if pa.types.is_list(ids.type.value_type):
        offsets = np.asarray(ids.values.offsets)[offsets]
    return pa.array(np.diff(offsets).astype(np.int32))


@dataclass
class SplitFacts:
    """What is known about the tokens of one split."""

    rows: int = 0
    cut: int = 0
    tokens_lost: int = 0
    entities_lost: int = 0
    lines: list[Any] = field(default_factory=list)
    untrainable: list[Any] = field(default_factory=list)
    tokens: int = 0
    lengths: list[NDArray[Any]] = field(default_factory=list)
    windows: list[NDArray[Any]] = field(default_factory=list)

    def all_lengths(self) -> NDArray[Any]:
        """Return the tokens of each row before anything is cut."""
        import numpy as np

        return np.concatenate([np.zeros(0, np.int32), *self.lengths])

    def window_lengths(self) -> NDArray[Any]:
        """Return the tokens of each window: what a batch is padded by."""
        import numpy as np

        return np.concatenate([np.zeros(0, np.int32), *self.windows])


@dataclass
class Tokens:
    """What is known about the tokens of all splits, and which columns hold them."""

    splits: dict[str, SplitFacts]
    features: list[str]
    unknown_tokens: int = 0
    words: int = 0
    text_tokens: int = 0
    asked_otherwise: int = 0
    operations: Counter[str] = field(default_factory=Counter)


def write_splits(
    work: Iterable[Work],
    encoder: Encoder,
    folder: Path,
    *,
    roles: Sequence[str],
    task: str,
    options: Mapping[str, Any],
    labels: Sequence[str],
    files: Sequence[str],
    total: int | None,
    workers: int,
    progress: Progress,
) -> Tokens:
    """Encode all rows and write each split's file; the same bytes with one worker or many."""
    import numpy as np

    writers: dict[str, StreamWriter] = {}
    waiting: list[Work] = []
    tokens = Tokens({}, [])

    def rows_of_work() -> Iterator[Any]:
        for item in work:
            waiting.append(item)
            yield item.rows

    make = functools.partial(RowEncoder, task, options, encoder, labels)
    try:
        with progress.bar("tokenizing", total) as bar:
            encoded: EncodedRows
            for encoded in ordered_map(make, rows_of_work(), workers):
                item = waiting.pop(0)
                tokens.features = [name for name in encoded.features.schema.names if name != "length"]
                batch = _readable(item.rows, roles, files, encoded.features)
                for code in np.unique(item.splits).tolist():
                    name, mask = SPLITS[code], item.splits == code
                    _write(writers, folder / f"{name}.arrow", name, batch, mask)
                    _count(tokens.splits.setdefault(name, SplitFacts()), batch, encoded, mask)
                tokens.unknown_tokens += encoded.unknown_tokens
                tokens.words += encoded.words
                tokens.text_tokens += encoded.text_tokens
                tokens.asked_otherwise += encoded.asked_otherwise
                if OPERATION in batch.schema.names:
                    tokens.operations.update(value for value in batch[OPERATION].to_pylist() if value)
                bar.advance(item.rows.num_rows)
    finally:
        for writer in writers.values():
            writer.close()
    tokens.splits = {name: tokens.splits[name] for name in SPLITS if name in tokens.splits}
    return tokens


def _readable(
    rows: pa.RecordBatch, roles: Sequence[str], files: Sequence[str], features: pa.RecordBatch
) -> pa.RecordBatch:
    """Return the columns of a split's file: where a row came from, what people read, what the model reads."""
    import pyarrow as pa

    columns: dict[str, Any] = {"line": rows["line"]}
    if len(files) > 1:
        names = rows["file"].to_pylist()
        columns["file"] = pa.array([name if isinstance(name, str) else files[name] for name in names], pa.string())
    columns |= {name: rows[name] for name in (*roles, ORIGIN, OPERATION) if name in rows.schema.names}
    columns |= {name: features[name] for name in features.schema.names}
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _write(
    writers: dict[str, StreamWriter], path: Path, name: str, batch: pa.RecordBatch, mask: NDArray[np.bool_]
) -> None:
    import pyarrow as pa

    if name not in writers:
        writers[name] = StreamWriter(path, batch.schema)
    writers[name].write(batch if mask.all() else batch.filter(pa.array(mask)))


def _line(batch: pa.RecordBatch, row: int) -> int | str:
    """Return a row's line, with its file if there are several."""
    line: int = batch["line"][row].as_py()
    return f"{batch['file'][row].as_py()}:{line}" if "file" in batch.schema.names else line


def _count(facts: SplitFacts, batch: pa.RecordBatch, encoded: EncodedRows, mask: NDArray[np.bool_]) -> None:
    import numpy as np
    import pyarrow as pa

    lost = np.where(mask, encoded.tokens_lost, 0)
    cut = np.flatnonzero(lost)
    facts.rows += int(mask.sum())
    facts.cut += len(cut)
    facts.tokens_lost += int(lost.sum())
    facts.lines += [_line(batch, int(row)) for row in cut[: LINES_KEPT - len(facts.lines)]]
    if encoded.entities_lost is not None:
        facts.entities_lost += int(encoded.entities_lost[mask].sum())
    if encoded.untrainable is not None:
        facts.untrainable += [_line(batch, int(row)) for row in np.flatnonzero(mask & encoded.untrainable)]
    lengths = np.asarray(batch["length"])[mask]
    facts.tokens += int(lengths.sum())
    facts.lengths.append(encoded.whole_lengths[mask])
    ids = batch["input_ids"]
    if pa.types.is_list(ids.type.value_type):
        counts = np.diff(np.asarray(ids.offsets))
        facts.windows.append(np.diff(np.asarray(ids.values.offsets))[np.repeat(mask, counts)])
    else:
        facts.windows.append(lengths)


@dataclass
class Making:
    """The texts that a new row must not have, since a row of some split or another new one has them; and the misses."""

    known: NDArray[np.uint64]  # sorted
    columns: Mapping[str, Column]
    missed: int = 0
    _made: set[int] = field(default_factory=set)

    def accept(self, values: Mapping[str, Any]) -> bool:
        """Tell whether the text of a new row is new, and remember it if so."""
        import numpy as np

        texts = [
            [" ".join(values[role]) if column.kind == "tokens" else values[role]]
            for role, column in self.columns.items()
            if column.kind in {"text", "tokens"}
        ]
        texts += [  # as the rows' own keys have them
            ["\0".join(sorted(values[role]))] for role, column in self.columns.items() if column.kind == "texts"
        ]
        key = text_keys(texts)[0, 0]
        place = int(np.searchsorted(self.known, key))
        if int(key) in self._made or (place < len(self.known) and self.known[place] == key):
            return False
        self._made.add(int(key))
        return True


def made_rows(
    train: Iterable[pa.RecordBatch], copies: NDArray[np.int64], augmentation: Augmentation, making: Making
) -> Iterator[tuple[dict[str, Any], Augmented]]:
    """Yield each new row with the row that it is made of; `copies` says how many each row of the train split gets.

    A new row whose text is there already, in whatever split, is drawn again a few times and then counted as missed:
    otherwise augmentation would repeat rows, and carry texts of the test split into training.
    """
    first = 0
    for batch in train:
        wanted = copies[first : first + batch.num_rows]
        for index in wanted.nonzero()[0].tolist():
            row = {name: batch[name][index].as_py() for name in batch.schema.names}
            for copy in range(int(wanted[index])):
                made = _make_row(row, copy, augmentation, making)
                if made is not None:
                    yield row, made
        first += batch.num_rows


def _make_row(row: dict[str, Any], copy: int, augmentation: Augmentation, making: Making) -> Augmented | None:
    values = {role: row[role] for role in making.columns}
    for attempt in range(AUGMENT_ATTEMPTS):
        made = augmentation.augment(values, row["number"], copy + attempt * ANOTHER_DRAW)
        if made is not None and making.accept(made.values):
            return made
    making.missed += 1
    return None


def made_batches(made: Iterable[tuple[dict[str, Any], Augmented]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield new rows as batches; beside what a row has they say of which line they are made, and how."""
    import pyarrow as pa

    rows = ({**row, **augmented.values, ORIGIN: row["line"], OPERATION: augmented.operation} for row, augmented in made)
    while chunk := list(islice(rows, AUGMENT_BATCH_ROWS)):
        yield pa.RecordBatch.from_pylist(chunk, schema=_with_origin_schema(schema))


def _with_origin_schema(schema: pa.Schema) -> pa.Schema:
    import pyarrow as pa

    return (
        schema
        if ORIGIN in schema.names
        else schema.append(pa.field(ORIGIN, pa.int64())).append(pa.field(OPERATION, pa.string()))
    )


def with_origin(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows that were there from the start with the empty columns that tell them from those made of them."""
    import pyarrow as pa

    empty = [pa.nulls(batch.num_rows, pa.int64()), pa.nulls(batch.num_rows, pa.string())]
    return pa.RecordBatch.from_arrays([*batch.columns, *empty], schema=_with_origin_schema(batch.schema))


def text_batches(batches: Iterable[pa.RecordBatch], columns: Mapping[str, Column]) -> Iterator[list[str]]:
    """Yield the texts of rows, batch after batch, to train a tokenizer on."""
    for batch in batches:
        for role, column in columns.items():
            if column.kind == "text":
                yield python_values(batch[role])
            elif column.kind == "tokens":
                yield [" ".join(tokens) for tokens in batch[role].to_pylist()]
            elif column.kind == "messages":
                yield [message["content"] for messages in batch[role].to_pylist() for message in messages]
            elif column.kind == "texts":
                yield [text for texts in batch[role].to_pylist() for text in texts]
