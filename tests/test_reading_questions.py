"""The shipped questions about short texts: every answer stands where it says, and nothing is there twice."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from finetune.data.contexts import read_answers
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    lines = (ROOT / "data" / "reading_questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_answer_stands_whole_words_at_its_place(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        answers, reason = read_answers(row["answers"], row["context"])
        assert (len(answers), reason) == (len(row["answers"]["text"]), "")
        for answer in answers:
            assert re.compile(rf"(?<!\w){re.escape(answer['text'])}(?!\w)").match(row["context"], answer["start"])
            assert answer["text"] == answer["text"].strip()


def test_there_are_enough_questions_about_enough_texts_and_a_tenth_has_no_answer(rows: list[dict[str, Any]]) -> None:
    contexts = Counter(row["context"] for row in rows)
    assert len(rows) == 396
    assert len(contexts) == 62
    assert {min(contexts.values()), max(contexts.values())} <= {5, 6, 7}
    assert all(60 <= len(context.split()) <= 150 for context in contexts)
    assert sum(not row["answers"]["text"] for row in rows) == 43


def test_no_question_and_no_number_is_there_twice_and_texts_open_differently(rows: list[dict[str, Any]]) -> None:
    for key in ("id", "question"):
        assert len({row[key] for row in rows}) == len(rows)
    openings = Counter(" ".join(context.split()[:2]) for context in {row["context"] for row in rows})
    assert max(openings.values()) <= 2
    asked = Counter(" ".join(row["question"].split()[:3]) for row in rows)
    assert asked.most_common(1)[0][1] <= 17
