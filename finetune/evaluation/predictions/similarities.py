"""Vectors of texts: how near those of a pair are, or where the right answer of an anchor comes among all there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from finetune.evaluation.clusters import Clustering

if TYPE_CHECKING:
    from numpy.typing import NDArray

Row = Mapping[str, Any]
# Two models say the same of a pair if their cosines differ by no more than this
SAME_WITHIN = 0.05
# Cosines no further apart are equal: those of equal vectors may differ in their last bits by where they stand
TIED_WITHIN = 1e-6
# Similarities that are held at once: those of all anchors with all candidates may not fit into memory
CHUNK_CELLS = 4_000_000
SEED = 0


@dataclass(frozen=True)
class EmbeddingPredictions:
    """Vectors of shape (texts, width), of texts about which nothing is known."""

    vectors: NDArray[Any]
    kind: ClassVar[str] = "embedding"
    same: ClassVar[str] = "vectors with a cosine of at least 0.95"

    @property
    def rows(self) -> NDArray[Any]:
        """An answer is about the row of the same number."""
        import numpy as np

        return np.arange(len(self))

    def take(self, answers: NDArray[Any]) -> EmbeddingPredictions:
        """Return the vectors of some texts, by index, in that order."""
        return replace(self, vectors=self.vectors[answers])

    def agrees(self, other: EmbeddingPredictions) -> NDArray[Any]:
        """Tell for each text whether the cosine of another model's vector with this one is 1, or less by 0.05."""
        return cosines(unit_vectors(self.vectors), unit_vectors(other.vectors)) >= 1 - SAME_WITHIN

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True)
class SimilarityPredictions:
    """The cosine of each pair and its true score, both of shape (rows, 1), as numbers are held."""

    values: NDArray[Any]
    targets: NDArray[Any]
    kind: ClassVar[str] = "similarity"
    same: ClassVar[str] = "a cosine within 0.05"

    @classmethod
    def of(cls, first: Any, second: Any, scores: NDArray[Any]) -> Self:
        """Compare unit vectors, both of shape (rows, width), with scores of shape (rows,)."""
        return cls(cosines(first, second)[:, None], scores[:, None])

    @property
    def rows(self) -> NDArray[Any]:
        """An answer is about the row of the same number."""
        import numpy as np

        return np.arange(len(self))

    def take(self, answers: NDArray[Any]) -> SimilarityPredictions:
        """Return the predictions for some rows, by index, in that order; a row may be taken twice."""
        return replace(self, values=self.values[answers], targets=self.targets[answers])

    def agrees(self, other: SimilarityPredictions) -> NDArray[Any]:
        """Tell for each pair whether another model's cosine differs by no more than 0.05."""
        return abs(self.values - other.values)[:, 0] <= SAME_WITHIN  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Corpus:
    """The candidates: all different positives and negatives of the rows that are scored.

    `anchors` of shape (rows,) is a number for each row's anchor, the same for equal ones; `own` is the number of its
    positive, and `negatives` of its negative (without triplets of shape (0,)). `places` of shape (candidates,) says
    where a candidate stands first: at its number in all positives, one a row, followed by all negatives. `also_right`
    has, for the rows that have any, candidates that are no wrong answers beside their own: the positives of rows with
    the same anchor, and the anchor itself.
    """

    texts: tuple[str, ...]
    anchors: NDArray[Any]
    own: NDArray[Any]
    negatives: NDArray[Any]
    places: NDArray[Any]
    also_right: Mapping[int, NDArray[Any]]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Self:
        """Collect the candidates of rows with `anchor`, `positive` and perhaps `negative`."""
        import numpy as np

        roles = [role for role in ("positive", "negative") if rows and role in rows[0]]
        columns: dict[str, list[str]] = {role: [] for role in ("anchor", *roles)}
        for row in rows:
            for role, column in columns.items():
                column.append(row[role])
        index: dict[str, int] = {}
        places = []
        for place, text in enumerate(text for role in roles for text in columns[role]):
            if text not in index:
                index[text] = len(index)
                places.append(place)
        numbers = {role: np.array([index[text] for text in columns[role]], dtype=np.int64) for role in roles}
        own, nothing = numbers["positive"], np.zeros(0, dtype=np.int64)
        also = _also_right(columns["anchor"], own, index)
        first = {anchor: number for number, anchor in enumerate(dict.fromkeys(columns["anchor"]))}
        anchors = np.array([first[anchor] for anchor in columns["anchor"]], dtype=np.int64)
        return cls(tuple(index), anchors, own, numbers.get("negative", nothing), np.array(places), also)


def _also_right(anchors: Sequence[str], own: NDArray[Any], index: Mapping[str, int]) -> dict[int, NDArray[Any]]:
    import numpy as np

    known: dict[str, set[int]] = {}
    for anchor, number in zip(anchors, own.tolist(), strict=True):
        known.setdefault(anchor, {index[anchor]} if anchor in index else set()).add(number)
    arrays = {anchor: np.array(sorted(numbers)) for anchor, numbers in known.items() if len(numbers) > 1}
    return {row: arrays[anchor] for row, anchor in enumerate(anchors) if anchor in arrays}


