"""Metrics of tagged words: precision, recall and F1 of whole entities, equal to seqeval's, and accuracy of words.

An entity is found when its first word, its last word and its type are right (Tjong Kim Sang and De Meulder, 2003:
CoNLL). The strict metrics read tags as IOB2, as seqeval does with mode="strict" and scheme=IOB2: an I- that continues
no entity of its type belongs to none. The lenient ones read them as seqeval does by default: it starts an entity.
What is not defined (no entity was predicted, or there is none) is 0, as in seqeval.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from finetune.evaluation.metrics.labels import averaged_scores
from finetune.evaluation.predictions.counts import LabelCounts
from finetune.registry import metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.tags import TagPredictions

KINDS = ("f1", "precision", "recall")
CONVENTION = (
    "An entity counts as found when its first word, its last word and its type are right. Strict (entity-f1, "
    "entity-precision, entity-recall, entity-f1-macro): IOB2, seqeval's mode=strict; an I- that continues nothing is "
    "no entity. Lenient (…-lenient): seqeval's default; it starts one. Words that the model did not see count as O."
)


def _register_strict() -> None:
    for kind in KINDS:
        fast = partial(averaged_scores, kind, "micro")
        metrics.register(f"entity-{kind}", of=("tags",), higher_is_better=True, from_label_counts=fast)(
            _strict_metric(kind, "micro")
        )
    fast = partial(averaged_scores, "f1", "macro")
    metrics.register("entity-f1-macro", of=("tags",), higher_is_better=True, from_label_counts=fast)(
        _strict_metric("f1", "macro")
    )


def _strict_metric(kind: str, average: str) -> Any:
    def metric(predictions: TagPredictions) -> float:
        summed = LabelCounts(*(counts.sum(axis=0) for counts in predictions.strict_counts[:3]))
        return float(averaged_scores(kind, average, summed))

    over = "all entities" if average == "micro" else "the mean over the types that are true or predicted"
    metric.__doc__ = f"Strict {kind} of entities (IOB2), {over}; 0 where it is not defined."
    return metric


def lenient_sums(predictions: TagPredictions) -> NDArray[Any]:
    """Return how many entities of each row were found, said, and true in the lenient reading, shape (rows, 3)."""
    import numpy as np

    return np.stack([counts.sum(axis=1) for counts in predictions.lenient_counts[:3]], axis=1)


def score_of_sums(kind: str, sums: NDArray[Any]) -> NDArray[Any]:
    """Return precision, recall or F1 of sums of shape (..., 3): entities found, said, and true."""
    return averaged_scores(kind, "micro", LabelCounts(sums[..., :1], sums[..., 1:2], sums[..., 2:]))


def _register_lenient() -> None:
    for kind in KINDS:
        combine = partial(score_of_sums, kind)
        metrics.register(
            f"entity-{kind}-lenient", of=("tags",), higher_is_better=True, from_sums=(lenient_sums, combine)
        )(_lenient_metric(kind))


def _lenient_metric(kind: str) -> Any:
    def metric(predictions: TagPredictions) -> float:
        return float(score_of_sums(kind, lenient_sums(predictions).sum(axis=0)))

    metric.__doc__ = f"Lenient {kind} of entities (seqeval's default), all entities; 0 where it is not defined."
    return metric


_register_strict()
_register_lenient()


def share_of_right_words(sums: NDArray[Any]) -> NDArray[Any]:
    """Return right words over words, of sums of shape (..., 2)."""
    return sums[..., 0] / sums[..., 1]  # type: ignore[no-any-return]


def right_words(predictions: TagPredictions) -> NDArray[Any]:
    """Return how many words of each row have the true tag, and how many there are, shape (rows, 2)."""
    return predictions.right_words


@metrics.register("token-accuracy", of=("tags",), higher_is_better=True, from_sums=(right_words, share_of_right_words))
def token_accuracy(predictions: TagPredictions) -> float:
    """Share of words that have the true tag, O included."""
    return float(share_of_right_words(predictions.right_words.sum(axis=0)))
