"""From records to rows: which are usable, and the reason for each that is not."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.data.rows import Column, Dropped, Row, column_names, count_reasons, read_label, read_text, select
from finetune.data.sources import Record
from finetune.errors import FinetuneError

COLUMNS = {"text": Column("text"), "label": Column("label")}
NAMES = {"text": "body", "label": "intent"}


def chosen(*values: dict[str, Any]) -> tuple[list[Row], list[Dropped]]:
    records = [Record(line, value) for line, value in enumerate(values, start=1)]
    return select(records, COLUMNS, NAMES, str.strip, "rows.jsonl")


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
        ("-", "", "nothing_left_after_cleaning"),
        ("half \ud83d emoji", "half ? emoji", ""),
    ],
)
def test_a_text_is_cleaned_or_has_a_reason(value: object, text: str, reason: str) -> None:
    assert read_text(value, lambda raw: raw.strip().removeprefix("-")) == (text, reason)


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


def test_usable_rows_have_roles_and_the_line_of_their_record() -> None:
    rows, dropped = chosen({"body": " a ", "intent": " x ", "id": 5}, {"intent": "y", "body": "b"})
    assert rows == [Row(1, {"text": "a", "label": "x"}), Row(2, {"text": "b", "label": "y"})]
    assert dropped == []


def test_an_unusable_row_keeps_all_of_its_values_and_its_first_reason() -> None:
    bad: list[dict[str, Any]] = [
        {"intent": "x"},
        {"body": 5, "intent": 2.5, "id": 7},
        {"body": " ", "intent": "x"},
        {"body": "a", "intent": ""},
        {"body": "a", "intent": []},
    ]
    rows, dropped = chosen({"body": "a", "intent": "x"}, *bad)
    assert [row.line for row in rows] == [1]
    reasons = ["missing_text", "wrong_type_of_text", "blank_text", "missing_label", "wrong_type_of_label"]
    assert dropped == [
        Dropped(line, reason, values) for line, (reason, values) in enumerate(zip(reasons, bad, strict=True), start=2)
    ]


def test_an_unreadable_record_is_dropped_for_the_reason_that_its_source_gives() -> None:
    records = [Record(1, {}, "not_json"), Record(2, {"body": "a", "intent": "x"})]
    rows, dropped = select(records, COLUMNS, NAMES, str.strip, "rows.jsonl")
    assert ([row.line for row in rows], dropped) == ([2], [Dropped(1, "not_json", {})])


def test_a_dropped_row_is_written_with_its_line_and_reason() -> None:
    assert Dropped(4, "blank_text", {"body": " "}).as_json() == {
        "line": 4,
        "reason": "blank_text",
        "row": {"body": " "},
    }


def test_reasons_are_counted_with_the_most_frequent_first() -> None:
    dropped = [Dropped(line, reason, {}) for line, reason in enumerate(["b", "a", "a", "c", "a", "c"])]
    assert list(count_reasons(dropped).items()) == [("a", 3), ("c", 2), ("b", 1)]


def test_a_role_that_is_not_mapped_is_a_column_of_its_own_name() -> None:
    assert column_names(COLUMNS, {"text": "body"}) == {"text": "body", "label": "label"}


def test_an_unknown_role_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        FinetuneError, match=r"expected the roles text, label; found lable\. Did you mean label\? Write"
    ):
        column_names(COLUMNS, {"text": "body", "lable": "intent"})


def test_a_column_that_no_row_has_is_refused_with_the_columns_that_there_are() -> None:
    with pytest.raises(FinetuneError) as caught:
        chosen({"bodi": "a", "intent": "x"}, {"bodi": "b", "id": 1})
    message = str(caught.value)
    assert message.startswith("rows.jsonl: expected a column 'body' for text; found bodi, intent, id")
    assert "Did you mean bodi? Rename it" in message
    assert message.endswith("set data.columns.text.")


def test_a_message_lists_the_columns_that_there_are_once() -> None:
    with pytest.raises(FinetuneError) as caught:
        chosen({"question": "a", "intent": "x"})
    assert str(caught.value).count("question") == 1


def test_rows_without_any_column_are_said_to_have_none() -> None:
    with pytest.raises(FinetuneError, match=r"found no columns|found none"):
        chosen({}, {})


def test_a_column_that_only_some_rows_have_is_no_mistake_of_the_recipe() -> None:
    rows, dropped = chosen({"intent": "x"}, {"body": "a", "intent": "x"})
    assert ([row.line for row in rows], [row.reason for row in dropped]) == ([2], ["missing_text"])


def test_a_file_of_nothing_but_unreadable_lines_is_refused_with_the_reasons() -> None:
    records = [Record(1, {}, "not_json"), Record(2, {}, "empty_line"), Record(3, {}, "not_json")]
    with pytest.raises(FinetuneError) as caught:
        select(records, COLUMNS, NAMES, str.strip, "rows.jsonl")
    assert str(caught.value) == "rows.jsonl: none of its 3 rows can be read (not_json 2, empty_line 1)"
