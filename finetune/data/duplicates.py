"""Rows whose text is the same after normalization: which they are, whether they contradict or leak into a split.

Rows are numbered from 0. A partition of the rows is an array with one cluster number a row, and the number of a cluster
is that of its lowest row, so that `clusters == arange(rows)` holds for the first row of each cluster and for no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SEPARATOR = "\x1f"  # white space to Python, so no normalized text contains it


def normalize(text: str) -> str:
    """Return the text as duplicates are compared: case folded, each run of white space one blank, none at the ends."""
    return " ".join(text.casefold().split())


def text_key(texts: Sequence[str]) -> str:
    """Return the key under which equal rows meet, as 32 hexadecimal digits; `texts` has the row's text of each role.

    It is the 128-bit XXH3 hash of the normalized texts; `text_keys` gives the same bits for many rows.
    """
    from xxhash import xxh3_128_hexdigest

    return xxh3_128_hexdigest(SEPARATOR.join(map(normalize, texts)).encode("utf-8", "surrogatepass"))


def text_keys(columns: Sequence[Sequence[str]]) -> NDArray[np.uint64]:
    """Return the keys of many rows, shape (rows, 2): the two halves of each row's `text_key`.

    `columns` has one sequence of texts for each role, all of the same length. Two different texts among a million get
    the same key with a probability of about 1e-27.
    """
    import numpy as np
    from xxhash import xxh3_128_digest

    normalized = [map(normalize, column) for column in columns]
    rows = normalized[0] if len(normalized) == 1 else map(SEPARATOR.join, zip(*normalized, strict=True))
    digests = b"".join([xxh3_128_digest(row.encode("utf-8", "surrogatepass")) for row in rows])
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64).reshape(-1, 2)


def clusters_of(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the cluster of each row, shape (rows,), from keys of shape (rows, 2): equal keys make a cluster."""
    import numpy as np

    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: the lowest row of a cluster comes first
    ordered = keys[order]
    starts = np.ones(len(keys), dtype=bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    clusters = np.empty(len(keys), dtype=np.int64)
    clusters[order] = order[starts][np.cumsum(starts) - 1]
    return clusters


def repeats(clusters: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rows are not the first of their cluster, shape (rows,)."""
    import numpy as np

    repeated: NDArray[np.bool_] = clusters != np.arange(len(clusters))
    return repeated


def find_conflicts(clusters: NDArray[np.int64], labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return which rows lie in a cluster with more than one label code, shape (rows,): all of the cluster's rows."""
    import numpy as np

    conflicting = np.zeros(len(clusters), dtype=bool)
    conflicting[clusters[labels != labels[clusters]]] = True
    return conflicting[clusters]


def join_clusters(
    clusters: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the finest partition coarser than `clusters` in which `first[i]` and `second[i]` lie together.

    `clusters` has shape (rows,), the others are row numbers of shape (links,). The time is linear in rows and links.
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.concatenate([clusters[first], clusters[second]])
    nodes, codes = np.unique(ends, return_inverse=True)
    links = (np.ones(len(first), dtype=np.int8), (codes[: len(first)], codes[len(first) :]))
    count, component = connected_components(coo_array(links, shape=(len(nodes), len(nodes))), directed=False)
    lowest = np.full(count, len(clusters), dtype=np.int64)
    np.minimum.at(lowest, component, nodes)
    target = np.arange(len(clusters))
    target[nodes] = lowest[component]
    return target[clusters]


def merge_clusters(clusters: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the finest partition coarser than both, shape (rows,): what shares a cluster or a group lies together.

    `groups` has any number for each row, not necessarily that of a row.
    """
    import numpy as np

    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    return join_clusters(clusters, np.arange(len(clusters)), first[group])


def find_leaks(clusters: NDArray[np.int64], splits: NDArray[np.int8]) -> NDArray[np.int64]:
    """Return what leaks between the splits, shape (leaks, 2): a row, and a row of its cluster in an earlier split.

    `splits` has 0 for training, 1 for validation and 2 for test. For each earlier split of which a row's cluster has
    rows there is one leak, to the lowest of them; a test row whose text is in training and in validation thus stands in
    two. Sorted by both columns.
    """
    import numpy as np

    found = [np.empty((0, 2), dtype=np.int64)]
    for earlier in (0, 1):
        members = np.flatnonzero(splits == earlier)
        lowest = np.full(len(clusters), -1, dtype=np.int64)
        lowest[clusters[members[::-1]]] = members[::-1]  # of several assignments the last one, the lowest row's, stays
        leaking = np.flatnonzero((splits > earlier) & (lowest[clusters] >= 0))
        found.append(np.stack([leaking, lowest[clusters[leaking]]], axis=1))
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
