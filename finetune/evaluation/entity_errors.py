"""What kinds of errors a tagger makes: entities of another type, with other bounds, missed, invented."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from finetune.evaluation.predictions.tags import Entity, TagPredictions, strict

Pair = tuple[Entity | None, Entity | None]

NONE = "none"
FOUND, OTHER_TYPE, OTHER_BOUNDS, BOTH_OTHER = "found", "other type", "other bounds", "other bounds and type"
MISSED, INVENTED = "missed", "invented"
KINDS = (FOUND, OTHER_TYPE, OTHER_BOUNDS, BOTH_OTHER, MISSED, INVENTED)
RULE = (
    "A true and a predicted entity are held against each other if they have the same words, or else if they share "
    "some: those that share most first, each once. What has no partner is missed, or invented."
)
MATRIX_RULE = (
    "True types in rows, predicted types in columns. Only entities of the same words meet; one with other bounds "
    "counts twice, as true and not found, and as predicted and not true, as it does in precision and recall."
)


def pairs(true: Sequence[Entity], said: Sequence[Entity]) -> list[Pair]:
    """Return each true entity beside the predicted one that it is held against; None stands for no partner.

    Entities of the same words are partners; of the others, those that share words, the most first, each once (the
    errors of Chinchor and Sundheim, 1993, MUC-5, as in SemEval-2013 task 9: Segura-Bedmar et al., 2013). Both lists
    are in the order of the words, and no two entities of a list share any.
    """
    # two that have the same words share them with no other, so that nothing can come between them
    candidates = sorted((-_shared(one, other), one, other) for one, other in _overlapping(true, said))
    partner: dict[Entity, Entity] = {}
    taken: set[Entity] = set()
    for _, one, other in candidates:
        if one not in partner and other not in taken:
            partner[one] = other
            taken.add(other)
    return [*((one, partner.get(one)) for one in true), *((None, other) for other in said if other not in taken)]


def _overlapping(true: Sequence[Entity], said: Sequence[Entity]) -> Iterator[tuple[Entity, Entity]]:
    """Yield the entities that share words, in one walk along both lists."""
    one = other = 0
    while one < len(true) and other < len(said):
        if _shared(true[one], said[other]) > 0:
            yield true[one], said[other]
        # what ends first can share nothing with what follows
        if true[one].end <= said[other].end:
            one += 1
        else:
            other += 1


def kind_of(pair: Pair) -> str:
    """Return what happened to an entity: one of KINDS."""
    true, said = pair
    if true is None:
        return INVENTED
    if said is None:
        return MISSED
    if _same_words(true, said):
        return FOUND if true.type == said.type else OTHER_TYPE
    return OTHER_BOUNDS if true.type == said.type else BOTH_OTHER


def error_counts(predictions: TagPredictions) -> dict[str, int]:
    """Return how often each kind of error occurs, and how many entities were found; strict IOB2."""
    counts = Counter(kind_of(pair) for pair in _all_pairs(predictions))
    return {kind: counts[kind] for kind in KINDS}


def row_errors(predictions: TagPredictions) -> list[int]:
    """Return for each row how many of its true and predicted entities are wrong."""
    return [sum(kind_of(pair) != FOUND for pair in row) for row in _pairs_by_row(predictions)]


def confusion(predictions: TagPredictions) -> list[list[int]]:
    """Return counts of entities by true type (rows) and predicted type (columns), the last of both being none.

    Only entities of the same words meet in a cell, so that the sums of the rows are the true entities of each type,
    those of the columns the predicted ones, and the diagonal has what precision and recall count as found.
    """
    index = {label: number for number, label in enumerate((*predictions.labels, NONE))}
    counts = [[0] * len(index) for _ in index]
    for true, said in _all_pairs(predictions):
        if true and said and _same_words(true, said):
            counts[index[true.type]][index[said.type]] += 1
            continue
        if true:
            counts[index[true.type]][index[NONE]] += 1
        if said:
            counts[index[NONE]][index[said.type]] += 1
    return counts


def unread(predictions: TagPredictions) -> dict[str, int]:
    """Return how many words the model did not see, and how many true entities have such a word."""
    import numpy as np

    blind = [np.isnan(scores) for scores in predictions.scores]
    entities = (
        bool(unseen[entity.start : entity.end].any())
        for unseen, tags in zip(blind, predictions.targets, strict=True)
        for entity in strict(tags)
    )
    return {"words": sum(int(unseen.sum()) for unseen in blind), "entities": sum(entities)}


def _pairs_by_row(predictions: TagPredictions) -> Iterator[list[Pair]]:
    for true, said in zip(predictions.targets, predictions.predicted, strict=True):
        yield pairs(strict(true), strict(said))


def _all_pairs(predictions: TagPredictions) -> Iterator[Pair]:
    for row in _pairs_by_row(predictions):
        yield from row


def _same_words(one: Entity, other: Entity) -> bool:
    return one[:2] == other[:2]


def _shared(one: Entity, other: Entity) -> int:
    return min(one.end, other.end) - max(one.start, other.start)


def as_details(predictions: TagPredictions) -> dict[str, Any]:
    """Return the errors, the confusion and what was not seen, as the report holds them."""
    return {
        "entity_errors": error_counts(predictions),
        "entity_confusion": {"labels": [*predictions.labels, NONE], "counts": confusion(predictions)},
        "unread": unread(predictions),
    }
