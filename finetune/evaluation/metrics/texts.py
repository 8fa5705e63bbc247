"""Metrics of generated texts: overlap with the references (ROUGE, BLEU, chrF), and answers that a pattern finds.

BLEU and chrF are sacreBLEU's, from 0 to 100, of the whole corpus; what sums over answers are its own statistics. ROUGE
is the mean over answers of `evaluation.rouge`, from 0 to 1, as rouge_score computes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from finetune.evaluation.metrics.answers import of_some, shares
from finetune.evaluation.rouge import VARIANTS, rouge_words
from finetune.registry import metrics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.texts import TextPredictions

CHRF_WORDS = {"chrf": 0, "chrf++": 2}  # how many words in a row count beside characters
SACREBLEU = ("bleu", *CHRF_WORDS)


# -- ROUGE


def rouge_of(variant: str, predictions: TextPredictions) -> NDArray[Any]:
    """Return a ROUGE F-measure of each answer, of several references the highest, shape (answers,)."""
    return predictions.rouge[:, VARIANTS.index(variant)]


def _rouge_metric(variant: str, about: str) -> Callable[[TextPredictions], float]:
    def metric(predictions: TextPredictions) -> float:
        return float(rouge_of(variant, predictions).mean()) if len(predictions) else math.nan

    metric.__doc__ = (
        f"Mean F-measure of {about} (Lin 2004), of several references the best; 0 for a text without a word."
    )
    return metric


def _register_rouge() -> None:
    overlaps = ("words", "pairs of words", "the longest common subsequence of words", "the same by line")
    for variant, about in zip(VARIANTS, overlaps, strict=True):
        fast: Callable[[TextPredictions], NDArray[Any]] = partial(rouge_of, variant)
        register = metrics.register(variant, of=("texts",), higher_is_better=True, from_rows=fast)
        register(_rouge_metric(variant, about))


_register_rouge()


# -- BLEU and chrF


def _sacrebleu(name: str, references: Sequence[Sequence[str | None]] | None = None) -> Any:
    """Return one of sacreBLEU's metrics with its default settings.

    `force` only leaves out a warning about texts that look tokenized: it would be printed at every evaluation.
    """
    from sacrebleu.metrics import BLEU, CHRF

    if name == "bleu":
        return BLEU(force=True, references=references)
    return CHRF(word_order=CHRF_WORDS[name], references=references)


def _streams(predictions: TextPredictions) -> list[tuple[str | None, ...]]:
    """Return the first reference of every answer, then the second and so on; None where an answer has fewer."""
    return list(zip_longest(*predictions.references))


def signatures(predictions: TextPredictions) -> dict[str, str]:
    """Return what makes BLEU and chrF comparable: sacreBLEU's signatures (Post 2018, A Call for Clarity)."""
    # how many references there are is all that a signature takes from them
    streams = [tuple(text and "" for text in stream) for stream in _streams(predictions)]
    return {name: str(_sacrebleu(name, streams).get_signature()) for name in SACREBLEU}


def _corpus_score(name: str, predictions: TextPredictions) -> float:
    if not len(predictions):
        return math.nan
    return float(_sacrebleu(name).corpus_score(predictions.said.tolist(), _streams(predictions)).score)


def statistics_of(name: str, predictions: TextPredictions) -> NDArray[Any]:
    """Return what a corpus score is computed from, summed over answers, shape (answers, k).

    This and `score_of` call what sacreBLEU's own bootstrap calls, which is private; tests hold both to `corpus_score`.
    """
    import numpy as np

    counts = _sacrebleu(name)._extract_corpus_statistics(predictions.said.tolist(), _streams(predictions))
    return np.array(counts, dtype=np.float64)


def score_of(name: str, sums: NDArray[Any]) -> NDArray[Any]:
    """Return the corpus scores of summed statistics, shape (..., k)."""
    import numpy as np

    metric = _sacrebleu(name)
    scores = [metric._compute_score_from_stats(counts).score for counts in sums.reshape(-1, sums.shape[-1]).tolist()]
    return np.array(scores, dtype=np.float64).reshape(sums.shape[:-1])


def _from_sums(name: str) -> tuple[Callable[..., NDArray[Any]], Callable[..., NDArray[Any]]]:
    return partial(statistics_of, name), partial(score_of, name)


@metrics.register("bleu", of=("texts",), higher_is_better=True, from_sums=_from_sums("bleu"))
def bleu(predictions: TextPredictions) -> float:
    """BLEU (Papineni et al. 2002) of the corpus, 0 to 100, as sacreBLEU has it: words of mteval-v13a, exp smoothing.

    These words are none in scripts without blanks: for Chinese, Japanese or Thai read chrF.
    """
    return _corpus_score("bleu", predictions)


@metrics.register("chrf", of=("texts",), higher_is_better=True, from_sums=_from_sums("chrf"))
def chrf(predictions: TextPredictions) -> float:
    """chrF2 (Popović 2015) of the corpus, 0 to 100, as sacreBLEU has it: F2 of up to 6 characters in a row."""
    return _corpus_score("chrf", predictions)


@metrics.register("chrf++", of=("texts",), higher_is_better=True, from_sums=_from_sums("chrf++"))
def chrf_plus_plus(predictions: TextPredictions) -> float:
    """chrF2++ (Popović 2017) of the corpus, 0 to 100, as sacreBLEU has it: chrF2 with words and pairs of words."""
    return _corpus_score("chrf++", predictions)


# -- answers within texts, and lengths


def answer_matches(predictions: TextPredictions) -> NDArray[Any]:
    """Return for each answer whether it is right and 1, or twice 0 where no reference has one, shape (answers, 2)."""
    return of_some(*predictions.answered.T)


@metrics.register("answer-match", of=("texts",), higher_is_better=True, from_sums=(answer_matches, shares))
def answer_match(predictions: TextPredictions) -> float:
    """Share of texts in which the task's pattern finds the answer that it finds in a reference.

    A text without an answer is wrong. Texts whose references have none are left out, and without any other it is not
    defined; `TextPredictions.answered` tells which. Numbers are compared by value, everything else but for white space.
    """
    return float(shares(answer_matches(predictions).sum(axis=0)))


def word_counts(predictions: TextPredictions) -> NDArray[Any]:
    """Return the words said and those of the reference that is nearest in length, shape (answers, 2).

    The `shares` of their sum is the length ratio, of equally near references that to the shorter, as BLEU takes it. It
    is no metric: neither more nor less is better.
    """
    import numpy as np

    counts = []
    for said, references in zip(predictions.said, predictions.references, strict=True):
        words = len(rouge_words(said))
        lengths = sorted(len(rouge_words(text)) for text in references)
        counts.append((words, min(lengths, key=lambda length: abs(length - words))))
    return np.array(counts, dtype=np.float64).reshape(-1, 2)
