"""Arrow columns looked at in bulk: words counted, patterns found, tags read, without a Python object for each value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

WINDOW = 65_536  # rows looked at together: large enough for vectors, small enough for memory
OUTSIDE, BEGIN, INSIDE = range(3)


@dataclass(frozen=True)
class Entities:
    """The entities of all rows, one array entry each, and the positions that break IOB2.

    `starts` and `ends` (exclusive) are positions among the row's tags, `codes` are indices into `types` (sorted).
    """

    types: tuple[str, ...]
    rows: NDArray[Any]
    starts: NDArray[Any]
    ends: NDArray[Any]
    codes: NDArray[Any]
    invalid_rows: NDArray[Any]
    invalid_positions: NDArray[Any]


def windows(column: pa.ChunkedArray) -> Iterator[tuple[int, pa.Array]]:
    """Yield a column piece by piece: the number of the piece's first row, and its values as one array."""
    for start in range(0, len(column), WINDOW):
        piece = column.slice(start, WINDOW)
        yield start, piece.chunk(0) if piece.num_chunks == 1 else piece.combine_chunks()


def take_rows(column: pa.ChunkedArray, rows: NDArray[Any]) -> pa.Array:
    """Return the values of the given rows (ascending numbers) as one array, chunk by chunk."""
    import numpy as np
    import pyarrow as pa

    taken, start = [], 0
    for chunk in column.chunks:
        low, high = np.searchsorted(rows, [start, start + len(chunk)])
        if high > low:
            taken.append(chunk.take(pa.array(rows[low:high] - start)))
        start += len(chunk)
    return pa.chunked_array(taken, column.type).combine_chunks()


def as_texts(values: pa.Array) -> pa.Array:
    """Return texts, or lists of words joined by blanks, as an array of strings without nulls."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_list(values.type):
        values = pc.binary_join(values, " ")
    return pc.fill_null(values, "")


def row_numbers(lists: pa.Array) -> NDArray[Any]:
    """Return for each item of an array of lists the number of its row, shape (items,)."""
    import numpy as np

    return np.repeat(np.arange(len(lists)), list_lengths(lists))


def list_lengths(lists: pa.Array) -> NDArray[Any]:
    """Return how many items each list has, shape (rows,); a null has none."""
    import pyarrow.compute as pc

    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def matching_rows(column: pa.ChunkedArray, pattern: str) -> NDArray[Any]:
    """Return the numbers of the rows whose text, or one of whose words, matches a regular expression of RE2."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    found = [np.empty(0, dtype=np.int64)]
    for start, piece in windows(column):
        items = piece.flatten() if pa.types.is_list(piece.type) else piece
        matches = pc.fill_null(pc.match_substring_regex(items, pattern), False)
        hits = np.flatnonzero(matches.to_numpy(zero_copy_only=False))
        if items is not piece and len(hits):
            hits = np.unique(row_numbers(piece)[hits])
        found.append(hits + start)
    return np.concatenate(found)


def count_words(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return how many words each row has, shape (rows,): runs without white space, or the words that are listed.

    Chinese and Japanese are written without blanks, so there each character counts as a word.
    """
    import numpy as np
    import pyarrow as pa

    if pa.types.is_list(column.type):
        counts = [list_lengths(piece) for _, piece in windows(column)]
    else:
        counts = [_count_words(piece) for _, piece in windows(column)]
    return np.concatenate([np.empty(0, dtype=np.int32), *(count.astype(np.int32) for count in counts)])


def _count_words(texts: pa.Array) -> NDArray[Any]:
    import numpy as np
    import pyarrow.compute as pc

    texts = pc.fill_null(texts, "")
    _, offsets_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    if data_buffer is None or not len(texts) or offsets[0] == offsets[-1]:
        return np.zeros(len(texts), dtype=np.int32)
    data = np.frombuffer(data_buffer, dtype=np.uint8)[offsets[0] : offsets[-1]]
    offsets = offsets - offsets[0]
    printed = data > ord(" ")
    starts = printed.copy()
    starts[1:] &= ~printed[:-1]
    firsts = offsets[:-1][offsets[:-1] < offsets[1:]]
    starts[firsts] = printed[firsts]
    if data.max() >= 0xE3:
        starts |= (data >= 0xE3) & (data <= 0xE9)  # the first bytes of U+3000 to U+9FFF in UTF-8
    return np.diff(np.searchsorted(np.flatnonzero(starts), offsets))


def find_entities(tags: pa.ChunkedArray) -> Entities:
    """Read the tags of all rows, as `finetune.data.tagging.entities` and `invalid_positions` read those of one.

    A million rows take a second here, since no tag becomes a Python object.
    """
    import numpy as np

    types: dict[str, int] = {}
    found: list[NDArray[Any]] = []
    broken: list[NDArray[Any]] = []
    for start, piece in windows(tags):
        entities, invalid = _entities_of(piece, types)
        entities[0] += start
        invalid[0] += start
        found.append(entities)
        broken.append(invalid)
    rows, starts, ends, codes = np.concatenate([np.empty((4, 0), dtype=np.int32), *found], axis=1)
    invalid_rows, positions = np.concatenate([np.empty((2, 0), dtype=np.int32), *broken], axis=1)
    names = sorted(types)
    order = np.empty(len(names), dtype=np.int32)
    order[[types[name] for name in names]] = np.arange(len(names))
    return Entities(tuple(names), rows, starts, ends, order[codes], invalid_rows, positions)


def _entities_of(lists: pa.Array, types: dict[str, int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the entities (row, start, end, type) and the invalid positions (row, position) of one piece."""
    import numpy as np
    import pyarrow.compute as pc

    encoded = pc.fill_null(lists.flatten(), "").dictionary_encode()
    parsed = np.array([_parse(tag, types) for tag in encoded.dictionary.to_pylist()], dtype=np.int32).reshape(-1, 3)
    marks, kinds, valid = parsed[encoded.indices.to_numpy()].T
    lengths = list_lengths(lists)
    offsets = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(lists), dtype=np.int32), lengths)

    continues = marks == INSIDE
    continues[1:] &= (kinds[1:] == kinds[:-1]) & (owner[1:] == owner[:-1])  # outside of entities the kind is -1
    continues[:1] = False
    starts = np.flatnonzero((marks != OUTSIDE) & ~continues)
    breaks = np.append(np.flatnonzero(~continues), len(marks))
    ends = breaks[np.searchsorted(breaks, starts, side="right")]
    first = offsets[owner[starts]]
    entities = np.stack([owner[starts], starts - first, ends - first, kinds[starts]]).astype(np.int32)

    wrong = (marks == INSIDE) & ~continues
    wrong[1:] |= continues[1:] & (valid[:-1] == 0)
    invalid = np.flatnonzero(wrong | (valid == 0))
    return entities, np.stack([owner[invalid], invalid - offsets[owner[invalid]]]).astype(np.int32)


def _parse(tag: str, types: dict[str, int]) -> tuple[int, int, int]:
    """Return a tag's mark, the number of its type (in the order of their appearance) and whether IOB2 has such a tag.

    A B or I without a type marks an entity of the type `_`, as it does in seqeval.
    """
    if tag[:1] not in {"B", "I"} or tag[1:2] not in {"", "-"}:
        return OUTSIDE, -1, int(tag == "O")
    kind = types.setdefault(tag[2:] or "_", len(types))
    return BEGIN if tag[0] == "B" else INSIDE, kind, int(len(tag) > 2)
