"""How people read tagged words: answers with places, examples with brackets, the worst first."""

from __future__ import annotations

import numpy as np

from finetune.evaluation.predictions.tags import TagPredictions, strict
from finetune.tasks.tag_reports import describe, difficulty, example, in_brackets


def predictions_of(true: str, said: str, score: float = 0.75) -> TagPredictions:
    tags = said.split()
    return TagPredictions(("fruit", "tool"), (true.split(),), (tags,), (np.full(len(tags), score),))


def test_an_answer_has_the_characters_of_the_text_that_was_given() -> None:
    row = {"tokens": ["new", "york", "ny"], "text": "in  New-York, NY", "offsets": [(4, 7), (8, 12), (14, 16)]}
    answer = describe(predictions_of("", "B-fruit I-fruit I-tool"), 0, row)
    assert answer == {
        "entities": [
            {"start": 4, "end": 12, "text": "New-York", "label": "fruit", "score": 0.75},
            {"start": 14, "end": 16, "text": "NY", "label": "tool", "score": 0.75},
        ]
    }
    assert describe(predictions_of("", "O O O"), 0, {**row, "joined": True}) == {"text": row["text"], "entities": []}


def test_an_example_has_the_entities_in_brackets() -> None:
    row = {"tokens": ["we", "had", "a", "red", "plum", "and", "saw"]}
    cells = example(predictions_of("O O O B-fruit I-fruit O O", "O O O O B-fruit O B-tool"), 0, row)
    assert cells == {
        "true": "we had a [red plum: fruit] and saw",
        "predicted": "we had a red [plum: fruit] and [saw: tool]",
        "wrong entities": 2,
    }


def test_of_a_long_row_an_example_shows_the_words_around_the_first_error() -> None:
    words = [f"w{number}" for number in range(200)]
    shown = in_brackets(words, strict(["O"] * 100 + ["B-x"] + ["O"] * 99), around=100).split()
    assert (shown[0], shown[1], shown[-1]) == ("…", "w85", "…")
    assert shown[16:18] == ["[w100:", "x]"]
    assert in_brackets(words[:60], []) == " ".join(words[:60])


def test_rows_with_more_wrong_entities_are_worse_and_of_equals_the_less_likely() -> None:
    true = (["B-fruit", "O"],) * 4
    said = tuple(tags.split() for tags in ("B-fruit O", "B-fruit O", "O O", "O B-tool"))
    scores = (np.array([0.9, 0.9]), np.array([0.5, np.nan]), np.array([0.9, 0.9]), np.array([0.9, 0.9]))
    assert np.argsort(difficulty(TagPredictions(("fruit", "tool"), true, said, scores))).tolist() == [0, 1, 2, 3]
