"""Baselines of vectors: the words that texts share, and the model before it was fine-tuned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from finetune.evaluation.baselines import BaselineInput
from finetune.evaluation.baselines.labels import word_pairs
from finetune.registry import baselines

if TYPE_CHECKING:
    from finetune.evaluation.predictions import Predictions
    from finetune.evaluation.predictions.similarities import RetrievalPredictions

KINDS = ("similarity", "retrieval", "triplets")


@baselines.register("tfidf-cosine", of=KINDS, title="cosine of TF-IDF")
def tfidf_cosine(given: BaselineInput) -> Predictions:
    """Words and word pairs, sublinear TF-IDF learned from every text of the training split, compared by the cosine."""
    from finetune.evaluation.predictions.similarities import SimilarityPredictions

    vectorizer = word_pairs([text for role in given.text_roles for text in _column(given.train, role)])
    columns = [_column(given.rows, role) for role in given.text_roles]
    first = vectorizer.transform(columns[0])
    if given.like.kind == "similarity":
        scores = cast("SimilarityPredictions", given.like).targets[:, 0]
        return SimilarityPredictions.of(first, vectorizer.transform(columns[1]), scores)
    like = cast("RetrievalPredictions", given.like)
    topics = [row["topic"] for row in given.rows] if "topic" in given.rows[0] else []
    return type(like).of(first, vectorizer.transform(like.corpus.texts), like.corpus, topics)


@baselines.register("pretrained", of=KINDS, title="the same model before fine-tuning")
def pretrained(given: BaselineInput) -> Predictions:
    """Ask the model that fine-tuning started from."""
    return given.pretrained()


def _column(rows: Any, role: str) -> list[str]:
    return [row[role] for row in rows]
