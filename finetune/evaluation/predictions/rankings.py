"""Rankings: the scores that a model gave the candidates of each query, beside how relevant they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class RankingPredictions:
    """Queries, and the candidates of all of them one query after the other: those of q are `offsets[q]:offsets[q+1]`.

    `queries` has the shape (queries,), `offsets` (queries + 1,). Of shape (candidates,) are `texts`, `scores`,
    `relevance` (0: not relevant; no entries where it is unknown), and `candidate_rows`, the row that each came from.
    """

    queries: NDArray[Any]
    offsets: NDArray[Any]
    texts: NDArray[Any]
    scores: NDArray[Any]
    relevance: NDArray[Any]
    candidate_rows: NDArray[Any]
    kind: ClassVar[str] = "ranking"
    same: ClassVar[str] = "the same candidate first"

    @classmethod
    def grouped(
        cls,
        queries: Sequence[str],
        texts: Sequence[str],
        scores: NDArray[Any],
        relevance: NDArray[Any],
        rows: NDArray[Any],
        groups: NDArray[Any],
    ) -> RankingPredictions:
        """Bring candidates in any order together by `groups` of shape (candidates,), in the order of their first.

        The others have an entry for each candidate too; of the queries the first of each group is taken.
        """
        import numpy as np

        _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))  # groups in the order in which they begin
        order = np.argsort(rank[inverse], kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rank[inverse], minlength=len(first)))])
        asked, read = np.array(queries, dtype=object), np.array(texts, dtype=object)
        return cls(
            queries=asked[np.sort(first)],
            offsets=offsets.astype(np.int64),
            texts=read[order],
            scores=np.asarray(scores, dtype=np.float64)[order],
            relevance=np.asarray(relevance, dtype=np.float64)[order] if len(relevance) else np.zeros(0),
            candidate_rows=np.asarray(rows)[order],
        )

    @property
    def rows(self) -> NDArray[Any]:
        """The first row of each query, shape (queries,)."""
        return self.candidate_rows[self.offsets[:-1]]  # type: ignore[no-any-return]

    def take(self, answers: NDArray[Any]) -> RankingPredictions:
        """Return the predictions for some queries, by number, in that order; a query may be taken twice."""
        import numpy as np

        counts = np.diff(self.offsets)[answers]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        chosen = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][answers] - offsets[:-1], counts)
        return RankingPredictions(
            self.queries[answers],
            offsets,
            self.texts[chosen],
            self.scores[chosen],
            self.relevance[chosen] if len(self.relevance) else self.relevance,
            self.candidate_rows[chosen],
        )

    def saying(self, scores: NDArray[Any]) -> RankingPredictions:
        """Return predictions for the same candidates with other scores, shape (candidates,)."""
        return replace(self, scores=scores)

    def agrees(self, other: RankingPredictions) -> NDArray[Any]:
        """Tell for each query whether another model puts the same candidate first, shape (queries,)."""
        import numpy as np

        return np.array([self.order(query)[:1] == other.order(query)[:1] for query in range(len(self))], dtype=bool)

    def candidates(self, query: int) -> slice:
        """Return where the candidates of a query stand."""
        return slice(int(self.offsets[query]), int(self.offsets[query + 1]))

    def order(self, query: int) -> list[int]:
        """Return the numbers of a query's candidates, the best first; of equal ones the one that was given first."""
        import numpy as np

        found = self.candidates(query)
        return (found.start + np.argsort(-self.scores[found], kind="stable")).tolist()  # type: ignore[no-any-return]

    @cached_property
    def judged(self) -> NDArray[Any]:
        """Whether each query has a relevant candidate, without which no ranking is better than another."""
        import numpy as np

        # reduceat would give an empty query the candidate of the next one, but no query is without candidates
        return np.maximum.reduceat(self.relevance, self.offsets[:-1]) > 0 if len(self) else np.zeros(0, dtype=bool)

    def __len__(self) -> int:
        return len(self.queries)
