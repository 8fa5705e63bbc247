"""How people read answers: as `predict` gives them, the worst of them, and scores by what was asked."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

from finetune.data.values import without_surrogates
from finetune.evaluation.answer_scores import answer_words
from finetune.evaluation.metrics.answers import exact_matches, of_some, overlaps, shares
from finetune.evaluation.sections import Section, Table
from finetune.tasks import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.answers import AnswerPredictions

NONE = "no answer"
CHARACTERS_AROUND = 50
QUESTION_WORDS = ("who", "what", "which", "when", "where", "why", "how many or much", "how", "other")
OTHER_FORMS = {"whom": "who", "whose": "who"}
_WORD = re.compile(r"\w+|[^\w\s]")
_ASKING = re.compile(r"\b(who|whom|whose|what|which|when|where|why|how)\b(?:\s+(many|much)\b)?")
LENGTHS = ("1 word", "2 words", "3 to 5 words", "6 words or more", NONE)


def describe(predictions: AnswerPredictions, answer: int, row: Row) -> dict[str, Any]:
    """Return the answer, where it stands in the context, and its probability; for no answer the best span.

    Where cleaners changed the context, `row` has it as it was given too (`given_context`): then the places are there,
    and the answer is what stands at them.
    """
    text, start, end = str(predictions.texts[answer]), int(predictions.starts[answer]), int(predictions.ends[answer])
    given = row.get("given_context")
    if given is not None:
        start, end = place_in_given(start, end, row["context"], given)
        text = without_surrogates(given[start:end]) or text
    probability = round(float(predictions.probabilities[answer]), 6)
    span = {"answer": text, "start": start, "end": end, "probability": probability}
    return span if predictions.answered[answer] else {"answer": None, "best_span": span}


def place_in_given(start: int, end: int, cleaned: str, given: str) -> tuple[int, int]:
    """Return where a span of a cleaned context stands in the context as it was given, in characters.

    Words and marks that both have, capitals and forms of letters aside, are matched in their order. What a cleaner put
    in the place of something stands where that stood, all of it; what it added stands nowhere, and has an empty span.
    """
    ours, theirs = (list(_WORD.finditer(text)) for text in (cleaned, given))
    touched = [number for number, word in enumerate(ours) if word.start() < end and word.end() > start]
    if not touched:
        return 0, 0
    blocks = SequenceMatcher(None, _keys(ours), _keys(theirs), autojunk=False).get_opcodes()
    (first, _), (_, last) = (_counterparts(number, blocks) for number in (touched[0], touched[-1]))
    if first > last:
        place = theirs[last].end() if last >= 0 else 0
        return place, place
    before, after = start - ours[touched[0]].start(), ours[touched[-1]].end() - end
    # part of a word is part of its counterpart if both are equally long
    before = before if _alike(ours[touched[0]], theirs[first]) else 0
    after = after if _alike(ours[touched[-1]], theirs[last]) else 0
    return theirs[first].start() + max(before, 0), theirs[last].end() - max(after, 0)


def _keys(words: Sequence[re.Match[str]]) -> list[str]:
    return [unicodedata.normalize("NFKC", word.group()).casefold() for word in words]


def _counterparts(number: int, blocks: Sequence[tuple[str, int, int, int, int]]) -> tuple[int, int]:
    """Return the first and the last word of the given text that stand for a word of the cleaned one."""
    _, low, high, first, behind = next(block for block in blocks if block[1] <= number < block[2])
    if high - low == behind - first:
        return first + number - low, first + number - low
    return first, behind - 1


def _alike(one: re.Match[str], other: re.Match[str]) -> bool:
    return len(one.group()) == len(other.group())


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
    return "how many or much" if found.group(2) else OTHER_FORMS.get(found.group(1), found.group(1))


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
