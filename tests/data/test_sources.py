"""Reading files of raw rows: every line is a record with its number, readable or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.data.sources import Record, csv_, jsonl, read, tsv
from finetune.errors import FinetuneError


@pytest.mark.parametrize(
    ("line", "values", "unreadable"),
    [
        (b'{"body": "hi", "extra": [1]}', {"body": "hi", "extra": [1]}, ""),
        (b'{"body": "caf\xc3\xa9"}\r', {"body": "caf\u00e9"}, ""),
        (b"", {}, "empty_line"),
        (b"  \t", {}, "empty_line"),
        (b'{"body": "caf\xe9"}', {}, "not_utf8"),
        (b'{"body": "cut o', {}, "not_json"),
        (b"plain text", {}, "not_json"),
        (b'{"body": ' + b"[" * 100_000 + b"}", {}, "not_json"),
        (b'{"body": ' + b"1" * 5_000 + b"}", {}, "not_json"),
        (b'["body", "intent"]', {}, "not_an_object"),
        (b'"body"', {}, "not_an_object"),
        (b"null", {}, "not_an_object"),
    ],
)
def test_a_json_line_is_a_record_or_has_a_reason_why_not(
    line: bytes, values: dict[str, object], unreadable: str
) -> None:
    assert list(jsonl(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')) == [
        Record(1, {"a": 1}),
        Record(2, values, unreadable),
        Record(3, {"a": 2}),
    ]


@pytest.mark.parametrize("constant", [b"NaN", b"-Infinity"])
def test_numbers_that_json_does_not_have_make_a_line_unreadable(constant: bytes) -> None:
    assert list(jsonl(b'{"body": ' + constant + b"}\n")) == [Record(1, {}, "not_json")]


def test_only_a_line_feed_ends_a_json_line() -> None:
    content = '{"body": "one\u2028two\u2029three\u0085four"}\n{"body": "x"}'.encode()
    assert [record.values["body"] for record in jsonl(content)] == ["one\u2028two\u2029three\u0085four", "x"]


def test_a_byte_order_mark_is_no_part_of_the_first_row() -> None:
    assert list(jsonl(b'\xef\xbb\xbf{"body": "x"}\n')) == [Record(1, {"body": "x"})]
    assert list(csv_(b"\xef\xbb\xbfbody\nx\n")) == [Record(2, {"body": "x"})]


def test_the_last_line_break_starts_no_row() -> None:
    assert len(list(jsonl(b'{"a": 1}\n'))) == len(list(jsonl(b'{"a": 1}'))) == 1
    assert [record.unreadable for record in jsonl(b'{"a": 1}\n\n')] == ["", "empty_line"]


def test_a_csv_record_has_the_line_on_which_it_starts() -> None:
    content = b'body,intent\r\n"two\r\nlines, a comma and ""quotes""",a\r\n\r\nx,b,c\r\ny\r\nz,d'
    assert list(csv_(content)) == [
        Record(2, {"body": 'two\r\nlines, a comma and "quotes"', "intent": "a"}),
        Record(4, {}, "empty_line"),
        Record(5, {}, "wrong_number_of_columns"),
        Record(6, {}, "wrong_number_of_columns"),
        Record(7, {"body": "z", "intent": "d"}),
    ]


def test_tab_separated_values_keep_their_commas() -> None:
    assert list(tsv(b"body\tintent\na, b\tc\n")) == [Record(2, {"body": "a, b", "intent": "c"})]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.tsv", "ROWS.CSV"])
def test_the_suffix_chooses_the_reader(tmp_path: Path, name: str) -> None:
    content = {"jsonl": '{"body": "x", "intent": "y"}\n', "csv": "body,intent\nx,y\n", "tsv": "body\tintent\nx\ty\n"}
    path = tmp_path / name
    path.write_text(content[path.suffix[1:].lower()], encoding="utf-8")
    assert [record.values for record in read(path)] == [{"body": "x", "intent": "y"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b"", "{path}: expected rows, found an empty file (0 bytes)"),
        ("rows.csv", b"", "{path}: expected rows, found an empty file (0 bytes)"),
        ("rows.jsonl", None, "{path}: expected a file of rows, found nothing"),
        ("rows.json", b"[]", "{path}: expected a file that ends in one of .csv, .jsonl, .tsv; found .json"),
    ],
)
def test_a_file_without_rows_is_named_with_what_was_expected(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FinetuneError) as caught:
        read(path)
    assert str(caught.value) == message.format(path=path)


def test_a_folder_is_no_file_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.mkdir()
    with pytest.raises(FinetuneError, match=r"rows\.jsonl: expected a file of rows, found a folder"):
        read(path)


def test_a_csv_with_a_header_alone_is_not_called_empty(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"body,intent\n")
    with pytest.raises(FinetuneError, match="expected rows") as caught:
        read(path)
    assert "empty file" not in str(caught.value)


def test_a_csv_in_another_encoding_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"body,intent\ncaf\xe9,a\n")
    with pytest.raises(FinetuneError, match=r"position 15") as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "content",
    [
        b'body,intent\na,x\n"never closed,y\nb,x\nc,y\n',
        b'body,intent\na,x\nnever closed,"y\nb,x\nc,y\n',
        b'body,intent\na,x\n"' + b"long" * 2_500_001 + b'",y\n',
    ],
    ids=["quote open in the text", "quote open in the label", "cell too long"],
)
def test_a_csv_that_cannot_be_cut_into_rows_is_refused_with_the_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(FinetuneError, match="line 3") as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_two_csv_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"body,body,intent\na,b,c\n")
    with pytest.raises(FinetuneError, match="body"):
        read(path)
