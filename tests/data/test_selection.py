"""From records to rows: which are usable, and the reason for each that is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune.data.cleaning import Pipeline
from finetune.data.duplicates import text_keys
from finetune.data.rows import Column, Record, column_names, list_lines, list_reasons, used_columns
from finetune.data.selection import (
    RawDrop,
    Selected,
    SelectionSettings,
    Selector,
    SelectorWork,
    check_columns,
)
from finetune.data.values import read_label, read_number, read_text
from finetune.errors import FinetuneError
from finetune.preparation.reading import drop_line

COLUMNS = {"text": Column("text"), "label": Column("label")}
NAMES = {"text": "body", "label": "intent"}
NEEDED = list(NAMES.items())
HTML: tuple[tuple[str, dict[str, Any]], ...] = (("html", {}), ("whitespace", {}))


def select(records: list[Record], **settings: Any) -> Selected:
    chosen = SelectionSettings(**{"columns": COLUMNS, "names": NAMES, "clean": (("whitespace", {}),), **settings})
    return Selector(chosen)(SelectorWork(0, [(0, len(records))], records))


def chosen(*values: dict[str, Any], **settings: Any) -> tuple[list[dict[str, Any]], list[tuple[int, str]]]:
    """Return the usable rows, each with its line and roles, and line and reason of the others."""
    selected = select([Record(line, value) for line, value in enumerate(values, start=1)], **settings)
    names = ["line", *settings.get("columns", COLUMNS)]
    return selected.rows.select(names).to_pylist(), [(drop.line, drop.reason) for drop in selected.dropped]


@pytest.mark.parametrize(
    ("value", "text", "reason"),
    [
        (" a ", "a", ""),
        (None, "", "missing"),
        ("", "", "blank"),
        (" \u00a0\t\n", "", "blank"),
        (0, "", "wrong_type_of"),
        (19.99, "", "wrong_type_of"),
        (True, "", "wrong_type_of"),
        (["a"], "", "wrong_type_of"),
        ({"a": "b"}, "", "wrong_type_of"),
        ("<br>", "", "nothing_left_after_cleaning"),
        ("half \ud83d emoji", "half ? emoji", ""),
    ],
)
def test_a_text_is_cleaned_or_has_a_reason(value: object, text: str, reason: str) -> None:
    assert read_text(value, Pipeline(HTML)) == (text, reason)
    rows, dropped = chosen({"body": value, "intent": "x"}, clean=HTML)
    assert [row["text"] for row in rows] == ([] if reason else [text])
    assert dropped == ([(1, f"{reason}_text")] if reason else [])


def test_a_text_that_a_cleaner_rejects_is_no_text_alone_and_among_others() -> None:
    length = (("length", {"min_words": 2}),)
    assert read_text("one", Pipeline(length)) == ("", "rejected_by_length")
    rows, dropped = chosen({"body": "one", "intent": "x"}, {"body": "two words", "intent": "x"}, clean=length)
    assert ([row["line"] for row in rows], dropped) == ([2], [(1, "rejected_by_length")])


def test_a_cleaner_rejects_no_row_that_has_no_text() -> None:
    records = [Record(1, {"body": None}), Record(2, {"body": " "}), Record(3, {"body": "one", "intent": "x"})]
    selected = select(records, clean=(("length", {"min_words": 2}),))
    assert [drop.reason for drop in selected.dropped] == ["missing_text", "blank_text", "rejected_by_length"]
    assert [report.rows_rejected for report in selected.reports] == [1]


@pytest.mark.parametrize(
    ("value", "label", "reason"),
    [
        (" fruit\n", "fruit", ""),
        ("Fruit", "Fruit", ""),
        (3, "3", ""),
        (0, "0", ""),
        (True, "true", ""),
        (False, "false", ""),
        (None, "", "missing"),
        ("", "", "missing"),
        ("  ", "", "missing"),
        (1.0, "", "wrong_type_of"),
        (["fruit"], "", "wrong_type_of"),
        ({}, "", "wrong_type_of"),
        ("half \ud83d emoji", "half ? emoji", ""),
    ],
)
def test_a_label_is_read_as_text_or_has_a_reason(value: object, label: str, reason: str) -> None:
    assert read_label(value) == (label, reason)
    rows, dropped = chosen({"body": "a", "intent": value})
    assert [row["label"] for row in rows] == ([] if reason else [label])
    assert dropped == ([(1, f"{reason}_label")] if reason else [])


@pytest.mark.parametrize(
    ("value", "number", "reason"),
    [
        (3, 3.0, ""),
        (-0.5, -0.5, ""),
        (" 1e-3 ", 0.001, ""),
        (None, None, "missing"),
        (" ", None, "missing"),
        (True, None, "wrong_type_of"),
        ([1], None, "wrong_type_of"),
        ("three", None, "not_a_number_in"),
        ("nan", None, "not_a_number_in"),
        (float("inf"), None, "not_a_number_in"),
        (10**400, None, "not_a_number_in"),
    ],
)
def test_a_number_is_finite_or_has_a_reason(value: object, number: float | None, reason: str) -> None:
    assert read_number(value) == (number, reason)
    columns = {"text": Column("text"), "score": Column("number")}
    names = {"text": "text", "score": "score"}
    rows, dropped = chosen({"text": "a", "score": value}, columns=columns, names=names)
    assert [row["score"] for row in rows] == ([] if reason else [number])
    assert dropped == ([(1, f"{reason}_score")] if reason else [])


def test_usable_rows_have_roles_and_the_line_of_their_record() -> None:
    rows, dropped = chosen({"body": " a ", "intent": " x ", "id": 5}, {"intent": "y", "body": "b"})
    assert rows == [{"line": 1, "text": "a", "label": "x"}, {"line": 2, "text": "b", "label": "y"}]
    assert dropped == []


def test_a_row_carries_its_number_its_file_its_record_and_the_key_of_its_cleaned_text() -> None:
    records = [Record(8, {"body": "no label"}), Record(9, {"body": " The  Text ", "intent": "x"}), Record(1, {})]
    selector = Selector(SelectionSettings(COLUMNS, NAMES, clean=(("whitespace", {}),)))
    selected = selector(SelectorWork(100, [(3, 2), (4, 1)], records))
    (row,) = selected.rows.to_pylist()
    assert (row["number"], row["file"], row["line"], json.loads(row["raw"])) == (101, 3, 9, records[1].values)
    assert [row["key_high"], row["key_low"]] == text_keys([["the text"]])[0].tolist()
    assert [(drop.number, drop.file, drop.line) for drop in selected.dropped] == [(100, 3, 8), (102, 4, 1)]


def test_an_unusable_row_keeps_all_of_its_values_and_its_first_reason() -> None:
    bad: list[dict[str, Any]] = [
        {"intent": "x"},
        {"body": 5, "intent": 2.5, "id": 7},
        {"body": " ", "intent": "x"},
        {"body": "a", "intent": ""},
        {"body": "a", "intent": []},
    ]
    records = [Record(line, values) for line, values in enumerate([{"body": "a", "intent": "x"}, *bad], start=1)]
    selected = select(records)
    assert selected.rows["line"].to_pylist() == [1]
    reasons = ["missing_text", "wrong_type_of_text", "blank_text", "missing_label", "wrong_type_of_label"]
    assert [(drop.line, drop.reason, json.loads(drop.raw)) for drop in selected.dropped] == [
        (line, reason, values) for line, (reason, values) in enumerate(zip(reasons, bad, strict=True), start=2)
    ]


def test_an_unreadable_record_is_dropped_for_the_reason_that_its_source_gives() -> None:
    selected = select([Record(1, {}, "not_json"), Record(2, {"body": "a", "intent": "x"})])
    assert (selected.rows["line"].to_pylist(), selected.dropped) == ([2], [RawDrop(0, 0, 1, "not_json", b"{}")])


def test_a_dropped_row_is_written_with_its_line_and_reason_and_with_its_file_where_there_are_several() -> None:
    drop = RawDrop(number=70, file=1, line=4, reason="blank_text", raw='{"body":" ","é":[1]}'.encode())
    for files, place in ((["a.jsonl"], {}), (["a.jsonl", 'b "quoted".jsonl'], {"file": 'b "quoted".jsonl'})):
        number, _, line = drop_line(drop, files).partition(b"\t")
        assert (number, line[-1:], line.count(b"\n")) == (b"70", b"\n", 1)
        written = json.loads(line)
        assert written == {**place, "line": 4, "reason": "blank_text", "row": {"body": " ", "é": [1]}}
        assert list(written)[-3:] == ["line", "reason", "row"]


def test_the_values_of_several_texts_and_labels_are_read_by_their_kind() -> None:
    columns = {"text": Column("text"), "text_pair": Column("text"), "labels": Column("labels")}
    rows, dropped = chosen(
        {"text": " a ", "text_pair": "b", "labels": ["y", 1, "y", " x "]},
        {"text": "a", "text_pair": "b", "labels": []},
        {"text": "a", "text_pair": None, "labels": ["x"]},
        {"text": "a", "text_pair": "b", "labels": ["x", None]},
        {"text": "a", "text_pair": "b"},
        columns=columns,
        names={role: role for role in columns},
    )
    assert rows == [
        {"line": 1, "text": "a", "text_pair": "b", "labels": ["1", "x", "y"]},
        {"line": 2, "text": "a", "text_pair": "b", "labels": []},
    ]
    assert dropped == [(3, "missing_text_pair"), (4, "missing_labels"), (5, "missing_labels")]


def test_words_and_tags_have_to_be_as_many() -> None:
    columns = {"tokens": Column("tokens"), "tags": Column("tags")}
    rows, dropped = chosen(
        {"tokens": ["a", " b "], "tags": ["O", "B-x"]},
        {"tokens": "a b", "tags": "O O"},
        {"tokens": ["a"], "tags": ["O", "O"]},
        {"tokens": [], "tags": []},
        {"tokens": ["a", 1], "tags": ["O", "O"]},
        columns=columns,
        names={role: role for role in columns},
    )
    assert rows == [
        {"line": 1, "tokens": ["a", "b"], "tags": ["O", "B-x"]},
        {"line": 2, "tokens": ["a", "b"], "tags": ["O", "O"]},
    ]
    assert dropped == [(3, "tokens_and_tags_differ_in_number"), (4, "missing_tokens"), (5, "wrong_type_of_tokens")]


def test_reasons_and_lines_are_listed() -> None:
    assert list_reasons({"not_json": 2, "blank_text": 1}) == "not_json 2, blank_text 1"
    assert (list_lines([3, 1]), list_lines(range(12))) == ("3, 1", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more")


def test_a_role_that_is_not_mapped_is_a_column_of_its_own_name() -> None:
    assert column_names(COLUMNS, {"text": "body"}) == {"text": "body", "label": "label"}


def test_an_optional_column_is_used_when_it_is_mapped_and_has_to_be_there_then() -> None:
    columns = {**COLUMNS, "text_pair": Column("text", required=False)}
    assert used_columns(columns, {"text": "body"}) == COLUMNS
    assert used_columns(columns, {"text_pair": "answer"}) == {**COLUMNS, "text_pair": Column("text")}


def test_an_unknown_role_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        FinetuneError, match=r"expected the roles text, label; found lable\. Did you mean label\? Write"
    ):
        column_names(COLUMNS, {"text": "body", "lable": "intent"})


def refusal(*values: dict[str, Any]) -> str:
    """Return the message about the columns of rows with these values."""
    with pytest.raises(FinetuneError) as caught:
        check_columns([Record(line, value) for line, value in enumerate(values, start=1)], NEEDED, "rows.jsonl")
    return str(caught.value)


def test_a_column_that_no_row_has_is_refused_with_the_columns_that_there_are() -> None:
    assert refusal({"bodi": "a", "intent": "x"}, {"bodi": "b", "id": 1}) == (
        "rows.jsonl: expected a column 'body' for text; found bodi, intent, id. "
        "Did you mean bodi? Rename it, or set data.columns.text."
    )


def test_a_message_lists_the_columns_that_there_are_once() -> None:
    assert refusal({"question": "a", "intent": "x"}, {"question": "b"}).count("question") == 1


def test_rows_without_any_column_are_said_to_have_none() -> None:
    assert "found no columns" in refusal({}, {})


def test_a_column_that_only_some_rows_have_is_no_mistake_of_the_recipe() -> None:
    values: list[dict[str, Any]] = [{"intent": "x"}, {"body": "a", "intent": "x"}]
    check_columns([Record(line, value) for line, value in enumerate(values, start=1)], NEEDED, "rows.jsonl")
    rows, dropped = chosen(*values)
    assert ([row["line"] for row in rows], dropped) == ([2], [(1, "missing_text")])


def test_a_file_of_nothing_but_unreadable_lines_is_refused_with_the_reasons() -> None:
    records = [Record(1, {}, "not_json"), Record(2, {}, "empty_line"), Record(3, {}, "not_json")]
    with pytest.raises(FinetuneError) as caught:
        check_columns(records, NEEDED, "rows.jsonl")
    assert str(caught.value) == "rows.jsonl: none of its 3 rows can be read (not_json 2, empty_line 1)"
