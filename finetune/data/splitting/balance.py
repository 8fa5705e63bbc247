"""Dealing clusters to splits so that each split has its share of the rows, and of the rows under every label."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from finetune.data.splitting.strata import Strata


def draw(sizes: NDArray[np.int64], fractions: Sequence[float], seed: int) -> NDArray[np.int8]:
    """Return the split of each cluster, drawn at random.

    In an order drawn from the seed, clusters are given to test as long as they fit into its share, then to
    validation; the rest is for training. With clusters of one row the test split is that of scikit-learn's
    `train_test_split(rows, test_size=test, random_state=seed)`. With larger ones a split misses its share by less
    than its smallest cluster could mend, and each split has one at least.
    `sizes` (clusters,) are in rows; where the fraction of test is 0, train and validation share all rows.
    """
    import numpy as np

    waiting = np.random.RandomState(seed).permutation(len(sizes))
    result = np.zeros(len(sizes), np.int8)
    train, validation, test = fractions
    if test:
        capacity = math.ceil(round(float(test * sizes.sum()), 6))
        taken = _first_fit(sizes[waiting], capacity, len(waiting) - 2)
        result[waiting[taken]] = 2
        waiting = waiting[~taken]
    capacity = round(float(sizes[waiting].sum() * validation / (train + validation)))
    taken = _first_fit(sizes[waiting], max(capacity, 1), len(waiting) - 1)
    result[waiting[taken]] = 1
    return result


def _first_fit(sizes: NDArray[np.int64], capacity: int, most: int) -> NDArray[np.bool_]:
    """Return which clusters to take: each that still fits, in turn, and one more where that comes closer."""
    import numpy as np

    taken = np.zeros(len(sizes), np.bool_)
    waiting = np.arange(len(sizes))
    while True:
        waiting = waiting[sizes[waiting] <= capacity]
        count = min(int((np.cumsum(sizes[waiting]) <= capacity).sum()), most)
        if not count:
            break
        chosen, waiting = waiting[:count], waiting[count:]
        taken[chosen] = True
        capacity -= int(sizes[chosen].sum())
        most -= count
    if most:
        others = np.flatnonzero(~taken)
        smallest = others[np.argmin(sizes[others])]
        if not taken.any() or sizes[smallest] - capacity < capacity:
            taken[smallest] = True
    return taken


def deal(strata: Strata, shares: Sequence[float], seed: int) -> NDArray[np.int8]:
    """Return the split of each cluster, from 0 to len(shares) - 1, so that all labels are divided in proportion.

    Clusters of several rows are dealt first, the largest first and equal ones in random order, each to the split that
    lacks its labels most. Single rows then fill what is missing by iterative stratification (Sechidis, Tsoumakas and
    Vlahavas 2011, "On the stratification of multi-label data"): label by label, the one with the fewest rows first,
    all at once rather than row by row. A label's rows in a split are within one of its share where single rows with
    one label allow it, and a label with at least as many clusters as splits is in every split; of a rarer one the
    first row goes to the split with the largest share. The bins of a number are held to their shares alone, and no
    split is left without rows. The `shares` are above 0 and add up to 1.
    """
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(strata.sizes))
    table = _Table(strata, shares)
    _deal_clusters(table, order)
    _deal_rows(table, order)
    assert (table.split >= 0).all(), "every cluster has a split"
    return table.split


class _Table:
    """How many rows each split has been dealt: under every label, and in the last column all of them."""

    def __init__(self, strata: Strata, shares: Sequence[float]) -> None:
        import numpy as np

        self.strata = strata
        self.shares = list(shares)
        self.split = np.full(len(strata.sizes), -1, np.int8)
        self.starts = np.searchsorted(strata.cluster, np.arange(len(strata.sizes) + 1))
        rows = np.bincount(strata.label, weights=strata.rows, minlength=strata.labels)
        clusters = np.bincount(strata.label, minlength=strata.labels)
        self.rows: list[int] = [*rows.astype(np.int64).tolist(), int(strata.sizes.sum())]
        self.clusters: list[int] = [*clusters.tolist(), len(strata.sizes)]
        self.dealt = np.zeros((strata.labels + 1, len(self.shares)), np.int64)

    def lags(self, coming: int) -> list[float]:
        """Return how many rows each split will lack of its share once `coming` more rows have been dealt."""
        dealt = self.dealt[-1].tolist()
        total = sum(dealt) + coming
        return [round(share * total - has, 9) for share, has in zip(self.shares, dealt, strict=True)]


def _deal_clusters(table: _Table, order: NDArray[np.int64]) -> None:
    """Deal the clusters of several rows."""
    import numpy as np

    strata = table.strata
    several = order[strata.sizes[order] > 1]
    several = several[np.argsort(-strata.sizes[several], kind="stable")]
    greedy = _Greedy(table)
    for cluster in several.tolist():
        start, stop = table.starts[cluster : cluster + 2].tolist()
        pairs = list(zip(strata.label[start:stop].tolist(), strata.rows[start:stop].tolist(), strict=True))
        table.split[cluster] = greedy.place([*pairs, (strata.labels, int(strata.sizes[cluster]))])
    table.dealt[:] = np.array(greedy.dealt, np.int64)


class _Greedy:
    """Places one cluster after the other; lists, because arrays this small are slower."""

    def __init__(self, table: _Table) -> None:
        self.table = table
        self.splits = range(len(table.shares))
        self.dealt = [[0] * len(self.splits) for _ in table.rows]
        self.seen = [0] * len(table.rows)
        self.waiting = list(table.clusters)

    def place(self, pairs: Sequence[tuple[int, int]]) -> int:
        """Return the split for a cluster with these rows under these labels."""
        scores = [0.0] * len(self.splits)
        for label, rows in pairs:
            self.seen[label] += rows
            weight, seen, dealt = rows / self.table.rows[label], self.seen[label], self.dealt[label]
            for split, share in enumerate(self.table.shares):
                scores[split] += weight * (share * seen - dealt[split])
        chosen = max(self._allowed(pairs), key=lambda split: round(scores[split], 9))
        for label, rows in pairs:
            self.dealt[label][chosen] += rows
            self.waiting[label] -= 1
        return chosen

    def _allowed(self, pairs: Sequence[tuple[int, int]]) -> Sequence[int]:
        """Return the splits that this cluster may go to, if every label is to get into every split."""
        allowed: Sequence[int] = self.splits
        for label, _ in pairs[-1:] if self.table.strata.bins else pairs:
            if self.waiting[label] > len(self.splits) or self.table.clusters[label] < len(self.splits):
                continue
            lacking = [split for split in allowed if not self.dealt[label][split]]
            if lacking and self.waiting[label] <= self.dealt[label].count(0):
                allowed = lacking
        return allowed


def _deal_rows(table: _Table, order: NDArray[np.int64]) -> None:
    """Deal the clusters of one row by iterative stratification, and last those without labels."""
    import numpy as np

    strata, split = table.strata, table.split
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    single = strata.sizes[strata.cluster] == 1
    rows, labels = strata.cluster[single], strata.label[single]
    by_label = rows[np.lexsort((rank[rows], labels))]
    left = np.bincount(labels, minlength=strata.labels)
    starts = np.concatenate([[0], np.cumsum(left)])
    heap = [(count, label) for label, count in enumerate(left.tolist()) if count]
    heapq.heapify(heap)
    while heap:
        count, label = heapq.heappop(heap)
        if count != left[label]:
            continue  # a row of this label has been dealt since, under a rarer label
        members = by_label[starts[label] : starts[label + 1]]
        members = members[split[members] < 0]
        split[members] = np.repeat(np.arange(len(table.shares)), _allot(table, label, count))
        touched, into = _labels_of(table, members)
        np.subtract.at(left, touched, 1)
        np.add.at(table.dealt, (touched, into), 1)
        table.dealt[-1] += np.bincount(split[members], minlength=len(table.shares))
        for other in np.unique(touched).tolist():
            if left[other]:
                heapq.heappush(heap, (int(left[other]), other))
    rest = order[split[order] < 0]
    split[rest] = np.repeat(np.arange(len(table.shares)), _allot(table, strata.labels, len(rest)))


def _labels_of(table: _Table, members: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Return the labels of some clusters, one after the other, and the split into which each of them has gone."""
    import numpy as np

    starts = table.starts[members]
    lengths = table.starts[members + 1] - starts
    shifts = np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
    return table.strata.label[shifts + np.arange(len(shifts))], np.repeat(table.split[members], lengths)


