"""What one gets by saying the source again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from finetune import registry
from finetune.evaluation.baselines import BaselineInput
from finetune.evaluation.baselines.texts import first_sentence
from finetune.evaluation.predictions.texts import TextPredictions

SOURCES = ["The barge sank. Nobody was hurt.", "Who paid? The town did.", "walk twice"]


def said(name: str, sources: Sequence[str], rows: Sequence[int]) -> TextPredictions:
    references = [("nothing",)] * len(sources)
    like = TextPredictions.of(["?"] * len(sources), references, sources, rows, pattern="p")
    given = BaselineInput([], [], [{"source": "no"}] * 9, (), ("source",), "target", like, lambda: like)
    found = registry.baselines.get(name).build({})(given)
    assert isinstance(found, TextPredictions)
    assert (found.references is like.references, found.rows is like.rows, found.pattern) == (True, True, "p")
    return found


def test_the_source_is_said_again_for_the_rows_that_were_answered() -> None:
    found = said("copy-source", SOURCES, [2, 5, 7])
    assert found.said.tolist() == SOURCES
    assert found.said is not found.sources
    assert found.agrees(said("copy-source", SOURCES, [2, 5, 7])).tolist() == [True] * 3
    assert np.array_equal(found.rows, [2, 5, 7])


def test_the_first_sentence_of_each_source_is_said() -> None:
    assert said("lead-sentence", SOURCES, [0, 1, 2]).said.tolist() == ["The barge sank.", "Who paid?", "walk twice"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Dr. Lind met J. B. Kern at 5. They ate.", "Dr. Lind met J. B. Kern at 5."),
        ("It cost 3.50 in all. Cheap!", "It cost 3.50 in all."),
        ("He asked (twice!) for tea, approx. two cups. She left.", "He asked (twice!) for tea, approx. two cups."),
        ('"Stop!" He ran.', '"Stop!"'),
        ("Really?! Yes.", "Really?!"),
        ("No mark at all", "No mark at all"),
        ("\n  A heading\nThe text follows.", "A heading"),
        ("Она ушла. Он остался.", "Она ушла."),
        ("他走了。她留下。", "他走了。"),
        ("Wait… Then go.", "Wait…"),
        ("...", "..."),
        (" \n ", ""),
        ("", ""),
    ],
)
def test_a_sentence_ends_where_a_reader_sees_it_end(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence
