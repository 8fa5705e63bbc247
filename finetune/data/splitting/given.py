"""Splits that the rows themselves decide: by their time, by a stable hash, or by a column that names the split."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from finetune.data.splitting.base import (
    ColumnName,
    Fold,
    Folds,
    Fraction,
    FractionOrNone,
    SplitInput,
    check_fractions,
    encode,
    find_clusters,
    in_chunks,
)
from finetune.errors import FinetuneError
from finetune.registry import splitters

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CALLED = {"train": 0, "validation": 1, "valid": 1, "val": 1, "dev": 1, "test": 2}


def _needs_by(options: Mapping[str, Any]) -> list[str]:
    return [options["by"]] if options.get("by") else []


@splitters.register("time", check=check_fractions, needs=_needs_by)
def by_time(
    rows: SplitInput,
    seed: int,  # noqa: ARG001 -- time decides
    *,
    by: ColumnName,
    train: Fraction = 0.8,
    validation: Fraction = 0.1,
    test: FractionOrNone = 0.1,
    folds: Folds = None,
    fold: Fold = 0,
) -> NDArray[np.int8]:
    """Return each row's split by the column `by`: the oldest rows train, the newest test.

    The column holds numbers, or dates and times of ISO 8601; those without a time zone are in UTC. Equal times keep
    the order of the file, and may be divided. A cluster goes where its latest row belongs: no row for training is
    later than one for validation, and none of these later than one for testing, but for the older rows of a cluster.
    With `folds` the window that is trained and validated on grows from fold to fold: it is what scikit-learn's
    `TimeSeriesSplit(folds)` trains on. All later rows test, so that no row is lost and none of the future is learned:
    a fold tests on its own block and on those behind it, which the folds behind it test again.
    Raise FinetuneError with the rows whose value is neither.
    """
    import numpy as np

    if folds is None:
        clusters = find_clusters(rows, 3 if test else 2, "every split to have one")
    else:
        clusters = find_clusters(rows, folds + 2, f"{folds} folds behind a first window with train and validation")
    latest = np.full(len(clusters.sizes), -np.inf)
    np.maximum.at(latest, clusters.of, _moments(rows, by))
    order = np.argsort(latest, kind="stable")
    sizes = clusters.sizes[order]
    middles = np.cumsum(sizes) - sizes / 2
    bounds = _bounds(len(clusters.of), train, validation, folds, fold)
    first, second = np.searchsorted(middles, bounds).tolist()
    tested = bool(test) or folds is not None
    first = min(max(first, 1), len(order) - (2 if tested else 1))
    second = min(max(second, first + 1), len(order) - 1) if tested else len(order)
    splits = np.empty(len(order), np.int8)
    splits[order] = np.repeat(np.arange(3), (first, second - first, len(order) - second))
    return splits[clusters.of]


def _bounds(count: int, train: float, validation: float, folds: int | None, fold: int) -> tuple[float, float]:
    """Return behind how many rows validation and test begin."""
    if folds is None:
        return train * count, (train + validation) * count
    window = count - (folds - fold) * (count // (folds + 1))  # the rest of the division is in the first window
    return window * train / (train + validation), window


@splitters.register("hash", check=check_fractions, needs=_needs_by)
def by_hash(
    rows: SplitInput,
    seed: int,  # noqa: ARG001 -- another seed may not move rows either
    *,
    by: ColumnName | None = None,
    salt: str = "",
    train: Fraction = 0.8,
    validation: Fraction = 0.1,
    test: FractionOrNone = 0.1,
    folds: Folds = None,
    fold: Fold = 0,
) -> NDArray[np.int8]:
    """Return each row's split by a hash of the column `by`, or of its text, so that new rows never move old ones.

    Equal values are in one split. The sizes are near their fractions for many rows, and exact for none. Another `salt`
    gives another split; the seed does not matter. A cluster goes where its first row belongs, so that a duplicate
    added behind it follows; a new row that ties two clusters together moves the later one. With `folds` the first
    digit of the hash to the base of `folds` is the fold that tests a row, and what is behind that digit decides
    between train and validation in the other folds.
    Raise FinetuneError with the rows that have no value in the column.
    """
    import numpy as np

    hashed = _hash_values(rows, by) if by else rows.keys[:, 0] ^ (rows.keys[:, 1] << np.uint64(1))
    clusters = find_clusters(rows, 0, "")
    position = (_mix(hashed[clusters.first] ^ np.uint64(_hash(salt))) >> np.uint64(11)) / 2.0**53  # below 1
    if folds is None:
        bounds = [train, train + validation] if test else [train]
        splits = np.searchsorted(bounds, position, side="right")
    else:
        behind, digit = np.modf(position * folds)
        splits = np.where(digit == fold, 2, behind >= train / (train + validation))
    return splits.astype(np.int8)[clusters.of]


@splitters.register("predefined", given=True, needs=lambda options: [options["column"]])
def predefined(
    rows: SplitInput,
    seed: int,  # noqa: ARG001 -- the column decides
    *,
    column: ColumnName = "split",
) -> NDArray[np.int8]:
    """Return each row's split as a column names it: train, validation (or valid, val, dev) or test, in any case.

    No row is moved: a cluster that the column puts into two splits stays in both, for the search for leaks to report.
    Raise FinetuneError with the values that name no split.
    """
    import numpy as np

    codes, names = encode(rows.extras[column])
    splits = np.array([*(CALLED.get(name.strip().casefold(), -1) for name in names), -1], np.int8)[codes]
    wrong = np.flatnonzero(splits < 0)
    if len(wrong):
        unknown = [f"{name!r}" for name in names if name.strip().casefold() not in CALLED]
        unknown += ["nothing"] if (codes < 0).any() else []
        listed = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more values" if len(unknown) > 10 else "")
        raise FinetuneError(
            f"data.split: expected train, validation (or valid, val, dev) or test in column {column!r}, found {listed} "
            f"in {len(wrong)} rows ({_places(rows, wrong)}). Correct these rows, or remove them."
        )
    return splits


def _places(rows: SplitInput, wrong: NDArray[np.int64], most: int = 5) -> str:
    """Return where the first few of some rows came from."""
    more = f" and {len(wrong) - most} more" if len(wrong) > most else ""
    return ", ".join(rows.names(row) for row in wrong[:most].tolist()) + more


def _moments(rows: SplitInput, by: str) -> NDArray[np.float64]:
    """Return the column as numbers that grow with time: the numbers in it, or the seconds since 1970 in UTC."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    column = rows.extras[by]
    try:
        found = pc.cast(column, pa.float64())
    except pa.ArrowInvalid:
        found = None
    if found is not None and not found.null_count:
        values: NDArray[np.float64] = found.to_numpy()
        if np.isfinite(values).all():
            return values
    times = _parse(column, _seconds)
    if not np.isnan(times).any():
        return times
    numbers = _parse(column, _number)
    dates = np.isnan(times).sum() <= np.isnan(numbers).sum()
    wrong = np.flatnonzero(np.isnan(times if dates else numbers))
    if len(wrong):
        raise FinetuneError(_not_a_time(rows, by, wrong, dates=bool(dates)))
    return numbers


