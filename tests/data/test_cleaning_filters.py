"""Filters: which texts they reject, by length and by language."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from finetune.data.cleaning import Pipeline
from finetune.data.cleaning.filters import _load_identifier, language, length
from finetune.errors import FinetuneError
from finetune.registry import cleaners


@pytest.mark.parametrize(
    ("text", "options", "kept"),
    [
        ("abc", {"min_characters": 3, "max_characters": 3}, True),
        ("ab", {"min_characters": 3}, False),
        ("abcd", {"max_characters": 3}, False),
        ("one  two\nthree", {"min_words": 3, "max_words": 3}, True),
        ("one two", {"min_words": 3}, False),
        ("one two", {"max_words": 1}, False),
        ("", {"min_words": 1}, False),
    ],
)
def test_length_rejects_what_is_beyond_a_limit(text: str, options: dict[str, int], kept: bool) -> None:
    assert length(text, **options) == (text if kept else None)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("length", {}, "expected at least one of min_characters"),
        ("length", {"min_words": 3, "max_words": 2}, "expected min_words to be at most max_words; found 3 and 2"),
        ("language", {"languages": []}, "found none"),
        ("language", {"languages": ["en", "English"]}, "found 'English'"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cleaners.get(name).attributes["check"](options)


TEXTS = {
    "en": "Where is my new card, and when will it arrive?",
    "de": "Wo ist meine neue Karte, und wann kommt sie an?",
    "es": "\u00bfD\u00f3nde est\u00e1 mi nueva tarjeta y cu\u00e1ndo llegar\u00e1?",
}


@pytest.mark.parametrize("wanted", [["en"], ["de"], ["en", "es"]])
def test_language_keeps_texts_in_the_wanted_languages(wanted: list[str]) -> None:
    pytest.importorskip("py3langid")
    kept = [code for code, text in TEXTS.items() if language(text, languages=wanted) == text]
    assert kept == [code for code in TEXTS if code in wanted]


def test_language_keeps_what_is_too_short_to_tell() -> None:
    for text in ["", "12345 67890 12345", "ja", "Karte weg"]:
        assert language(text, languages=["en"]) == text
    pytest.importorskip("py3langid")
    assert language("Karte weg, bitte", languages=["en"], min_probability=0.5) is None
    assert language("Karte weg, bitte", languages=["en"], min_probability=0) is not None


def test_a_language_that_nobody_can_tell_is_named() -> None:
    pytest.importorskip("py3langid")
    with pytest.raises(FinetuneError, match="found 'xx'"):
        language(TEXTS["en"], languages=["en", "xx"])


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    _load_identifier.cache_clear()
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(FinetuneError, match=r"finetune-toolkit\[language\]"):
        language(TEXTS["en"], languages=["nl"])


def test_a_filter_rejects_by_name_and_later_cleaners_do_not_see_the_row() -> None:
    pipeline = Pipeline([("length", {"min_words": 2}), ("lowercase", {}), ("length", {"max_words": 2})])
    texts, rejected = pipeline.texts(["A B", "A", "A B C", "D E"])
    assert texts == ["a b", "", "", "d e"]
    assert rejected == {1: "rejected_by_length", 2: "rejected_by_length"}
    shortest, small, longest = pipeline.reports
    assert (shortest.rows_touched, shortest.rows_rejected) == (0, 1)
    assert shortest.examples == [{"before": "A", "after": ""}]
    assert (small.rows_touched, small.rows_rejected) == (3, 0)
    assert (longest.rows_touched, longest.rows_rejected) == (0, 1)
    assert (pipeline.text("A"), pipeline("A"), pipeline.text("A B")) == (("", "rejected_by_length"), "", ("a b", ""))
