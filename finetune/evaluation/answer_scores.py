"""Exact match and F1 of one answer, as SQuAD's evaluation script (evaluate-v2.0.py) defines them.

Rajpurkar et al. 2016 (SQuAD: 100,000+ Questions for Machine Comprehension of Text) define both scores, Rajpurkar et al.
2018 (Know What You Don't Know) those of questions without an answer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def answer_words(text: str) -> list[str]:
    """Return an answer's words as they are compared: in lower case, without ASCII punctuation and articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def answer_scores(said: str, targets: Sequence[str]) -> tuple[float, float]:
    """Return exact match and F1 of an answer, each the highest over the true answers.

    `""` says that there is no answer, and no true answer of which a word is left says the same: who says it then gets
    1 for both, and everybody else 0. F1 is that of two bags of words.
    """
    words = answer_words(said)
    wanted = [found for target in targets if (found := answer_words(target))] or [[]]
    return max(float(words == target) for target in wanted), max(_f1(words, target) for target in wanted)


def _f1(words: Sequence[str], target: Sequence[str]) -> float:
    if not words or not target:
        return float(words == target)
    common = (Counter(words) & Counter(target)).total()
    return 2 * common / (len(words) + len(target))