def _not_a_time(rows: SplitInput, by: str, wrong: NDArray[np.int64], *, dates: bool) -> str:
    values = [rows.extras[by][row].as_py() for row in wrong[:5].tolist()]
    shown = ", ".join(
        f"{'nothing' if value is None else repr(value)} ({rows.names(row)})"
        for row, value in zip(wrong[:5].tolist(), values, strict=True)
    )
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    what = "a date or time of ISO 8601, such as 2024-05-31 or 2024-05-31T12:30:00Z," if dates else "a number"
    return (
        f"data.split: expected {what} in column {by!r} of every row, as in the other rows; found {shown}{more}. "
        "Correct these rows, or remove them."
    )


def _parse(column: Any, parse: Callable[[str], float]) -> NDArray[np.float64]:
    """Return each value of a column of string as a number, NaN where it is not one."""
    import numpy as np

    values = np.full(len(column), np.nan)
    for start, part in in_chunks(column):
        texts = part.to_pylist()
        values[start : start + len(texts)] = [math.nan if text is None else parse(text.strip()) for text in texts]
    return values


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _seconds(text: str) -> float:
    """Return the seconds since 1970 of a date, a time or, unlike `fromisoformat`, a month."""
    for written in (text, f"{text}-01"):
        try:
            moment = datetime.fromisoformat(written)
        except ValueError:
            continue
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return math.nan


def _hash_values(rows: SplitInput, by: str) -> NDArray[np.uint64]:
    """Return the hash of each row's value in a column."""
    import numpy as np

    column = rows.extras[by]
    missing = np.flatnonzero(column.is_null().to_numpy())
    if len(missing):
        raise FinetuneError(
            f"data.split: expected a value in column {by!r} of every row, found none in {len(missing)} "
            f"({_places(rows, missing)}). Add the values, remove the rows, or remove `by`."
        )
    result = np.empty(len(column), np.uint64)
    for start, part in in_chunks(column):
        encoded = part.dictionary_encode()
        hashes = np.array([_hash(value) for value in encoded.dictionary.to_pylist()], np.uint64)
        result[start : start + len(part)] = hashes[encoded.indices.to_numpy()]
    return result


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every bit over all 64: the finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    import numpy as np

    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
