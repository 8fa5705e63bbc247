"""Metrics of language models: how many choices a token leaves, how many bits a byte takes.

Every token that was to be guessed counts once, whatever row it is in: perplexity is exp(mean loss) over all of them
(Jelinek et al. 1977), not a mean of rows' perplexities. Where texts are written, these are the tokens
that are learned. Perplexities compare only for one vocabulary; bits per byte compare across vocabularies (Graves 2013,
Generating Sequences With Recurrent Neural Networks, section 3).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from finetune.registry import metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.language import LanguagePredictions
    from finetune.evaluation.predictions.texts import TextPredictions

LOSS, TOKENS, BYTES, RIGHT = range(4)


def sums(predictions: LanguagePredictions | TextPredictions) -> NDArray[Any]:
    """Return loss, tokens, bytes and right tokens of each row, shape (rows, 4)."""
    return predictions.sums()


def _ratio(above: NDArray[Any], below: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)  # type: ignore[no-any-return]


def perplexity_of(sums: NDArray[Any]) -> NDArray[Any]:
    """Return exp(loss / tokens) of sums of shape (..., 4); infinite where a token was held to be impossible."""
    import numpy as np

    with np.errstate(over="ignore"):
        return np.exp(_ratio(sums[..., LOSS], sums[..., TOKENS]))  # type: ignore[no-any-return]


def bits_of(sums: NDArray[Any]) -> NDArray[Any]:
    """Return loss / bytes in bits of sums of shape (..., 4)."""
    return _ratio(sums[..., LOSS], sums[..., BYTES]) / math.log(2)


def right_of(sums: NDArray[Any]) -> NDArray[Any]:
    """Return the share of right tokens of sums of shape (..., 4)."""
    return _ratio(sums[..., RIGHT], sums[..., TOKENS])


@metrics.register("perplexity", of=("language", "texts"), higher_is_better=False, from_sums=(sums, perplexity_of))
def perplexity(predictions: LanguagePredictions | TextPredictions) -> float:
    """Exp of the mean loss over all tokens that were to be guessed: 1 is certainty, the vocabulary's size a guess."""
    return float(perplexity_of(sums(predictions).sum(axis=0)))


@metrics.register("bits-per-byte", of=("language", "texts"), higher_is_better=False, from_sums=(sums, bits_of))
def bits_per_byte(predictions: LanguagePredictions | TextPredictions) -> float:
    """The loss over all tokens in bits, by the UTF-8 bytes of their texts; not defined where only a part is guessed."""
    return float(bits_of(sums(predictions).sum(axis=0)))


@metrics.register("top-1-accuracy", of=("language", "texts"), higher_is_better=True, from_sums=(sums, right_of))
def top_1_accuracy(predictions: LanguagePredictions | TextPredictions) -> float:
    """The share of tokens of which the most probable guess was the true one."""
    return float(right_of(sums(predictions).sum(axis=0)))
