"""How people read answers: as `predict` gives them, the worst of them, and scores by what was asked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune.evaluation.answer_scores import answer_words
from finetune.evaluation.metrics.answers import exact_matches, of_some, overlaps, shares
from finetune.evaluation.sections import Section, Table
from finetune.tasks import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.answers import AnswerPredictions

NONE = "no answer"
CHARACTERS_AROUND = 50
QUESTION_WORDS = ("who", "what", "which", "when", "where", "why", "how many", "how", "other")
OTHER_FORMS = {"whom": "who", "whose": "who"}
_ASKING = re.compile(r"\b(who|whom|whose|what|which|when|where|why|how)\b(?:\s+(many|much)\b)?")
LENGTHS = ("1 word", "2 words", "3 to 5 words", "6 words or more", NONE)


def describe(predictions: AnswerPredictions, answer: int, row: Row) -> dict[str, Any]:  # noqa: ARG001
    """Return the answer, where it stands in the cleaned context, and its probability; for no answer the best span."""
    span = {
        "answer": str(predictions.texts[answer]),
        "start": int(predictions.starts[answer]),
        "end": int(predictions.ends[answer]),
        "probability": round(float(predictions.probabilities[answer]), 6),
    }
    return span if predictions.answered[answer] else {"answer": None, "best_span": span}


def difficulty(predictions: AnswerPredictions) -> NDArray[Any]:
    """Return how little of a true answer each has; of wrong ones the more, the surer the model was."""
    return (1 - overlaps(predictions)) * (1 + predictions.probabilities * predictions.answered)  # type: ignore[no-any-return]


def example(predictions: AnswerPredictions, answer: int, row: Row) -> dict[str, Any]:
    """Return a question with the true answers and the one that was given, both in brackets where the context has them.

    Of several true answers that at the first place is shown in the context.
    """
    said = bool(predictions.answered[answer])
    places = [(given["start"], given["start"] + len(given["text"])) for given in row["answers"][:1]]
    places += [(int(predictions.starts[answer]), int(predictions.ends[answer]))] if said else []
    return {
        "question": row["question"],
        "answer": " / ".join(dict.fromkeys(given["text"] for given in row["answers"])) or NONE,
        "predicted": str(predictions.texts[answer]) if said else NONE,
        "probability": float(predictions.probabilities[answer]) if said else None,
        "context": " … ".join(_around(row["context"], *place) for place in dict.fromkeys(places)),
    }


def _around(context: str, start: int, end: int) -> str:
    """Return a span in brackets with what stands around it, cut at blanks."""
    before, after = context[:start][-CHARACTERS_AROUND:], context[end:][:CHARACTERS_AROUND]
    before = before if start <= CHARACTERS_AROUND else "…" + before.partition(" ")[2]
    after = after if len(context) - end <= CHARACTERS_AROUND else after.rpartition(" ")[0] + "…"
    return f"{before}[{context[start:end]}]{after}"


def question_word(question: str) -> str:
    """Return the first word of a question that asks for something: who (whom, whose), what, ..., or other."""
    found = _ASKING.search(question.lower())
    if not found:
        return "other"
    return "how many" if found.group(2) else OTHER_FORMS.get(found.group(1), found.group(1))


def answer_length(targets: Sequence[str]) -> str:
    """Return how many words the first true answer has, articles not counted."""
    if not targets:
        return NONE
    words = max(1, len(answer_words(targets[0])))
    return LENGTHS[0 if words == 1 else 1 if words == 2 else 2 if words < 6 else 3]


def details(predictions: AnswerPredictions, seed: int) -> dict[str, Any]:
    """Return scores by the word that a question asks with, and by the length of the true answer."""
    lengths = [answer_length(targets) for targets in predictions.targets]
    found: dict[str, Any] = {
        "by_question_word": _by(predictions, list(map(question_word, predictions.questions)), QUESTION_WORDS, seed),
        "by_answer_length": _by(predictions, lengths, LENGTHS, seed),
    }
    if predictions.threshold is not None:
        found["no_answer_threshold"] = predictions.threshold
    return found


def _by(predictions: AnswerPredictions, groups: Sequence[str], names: Sequence[str], seed: int) -> dict[str, Any]:
    import numpy as np

    found = {}
    for name in names:
        chosen = np.array([group == name for group in groups], dtype=bool)
        if chosen.any():
            found[name] = {
                "rows": int(chosen.sum()),
                "answered": int((chosen & predictions.answered).sum()),
                **{
                    metric: _interval(scores(predictions), chosen, predictions.contexts, seed)
                    for metric, scores in (("exact-match", exact_matches), ("answer-f1", overlaps))
                },
            }
    return found


def _interval(scores: NDArray[Any], chosen: NDArray[Any], contexts: NDArray[Any], seed: int) -> dict[str, Any]:
    """Return the mean score of some questions with its interval over contexts."""
    from finetune.evaluation.statistics import interval_of_sums

    return interval_of_sums(of_some(scores, chosen), shares, seed, contexts).as_json()


def sections(report: Mapping[str, Any]) -> list[Section]:
    """Return the tables of scores by what was asked."""
    return [
        _table("By question word", "question word", report["by_question_word"]),
        _table("By length of the true answer", "true answer", report["by_answer_length"]),
    ]


def _table(title: str, first: str, groups: Mapping[str, Any]) -> Table:
    keys = {"rows": "rows", "answered": "answered", "exact match": "exact-match", "F1": "answer-f1"}
    rows = [(name, *(scores[key] for key in keys.values())) for name, scores in groups.items()]
    return Table(title, (first, *keys), rows)
