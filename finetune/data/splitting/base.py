"""What every splitter is given, and the settings that several of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from finetune.errors import FinetuneError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")
KEPT_FOR_TEST = "kept_for_test"  # why a row of the test split is in no fold of the others
CHUNK = 10_000

Fraction = Annotated[float, Field(gt=0, lt=1)]
FractionOrNone = Annotated[float, Field(ge=0, lt=1)]
Folds = Annotated[int, Field(ge=2, le=100)] | None
Fold = Annotated[int, Field(ge=0)]
ColumnName = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class SplitInput:
    """The n rows to split: a splitter returns the split of each as its place in `SPLITS`, int8 of shape (n,).

    | field    | holds                                                                                          |
    | -------- | ---------------------------------------------------------------------------------------------- |
    | clusters | (n,): the lowest row of the duplicates, or the group, that a row is in: they never stand in two  |
    |          | splits                                                                                         |
    | kind     | the kind of `target`: label, labels, tags or number (see `finetune.data.rows`), "" without one  |
    | target   | the n target values as a `pyarrow.ChunkedArray`, or None                                        |
    | keys     | (n, 2): a hash of each row's text, equal for equal texts                                        |
    | extras   | the file's columns that the splitter's `needs` asked for, `ChunkedArray`s of string with nulls  |
    | names    | where a row came from, for messages: `names(0)` is "line 1"                                     |
    """

    clusters: NDArray[np.int64]
    kind: str
    target: Any
    keys: NDArray[np.uint64]
    extras: Mapping[str, Any]
    names: Callable[[int], str]


@dataclass(frozen=True)
class Clusters:
    """The u clusters, by their first rows: `first` (u,), their `sizes` in rows (u,), and each row's cluster `of` (n,).

    Nothing below this level moves a row: splits are given to clusters, and `splits[of]` gives them to the rows.
    """

    first: NDArray[np.int64]
    sizes: NDArray[np.int64]
    of: NDArray[np.int64]

    @property
    def single(self) -> bool:
        """Whether every row is its own cluster."""
        return len(self.sizes) == len(self.of)


def find_clusters(rows: SplitInput, least: int, wanted: str) -> Clusters:
    """Return the clusters of the rows; raise FinetuneError where there are fewer than `least`."""
    import numpy as np

    _, first, of, sizes = np.unique(rows.clusters, return_index=True, return_inverse=True, return_counts=True)
    assert (first[1:] > first[:-1]).all(), "clusters are numbered by their first rows"
    if len(sizes) < least:
        together = (
            ""
            if len(sizes) == len(of)
            else f" ({len(of)} rows, of which some may not be separated: equal texts, near-duplicates and groups stay "
            "together; see data.near_duplicates and data.group_by)"
        )
        raise FinetuneError(
            f"data.split: expected at least {least} rows that may stand in different splits for {wanted}, "
            f"found {len(sizes)}{together}. Add rows, or ask for fewer splits or folds."
        )
    return Clusters(first, sizes, of)


def check_fractions(options: Mapping[str, Any]) -> None:
    """Raise ValueError unless the fractions add up to 1 and the fold is one of the folds.

    With `folds` the fold is the test split, so that `test` does not count: train and validation share what is left in
    the proportion of their fractions.
    """
    folds, fold = options.get("folds"), options.get("fold", 0)
    if folds is None and fold:
        raise ValueError(f"expected `folds`, the number of folds, with fold {fold}; found fold alone")
    if folds is not None:
        if fold >= folds:
            raise ValueError(f"expected a fold from 0 to {folds - 1} (folds is {folds}), found {fold}")
        return
    fractions = {name: options[name] for name in SPLITS}
    if abs(sum(fractions.values()) - 1) > 1e-6:
        given = ", ".join(f"{name} {fraction:g}" for name, fraction in fractions.items())
        raise ValueError(f"expected fractions that add up to 1, found {sum(fractions.values()):g} ({given})")


def in_chunks(column: Any) -> Iterator[tuple[int, Any]]:
    """Yield a `ChunkedArray` in arrays of 10,000 values, each with the number of its first row."""
    import pyarrow as pa

    for start in range(0, len(column), CHUNK):
        part = column.slice(start, CHUNK).combine_chunks()
        yield start, part if isinstance(part, pa.Array) else part.chunk(0)


def encode(column: Any) -> tuple[NDArray[np.int64], list[str]]:
    """Return the values of a `ChunkedArray` of string as codes (n,), -1 for null, and the values in that order.

    Codes are given in the order of first appearance, so that they do not depend on how the column is chunked.
    """
    import numpy as np

    known: dict[str, int] = {}
    codes = np.full(len(column), -1, np.int64)
    for start, part in in_chunks(column):
        encoded = part.dictionary_encode()
        places = [known.setdefault(value, len(known)) for value in encoded.dictionary.to_pylist()]
        local = encoded.indices.fill_null(len(places)).to_numpy(zero_copy_only=False)
        codes[start : start + len(part)] = np.array([*places, -1], np.int64)[local]
    return codes, list(known)
