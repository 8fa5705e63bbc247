"""Checks of texts and of the file's columns; bulk reading against plain reading; anything at all as input."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import ftfy
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data import tagging
from finetune.data.checks import columns_in_bulk, run_checks
from finetune.data.checks.columns_in_bulk import count_words, find_entities, matching_rows, take_rows
from finetune.data.checks.leakage import name_pattern
from finetune.data.checks.texts import MOJIBAKE
from finetune.data.rows import Kind
from tests.data.test_checks import brief, chunked, labelled, lines, run, tagged, texts, world

# texts


def plain(values: Sequence[str], **more: Any) -> Any:
    return world({"text": ("text", values)}, **more)


def test_short_rows() -> None:
    (finding,) = run(plain([*texts(20), "hm", "ok then"]), "short-rows")
    assert (finding.severity, finding.count, lines(finding)) == ("note", 1, [21])
    assert finding.examples[0]["words"] == 1
    assert run(plain([*texts(20), "hm", "ok then"]), "short-rows", words=3) == []  # most have not twice as many
    assert brief(run(plain([*["a b c d e f"] * 20, "hm", "ok then"]), "short-rows", words=3)) == [("note", 2)]
    assert run(plain(["hm", "ok", "well then"] * 9), "short-rows") == []


def test_rows_far_below_the_median_are_short_however_many_words_they_have() -> None:
    rows = plain([*["word " * 60] * 20, "one two three four"])
    assert brief(run(rows, "short-rows")) == [("note", 1)]
    assert run(rows, "short-rows", spread=60.0) == []


def test_long_rows() -> None:
    values = [*texts(20), "word " * 51, "word " * 70, "word " * 50]
    (finding,) = run(plain(values), "long-rows")
    assert (finding.severity, finding.count, lines(finding)) == ("warning", 2, [22, 21])
    assert finding.examples[0]["words"] == 70
    assert run(plain(texts(20)), "long-rows") == []
    assert brief(run(plain(values), "long-rows", words=60)) == [("warning", 1)]
    lengths = ["word " * (row % 60) for row in range(300)]  # a wide spread is no reason for alarm
    assert run(plain(lengths), "long-rows") == []


def test_long_rows_of_tokens() -> None:
    rows = tagged([["a", "b"]] * 20 + [["a"] * 80], [["O", "O"]] * 20 + [["O"] * 80])
    assert brief(run(rows, "long-rows")) == [("warning", 1)]


# Curly quotes and dashes are written as escapes, so that nobody takes them for others
GARBLED = [
    text.encode("utf-8").decode("cp1252") for text in ["café", "don\u2019t", "£5", "Élan", "ñandú", "\u2013", "\u201c"]
]
GARBLED += [
    text.encode("utf-8").decode("latin-1")
    for text in ["café", "don\u2019t", "привет", "日本", "한국", "😀", "\ufeffx", "voilà"]
]
CLEAN = [
    "NÃO É \u201cSÃO\u201d PAULO",
    "«AMANHû",
    "Âme, âge, ð, Ñandú, Ã",
    "Привет, Ðú",
    "日本語 한국어",
    "« été », à « café »… Café™®, voilà\u201d é\u2014",
    "café £5 \u2013 \u201cdon\u2019t\u201d 😀",
    "IRMÔ\u2019",
    "plain",
    "",
]


@pytest.mark.parametrize("text", GARBLED)
def test_garbled_text_is_found_and_the_proposed_cleaner_repairs_it(text: str) -> None:
    (finding,) = run(plain(["fine", text]), "encoding-damage")
    assert (finding.severity, finding.count, lines(finding)) == ("warning", 1, [2])
    assert "clean: [unicode]" in finding.message
    assert ftfy.fix_text(text) != text


@pytest.mark.parametrize("text", CLEAN)
def test_text_that_only_looks_foreign_is_not_damaged(text: str) -> None:
    assert run(plain([text]), "encoding-damage") == []


def test_replacement_characters_are_a_finding_of_their_own() -> None:
    found = run(tagged([["a", "b\ufffd", "\ufffd"], ["c"], ["Ã©"]], [["O"] * 3, ["O"], ["O"]]), "encoding-damage")
    assert [(finding.count, lines(finding)) for finding in found] == [(1, [1]), (1, [3])]


# label leakage


def leaking(own: int, others: int, label: str = "gift_card", text: str = "My Gift card, please") -> Any:
    """Return 20 rows of the label and 20 others, of which so many have its name."""
    values = texts(40)
    values[:own] = [text] * own
    values[20 : 20 + others] = [text] * others
    return world({"text": ("text", values), "label": ("label", [label] * 20 + ["other things"] * 20)})


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [(20, 0, 1), (10, 0, 1), (10, 1, 1), (9, 0, 0), (10, 2, 0), (20, 2, 1), (20, 3, 0), (0, 0, 0)],
)
def test_a_label_that_stands_in_its_own_texts_and_hardly_in_others_leaks(own: int, others: int, expected: int) -> None:
    found = run(leaking(own, others), "label-leakage")
    assert brief(found) == [("warning", 1)] * expected
    if found:
        assert f"'gift_card' in {own / 20:.1%} of its texts, {others / 20:.1%} of others" in found[0].message
        assert found[0].examples[0]["label"] == "gift_card"


def test_the_bounds_of_leakage_are_options() -> None:
    assert brief(run(leaking(9, 0), "label-leakage", share=0.4)) == [("warning", 1)]
    assert brief(run(leaking(20, 3), "label-leakage", ratio=5.0)) == [("warning", 1)]
    assert run(leaking(20, 0), "label-leakage", rows_per_label=21) == []
    assert brief(run(leaking(20, 0), "label-leakage", rows_looked_at=24)) == [("warning", 1)]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("gift_card", "a GIFT-CARD!", True),
        ("gift card", "gift \t card", True),
        ("gift_card", "giftcard", False),
        ("card", "cards", False),
        ("card", "discard", False),
        ("C++ (old)", "in c++ (OLD) now", True),
        ("退款", "我想退款了", True),
        ("café", "ein Café.", True),
        ("élan", "un élan", True),
        ("no", "no", False),
        ("12345", "12345", False),
        ("", "", False),
        ("__", "__", False),
    ],
)
def test_the_name_of_a_label_in_a_text(name: str, text: str, found: bool) -> None:
    pattern = name_pattern(name)
    column = chunked(["other", text], "text")
    assert bool(pattern and 1 in matching_rows(column, f"(?i){pattern}")) is found


def test_labels_leak_out_of_words_and_of_several_labels() -> None:
    tokens = [["my", "refund"]] * 12 + [["the", "door"]] * 12
    values: dict[str, tuple[Kind, Sequence[Any]]] = {
        "tokens": ("tokens", tokens),
        "labels": ("labels", [["refund", "all"]] * 12 + [["all"]] * 12),
    }
    (finding,) = run(world(values), "label-leakage")
    assert "'refund' in 100.0% of its texts, 0.0% of others" in finding.message


# columns of the file


def filed(extra: Sequence[Any], role: str | None = None, **more: Any) -> Any:
    """Return rows whose file has one more column, or whose role is read from it."""
    sample = [{"text": text, "extra": value} for text, value in zip(texts(len(extra)), extra, strict=True)]
    used = {"text": "text", "label": "label"} | ({role: "extra"} if role else {})
    return labelled(["a", "b"] * (len(extra) // 2), sample=sample, used=used, **more)


@pytest.mark.parametrize("value", ["web", 1, None, ["x"], {"a": [1]}, math.nan])
def test_an_unused_constant_column_is_a_note(value: Any) -> None:
    (finding,) = run(filed([value] * 20), "constant-columns")
    assert (finding.severity, finding.count) == ("note", 1)
    assert "'extra'" in finding.message
    assert run(filed([value] * 18), "constant-columns") == []
    assert brief(run(filed([value] * 18), "constant-columns", rows_at_least=18)) == [("note", 1)]
    assert run(filed([value] * 19 + ["other"]), "constant-columns") == []


def test_a_constant_text_is_a_warning() -> None:
    kept = world({"text": ("text", ["same"]), "label": ("label", ["a"])})
    rows = dataclasses.replace(filed(["same"] * 20, role="text"), values=kept.values, clusters=kept.clusters)
    assert brief(run(rows, "constant-columns")) == [("warning", 1)]
    assert run(filed(["same"] * 20, role="text"), "constant-columns") == []  # only the first rows are the same


def test_a_constant_label_is_an_error() -> None:
    sample = [{"label": "a"}] * 20
    (finding,) = run(labelled(["a"] * 25, sample=sample), "constant-columns")
    assert (finding.severity, finding.count) == ("error", 25)
    assert run(labelled(["a"] * 24 + ["b"], sample=sample), "constant-columns") == []


@pytest.mark.parametrize(("last", "expected"), [(["a"], [("error", 20)]), (["b"], []), ([], [])])
def test_a_constant_list_of_labels_is_an_error(last: list[str], expected: list[Any]) -> None:
    rows = world({"text": ("text", texts(20)), "labels": ("labels", [["a"]] * 19 + [last])}, sample=[{}] * 20)
    assert brief(run(rows, "constant-columns")) == expected
    nothing = world({"text": ("text", texts(20)), "labels": ("labels", [[]] * 20)}, sample=[{}] * 20)
    assert brief(run(nothing, "constant-columns")) == [("error", 20)]


IDENTIFIERS = [list(range(1, 21)), [f"A-{row}" for row in range(20)], [row * row for row in range(20)]]
NO_IDENTIFIERS = [
    texts(20),
    [f"2024-01-{day:02}" for day in range(1, 21)],
    [row / 7 for row in range(20)],
    [chr(0x4E00 + row) for row in range(20)],
    [chr(ord("a") + row) for row in range(20)],
    [[row] for row in range(20)],
    [*range(19), 0],
]


@pytest.mark.parametrize("values", IDENTIFIERS)
def test_an_id_like_column_is_a_note_and_under_a_role_a_warning(values: list[Any]) -> None:
    (finding,) = run(filed(values), "id-like-columns")
    assert (finding.severity, finding.count) == ("note", 1)
    assert brief(run(filed(values, role="label"), "id-like-columns")) == [("warning", 1)]
    assert run(filed(values[:18]), "id-like-columns") == []


@pytest.mark.parametrize("values", NO_IDENTIFIERS)
def test_other_columns_are_no_identifiers(values: list[Any]) -> None:
    assert run(filed(values), "id-like-columns") == []


@pytest.mark.parametrize(("values", "expected"), list(zip(IDENTIFIERS, [1, 0, 0], strict=True)))
def test_of_numbers_to_predict_only_running_ones_are_id_like(values: list[Any], expected: int) -> None:
    rows = world(
        {"text": ("text", texts(20)), "score": ("number", [1.0] * 20)}, sample=[{"score": value} for value in values]
    )
    assert brief(run(rows, "id-like-columns")) == [("warning", 1)] * expected


# bulk reading against plain reading

TAG = st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y", "B", "I-", "I", "E-X", "X", "", "B-_", "Bad"])
TAG_ROWS = st.lists(st.lists(TAG, max_size=6), max_size=6)


@settings(deadline=None, max_examples=200)
@given(rows=TAG_ROWS, size=st.integers(1, 4))
def test_entities_in_bulk_are_those_of_single_rows(rows: list[list[str]], size: int) -> None:
    found = find_entities(chunked(rows, "tags", size))
    expected = [(row, *entity) for row, tags in enumerate(rows) for entity in tagging.entities(tags)]
    kinds = [found.types[code] for code in found.codes]
    assert list(zip(found.rows, found.starts, found.ends, kinds, strict=True)) == expected
    wrong = [(row, position) for row, tags in enumerate(rows) for position in tagging.invalid_positions(tags)]
    assert list(zip(found.invalid_rows, found.invalid_positions, strict=True)) == wrong


def test_rows_are_numbered_across_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns_in_bulk, "WINDOW", 3)
    tokens, tags = [["a", "."]] * 10 + [[" "]], [["B-X", "I-X"]] * 10 + [["I-Y"]]
    rows = tagged(tokens, tags)
    assert rows.entities.rows.tolist() == list(range(11))
    assert rows.entities.invalid_rows.tolist() == [10]
    assert [finding.count for finding in run(rows, "entity-boundaries")] == [1, 1, 10]
    assert rows.word_counts.tolist() == [2] * 10 + [1]
    assert matching_rows(rows.values["tokens"], "^a$").tolist() == list(range(10))


@settings(deadline=None, max_examples=200)
@given(values=st.lists(st.text("ab \n\tä退款 。", max_size=12), max_size=8), size=st.integers(1, 4))
def test_words_are_runs_of_what_is_printed_and_single_chinese_characters(values: list[str], size: int) -> None:
    def count(text: str) -> int:
        spaced = "".join(f" {letter}" if 0x3000 <= ord(letter) <= 0x9FFF else letter for letter in text)
        return len(spaced.split())

    assert count_words(chunked(values, "text", size)).tolist() == [count(text) for text in values]


@settings(deadline=None, max_examples=100)
@given(values=st.lists(st.text(max_size=3), max_size=9), size=st.integers(1, 4), data=st.data())
def test_rows_taken_from_chunks(values: list[str], size: int, data: st.DataObject) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, len(values) - 1)))) if values else []
    taken = take_rows(chunked(values, "text", size), np.array(chosen, dtype=np.int64))
    assert taken.to_pylist() == [values[row] for row in chosen]


@settings(deadline=None, max_examples=200)
@given(text=st.text(max_size=20))
def test_the_pattern_of_damage_matches_alike_in_bulk_and_in_python(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert list(matching_rows(chunked([text], "text"), MOJIBAKE)) == [0] * bool(re.search(MOJIBAKE, text))


# anything at all

ANY_TEXT = st.text(max_size=12) | st.sampled_from(["hi", "Hi", "Ã©", "\ufffd", "a b c d e f", "refund", ""])
ANY_LABEL = ANY_TEXT | st.none()
ANY_VALUE = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.lists(st.integers(), max_size=2)
STRATEGIES: dict[str, Any] = {
    "text": ANY_TEXT | st.none(),
    "label": ANY_LABEL,
    "labels": st.lists(ANY_LABEL, max_size=3) | st.none(),
    "tokens": st.lists(ANY_LABEL, max_size=4) | st.none(),
    "tags": st.lists(TAG | ANY_LABEL, max_size=4) | st.none(),
    "number": st.floats() | st.none(),
}


@st.composite
def any_input(draw: st.DrawFn) -> Any:
    kinds: list[Kind] = ["text", "tokens"]
    roles: dict[str, Kind] = {draw(st.sampled_from(kinds)): draw(st.sampled_from(kinds))}
    targets: list[Kind | None] = ["label", "labels", "tags", "number", None]
    if target := draw(st.sampled_from(targets)):
        roles["target"] = target
    size = draw(st.integers(0, 8))
    values = {role: draw(st.lists(STRATEGIES[kind], min_size=size, max_size=size)) for role, kind in roles.items()}
    numbers = st.lists(st.integers(0, max(size - 1, 0)), min_size=size, max_size=size)
    splits = st.lists(st.integers(0, 2), min_size=size, max_size=size)
    sample = draw(st.lists(st.dictionaries(st.sampled_from(["text", "target", "x"]), ANY_VALUE), max_size=25))
    reasons = st.sampled_from(["missing_target", "conflicting_labels", "unknown_label", "duplicate", "not_utf8"])
    dropped = draw(st.dictionaries(reasons, st.integers(1, 9)))
    return world(
        {role: (kind, values[role]) for role, kind in roles.items()},
        splits=draw(st.none() | splits.map(lambda found: np.array(found, dtype=np.int8))),
        clusters=np.array(draw(numbers), dtype=np.int64),
        dropped=dropped,
        dropped_examples={name: [{"line": 1, "row": draw(ANY_VALUE)}, {"line": 2}] for name in dropped},
        sample=sample,
        given_labels=draw(st.none() | st.lists(ANY_TEXT, max_size=3)),
    )


EAGER: dict[str, Any] = {
    "imbalance": (None, {"ratio": 1.5}),
    "label-leakage": (None, {"share": 0.0, "ratio": 1.0, "rows_per_label": 1}),
    "constant-columns": (None, {"rows_at_least": 2}),
    "id-like-columns": (None, {"rows_at_least": 2}),
    "long-rows": (None, {"words": 1, "spread": 0.5}),
    "rare-labels": (None, {"texts": 3}),
}


@settings(deadline=None, max_examples=300)
@given(rows=any_input())
def test_no_check_stumbles_over_any_values(rows: Any) -> None:
    for finding in run_checks(rows, EAGER):
        assert finding.count > 0 or finding.check == "too-few-rows"
        assert finding.message.endswith(".")
        assert "\n" not in finding.message.replace("\\n", "")
        assert len(finding.examples) <= 5
        assert all(len(example["text"]) <= 200 for example in finding.examples)


@pytest.mark.parametrize("kind", ["label", "labels", "tags", "number", ""])
def test_no_rows_and_no_chunks_at_all(kind: str) -> None:
    rows = world({"text": ("text", []), **({"target": (kind, [])} if kind else {})})  # type: ignore[dict-item]
    values = {role: pa.chunked_array([], column.type) for role, column in rows.values.items()}
    found = run_checks(dataclasses.replace(rows, values=values), EAGER)
    assert [finding.check for finding in found] == ["too-few-rows"]
