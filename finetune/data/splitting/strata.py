"""What stratified splits keep in proportion: the labels of each row, or of each cluster of rows, as a sparse table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.data.splitting.base import Clusters, SplitInput, encode, in_chunks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelPairs:
    """Every pair of a row and one of its labels, once, by row; a row without labels is in no pair.

    `row` and `label` have the shape (pairs,); `label` is a place in `names`. With `bins` the labels are the bins of a
    number: they keep the splits alike, but no split needs a row of every one.
    """

    row: NDArray[np.int64]
    label: NDArray[np.int64]
    names: list[str]
    bins: bool = False


@dataclass(frozen=True)
class Strata:
    """Clusters as the things to deal: how many rows each has, and how many of them under each label.

    `sizes` has the shape (clusters,); `cluster`, `label` and `rows` (pairs,) say, sorted by cluster and label, how
    many `rows` of a `cluster` carry a `label` out of `labels`. With `bins` the labels are the bins of a number.
    """

    sizes: NDArray[np.int64]
    cluster: NDArray[np.int64]
    label: NDArray[np.int64]
    rows: NDArray[np.int64]
    labels: int
    bins: bool = False

    def take(self, chosen: NDArray[np.bool_]) -> Strata:
        """Return the chosen clusters alone, renumbered; `chosen` has the shape (clusters,)."""
        import numpy as np

        places = np.cumsum(chosen) - 1
        kept = chosen[self.cluster]
        cluster = places[self.cluster[kept]]
        return Strata(self.sizes[chosen], cluster, self.label[kept], self.rows[kept], self.labels, self.bins)


def label_pairs(rows: SplitInput, bins: int = 10) -> LabelPairs:
    """Return the labels of each row.

    A label stands for itself, several labels for themselves, tags for the types of the entities in the row, and a
    number for its quantile: `bins` bins with about as many rows each. Without a target no row has a label.
    """
    import numpy as np

    if rows.kind == "":
        return LabelPairs(np.zeros(0, np.int64), np.zeros(0, np.int64), [])
    if rows.kind in ("labels", "tags"):
        return _list_pairs(rows.target, tags=rows.kind == "tags")
    codes, names = _quantiles(rows.target, bins) if rows.kind == "number" else encode(rows.target)
    known = np.flatnonzero(codes >= 0)
    return LabelPairs(known, codes[known], names, bins=rows.kind == "number")


def build_strata(pairs: LabelPairs, clusters: Clusters) -> Strata:
    """Return how many rows each cluster has under each label."""
    import numpy as np

    count = len(pairs.names)
    if clusters.single:
        ones = np.ones_like(pairs.row)
        return Strata(clusters.sizes, clusters.of[pairs.row], pairs.label, ones, count, pairs.bins)
    places, rows = np.unique(clusters.of[pairs.row] * max(count, 1) + pairs.label, return_counts=True)
    return Strata(clusters.sizes, places // max(count, 1), places % max(count, 1), rows, count, pairs.bins)


def _quantiles(target: Any, bins: int) -> tuple[NDArray[np.int64], list[str]]:
    """Return the bin of each number; a value that is frequent enough to fill several bins has one of its own."""
    import numpy as np

    values = target.to_numpy().astype(np.float64)
    inner = np.nanquantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    codes = np.searchsorted(inner, values, side="right").astype(np.int64)
    codes[np.isnan(values)] = -1
    return codes, [f"bin {number}" for number in range(1, bins + 1)]


def _list_pairs(target: Any, *, tags: bool) -> LabelPairs:
    """Return the pairs of a column of lists: a label that a row repeats is one pair, the tag `O` none."""
    import numpy as np
    import pyarrow.compute as pc

    known: dict[str, int] = {}
    found: list[NDArray[np.int64]] = []
    for start, part in in_chunks(target):
        lengths = pc.fill_null(pc.list_value_length(part), 0).to_numpy(zero_copy_only=False)
        encoded = pc.list_flatten(part).dictionary_encode()
        values = [_entity_type(value) if tags else value for value in encoded.dictionary.to_pylist()]
        places = [-1 if value is None else known.setdefault(value, len(known)) for value in values]
        codes = np.array([*places, -1], np.int64)[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
        row = np.repeat(np.arange(start, start + len(part)), lengths)
        pairs = np.stack([row, codes])[:, codes >= 0]
        found.append(np.unique(pairs, axis=1) if pairs.shape[1] else pairs)
    together = np.concatenate(found, axis=1) if found else np.zeros((2, 0), np.int64)
    return LabelPairs(together[0], together[1], list(known))


def _entity_type(tag: str | None) -> str | None:
    """Return `PER` for `B-PER` and `I-PER`, and nothing for `O`."""
    prefix, dash, kind = (tag or "O").partition("-")
    return (kind if dash else prefix) if (dash or prefix != "O") else None
