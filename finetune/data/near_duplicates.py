"""Rows whose texts are nearly the same: MinHash proposes pairs, the exact similarity of their shingles decides.

The shingles of a text are the set of its overlapping pieces, and the similarity of two texts is the Jaccard similarity
of their sets: shared pieces divided by all pieces. MinHash signatures (Broder 1997, "On the resemblance and containment
of documents") cut into bands (locality-sensitive hashing: Indyk & Motwani 1998, "Approximate nearest neighbors")
propose pairs, so that not every pair of rows has to be compared; none is reported that the sets do not confirm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from finetune.data.duplicates import join_clusters, repeats
from finetune.data.shingles import BATCH, WINDOW, Shingler, Shingles, chain, cuts
from finetune.progress import Progress, Silent

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

RECALL = 0.99  # of the pairs that are exactly as similar as the threshold
NEIGHBOURS = 4  # rows of a bucket, besides its first, that a row is compared with
DEVIATIONS = 4  # of a signature's agreement, below what the threshold gives, rule a pair out
KEEPERS = 50  # rows of a cluster that are compared with all others of it


@dataclass(frozen=True)
class NearDuplicates:
    """Texts that are nearly the same.

    `clusters`, shape (rows,), is coarser than or equal to the clusters of equal texts that were given. `pairs`, shape
    (pairs, 2), are the links that were verified, the lower row first, sorted, only between first rows of clusters of
    equal texts; `similarities`, shape (pairs,), are theirs, exact. Pairs that are similar but were not needed to find
    the clusters and what is redundant in them may be missing.
    """

    clusters: NDArray[np.int64]
    pairs: NDArray[np.int64]
    similarities: NDArray[np.float32]


def find_near_duplicates(
    texts: pa.ChunkedArray | Sequence[pa.ChunkedArray],
    exact: NDArray[np.int64],
    *,
    threshold: float = 0.8,
    shingles: Shingles = "characters",
    size: int = 5,
    permutations: int = 128,
    seed: int,
    parts: NDArray[np.integer[Any]] | None = None,
    progress: Progress | None = None,
) -> NearDuplicates:
    """Find the rows whose shingles have a Jaccard similarity of at least `threshold` (over 0, at most 1).

    `texts` has the rows' texts, one Arrow array of strings for each text role (a missing text is an empty one);
    `exact`, shape (rows,), the clusters of equal texts, of which only the first row is searched. Texts are normalized
    as for equal texts; a row's roles are one text, with a mark between them. `size` counts the characters or words of a
    shingle; a text shorter than that is one shingle as a whole.

    Of the pairs exactly at the threshold 99 % are expected to be found, of more similar ones more. The result depends
    on `seed`, not on how the texts are cut into chunks. The work is bounded for each row: within a bucket of a band it
    is compared with the first text and a few before it. So among very many texts that are all a little less similar
    than the threshold, as filled-in forms are, single pairs above it can be missed.

    Clusters are single linkage: of three texts, the first and the last may be less similar than the threshold and meet
    because both are similar to the one between. So clusters say what to keep in one split; what may be dropped says
    `redundant`. `parts`, shape (rows,), is for rows that are divided already, such as into given splits: links across
    parts are found, but which links are needed to drop rows is settled within each part.

    Shingles of five characters are the default because their similarity says much the same for texts of all kinds. In
    a text of 20 to 30 words a typing error leaves 0.93, one changed word 0.89, two 0.79, three 0.71; pairs of words
    leave 0.86, 0.85, 0.74, 0.64. In one of 12 words an error leaves 0.82, with pairs of words 0.69. Single words are
    blind to order, unrelated questions of 12 words share up to a third of them, and languages without blanks have none.
    """
    import numpy as np
    import pyarrow as pa

    columns = [texts] if isinstance(texts, pa.ChunkedArray) else list(texts)
    assert all(len(column) == len(exact) for column in columns), "one text a row"
    progress = progress or Silent()
    searched = np.flatnonzero(~repeats(exact))  # from here on its texts are numbered from 0
    shingler = Shingler(columns, searched, shingles, size)
    signatures = _sign(shingler, len(searched), band_shape(threshold, permutations), seed, progress)
    search = _Search(shingler, signatures, threshold)
    with progress.bar("near-duplicates", len(signatures.bands)) as bar:
        for band in signatures.bands:
            for first, second in _candidates(band):
                search.compare(first, second)
            bar.advance()
    search.settle(np.zeros(len(searched), dtype=np.int64) if parts is None else parts[searched])
    pairs, similarities = search.links()
    clusters = searched[search.clusters][np.searchsorted(searched, exact)]
    return NearDuplicates(clusters, searched[pairs], similarities)


def redundant(found: NearDuplicates, exact: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the rows within the threshold of an earlier row that is itself kept, shape (rows,), in order of the rows.

    A row that a chain of similar rows leads to, but that no kept row is similar to, is kept itself: dropping never
    loses a text of which nothing similar remains. Rows with equal texts share the fate of the first of them; a repeat
    is not redundant for being one.
    """
    import numpy as np

    dropped = np.zeros(len(exact), dtype=bool)
    order = np.lexsort((found.pairs[:, 0], found.pairs[:, 1]))
    for start in range(0, len(order), WINDOW):
        for first, second in found.pairs[order[start : start + WINDOW]].tolist():
            if not dropped[first]:  # the pairs of `first` with earlier rows have all been seen
                dropped[second] = True
    return dropped[exact]


