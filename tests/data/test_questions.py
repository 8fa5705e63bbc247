"""Questions about words: where each word stands in the text that was given, whatever the cleaners did."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.cleaning import Pipeline
from finetune.data.questions import offsets_of, read_words
from finetune.data.tagging import spans_to_iob2

PLAIN = Pipeline([], tokens=True)
TEXTS = st.text(alphabet="ab ,\u00e9\u4e2d\n-_'\ud83d😀<>&;@.", max_size=30)


def places(row: dict[str, Any]) -> list[str]:
    return [row["text"][start:end] for start, end in row["offsets"]]


def test_a_text_is_cut_as_texts_with_spans_are() -> None:
    text = "Ada  (the Countess) wrote\tto a.b@x.com, twice!"
    row, reason = read_words(text, PLAIN)
    assert reason == ""
    assert row["tokens"] == places(row) == spans_to_iob2(text, [])[0]
    assert (row["text"], row["joined"]) == (text, False)


def test_a_list_of_words_is_a_text_with_blanks_between() -> None:
    row, reason = read_words(["New", "York", ",", "New", "Haven"], PLAIN)
    assert reason == ""
    assert (row["text"], row["joined"]) == ("New York , New Haven", True)
    assert row["tokens"] == places(row) == ["New", "York", ",", "New", "Haven"]
    assert row["offsets"][3:] == [(11, 14), (15, 20)]


def test_places_are_those_in_the_text_as_it_was_given_when_cleaners_change_and_drop_words() -> None:
    clean = Pipeline([("html", {}), ("emails", {}), ("stopwords", {}), ("lowercase", {})], tokens=True)
    text = "<b>Ask</b> the Émile &amp; me at dean@x.example NOW"
    row, reason = read_words(text, clean)
    assert reason == ""
    assert row["tokens"] == ["ask", "émile", "&", "[email]"]
    assert places(row) == ["Ask", "Émile", "&amp;", "dean@x.example"]


def test_a_character_that_is_no_text_moves_no_place() -> None:
    row, _ = read_words("half \ud83d of London", PLAIN)
    assert row["tokens"] == ["half", "?", "of", "London"]
    assert row["offsets"][-1] == (10, 16)
    assert row["text"] == "half \ud83d of London"


@settings(deadline=None, max_examples=300)
@given(TEXTS)
def test_every_character_but_blanks_is_in_one_word_in_order(text: str) -> None:
    row, reason = read_words(text, PLAIN)
    if not text.strip():
        assert reason in {"missing_tokens", "blank_tokens"}
        return
    covered = [place for start, end in row["offsets"] for place in range(start, end)]
    assert covered == sorted(set(covered))
    assert {place for place, character in enumerate(text) if not character.isspace()} <= set(covered)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "missing_tokens"),
        ("", "missing_tokens"),
        ([], "missing_tokens"),
        (" \n", "blank_tokens"),
        (["", ""], "blank_tokens"),
        (["a", 1], "wrong_type_of_tokens"),
        ({"a": 1}, "wrong_type_of_tokens"),
        (5, "wrong_type_of_tokens"),
    ],
)
def test_what_has_no_words_is_answered_by_its_reason(value: Any, reason: str) -> None:
    assert read_words(value, PLAIN) == ({}, reason)


@pytest.mark.parametrize(
    ("cleaner", "reason"),
    [
        (("html", {}), "nothing_left_after_cleaning_tokens"),
        (("length", {"min_words": 3}), "rejected_by_length_tokens"),
    ],
)
def test_a_text_of_which_the_cleaners_leave_nothing_is_answered_by_the_reason(cleaner: Any, reason: str) -> None:
    assert read_words("<br/> <hr/>", Pipeline([cleaner], tokens=True)) == ({}, reason)


def test_equal_words_have_places_of_their_own() -> None:
    assert offsets_of(["a", "a", "ab"], "a, a ab") == [(0, 1), (3, 4), (5, 7)]
