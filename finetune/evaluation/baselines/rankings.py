"""Baselines for rankings: how far the words that a query and a candidate share take one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from finetune.evaluation.baselines import BaselineInput, Row
from finetune.registry import baselines

if TYPE_CHECKING:
    from finetune.evaluation.predictions.rankings import RankingPredictions

# The roles in which rows hold candidates
CANDIDATES = ("text", "positive", "negatives")


@baselines.register("bm25", of=("ranking",), title="BM25")
def bm25(given: BaselineInput) -> RankingPredictions:
    """Okapi BM25 over lower-cased words, its statistics from all candidates that are known."""
    import numpy as np

    like = cast("RankingPredictions", given.like)
    index = Bm25([words(text) for text in known_texts(given, like)])
    scores = np.zeros(len(like.texts))
    for number, query in enumerate(like.queries):
        asked = words(query)
        for candidate in range(*like.candidates(number).indices(len(scores))):
            scores[candidate] = index.score(asked, words(like.texts[candidate]))
    return like.saying(scores)


@baselines.register("tfidf-ranking", of=("ranking",), title="TF-IDF cosine")
def tfidf_ranking(given: BaselineInput) -> RankingPredictions:
    """Cosine of the sublinear TF-IDF vectors of query and candidate, over the words of all known candidates."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    like = cast("RankingPredictions", given.like)
    known = known_texts(given, like)
    if not any(map(words, known)):  # nothing but signs: no vector has a length
        return like.saying(np.zeros(len(like.texts)))
    vectorizer = TfidfVectorizer(analyzer=words, sublinear_tf=True).fit(known)
    asked = vectorizer.transform(np.repeat(like.queries, np.diff(like.offsets)))
    products = asked.multiply(vectorizer.transform(like.texts))
    return like.saying(np.asarray(products.sum(axis=1), dtype=np.float64).ravel())


class Bm25:
    """Okapi BM25 (Robertson & Zaragoza 2009, The Probabilistic Relevance Framework: BM25 and Beyond, eq. 3.15).

    score = sum over the query's words of idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * length / mean length)), with
    idf = ln(1 + (N - df + 0.5) / (df + 0.5)), which is never negative (as in Lucene).
    """

    def __init__(self, texts: Sequence[Sequence[str]], k1: float = 1.2, b: float = 0.75) -> None:
        """Count in how many of the texts (lists of words) each word is, and how long they are."""
        self._k1, self._b, self._texts = k1, b, len(texts)
        self._found_in = Counter(word for text in texts for word in set(text))
        self._mean_length = sum(map(len, texts)) / max(len(texts), 1) or 1.0  # without any word: nothing matches

    def score(self, query: Iterable[str], text: Sequence[str]) -> float:
        """Return how well a text matches a query, both lists of words; a word that the query repeats counts again."""
        counts = Counter(text)
        norm = self._k1 * (1 - self._b + self._b * len(text) / self._mean_length)
        found = [word for word in query if word in counts]
        return sum(self.weight(word) * counts[word] * (self._k1 + 1) / (counts[word] + norm) for word in found)

    def weight(self, word: str) -> float:
        """Return the inverse document frequency of a word."""
        found_in = self._found_in[word]
        return math.log(1 + (self._texts - found_in + 0.5) / (found_in + 0.5))


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case."""
    import re

    return re.findall(r"\w+", text.casefold())


def known_texts(given: BaselineInput, like: RankingPredictions) -> list[str]:
    """Return each candidate of the training rows, and of those that are scored, once.

    How rare a word is, is a matter of the collection that is searched, and takes no judgement of any text; the scored
    rows alone would often be too few to tell.
    """
    return list(dict.fromkeys([*(text for row in given.train for text in candidates_of(row)), *like.texts]))


def candidates_of(row: Row) -> list[str]:
    """Return the texts of a row that its query is compared with."""
    values: list[Any] = [row[role] for role in CANDIDATES if role in row]
    return [text for value in values for text in ([value] if isinstance(value, str) else value)]
