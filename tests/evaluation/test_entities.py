"""Metrics of entities are seqeval's numbers, and every fast way to them gives the same."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import metrics as reference
from seqeval.scheme import IOB2

from finetune import registry
from finetune.evaluation import entity_errors
from finetune.evaluation.entity_errors import confusion, error_counts, kind_of, pairs, row_errors, unread
from finetune.evaluation.metrics.entities import CONVENTION
from finetune.evaluation.predictions.tags import Entity, TagPredictions, lenient, strict
from finetune.evaluation.statistics import bootstrap, per_label, point

TYPES = ("LOC", "ORG", "PER")
TAGS = ["O", *(f"{mark}-{kind}" for kind in TYPES for mark in "BI")]
NAMES = [name for name in registry.metrics.names() if "tags" in registry.metrics.get_any(name).attributes["of"]]
SENTENCES = st.lists(
    st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=9), min_size=1, max_size=6
).map(lambda rows: [tuple(map(list, zip(*row, strict=True))) for row in rows])


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Seqeval and numpy warn of what is not defined; what they return there is part of what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def predictions_of(true: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> TagPredictions:
    scores = tuple(np.full(len(tags), 0.5) for tags in said)
    return TagPredictions(TYPES, tuple(map(list, true)), tuple(map(list, said)), scores)


def random_predictions(rows: int, seed: int, right: float = 0.6) -> TagPredictions:
    """Return tags of rows of 1 to 14 words, true ones mostly valid, and others of which a share is right."""
    generator = np.random.default_rng([seed, rows])
    true, said = [], []
    for _ in range(rows):
        tags = generator.choice(TAGS, int(generator.integers(1, 15)), p=[0.5, *[0.5 / 6] * 6])
        true.append(tags.tolist())
        kept = generator.random(len(tags)) < right
        said.append(np.where(kept, tags, generator.choice(TAGS, len(tags))).tolist())
    return predictions_of(true, said)


def seqeval_says(name: str, predictions: TagPredictions) -> float:
    """What seqeval gives, called here in the plainest way."""
    true, said = list(predictions.targets), list(predictions.predicted)
    if name == "token-accuracy":
        return float(reference.accuracy_score(true, said))
    kind = name.split("-")[1]
    score = {"f1": reference.f1_score, "precision": reference.precision_score, "recall": reference.recall_score}[kind]
    if name.endswith("lenient"):
        return float(score(true, said))
    return float(score(true, said, mode="strict", scheme=IOB2, average="macro" if "macro" in name else "micro"))


def test_there_is_a_metric_for_each_reading() -> None:
    scores = {f"entity-{kind}{reading}" for kind in ("f1", "precision", "recall") for reading in ("", "-lenient")}
    assert set(NAMES) == {*scores, "entity-f1-macro", "token-accuracy"}


@pytest.mark.parametrize("rows", [1, 7, 60, 300])
@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_seqevals(name: str, rows: int) -> None:
    for seed in range(3):
        predictions = random_predictions(rows, seed)
        assert point(name, predictions) == pytest.approx(seqeval_says(name, predictions), abs=1e-9)


@settings(deadline=None, max_examples=80)
@given(SENTENCES)
def test_metrics_are_seqevals_on_any_tags(sentences: Any) -> None:
    predictions = predictions_of(*zip(*sentences, strict=True))
    for name in NAMES:
        if name != "entity-f1-macro" or any(map(strict, (*predictions.targets, *predictions.predicted))):
            assert point(name, predictions) == pytest.approx(seqeval_says(name, predictions), abs=1e-9), name


# true tags, predicted tags, strict F1, lenient F1
EDGES = {
    "all right": ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC", 1.0, 1.0),
    "no entity true": ("O O", "O B-PER", 0.0, 0.0),
    "no entity predicted": ("B-PER O", "O O", 0.0, 0.0),
    "no entity at all": ("O O", "O O", 0.0, 0.0),
    "an I- that continues nothing": ("B-PER I-PER O", "I-PER I-PER O", 0.0, 1.0),
    "an I- of another type": ("B-PER I-PER", "B-PER I-LOC", 0.0, 0.0),
    "neighbours of one type": ("B-PER B-PER", "B-PER I-PER", 0.0, 0.0),
    "one bound wrong": ("B-PER I-PER O", "B-PER I-PER I-PER", 0.0, 0.0),
    "an I- before a B-": ("O B-PER", "I-PER B-PER", 1.0, 2 / 3),
    "an invalid truth": ("I-PER O", "B-PER O", 0.0, 1.0),
}


@pytest.mark.parametrize("case", EDGES.values(), ids=EDGES)
def test_strict_and_lenient_at_the_edges(case: tuple[str, str, float, float]) -> None:
    predictions = predictions_of([case[0].split()], [case[1].split()])
    for name, expected in (("entity-f1", case[2]), ("entity-f1-lenient", case[3])):
        assert point(name, predictions) == pytest.approx(expected, abs=1e-9)
        assert seqeval_says(name, predictions) == pytest.approx(expected, abs=1e-9)


def test_no_entity_anywhere_is_a_macro_f1_of_0() -> None:
    assert point("entity-f1-macro", predictions_of([["O"]], [["O"]])) == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_the_fast_way_over_resamples_is_the_metric_on_each(name: str) -> None:
    predictions = random_predictions(12, seed=5)
    entry = registry.metrics.get(name)
    generator = np.random.default_rng(1)
    for _ in range(20):
        rows = generator.integers(0, len(predictions), len(predictions))
        weights = np.bincount(rows, minlength=len(predictions)).astype(float)[None]
        if "from_sums" in entry.attributes:
            per_answer, combine = entry.attributes["from_sums"]
            fast = combine(weights @ per_answer(predictions))[0]
        else:
            fast = entry.attributes["from_label_counts"](predictions.label_counts(weights))[0]
        assert fast == pytest.approx(point(name, predictions.take(rows)), abs=1e-12)


def test_intervals_hold_the_value() -> None:
    for name, interval in bootstrap(NAMES, random_predictions(40, seed=2), seed=1).items():
        assert interval.low < interval.value < interval.high, name


def test_scores_by_type_are_seqevals() -> None:
    predictions = random_predictions(80, seed=3)
    expected = reference.classification_report(
        list(predictions.targets), list(predictions.predicted), mode="strict", scheme=IOB2, output_dict=True
    )
    for label, scores in per_label(predictions, seed=1).items():
        assert scores["rows"] == expected[label]["support"]
        for kind, name in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert scores[kind]["value"] == pytest.approx(expected[label][name], abs=1e-9)
            assert scores[kind]["low"] <= scores[kind]["value"] <= scores[kind]["high"]


@pytest.mark.parametrize("word", ["seqeval", "IOB2", "Strict", "Lenient"])
def test_the_convention_names_what_it_follows(word: str) -> None:
    assert word in CONVENTION


# -- kinds of errors


PER, LOC = "PER", "LOC"


@pytest.mark.parametrize(
    ("true", "said", "kinds"),
    [
        ([(0, 2, PER)], [(0, 2, PER)], ["found"]),
        ([(0, 2, PER)], [(0, 2, LOC)], ["other type"]),
        ([(0, 2, PER)], [(0, 3, PER)], ["other bounds"]),
        ([(0, 2, PER)], [(1, 3, LOC)], ["other bounds and type"]),
        ([(0, 2, PER)], [(2, 3, PER)], ["missed", "invented"]),
        ([], [], []),
        # an entity cut in two: the larger part is its partner, the other is invented
        ([(0, 3, PER)], [(0, 1, PER), (1, 3, PER)], ["other bounds", "invented"]),
        # equal words go before more shared words
        ([(0, 1, PER), (1, 5, PER)], [(0, 1, LOC), (1, 4, PER)], ["other type", "other bounds"]),
        # two entities made one: the larger is its partner, the other is missed
        ([(0, 1, PER), (1, 4, PER)], [(0, 4, PER)], ["missed", "other bounds"]),
    ],
)
def test_entities_are_held_against_those_that_share_most_words(true: Any, said: Any, kinds: list[str]) -> None:
    found = pairs([Entity(*each) for each in true], [Entity(*each) for each in said])
    assert [kind_of(pair) for pair in found] == kinds


def pairs_of_all(true: Sequence[Entity], said: Sequence[Entity]) -> list[Any]:
    """Hold every entity against every other, as the definition says."""

    def shared(one: Entity, other: Entity) -> int:
        return min(one.end, other.end) - max(one.start, other.start)

    candidates = sorted(
        (one[:2] != other[:2], -shared(one, other), one, other)
        for one in true
        for other in said
        if shared(one, other) > 0
    )
    partner: dict[Entity, Entity] = {}
    for _, _, one, other in candidates:
        if one not in partner and other not in partner.values():
            partner[one] = other
    alone = [(None, other) for other in said if other not in partner.values()]
    return [*((one, partner.get(one)) for one in true), *alone]


@settings(deadline=None, max_examples=200)
@given(SENTENCES)
def test_partners_are_those_found_by_holding_every_entity_against_every_other(sentences: Any) -> None:
    for true_tags, said_tags in sentences:
        true, said = strict(true_tags), strict(said_tags)
        assert pairs(true, said) == pairs_of_all(true, said)


@settings(deadline=None, max_examples=80)
@given(SENTENCES)
def test_every_entity_is_in_one_pair_and_the_matrix_has_the_counts_of_the_metrics(sentences: Any) -> None:
    predictions = predictions_of(*zip(*sentences, strict=True))
    true = [entity for tags in predictions.targets for entity in strict(tags)]
    said = [entity for tags in predictions.predicted for entity in strict(tags)]
    errors = error_counts(predictions)
    assert list(errors) == list(entity_errors.KINDS)
    assert sum(errors.values()) - errors["invented"] == len(true)
    assert sum(errors.values()) - errors["missed"] == len(said)
    matrix = np.array(confusion(predictions))
    assert matrix[:-1].sum(axis=1).tolist() == [sum(entity.type == kind for entity in true) for kind in TYPES]
    assert matrix[:, :-1].sum(axis=0).tolist() == [sum(entity.type == kind for entity in said) for kind in TYPES]
    counts = predictions.strict_counts
    assert np.diagonal(matrix)[:-1].tolist() == counts.hits.sum(axis=0).tolist()
    assert errors["found"] == counts.hits.sum()
    assert errors["other type"] == matrix[:-1, :-1].sum() - errors["found"]
    assert sum(row_errors(predictions)) == sum(errors.values()) - errors["found"]


def test_what_was_not_seen_is_counted_in_words_and_entities() -> None:
    predictions = predictions_of([["B-PER", "O", "B-LOC", "I-LOC"], ["B-PER"]], [["B-PER", "O", "B-LOC", "O"], ["O"]])
    predictions.scores[0][[1, 3]] = np.nan
    assert unread(predictions) == {"words": 2, "entities": 1}
    assert unread(predictions.take(np.array([0, 0, 1]))) == {"words": 4, "entities": 2}


# -- predictions


def test_predictions_agree_where_they_mark_the_same_entities() -> None:
    ours = predictions_of([], [["B-PER", "I-PER"], ["I-LOC", "O"], ["B-PER", "B-PER"], ["O", "O"]])
    theirs = predictions_of([], [["B-PER", "I-PER"], ["B-LOC", "O"], ["B-PER", "I-PER"], ["O", "B-LOC"]])
    assert ours.agrees(theirs).tolist() == [True, True, False, False]
    assert ours.rows.tolist() == [0, 1, 2, 3]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(TAGS), max_size=10))
def test_strict_entities_are_those_of_seqeval_in_its_strict_mode(tags: list[str]) -> None:
    from seqeval.scheme import Entities

    found = [(entity.start, entity.end, entity.tag) for entity in Entities([tags], IOB2).entities[0]]
    assert [tuple(entity) for entity in strict(tags)] == found
    assert not Counter(strict(tags)) - Counter(lenient(tags))
