"""Shingles: the overlapping pieces of texts, as hashes, read from Arrow a few texts at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from finetune.data.duplicates import SEPARATOR, normalize

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

Shingles = Literal["words", "characters"]

WINDOW = 2_000  # rows whose texts are Python objects at one time
BATCH = 2**18  # characters that are hashed at one time: their arrays stay in the cache
ODD = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio: multiples of it lie far apart


def shingle(texts: Sequence[str], shingles: Shingles, size: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the shingles of normalized texts as 64-bit hashes, one text after the other, and how many each text has.

    A text's repeated shingles are repeated; a text shorter than a shingle has one.
    """
    import numpy as np

    numbers, lengths = (_words if shingles == "words" else _characters)(texts, size)
    hashes = chain(np.lib.stride_tricks.sliding_window_view(numbers, size))
    inside = np.ones(len(numbers), dtype=bool)  # what begins near the end of a text would run into the next
    for offset in range(1, size):
        inside[np.cumsum(lengths) - offset] = False
    return hashes[inside[: len(hashes)]], lengths - size + 1


def _characters(texts: Sequence[str], size: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the code points of the texts, at least `size` of each, and how many of each."""
    import numpy as np

    padded = [text.ljust(size, SEPARATOR) for text in texts]
    numbers = np.frombuffer("".join(padded).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    return numbers, np.array([len(text) for text in padded])


def _words(texts: Sequence[str], size: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the hashes of the texts' words, at least `size` of each, and how many of each."""
    import numpy as np
    from xxhash import xxh3_64_intdigest

    words = [text.split(" ") for text in texts]
    padded = [some + [SEPARATOR] * (size - len(some)) for some in words]
    numbers = np.array([xxh3_64_intdigest(word.encode()) for some in padded for word in some], dtype=np.uint64)
    return numbers, np.array([len(some) for some in padded])


class _Column:
    """One column of texts in Arrow."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        import numpy as np

        self._chunks = column.chunks
        self._starts = np.cumsum([0, *map(len, self._chunks)])

    def take(self, rows: NDArray[np.int64]) -> Iterator[str]:
        """Yield the texts of sorted rows; Arrow's own `take` would join all chunks of the column first."""
        import numpy as np
        import pyarrow as pa

        chunk_of = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(chunk_of).tolist():
            here = rows[chunk_of == number] - self._starts[number]
            yield from (text or "" for text in self._chunks[number].take(pa.array(here)).to_pylist())


class Shingler:
    """The shingles of texts, read from Arrow as they are needed; text n is that of row `rows[n]`."""

    def __init__(
        self, columns: Sequence[pa.ChunkedArray], rows: NDArray[np.int64], shingles: Shingles, size: int
    ) -> None:
        self._columns = [_Column(column) for column in columns]
        self._rows = rows
        self._shingles = shingles
        self._size = size

    def __call__(self, wanted: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
        """Yield what `shingle` returns for some of the texts at a time; their numbers must be sorted."""
        for start in range(0, len(wanted), WINDOW):
            rows = self._rows[wanted[start : start + WINDOW]]
            columns = [map(normalize, column.take(rows)) for column in self._columns]
            texts = columns[0] if len(columns) == 1 else map(f" {SEPARATOR} ".join, zip(*columns, strict=True))
            for batch in _batches(list(texts)):
                yield shingle(batch, self._shingles, self._size)


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    import numpy as np

    for low, high in cuts(np.array([len(text) for text in texts]), BATCH):
        yield texts[low:high]


def cuts(weights: NDArray[np.integer[Any]], most: int) -> Iterator[tuple[int, int]]:
    """Yield where to cut, so that the weights between two cuts add up to about `most`, or are one weight."""
    import numpy as np

    places = np.flatnonzero(np.diff(np.cumsum(weights, dtype=np.int64) // most)) + 1
    yield from zip([0, *places.tolist()], [*places.tolist(), len(weights)], strict=True)


def chain(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return one hash for the numbers along the last axis, in their order."""
    import numpy as np

    hashes = numbers[..., 0].copy()
    for position in range(1, numbers.shape[-1]):
        hashes ^= hashes >> np.uint64(32)
        hashes *= np.uint64(ODD)
        hashes += numbers[..., position]
    return hashes