def band_shape(threshold: float, permutations: int) -> tuple[int, int]:
    """Return how many bands of how many permutations find 99 % of the pairs of that similarity: the longest bands.

    Two texts of similarity s agree in one permutation with probability s, so in all r of a band with s^r, and in at
    least one of b bands with 1 - (1 - s^r)^b. Longer bands propose fewer pairs that are not similar.
    """
    shapes = [(permutations // length, length) for length in range(1, permutations + 1)]
    good = [(bands, length) for bands, length in shapes if 1 - (1 - threshold**length) ** bands >= RECALL]
    return good[-1] if good else (permutations, 1)


class _Signatures(NamedTuple):
    """What is kept of each text for the search."""

    bands: NDArray[np.uint64]  # a hash of each band of its signature, shape (bands, texts)
    slots: NDArray[np.uint8]  # the lowest byte of each number of its signature, shape (texts, slots)
    lengths: NDArray[np.int32]  # how many shingles it has, shape (texts,)


class _Search:
    """The clusters and links found so far, and the pairs that were compared."""

    def __init__(self, shingler: Shingler, signatures: _Signatures, threshold: float) -> None:
        import numpy as np

        self.clusters = np.arange(len(signatures.lengths))
        self._shingler = shingler
        self._slots = signatures.slots
        self._lengths = signatures.lengths
        self._threshold = threshold
        self._known = np.empty(0, dtype=np.int64)  # compared pairs, as first * texts + second, sorted
        self._similarities = np.empty(0, dtype=np.float64)

    def compare(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        """Join the clusters of those pairs, the lower row first, that are similar and not yet in one cluster."""
        apart = self.clusters[first] != self.clusters[second]
        first, second = first[apart], second[apart]
        if len(first):
            similar = self._similar(first, second)
            self.clusters = join_clusters(self.clusters, first[similar], second[similar])

    def settle(self, parts: NDArray[np.integer[Any]]) -> None:
        """Compare the texts of a cluster with those before them that are kept, as far as there are few of these.

        What lies in different parts is not compared. In each round the first text that is left of a cluster is kept,
        because it is similar to none that is kept, and the texts similar to it are decided. What is left of a cluster
        after the last round is decided by the links that were found.
        """
        import numpy as np

        _, part = np.unique(parts, return_inverse=True)
        _, clusters = np.unique(part * len(self.clusters) + self.clusters, return_inverse=True)
        left = np.flatnonzero(np.bincount(clusters)[clusters] > 1)
        for _ in range(KEEPERS):
            _, lowest, cluster = np.unique(clusters[left], return_index=True, return_inverse=True)
            kept = left[lowest][cluster]
            others = left != kept
            kept, left = kept[others], left[others]
            if not len(left):
                return
            left = left[~self._similar(kept, left)]

    def links(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the similar pairs, shape (pairs, 2), sorted, and their similarities."""
        import numpy as np

        similar = self._similarities >= self._threshold
        first, second = np.divmod(self._known[similar], max(len(self.clusters), 1))
        return np.stack([first, second], axis=1), self._similarities[similar].astype(np.float32)

    def _similar(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which pairs reach the threshold; what is known of a pair is not computed again."""
        import numpy as np

        similar = self._plausible(first, second)
        codes = first[similar] * len(self.clusters) + second[similar]
        wanted = np.unique(codes)
        places = np.searchsorted(self._known, wanted)
        new = np.append(self._known, -1)[places] != wanted
        measured = self._measure(*np.divmod(wanted[new], len(self.clusters)))
        self._known = np.insert(self._known, places[new], wanted[new])
        self._similarities = np.insert(self._similarities, places[new], measured)
        similar[similar] = self._similarities[np.searchsorted(self._known, codes)] >= self._threshold
        return similar

    def _plausible(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which pairs' signatures allow that they reach the threshold.

        Two slots agree with the probability of the similarity; one byte of each is enough to see it (b-bit minwise
        hashing: Li & König 2010). Four standard deviations too few, of 1 in 30,000 pairs, rule a pair out.
        """
        import numpy as np

        slots = self._slots.shape[1]
        least = slots * self._threshold - DEVIATIONS * (slots * self._threshold * (1 - self._threshold)) ** 0.5
        plausible = np.empty(len(first), dtype=bool)
        for start in range(0, len(first), WINDOW):
            here = slice(start, start + WINDOW)
            plausible[here] = np.count_nonzero(self._slots[first[here]] == self._slots[second[here]], axis=1) >= least
        return plausible

    def _measure(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the similarity of each pair, a block of pairs at a time that is limited by its shingles."""
        import numpy as np

        similarities = np.empty(len(first), dtype=np.float64)
        for low, high in cuts(self._lengths[first] + self._lengths[second], 4 * BATCH):
            rows, number = np.unique(np.concatenate([first[low:high], second[low:high]]), return_inverse=True)
            sets = self._sets(rows)
            pairs = zip(number[: high - low].tolist(), number[high - low :].tolist(), strict=True)
            similarities[low:high] = [_jaccard(sets[one], sets[other]) for one, other in pairs]
        return similarities

    def _sets(self, rows: NDArray[np.int64]) -> list[NDArray[np.uint64]]:
        import numpy as np

        found = []
        for shingles, counts in self._shingler(rows):
            ends = np.cumsum(counts).tolist()
            found += [_distinct(shingles[low:high]) for low, high in zip([0, *ends], ends, strict=False)]
        return found


def _distinct(shingles: NDArray[np.uint64]) -> NDArray[np.uint64]:
    import numpy as np

    ordered = np.sort(shingles)
    return ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))]


def _jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    import numpy as np

    both = np.concatenate((one, other))
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared / (len(both) - shared)


def _sign(shingler: Shingler, texts: int, shape: tuple[int, int], seed: int, progress: Progress) -> _Signatures:
    """Compute the signatures of all texts, as many numbers as the bands need.

    Every shingle counts, in any order (fast similarity sketching: Dahlgaard, Knudsen & Thorup 2017).
    """
    import numpy as np
    from rensa import RMinHash

    bands, length = shape
    signed = _Signatures(
        np.empty((bands, texts), dtype=np.uint64),
        np.empty((texts, bands * length), dtype=np.uint8),
        np.empty(texts, dtype=np.int32),
    )
    done = 0
    with progress.bar("signatures", texts) as bar:
        for shingles, counts in shingler(np.arange(texts)):
            offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.uint64)
            digests = RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, bands * length, seed).to_rows()
            slots = np.array(digests, dtype=np.uint64)
            here = slice(done, done + len(counts))
            signed.bands[:, here] = chain(slots.reshape(len(counts), bands, length)).T
            signed.slots[here] = slots.astype(np.uint8)
            signed.lengths[here] = counts
            done += len(counts)
            bar.advance(len(counts))
    return signed


def _candidates(band: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield pairs of texts of one bucket of the band: first with the bucket's first text, then with neighbours."""
    import numpy as np

    order = np.argsort(band, kind="stable")  # so the texts of a bucket stand in their order
    ordered = band[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1]))) if len(band) else order
    place = np.arange(len(band)) - np.repeat(starts, np.diff(starts, append=len(band)))  # of a text in its bucket
    members = np.flatnonzero(place > 0)
    yield order[members - place[members]], order[members]
    apart = [members[place[members] > distance] for distance in range(1, NEIGHBOURS + 1)]
    before = np.concatenate([later - distance for distance, later in enumerate(apart, start=1)])
    yield order[before], order[np.concatenate(apart)]