def _allot(table: _Table, label: int, count: int) -> list[int]:
    """Return how many of the `count` single rows under a label each split is to get."""
    dealt: list[int] = table.dealt[label].tolist()
    desired = [share * table.rows[label] - has for share, has in zip(table.shares, dealt, strict=True)]
    lags = table.lags(count)
    least = [0] * len(dealt)
    if table.strata.bins and label < table.strata.labels:
        behind = int(table.rows[-1] - table.dealt[-1].sum()) - count
        lacking = [split for split, has in enumerate(table.dealt[-1].tolist()) if not has]
        first = sorted(lacking, key=lambda split: -lags[split])[: max(len(lacking) - behind, 0)]
    elif table.clusters[label] >= len(dealt):
        first = sorted((split for split, has in enumerate(dealt) if not has), key=lambda split: -desired[split])
    else:
        # Too rare for every split: a label that is judged but never learned would help nobody
        largest = max(range(len(dealt)), key=lambda split: (table.shares[split], lags[split]))
        first = [] if any(dealt) else [largest]
    for split in first[:count]:
        least[split] = 1
    return round_to_sum(_without_negatives(desired, count), lags, count, least)


def _without_negatives(desired: Sequence[float], count: int) -> list[float]:
    """Return the nearest amounts, none below 0, that add up to `count`: a split that has too many gets no more."""
    total = 0.0
    level = 0.0
    for place, amount in enumerate(sorted(desired, reverse=True), start=1):
        total += amount
        if amount > (total - count) / place:
            level = (total - count) / place
    return [max(amount - level, 0.0) for amount in desired]


def round_to_sum(desired: Sequence[float], lags: Sequence[float], count: int, least: Sequence[int]) -> list[int]:
    """Round amounts up or down to whole numbers that add up to `count`, none below its `least`.

    Where there is a choice, the amounts with the largest lag are rounded up, so that rounding favours no split over
    many labels. Raise nothing: `desired` adds up to `count`, and `least` to no more.
    """
    splits = range(len(desired))
    counts = [max(math.floor(amount + 1e-9), low) for amount, low in zip(desired, least, strict=True)]
    while sum(counts) > count:
        above = [split for split in splits if counts[split] > least[split]]
        counts[max(above, key=lambda split: round(counts[split] - desired[split], 9))] -= 1
    up = sorted(splits, key=lambda split: (counts[split] + 1e-9 >= desired[split], counts[split] - lags[split]))
    for split in up[: count - sum(counts)]:
        counts[split] += 1
    return counts
