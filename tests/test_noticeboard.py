"""The shipped sentences with marked names: enough of each type, marked exactly, none twice."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from finetune.data.duplicates import text_key
from finetune.data.tagging import blank_bounded, entities, spans_to_iob2
from tests.conftest import ROOT

TYPES = {"person", "organisation", "place", "time", "money"}


@pytest.fixture(scope="module")
def notices() -> list[dict[str, Any]]:
    lines = (ROOT / "data" / "noticeboard.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_there_are_enough_entities_of_each_type_and_sentences_without_any(notices: list[dict[str, Any]]) -> None:
    counts = Counter(span["label"] for row in notices for span in row["entities"])
    assert counts.keys() == TYPES
    assert min(counts.values()) >= 60
    assert 300 <= len(notices) <= 400
    assert sum(not row["entities"] for row in notices) >= 50


def test_entities_are_whole_words_without_the_blanks_and_marks_around_them(notices: list[dict[str, Any]]) -> None:
    for row in notices:
        text, spans = row["text"], row["entities"]
        _, tags = spans_to_iob2(text, spans)
        assert len(entities(tags)) == len(spans)
        assert blank_bounded(text, spans) == 0
        for span in spans:
            start, end = span["start"], span["end"]
            assert not (start and text[start - 1].isalnum()), (text, span)
            assert not text[end : end + 1].isalnum(), (text, span)
            assert text[end - 1] not in ",;:!?", (text, span)


def test_no_sentence_stands_twice_and_openings_differ(notices: list[dict[str, Any]]) -> None:
    assert len({text_key([row["text"]]) for row in notices}) == len(notices)
    openings = Counter(" ".join(row["text"].casefold().split()[:3]) for row in notices)
    assert max(openings.values()) <= 2