@dataclass(frozen=True)
class Places:
    """Where each row's positive came among the candidates; everything of shape (rows,).

    `before` candidates are nearer to the anchor than its positive, and `tied` others equally near. `similarities` are
    the cosines of anchor and positive; `rivals` are the nearest of the other candidates, with `rival_similarities`;
    `random_similarities` are those of other candidates drawn by chance, `negative_similarities` those of the row's
    negative. What there is none of is NaN.
    """

    before: NDArray[Any]
    tied: NDArray[Any]
    similarities: NDArray[Any]
    rivals: NDArray[Any]
    rival_similarities: NDArray[Any]
    random_similarities: NDArray[Any]
    negative_similarities: NDArray[Any]

    @property
    def ranks(self) -> NDArray[Any]:
        """The rank of each positive, from 1; among equally near candidates the mean over all orders of them."""
        return self.before + 1 + self.tied / 2

    def take(self, answers: NDArray[Any]) -> Places:
        """Return those of some rows."""
        return Places(**{name: values[answers] for name, values in vars(self).items()})


@dataclass(frozen=True)
class RetrievalPredictions:
    """Where the positive of each anchor came among the candidates of the whole split.

    Taking some of the anchors, as resampling does, leaves the candidates, the places and the clusters as they are:
    intervals say how much other anchors, drawn like these, would change the scores for this corpus.
    """

    corpus: Corpus
    places: Places
    clustering: Clustering | None
    rows: NDArray[Any]
    kind: ClassVar[str] = "retrieval"
    same: ClassVar[str] = "the same candidate first"

    @classmethod
    def of(cls, anchors: Any, candidates: Any, corpus: Corpus, topics: Sequence[str]) -> Self:
        """Rank unit vectors of shape (rows, width) and (candidates, width), dense or sparse; topics may be none."""
        import numpy as np

        clustering = Clustering(anchors, topics) if len(topics) else None
        return cls(corpus, find_places(anchors, candidates, corpus), clustering, np.arange(len(corpus.own)))

    def take(self, answers: NDArray[Any]) -> Self:
        """Return the predictions for some anchors, by index, in that order; one may be taken twice."""
        return replace(self, places=self.places.take(answers), rows=self.rows[answers])

    def agrees(self, other: Self) -> NDArray[Any]:
        """Tell for each anchor whether another model puts the same candidate first."""
        return self.firsts == other.firsts  # type: ignore[no-any-return]

    @property
    def firsts(self) -> NDArray[Any]:
        """The candidate that comes first for each anchor; where another is as near as its positive, that one."""
        import numpy as np

        return np.where(self.places.ranks == 1, self.corpus.own[self.rows], self.places.rivals)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class TripletPredictions(RetrievalPredictions):
    """The same of rows that have a negative, which is a candidate like all others."""

    kind: ClassVar[str] = "triplets"


def unit_vectors(vectors: NDArray[Any]) -> NDArray[Any]:
    """Return vectors of length 1 in the same directions; one without a length stays as it is."""
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)  # type: ignore[no-any-return]


def cosines(first: Any, second: Any) -> NDArray[Any]:
    """Return the products of unit vectors, pair by pair, shape (rows,); dense or sparse."""
    import numpy as np

    if hasattr(first, "multiply"):
        return np.asarray(first.multiply(second).sum(axis=1)).ravel()
    return np.einsum("rw,rw->r", first.astype(np.float64), second.astype(np.float64))  # type: ignore[no-any-return]


def find_places(anchors: Any, candidates: Any, corpus: Corpus) -> Places:
    """Return where the positives come; for some anchors after the others, so that their similarities fit into memory.

    Vectors are of length 1, of shape (rows, width) and (candidates, width). What is also right is passed over, as in
    the filtered ranks of Bordes et al. 2013.
    """
    import numpy as np

    drawn = _drawn(corpus)
    size = max(1, CHUNK_CELLS // len(corpus.texts))
    parts = []
    for start in range(0, len(corpus.own), size):
        chunk = slice(start, start + size)
        found = anchors[chunk] @ candidates.T
        found = found.toarray() if hasattr(found, "toarray") else found
        parts.append(_places_of(found, corpus, chunk, drawn[chunk]))
    far = np.full(len(corpus.own), np.nan)
    if len(corpus.negatives):
        far = cosines(anchors, candidates[corpus.negatives])
    return Places(*[np.concatenate(columns) for columns in [*zip(*parts, strict=True), [far]]])


def _drawn(corpus: Corpus) -> NDArray[Any]:
    """Return for each row a candidate other than its positive, drawn by chance: the same ones for every model."""
    import numpy as np

    count, generator = len(corpus.texts), np.random.default_rng(SEED)
    steps = generator.integers(1, count, len(corpus.own)) if count > 1 else 0
    return (corpus.own + steps) % count


def _places_of(found: NDArray[Any], corpus: Corpus, chunk: slice, drawn: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Return all of `Places` but the negatives for some rows, `found` of shape (rows, candidates); it is changed."""
    import numpy as np

    own, rows = corpus.own[chunk], np.arange(len(found))
    near = found[rows, own]
    for row in rows.tolist():
        found[row, corpus.also_right.get(chunk.start + row, ())] = -np.inf
    found[rows, own] = -np.inf
    rivals = found.argmax(axis=1)
    before = (found > near[:, None] + TIED_WITHIN).sum(axis=1)
    tied = (found >= near[:, None] - TIED_WITHIN).sum(axis=1) - before
    others = (np.where(np.isfinite(values), values, np.nan) for values in (found[rows, rivals], found[rows, drawn]))
    return before, tied, near, rivals, *others
