"""How people read tagged words: entities with their places, sentences with brackets, tables of entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune.evaluation.sections import Matrix, Section, Table
from finetune.tasks import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.tags import Entity, TagPredictions

# A longer row is shown by the words around its errors
WORDS_SHOWN = 60
WORDS_BEFORE = 15


def describe(predictions: TagPredictions, answer: int, row: Row) -> dict[str, Any]:
    """Return the entities of a text with their characters; `score` is the mean probability of the words' tags.

    `row` has, beside the `tokens`, the `text` as it was given and the `offsets` of its words there. Words that came
    as a list are a text with one blank between two, which is returned too.
    """
    from finetune.evaluation.predictions.tags import lenient

    text, offsets = row["text"], row["offsets"]
    found = []
    for entity in lenient(predictions.predicted[answer]):
        start, end = offsets[entity.start][0], offsets[entity.end - 1][1]
        score = float(predictions.scores[answer][entity.start : entity.end].mean())
        found.append(
            {"start": start, "end": end, "text": text[start:end], "label": entity.type, "score": round(score, 6)}
        )
    return {**({"text": text} if row.get("joined") else {}), "entities": found}


def example(predictions: TagPredictions, answer: int, row: Row) -> dict[str, Any]:
    """Return a sentence with its true entities in brackets, and the same with those that were predicted."""
    from finetune.evaluation.entity_errors import FOUND, kind_of, pairs
    from finetune.evaluation.predictions.tags import strict

    true, said = strict(predictions.targets[answer]), strict(predictions.predicted[answer])
    wrong = [pair for pair in pairs(true, said) if kind_of(pair) != FOUND]
    first = min((entity.start for pair in wrong for entity in pair if entity), default=0)
    return {
        "true": in_brackets(row["tokens"], true, first),
        "predicted": in_brackets(row["tokens"], said, first),
        "wrong entities": len(wrong),
    }


def in_brackets(tokens: Sequence[str], entities: Sequence[Entity], around: int = 0) -> str:
    """Return words with entities as `[Ada Lovelace: person]`; of a long row those around one word."""
    words = list(tokens)
    for entity in entities:
        words[entity.start] = "[" + words[entity.start]
        words[entity.end - 1] += f": {entity.type}]"
    first = max(0, around - WORDS_BEFORE) if len(words) > WORDS_SHOWN else 0
    shown = words[first : first + WORDS_SHOWN]
    return " ".join([*["…"] * (first > 0), *shown, *["…"] * (first + len(shown) < len(words))])


def difficulty(predictions: TagPredictions) -> NDArray[Any]:
    """Return for each row its wrong entities, and as the part behind the point how unsure of its words, or wrong."""
    import numpy as np

    from finetune.evaluation.entity_errors import row_errors

    doubts = []
    for true, said, scores in zip(predictions.targets, predictions.predicted, predictions.scores, strict=True):
        right = np.fromiter(map(str.__eq__, true, said), dtype=bool, count=len(said))
        doubt = np.where(right, 1 - scores, scores)
        doubts.append(float(np.nan_to_num(doubt).mean()) if len(said) else 0.0)
    return np.asarray(row_errors(predictions)) + np.minimum(doubts, 0.999)


def details(predictions: TagPredictions, seed: int) -> dict[str, Any]:
    """Return the scores of each type, the kinds of errors, the confusion of types, and what the model did not see."""
    from finetune.evaluation.entity_errors import as_details
    from finetune.evaluation.metrics.entities import CONVENTION
    from finetune.evaluation.statistics import per_label

    by_type = {label: _named_entities(scores) for label, scores in per_label(predictions, seed).items()}
    return {"convention": CONVENTION, "per_type": by_type, **as_details(predictions)}


def _named_entities(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Say that what is counted are entities, not rows."""
    return {"entities" if name == "rows" else name: value for name, value in scores.items()}


def sections(report: Mapping[str, Any]) -> list[Section]:
    """Return the scores of each type, the kinds of errors, and the confusion of types."""
    from finetune.evaluation.entity_errors import MATRIX_RULE, RULE

    kinds = ("precision", "recall", "f1")
    rows = [
        [label, scores["entities"], *(scores[kind] for kind in kinds)] for label, scores in report["per_type"].items()
    ]
    unread, matrix = report["unread"], report["entity_confusion"]
    seen = f" The model did not see {unread['words']} words, of {unread['entities']} entities." * bool(unread["words"])
    return [
        Table(
            "By type of entity", ["type", "entities", "precision", "recall", "F1"], rows, report["convention"] + seen
        ),
        Table("Kinds of errors", ["entities", "count"], [list(item) for item in report["entity_errors"].items()], RULE),
        Matrix("Entities by type", matrix["labels"], matrix["counts"], MATRIX_RULE),
    ]
