"""How well the vectors of some texts fall into the topics that people gave them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

SEED = 0
STARTS = 10


class Clustering:
    """Unit vectors of shape (texts, width), dense or sparse, and the topic of each text; computed when asked for."""

    def __init__(self, vectors: Any, topics: Sequence[str]) -> None:
        """Number the topics in the order of the alphabet."""
        import numpy as np

        self._vectors = vectors
        self.names, self.topics = np.unique(np.asarray(topics, dtype=object), return_inverse=True)

    @cached_property
    def silhouettes(self) -> NDArray[Any]:
        """The silhouette of each text (Rousseeuw 1987) with the cosine distance, shape (texts,).

        As `sklearn.metrics.silhouette_samples` has it: 0 for a topic with one text; NaN where that refuses, with one
        topic or with as many as texts. The mean distance to a topic follows from the sum of its vectors, so that no
        distance between two texts is ever computed.
        """
        import numpy as np

        count, sizes = len(self.topics), np.bincount(self.topics)
        if not 2 <= len(sizes) <= count - 1:
            return np.full(count, np.nan)
        nearness = self._nearness()
        texts, alone = np.arange(count), sizes[self.topics] == 1
        itself = self._squares()
        inside = 1 - (nearness[texts, self.topics] - itself) / np.maximum(sizes[self.topics] - 1, 1)
        outside = 1 - nearness / sizes
        outside[texts, self.topics] = np.inf
        nearest = outside.min(axis=1)
        width = np.maximum(inside, nearest)
        found = np.divide(nearest - inside, width, out=np.zeros(count), where=width > 0)
        return np.where(alone, 0.0, found)

    def _nearness(self) -> NDArray[Any]:
        """Return the sum of each text's cosines with the texts of each topic, shape (texts, topics)."""
        import numpy as np

        members = np.equal.outer(np.arange(len(self.names)), self.topics).astype(np.float64)
        sums = np.asarray(members @ self._vectors)
        return np.asarray(self._vectors @ sums.T, dtype=np.float64)

    def _squares(self) -> NDArray[Any]:
        """Return the cosine of each text with itself: 1, or 0 for a vector without a length."""
        import numpy as np

        if hasattr(self._vectors, "multiply"):
            return np.asarray(self._vectors.multiply(self._vectors).sum(axis=1)).ravel()
        return np.einsum("tw,tw->t", self._vectors, self._vectors, dtype=np.float64)  # type: ignore[no-any-return]

    @cached_property
    def clusters(self) -> NDArray[Any]:
        """The cluster of each text, of as many as there are topics, shape (texts,).

        k-means (`sklearn.cluster.KMeans`), the best of 10 starts, with a fixed seed.
        """
        import warnings

        import numpy as np
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different vectors than topics
            found = KMeans(len(self.names), n_init=STARTS, random_state=SEED).fit_predict(self._vectors)
        return np.asarray(found, dtype=np.int64)
