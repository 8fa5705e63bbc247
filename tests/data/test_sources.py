"""Reading files of raw rows: every line is a record with its number, readable or not."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import io
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune import urls
from finetune.data.sources import (
    BATCH_CHARACTERS,
    BATCH_ROWS,
    FIXED_COLUMNS,
    Record,
    Source,
    SourceFile,
    batching,
    characters_of,
    columnar,
    files,
    json_lines,
    known_suffixes,
    open_source,
    read,
    without_secrets,
)
from finetune.errors import FinetuneError

PROPERTY = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
TEXTS = {"text", "csv", "tsv", "jsonl", "json", "conll"}


def records(source: Source) -> list[Record]:
    return [record for _, batch in source.batches() for record in batch]


def write(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def parse(tmp_path: Path) -> Any:
    """Return a function that reads bytes as a format with options."""

    def parsed(name: str, content: bytes | str, **options: Any) -> list[Record]:
        return records(open_source(str(write(tmp_path, "rows.data", content)), (name, options)))

    return parsed


def parse_or_refuse(parse: Any, name: str, content: bytes) -> list[Record]:
    try:
        return parse(name, content)  # type: ignore[no-any-return]
    except FinetuneError as error:
        message = str(error)
    assert message.startswith("rows.data: ")
    return []


# JSON lines


@pytest.mark.parametrize(
    ("line", "values", "unreadable"),
    [
        (b'{"body": "hi", "extra": [1]}', {"body": "hi", "extra": [1]}, ""),
        (b'{"body": "caf\xc3\xa9"}\r', {"body": "caf\u00e9"}, ""),
        (b'{"body": "\\ud83d"}', {"body": "\ud83d"}, ""),
        (b'{"share": 0.25}', {"share": 0.25}, ""),
        (b'{"number": 123456789012345678901}', {"number": 123456789012345678901}, ""),
        (b"", {}, "empty_line"),
        (b"  \t", {}, "empty_line"),
        (b'{"body": "caf\xe9"}', {}, "not_utf8"),
        (b'{"body": "cut o', {}, "not_json"),
        (b"plain text", {}, "not_json"),
        (b'{"a": 1},{"a": 2}', {}, "not_json"),
        (b'{"body": ' + b"[" * 100_000 + b"}", {}, "not_json"),
        (b'{"body": ' + b"1" * 5_000 + b"}", {}, "not_json"),
        (b'["body", "intent"]', {}, "not_an_object"),
        (b'"body"', {}, "not_an_object"),
        (b"null", {}, "not_an_object"),
    ],
)
def test_a_json_line_is_a_record_or_has_a_reason_why_not(
    parse: Any, line: bytes, values: dict[str, object], unreadable: str
) -> None:
    assert parse("jsonl", b'{"a": 1}\n' + line + b'\n{"a": 2}\n') == [
        Record(1, {"a": 1}),
        Record(2, values, unreadable),
        Record(3, {"a": 2}),
    ]


@pytest.mark.parametrize("constant", [b"NaN", b"-Infinity"])
def test_numbers_that_json_does_not_have_make_a_row_unreadable(parse: Any, constant: bytes) -> None:
    row = b'{"body": ' + constant + b"}"
    assert parse("jsonl", row + b"\n") == [Record(1, {}, "not_json")]
    assert parse("json", b"[" + row + b', {"a": 1}]') == [Record(1, {}, "not_json"), Record(2, {"a": 1})]


def test_only_a_line_feed_ends_a_json_line(parse: Any) -> None:
    content = '{"body": "one\u2028two\u2029three\u0085four"}\n{"body": "x"}'
    assert [record.values["body"] for record in parse("jsonl", content)] == ["one\u2028two\u2029three\u0085four", "x"]


@pytest.mark.parametrize(
    ("name", "content", "record"),
    [
        ("jsonl", '{"body": "x"}\n', Record(1, {"body": "x"})),
        ("json", '[{"body": "x"}]', Record(1, {"body": "x"})),
        ("csv", "body\nx\n", Record(2, {"body": "x"})),
        ("text", "x\n", Record(1, {"text": "x"})),
        ("conll", "x O\n", Record(1, {"tokens": ["x"], "tags": ["O"]})),
    ],
)
def test_a_byte_order_mark_is_no_part_of_the_first_row(parse: Any, name: str, content: str, record: Record) -> None:
    assert parse(name, b"\xef\xbb\xbf" + content.encode()) == [record]


def test_the_last_line_break_starts_no_row(parse: Any) -> None:
    assert parse("jsonl", '{"a": 1}\n') == parse("jsonl", '{"a": 1}') == parse("jsonl", '{"a": 1}\n  ')
    assert [record.unreadable for record in parse("jsonl", '{"a": 1}\n\n')] == ["", "empty_line"]


def plain_json_lines(content: bytes) -> list[Record]:
    """Read JSON lines with the standard library alone."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1].strip():
        lines.pop()
    return [json_lines._parse_carefully(number, line) for number, line in enumerate(lines, start=1)]


def json_values(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none() | st.booleans() | st.integers() | numbers | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    )


MANGLED = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.sampled_from([b'{"a": 1}', b"\n", b"\r\n", b'"', b",", b"\t", b"\0", b"\xef\xbb\xbf", b"a O", b"[", b"]"]),
        json_values(st.floats()).map(lambda value: json.dumps(value).encode()),
    ),
    max_size=12,
).map(b"".join)


@PROPERTY
@given(content=MANGLED)
def test_json_lines_read_as_by_the_standard_library(parse: Any, content: bytes) -> None:
    assert parse("jsonl", content) == plain_json_lines(content)


# JSON documents


def test_an_array_of_objects_is_numbered_from_one(parse: Any) -> None:
    assert parse("json", ' [ {"a": 1} ,\n 5, {"a": "\\ud800"}, [] ] \n') == [
        Record(1, {"a": 1}),
        Record(2, {}, "not_an_object"),
        Record(3, {"a": "\ud800"}),
        Record(4, {}, "not_an_object"),
    ]
    assert parse("json", "[]") == []


def test_a_damaged_text_in_an_array_makes_its_row_unreadable(parse: Any) -> None:
    assert parse("json", b'[{"a": "caf\xe9"}, {"a": "b"}]') == [Record(1, {}, "not_utf8"), Record(2, {"a": "b"})]


def test_the_array_of_rows_may_stand_in_an_object(parse: Any) -> None:
    content = '{"version": [1], "data": {"note": {}, "rows": [{"a": 1}], "more": []}, "end": 0}'
    assert parse("json", content, field="data.rows") == [Record(1, {"a": 1})]
    assert parse("json", '{"version": "1.0", "data": [{"a": 1}]}') == [Record(1, {"a": 1})]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ('{"a": 1}\n{"a": 2}', {}, "expected an array of objects, found an object with a"),
        ('[{"a": 1}]\n[{"a": 2}]', {}, r"more behind it; name JSON lines \.jsonl"),
        ('{"a": [], "b": []}', {}, "one array of rows, found a, b"),
        ('{"a": []}', {"field": "b"}, "expected the field `b`, found an object with a"),
        ('{"a": []}', {"field": "a.b"}, "expected an object at `a`"),
        ('{"a": 5}', {"field": "a"}, "expected an array at `a`"),
        ("[]", {"field": "a"}, "expected an object with the field a"),
        ('[{"a": 1}, {"a', {}, "is no JSON"),
        ('[{"a": 1} {"a": 2}]', {}, "expected , or ]"),
        ('{"a": 1', {}, "the end of the file"),
        ("{5: 1}", {}, "name in quotes"),
        ("hello", {}, "found 'h' at the start"),
        ("[" * 100_000, {}, "is no JSON"),
    ],
)
def test_a_json_file_without_an_array_of_rows_is_refused(
    parse: Any, content: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(FinetuneError, match=message):
        parse("json", content, **options)


@PROPERTY
@given(
    values=st.lists(json_values(st.floats(allow_nan=False, allow_infinity=False)), max_size=6),
    block=st.integers(1, 9),
    indent=st.sampled_from([None, 1]),
)
def test_a_json_array_reads_the_same_in_blocks_of_any_size(
    parse: Any, monkeypatch: pytest.MonkeyPatch, values: list[Any], block: int, indent: int | None
) -> None:
    monkeypatch.setattr(json_lines, "_BLOCK", block)
    expected = [
        Record(number, value) if isinstance(value, dict) else Record(number, {}, "not_an_object")
        for number, value in enumerate(values, start=1)
    ]
    assert parse("json", json.dumps(values, indent=indent)) == expected
    assert parse("json", json.dumps({"n": 12, "rows": values}, ensure_ascii=False, indent=indent)) == expected


# Delimited text


def test_a_csv_record_has_the_line_on_which_it_starts(parse: Any) -> None:
    content = b'body,intent\r\n"two\r\nlines, a comma and ""quotes""",a\r\n\r\nx,b,c\r\ny\r\nz,d'
    assert parse("csv", content) == [
        Record(2, {"body": 'two\r\nlines, a comma and "quotes"', "intent": "a"}),
        Record(4, {}, "empty_line"),
        Record(5, {}, "wrong_number_of_columns"),
        Record(6, {}, "wrong_number_of_columns"),
        Record(7, {"body": "z", "intent": "d"}),
    ]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_end_as_on_any_system(parse: Any, end: bytes) -> None:
    assert parse("csv", end.join([b"a,b", b"1,2", b"3,4", b""])) == [
        Record(2, {"a": "1", "b": "2"}),
        Record(3, {"a": "3", "b": "4"}),
    ]


def test_tab_separated_values_keep_their_commas_and_their_nul(parse: Any) -> None:
    assert parse("tsv", b"body\tintent\na, b\0\tc\n") == [Record(2, {"body": "a, b\0", "intent": "c"})]


def test_without_quoting_quotes_are_text(parse: Any) -> None:
    assert parse("csv", 'body,intent\n"never closed,a\n', quoting=False) == [
        Record(2, {"body": '"never closed', "intent": "a"})
    ]


def test_without_a_header_columns_are_numbered_or_named(parse: Any) -> None:
    assert parse("csv", "x,y\nz\n", header=False) == [
        Record(1, {"0": "x", "1": "y"}),
        Record(2, {}, "wrong_number_of_columns"),
    ]
    assert parse("csv", "x,y\n", header=False, names=["body", "intent"]) == [Record(1, {"body": "x", "intent": "y"})]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(parse: Any, delimiter: str) -> None:
    rows = [["body", "intent"], ["one, two; three", "a"], ["four | five", "b"], ["six, seven, eight", "c"]]
    written = io.StringIO()
    csv.writer(written, delimiter=delimiter).writerows(rows)
    found = parse("csv", written.getvalue(), delimiter="auto")
    assert [list(record.values.values()) for record in found] == rows[1:]


def test_one_column_has_no_delimiter_to_find(parse: Any) -> None:
    assert parse("csv", "body\nx\n", delimiter="auto") == [Record(2, {"body": "x"})]


GERMAN = "text,label\nDie Br\u00fccke ist sch\u00f6n,gut\nDas Caf\u00e9 hat ge\u00f6ffnet,gut\n"
FRENCH = "text,label\nIl a \u00e9t\u00e9 tr\u00e8s content de l\u2019h\u00f4tel,bon\n\u00e7a va tr\u00e8s bien,bon\n"
RUSSIAN = (
    "\u0442\u0435\u043a\u0441\u0442,\u043c\u0435\u0442\u043a\u0430\n"
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 \u044d\u0442\u043e \u0445\u043e\u0440\u043e\u0448\u043e,"
    "\u0445\u043e\u0440\u043e\u0448\u043e\n"
)


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("utf-8", GERMAN),
        ("utf-8-sig", GERMAN),
        ("utf-16", GERMAN),
        ("utf-32", GERMAN),
        ("latin-1", GERMAN),
        ("latin-1", "body,intent\ncaf\u00e9,a\n"),
        ("cp1252", FRENCH),
        ("cp1251", RUSSIAN),
    ],
)
def test_the_encoding_is_found(parse: Any, encoding: str, content: str) -> None:
    expected = list(csv.DictReader(io.StringIO(content)))
    assert [record.values for record in parse("csv", content.encode(encoding))] == expected


def test_a_named_encoding_is_taken(parse: Any) -> None:
    found = parse("csv", RUSSIAN.encode("koi8-r"), encoding="koi8-r")
    assert [record.values for record in found] == list(csv.DictReader(io.StringIO(RUSSIAN)))


def test_a_damaged_row_does_not_make_the_whole_file_another_encoding(parse: Any) -> None:
    content = "a,b\ncaf\u00e9,1\nna\u00efve,2\n".encode() + b"caf\xe9,3\nplain,4\n"
    expected = [
        Record(2, {"a": "caf\u00e9", "b": "1"}),
        Record(3, {"a": "na\u00efve", "b": "2"}),
        Record(4, {}, "not_utf8"),
        Record(5, {"a": "plain", "b": "4"}),
    ]
    assert parse("csv", content) == parse("csv", b"\xef\xbb\xbf" + content) == expected
    assert parse("csv", b"a\ncaf\xe9\n", encoding="utf-8") == [Record(2, {}, "not_utf8")]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"a,b\n1,\xff\n", {"encoding": "ascii"}, "expected text in ascii, found other bytes"),
        (b"\xff\xfea\0,", {}, "expected text in utf-16, found other bytes"),
        (b"caf\xe9,b\n1,2\n", {"encoding": "utf-8"}, "expected a header in UTF-8"),
        (b"a,a\n1,2\n", {}, "'a' more than once"),
    ],
)
def test_a_csv_that_cannot_be_decoded_is_refused(
    parse: Any, content: bytes, options: dict[str, str], message: str
) -> None:
    with pytest.raises(FinetuneError, match=f"^rows.data: .*{message}"):
        parse("csv", content, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "klingon"}, "encoding: expected auto or an encoding"),
        ({"encoding": "rot13"}, "encoding: expected auto or an encoding"),
        ({"names": ["a"]}, "with `header: false` alone"),
        ({"names": ["a", "a"], "header": False}, "different names"),
        ({"delimiter": "ab"}, "delimiter"),
        ({"delimiter": '"'}, "delimiter"),
        ({"header": 1}, "header"),
        ({"quotes": True}, "quotes"),
    ],
)
def test_options_that_make_no_sense_are_refused(parse: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FinetuneError, match=f"^source csv: .*{message}"):
        parse("csv", b"a\n1\n", **options)


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
    path = write(tmp_path, "rows.csv", content)
    with pytest.raises(FinetuneError, match="line 3") as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


CELLS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=6)


@PROPERTY
@given(
    rows=st.lists(st.tuples(CELLS, CELLS), max_size=6),
    delimiter=st.sampled_from(",;\t|x"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_a_csv_writer_writes_is_read_back(
    parse: Any, rows: list[tuple[str, str]], delimiter: str, encoding: str
) -> None:
    written = io.StringIO(newline="")
    csv.writer(written, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    found = parse("csv", written.getvalue().encode(encoding), delimiter=delimiter)
    assert [tuple(record.values.values()) for record in found] == rows


# Plain text


def test_text_has_a_row_for_each_line_paragraph_or_file(parse: Any) -> None:
    content = b"\none\r\n two \n\n \ncaf\xe9\n"
    assert parse("text", content) == [
        Record(1, {}, "empty_line"),
        Record(2, {"text": "one"}),
        Record(3, {"text": " two "}),
        Record(4, {}, "empty_line"),
        Record(5, {}, "empty_line"),
        Record(6, {}, "not_utf8"),
    ]
    assert parse("text", content, unit="paragraph") == [Record(2, {"text": "one\n two "}), Record(6, {}, "not_utf8")]
    assert parse("text", "a\n\nb\n", unit="file") == [Record(1, {"text": "a\n\nb\n"})]


def test_a_folder_for_each_class_gives_labels(tmp_path: Path) -> None:
    write(tmp_path, "reviews/positive/2.txt", "fine\n")
    write(tmp_path, "reviews/positive/1.txt.gz", gzip.compress(b"\xef\xbb\xbfgood"))
    write(tmp_path, "reviews/negative/3.txt", b"caf\xe9")
    write(tmp_path, "reviews/negative/.hidden", "")
    write(tmp_path, "reviews/README.md", "not a text of a class")
    source = open_source(str(tmp_path / "reviews"))
    assert source.format == "folders"
    assert [file.name for file in source.files] == ["negative/3.txt", "positive/1.txt.gz", "positive/2.txt"]
    assert records(source) == [
        Record(1, {"label": "negative", "file": "negative/3.txt"}, "not_utf8"),
        Record(1, {"text": "good", "label": "positive", "file": "positive/1.txt.gz"}),
        Record(1, {"text": "fine\n", "label": "positive", "file": "positive/2.txt"}),
    ]
    before = source.describe()
    (tmp_path / "reviews/positive").rename(tmp_path / "reviews/good")
    assert open_source(str(tmp_path / "reviews")).describe() != before


@pytest.mark.parametrize("stray", ["positive/notes.md", "positive/more/2.txt"])
def test_what_is_no_text_in_a_folder_of_a_class_is_named(tmp_path: Path, stray: str) -> None:
    write(tmp_path, "positive/1.txt", "good")
    write(tmp_path, stray, "")
    with pytest.raises(FinetuneError, match=f"found {'/'.join(stray.split('/')[:2])}"):
        open_source(str(tmp_path))


# CoNLL

CONLL = """\
-DOCSTART- -X- -X- O

# id 1
EU NNP B-NP I-ORG
rejects VBZ B-VP O

# NN B-NP I-MISC
10\u00a0000 CD I-NP I-MISC
Ford NNP I-NP B-MISC
"""


def test_conll_sentences_are_rows_in_iob2(parse: Any) -> None:
    expected = [
        Record(4, {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}),
        Record(7, {"tokens": ["#", "10\u00a0000", "Ford"], "tags": ["B-MISC", "I-MISC", "B-MISC"]}),
    ]
    assert parse("conll", CONLL) == parse("conll", CONLL.replace("\n", "\r\n")) == expected
    assert parse("conll", CONLL.replace(" ", "\t").replace("#\tid\t1", "# text = a b")) == expected


def test_conll_columns_and_scheme_can_be_chosen(parse: Any) -> None:
    found = parse("conll", "1\tBonn\tS-LOC\tx\n2\tam Rhein\tB-RIV\tx\n", token=1, tag=2, scheme="iobes")
    assert found == [Record(1, {"tokens": ["Bonn", "am Rhein"], "tags": ["B-LOC", "B-RIV"]})]
    assert parse("conll", "a I-X\n", scheme="iob2") == [Record(1, {"tokens": ["a"], "tags": ["I-X"]})]


def test_a_broken_line_makes_its_sentence_unreadable(parse: Any) -> None:
    content = b"a x O\nb O\n\nc x O\n\nd x O\n\nO\n\n\xff x O\n"
    assert parse("conll", content) == [
        Record(1, {}, "wrong_number_of_columns"),
        Record(4, {"tokens": ["c"], "tags": ["O"]}),
        Record(6, {"tokens": ["d"], "tags": ["O"]}),
        Record(8, {}, "wrong_number_of_columns"),
        Record(10, {}, "not_utf8"),
    ]
    assert parse("conll", "a\nb\n") == [Record(1, {}, "wrong_number_of_columns")]
    assert parse("conll", "a O\n", tag=2) == [Record(1, {}, "wrong_number_of_columns")]


# Parquet and Arrow


def arrow_bytes(table: Any, kind: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet

    written = io.BytesIO()
    if kind == "parquet":
        pyarrow.parquet.write_table(table, written)
    else:
        with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(written, table.schema) as writer:
            writer.write_table(table)
    return written.getvalue()


KINDS = [("parquet", "parquet"), ("arrow", "file"), ("arrow", "stream")]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_columnar_files_give_plain_values(parse: Any, name: str, kind: str) -> None:
    import pyarrow as pa

    day = datetime.datetime(2024, 5, 6, 7, 8, 9)
    table = pa.table(
        {
            "text": ["a", None],
            "label": pa.array(["x", "y"]).dictionary_encode(),
            "tags": [["O", "B-X"], []],
            "day": pa.array([day.date(), None]),
            "moment": pa.array([day, day], pa.timestamp("ms", "UTC")),
            "price": pa.array([decimal.Decimal("1.50"), None]),
            "raw": [b"caf\xc3\xa9", b"plain"],
            "inner": [{"start": 1, "day": day.date()}, None],
            "share": [0.5, None],
        }
    )
    found = parse(name, arrow_bytes(table, kind))
    assert json.loads(json.dumps(found)) == [list(record) for record in found]
    assert found == [
        Record(
            1,
            {
                "text": "a",
                "label": "x",
                "tags": ["O", "B-X"],
                "day": "2024-05-06",
                "moment": "2024-05-06T07:08:09+00:00",
                "price": 1.5,
                "raw": "caf\u00e9",
                "inner": {"start": 1, "day": "2024-05-06"},
                "share": 0.5,
            },
        ),
        Record(
            2,
            {
                **dict.fromkeys(("text", "day", "price", "inner", "share")),
                "label": "y",
                "tags": [],
                "moment": "2024-05-06T07:08:09+00:00",
                "raw": "plain",
            },
        ),
    ]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_columnar_values_that_cannot_be_read_cost_their_row_alone(parse: Any, name: str, kind: str) -> None:
    import pyarrow as pa

    table = pa.table(
        {
            "text": pa.array([b"a", b"caf\xe9", b"b", b"c"]).view(pa.string()),
            "raw": [b"a", b"b", b"\xff", b"c"],
            "day": pa.array([0, 0, 0, 10**15], pa.int64()).view(pa.timestamp("ms")),  # beyond the year 9999
        }
    )
    assert [(record.line, record.unreadable) for record in parse(name, arrow_bytes(table, kind))] == [
        (1, ""),
        (2, "not_utf8"),
        (3, "not_utf8"),
        (4, "not_a_value"),
    ]


def test_columns_of_one_name_are_refused(parse: Any) -> None:
    import pyarrow as pa

    table = pa.table([pa.array(["x"]), pa.array(["y"])], names=["a", "a"])
    with pytest.raises(FinetuneError, match="'a' more than once"):
        parse("arrow", arrow_bytes(table, "file"))


@pytest.mark.parametrize(("name", "kind"), KINDS)
@PROPERTY
@given(data=st.data())
def test_damaged_columnar_files_are_records_or_one_error(parse: Any, name: str, kind: str, data: Any) -> None:
    import pyarrow as pa

    whole = arrow_bytes(pa.table({"text": ["a", "bc", None], "tags": [["O"], [], ["B-X"]]}), kind)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    found = parse_or_refuse(parse, name, bytes(damaged[: data.draw(st.integers(0, len(whole)))]))
    assert [record.line for record in found] == list(range(1, len(found) + 1))


# What every format keeps


@pytest.mark.parametrize("name", sorted(TEXTS))
@PROPERTY
@given(content=MANGLED)
def test_any_bytes_are_records_in_order_or_one_error(parse: Any, name: str, content: bytes) -> None:
    found = parse_or_refuse(parse, name, content)
    numbers = [record.line for record in found]
    assert numbers == sorted(set(numbers))
    assert all(isinstance(record.values, dict) and (record.values == {} or not record.unreadable) for record in found)


def test_rows_come_in_batches_with_the_index_of_their_file(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", '{"a": 1}\n' * (BATCH_ROWS + 5))
    write(tmp_path, "b.jsonl", '{"a": 2}\n' * 3)
    source = open_source([str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")])
    assert [(index, len(batch), batch[0].line) for index, batch in source.batches()] == [
        (0, 3, 1),
        (1, BATCH_ROWS, 1),
        (1, 5, BATCH_ROWS + 1),
    ]
    assert records(source) == records(source)


def test_files_are_streamed(tmp_path: Path) -> None:
    """The first batch comes although the end of the file is damaged."""
    path = write(tmp_path, "rows.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 500_000)[:-9])
    batches = open_source(str(path)).batches()
    assert len(next(batches)[1]) == BATCH_ROWS
    with pytest.raises(FinetuneError, match=r"^rows\.jsonl\.gz: the compressed file is cut off"):
        list(batches)


# Batches of long documents


@PROPERTY
@given(rows=st.lists(st.integers(0, 12), max_size=30))
def test_a_batch_is_closed_by_the_record_that_does_not_fit(monkeypatch: pytest.MonkeyPatch, rows: list[int]) -> None:
    monkeypatch.setattr(batching, "BATCH_ROWS", 5)
    monkeypatch.setattr(batching, "BATCH_CHARACTERS", 10)
    given_records = [Record(line, {"a": "x" * size}) for line, size in enumerate(rows, start=1)]
    batches = list(batching.batches_of(given_records))
    assert [record for batch in batches for record in batch] == given_records
    assert all(len(batch) == 1 or characters_of(batch) <= 10 for batch in batches)
    assert all(len(batch) <= 5 for batch in batches)
    for batch, following in itertools.pairwise(batches):
        assert len(batch) == 5 or characters_of([*batch, following[0]]) > 10


@pytest.mark.parametrize(
    "value", ["word" * 25, ["word"] * 25, [["word"] * 25], {"word": "word" * 24}, [{"word": 1}] * 25]
)
def test_characters_are_counted_at_any_depth(value: object) -> None:
    assert 100 <= characters_of([Record(1, {"a": value, "b": 5, "c": None, "d": 0.5})]) <= 200


def test_long_documents_come_in_small_batches_and_a_huge_one_alone(tmp_path: Path) -> None:
    long, huge = "x" * (BATCH_CHARACTERS // 4), "x" * (BATCH_CHARACTERS + 1)
    content = "".join(json.dumps({"a": text}) + "\n" for text in [*[long] * 6, "short", huge, "short"])
    source = open_source(str(write(tmp_path, "rows.jsonl", content)))
    assert [len(batch) for _, batch in source.batches()] == [4, 3, 1, 1]


@pytest.mark.parametrize("name", ["parquet", "arrow", "feather"])
def test_long_documents_of_columnar_files_become_python_values_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import pyarrow as pa

    monkeypatch.setattr(batching, "BATCH_CHARACTERS", 1_000)
    texts = [f"{number:3}" * 50 for number in range(40)] + ["x" * 2_000] + ["short"] * 9
    kind = {"parquet": "parquet", "arrow": "file", "feather": "stream"}[name]
    path = write(tmp_path, f"rows.{name}", arrow_bytes(pa.table({"a": texts}), kind))
    parts: list[Any] = []
    rows_of = columnar._rows
    monkeypatch.setattr(columnar, "_rows", lambda part: parts.append(part) or rows_of(part))  # type: ignore[func-returns-value]
    assert [record.values["a"] for record in records(open_source(str(path)))] == texts
    assert sum(part.num_rows for part in parts) == len(texts)
    assert all(part.num_rows == 1 or part.nbytes <= 1_000 for part in parts)
    assert max(part.num_rows for part in parts) > 1


# SQuAD


def test_a_row_of_squad_is_a_question(parse: Any) -> None:
    asked = {"question": "Which?", "id": "a", "answers": [{"text": "saw", "answer_start": 4}]}
    impossible = {
        "question": "Why?",
        "id": "b",
        "is_impossible": True,
        "answers": [{"text": "the"}],
        "plausible_answers": [{}],
    }
    content = {
        "version": "v2.0",
        "data": [
            {"title": "Tools", "paragraphs": [{"context": "the saw", "qas": [asked, impossible]}]},
            {"title": "More", "paragraphs": [{"context": "old", "qas": [{"question": "When?", "id": "c"}, 5]}, []]},
            {"title": "Empty", "paragraphs": [{"context": "no questions", "qas": []}]},
            {"title": "Broken"},
            "no article",
        ],
    }
    found = parse("squad", json.dumps(content))
    assert [record.line for record in found] == list(range(1, 8))
    assert [record.values for record in found[:3]] == [
        {"context": "the saw", "question": "Which?", "answers": asked["answers"], "title": "Tools", "id": "a"},
        {"context": "the saw", "question": "Why?", "answers": [], "title": "Tools", "id": "b"},
        {"context": "old", "question": "When?", "title": "More", "id": "c"},
    ]
    assert [record.unreadable for record in found[3:]] == [
        "not_a_question_of_squad", "not_a_paragraph_of_squad", "not_a_paragraph_of_squad", "not_an_object",
    ]  # fmt: skip


def test_new_rows_of_a_run_that_read_squad_are_read_so_too(tmp_path: Path) -> None:
    path = write(tmp_path, "new.json", json.dumps({"data": [{"paragraphs": [{"context": "x", "qas": [{"id": "1"}]}]}]}))
    assert [record.values["id"] for record in read(path, ("squad", {}))] == ["1"]
    assert [record.values for record in read(write(tmp_path, "a.jsonl", '{"a": 1}\n'), ("squad", {}))] == [{"a": 1}]
    with pytest.raises(FinetuneError, match="field `data`"):
        read(write(tmp_path, "other.json", '{"rows": []}'), ("squad", {}))


# Opening


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.tsv", "ROWS.CSV", "rows.json", "rows.ndjson"])
def test_the_suffix_chooses_the_format(tmp_path: Path, name: str) -> None:
    content = {"csv": "body,intent\nx,y\n", "tsv": "body\tintent\nx\ty\n", "json": '[{"body": "x", "intent": "y"}]'}
    path = write(tmp_path, name, content.get(name.lower().split(".")[1], '{"body": "x", "intent": "y"}\n'))
    assert [record.values for record in read(path)] == [{"body": "x", "intent": "y"}]


def test_every_suffix_names_one_format() -> None:
    assert known_suffixes() == [
        *("arrow", "bio", "conll", "csv", "feather", "iob", "json", "jsonl", "ndjson", "parquet", "tsv", "txt")
    ]


def compress(content: bytes, kind: str) -> bytes:
    import zstandard

    return gzip.compress(content) if kind == "gz" else zstandard.ZstdCompressor().compress(content)


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_compressed_files_are_read_whole_or_not_at_all(tmp_path: Path, kind: str) -> None:
    content = "".join(f'{{"a": {number}}}\n' for number in range(20_000)).encode()
    members = compress(content, kind) + compress(b"", kind) + compress(b'{"a": -1}\n', kind)
    path = write(tmp_path, f"rows.jsonl.{kind}", members)
    assert open_source(str(path)).files[0].suffix == "jsonl"
    assert [record.values["a"] for record in read(path)] == [*range(20_000), -1]
    for damaged in (members[:-3], members[: len(members) // 2], b"plain" + members):
        with pytest.raises(FinetuneError, match=r"cut off|cannot be decompressed"):
            read(write(tmp_path, f"damaged.jsonl.{kind}", damaged))


def test_a_compressed_parquet_file_is_read(tmp_path: Path) -> None:
    import pyarrow as pa

    path = write(tmp_path, "rows.parquet.gz", gzip.compress(arrow_bytes(pa.table({"a": ["x"]}), "parquet")))
    assert read(path) == [Record(1, {"a": "x"})]


def test_padding_behind_a_gzip_member_is_no_data(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl.gz", gzip.compress(b'{"a": 1}\n') + b"\0" * 100)
    assert read(path) == [Record(1, {"a": 1})]


def test_globs_lists_and_folders_name_files(tmp_path: Path) -> None:
    for name in ("b/x.csv", "a/x.csv", "a/y.csv.gz", "a/deep/x.csv"):
        write(tmp_path, name, gzip.compress(b"a\n1\n") if name.endswith("gz") else "a\n1\n")
    write(tmp_path, "b/README.md", "")
    write(tmp_path, "b/.hidden.csv", "")

    def names(paths: str | list[str]) -> list[str]:
        return [file.name for file in open_source(paths).files]

    assert names(f"{tmp_path}/**/*.csv") == ["deep/x.csv", "a/x.csv", "b/x.csv"]
    assert names([f"{tmp_path}/b/x.csv", f"{tmp_path}/a/x*"]) == ["b/x.csv", "a/x.csv"]
    assert names(f"{tmp_path}/b") == ["x.csv"]
    assert names(f"{tmp_path}/a/x.csv") == ["x.csv"]


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [str(write(tmp_path, name, "a\n1\n")) for name in ("one/data/x.csv", "two/data/x.csv")]
    assert [file.name for file in open_source(paths).files] == ["one/data/x.csv", "two/data/x.csv"]


@pytest.mark.parametrize(
    ("names", "paths", "message"),
    [
        ([], "tickets.csv", "{folder}/tickets.csv: expected a file of rows, found nothing"),
        (["ticket.csv"], "tickets.csv", "found nothing, did you mean ticket.csv?"),
        (["x.csv"], "*.jsonl", "{folder}/*.jsonl: expected a file of rows, found nothing"),
        (["x.xlsx"], "x.xlsx", "found .xlsx; or name its format"),
        (["x"], "x", "found no suffix"),
        (["x.csv", "y.jsonl"], "*", "found x.csv (.csv) and y.jsonl (.jsonl)"),
        (["x.md"], "", "found a folder without files that end in one of .arrow, .bio"),
        (["x.csv", "deep/y.csv"], "", "found both x.csv and the folder deep; write a glob such as {folder}/*.csv"),
        (["deep/y.csv"], "", "write a glob such as {folder}/**/*.csv"),
    ],
)
def test_paths_that_name_no_rows_are_explained(tmp_path: Path, names: list[str], paths: str, message: str) -> None:
    for name in names:
        write(tmp_path, name, "")
    with pytest.raises(FinetuneError) as caught:
        open_source(str(tmp_path / paths))
    wanted = message.format(folder=tmp_path)
    assert wanted in str(caught.value).replace(f"{tmp_path.name}/x.csv", "x.csv").replace(
        f"{tmp_path.name}/y.jsonl", "y.jsonl"
    )


def test_lists_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    path = str(write(tmp_path, "x.csv", "a\n1\n"))
    write(tmp_path, "classes/a/1.txt", "x")
    with pytest.raises(FinetuneError, match="more than once"):
        open_source([path, path])
    with pytest.raises(FinetuneError, match="at least one file"):
        open_source([])
    with pytest.raises(FinetuneError, match="not some of each"):
        open_source([path, str(tmp_path / "classes")])
    with pytest.raises(FinetuneError, match="expected `hub:NAME` with the format hub alone"):
        open_source("hub:some/name", ("csv", {}))
    with pytest.raises(FinetuneError, match="unknown source 'cvs', did you mean csv"):
        open_source(path, ("cvs", {}))


def test_a_named_format_reads_any_suffix_and_chooses_the_files_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "x.csv", "a;b\n1;2\n")
    write(tmp_path, "y.jsonl", "{}\n")
    assert records(open_source(str(tmp_path), ("csv", {"delimiter": ";"}))) == [Record(2, {"a": "1", "b": "2"})]
    assert len(open_source(f"{tmp_path}/*", ("text", {})).files) == 2


def test_the_format_of_other_files_counts_for_a_file_like_them(tmp_path: Path) -> None:
    form = ("csv", {"delimiter": ";"})
    expected = [Record(2, {"a": "1", "b": "2"})]
    for name in ("x.csv", "x.CSV", "x.data", "x", "folder/x.csv"):
        assert read(write(tmp_path, name, "a;b\n1;2\n"), form) == expected
    assert read(tmp_path / "folder", form) == expected
    assert read(write(tmp_path, "x.tsv", "a\tb\n1\t2\n"), form) == expected
    assert read(write(tmp_path, "other/x.jsonl", '{"a": ";"}\n'), form) == [Record(1, {"a": ";"})]
    assert read(tmp_path / "other", form) == [Record(1, {"a": ";"})]
    write(tmp_path, "classes/good/1.txt", "fine")
    assert [record.values["label"] for record in read(tmp_path / "classes", form)] == ["good"]
    for of_paths in ("hub", "folders"):
        assert read(tmp_path / "x.tsv", (of_paths, {})) == expected
    with pytest.raises(FinetuneError, match=r"x: .*found no suffix; or name its format"):
        read(tmp_path / "x", ("hub", {}))


@pytest.mark.parametrize("name", FIXED_COLUMNS)
def test_all_records_of_a_file_with_fixed_columns_have_these(parse: Any, name: str) -> None:
    import pyarrow as pa

    is_columnar = name in {"parquet", "arrow"}
    separator = "\t" if name == "tsv" else ","
    table = arrow_bytes(pa.table({"a": ["1", None], "b": [None, "2"]}), "parquet" if name == "parquet" else "file")
    found = parse(name, table if is_columnar else f"a{separator}b\n1{separator}\n{separator}2\n")
    assert [list(record.values) for record in found] == [["a", "b"]] * 2


class Piped:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)

    def isatty(self) -> bool:
        return False


@pytest.fixture
def fresh_standard_input() -> Any:
    files.spool_standard_input.cache_clear()
    yield
    files.spool_standard_input.cache_clear()


@pytest.mark.usefixtures("fresh_standard_input")
def test_standard_input_is_read_once_and_can_be_read_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stdin", Piped(b'{"a": 1}\n'))
    source = open_source("-")
    assert (source.format, source.files[0].name) == ("jsonl", "standard input")
    assert records(source) == records(open_source("-")) == [Record(1, {"a": 1})]
    same = open_source(str(write(tmp_path, "rows.jsonl", '{"a": 1}\n')))
    assert source.describe() == same.describe()
    assert records(open_source("-", ("text", {}))) == [Record(1, {"text": '{"a": 1}'})]


@pytest.mark.usefixtures("fresh_standard_input")
def test_a_terminal_is_no_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(FinetuneError, match="expected rows on standard input, found a terminal"):
        open_source("-")


def test_urls_are_read_through_fsspec() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/rows/b.csv.gz", gzip.compress(b"a\n2\n"))
    memory.pipe("/rows/a.csv", b"a\n1\n")
    try:
        source = open_source("memory://rows/*.csv*")
        assert [file.name for file in source.files] == ["rows/a.csv", "rows/b.csv.gz"]
        assert [record.values for record in records(source)] == [{"a": "1"}, {"a": "2"}]
        before = source.describe()
        assert json.loads(json.dumps(before)) == before
        memory.pipe("/rows/a.csv", b"a\n10\n")
        assert source.describe() != before
        with pytest.raises(FinetuneError, match="found nothing"):
            open_source("memory://rows/*.jsonl")
        with pytest.raises(FinetuneError, match="found nothing at memory://rows/c.csv"):
            records(open_source("memory://rows/c.csv"))
    finally:
        memory.rm("/rows", recursive=True)


def test_a_url_that_nothing_opens_is_refused() -> None:
    with pytest.raises(FinetuneError, match="Protocol not known: nowhere"):
        records(open_source("nowhere://rows.csv"))


SECRET = "s3cret"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("sftp://bob:s3cret@host:22/data/a.csv", "sftp://host:22/data/a.csv"),
        ("sftp://s3cret@host/a.csv", "sftp://host/a.csv"),
        ("sftp://bob:s3@s3cret@host/a.csv", "sftp://host/a.csv"),
        ("sftp://bob:s3cret/s3cret@host/a.csv", "sftp://host/a.csv"),
        ("sftp://bob:s3cret?s3cret@host/a.csv", "sftp://host/a.csv"),
        ("sftp:/bob:s3cret@host/a.csv", "sftp:/host/a.csv"),
        ("https://host/a.csv?X-Amz-Signature=s3cret", "https://host/a.csv"),
        ("https://host/a.csv?s3cret", "https://host/a.csv"),
        ("https://host/a.csv#s3cret", "https://host/a.csv"),
        ("HTTPS://bob:s3cret@host", "HTTPS://host"),
        ("http://bob:s3cret@[::1]:80/a.csv?s3cret", "http://[::1]:80/a.csv"),
        ("http://[::1]:80/a@b.csv", "http://[::1]:80/a@b.csv"),
        ("https://host:80/a@b.csv?u=https://bob:s3cret@host/", "https://host:80/a@b.csv"),
        ("zip://in/a.csv::https://bob:s3cret@host/a.zip?k=s3cret", "zip://in/a.csv::https://host/a.zip"),
        ("simplecache::s3://bucket/a.csv?token=s3cret", "simplecache::s3://bucket/a.csv"),
        ("s3://bucket/part-?/year=2024/#1@[ab]*.csv", "s3://bucket/part-?/year=2024/#1@[ab]*.csv"),
        ("file:///data@1/a.csv", "file:///data@1/a.csv"),
        ("data/a@b?c=d#e.csv", "data/a@b?c=d#e.csv"),
        ("hub:owner/name@revision", "hub:owner/name@revision"),
        ("-", "-"),
    ],
)
def test_a_path_is_shown_without_secrets(path: str, shown: str) -> None:
    assert without_secrets(path) == without_secrets(shown) == shown
    if urls.is_url(path):
        assert SECRET not in "/".join(urls.path_parts(path))


def test_files_behind_secrets_have_names_without_them_that_differ() -> None:
    given_paths = [
        "sftp://bob:s3cret@host/a.csv",
        "sftp://eve:s3cret@host/a.csv",
        "https://one/a.csv?key=s3cret",
        "https://two/a.csv?key=s3cret",
        "https://two/a.csv?key=s3cret&page=2",
    ]
    found = open_source(given_paths).files
    assert [file.path for file in found] == given_paths
    assert [file.name for file in found] == ["host/a.csv", "host/a.csv (2)", "one/a.csv", "two/a.csv", "two/a.csv (2)"]
    assert SECRET not in repr(found)


def unreachable(error: Exception, when: str) -> type:
    """Return a file system that raises an error: when it is made, when a file is opened, or when it is read."""
    import fsspec

    class Broken(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "broken"
        cachable = False

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            if when == "making":
                raise error

        def glob(self, path: str, **_: Any) -> list[str]:
            raise error

        def info(self, path: str, **_: Any) -> dict[str, Any]:
            raise error

        def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
            if when == "opening":
                raise error
            return io.BufferedReader(Failing())

    class Failing(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return True

        def seek(self, offset: int, whence: int = 0) -> int:
            self.place = offset + (0, getattr(self, "place", 0), 1_000)[whence]
            return self.place

        def readinto(self, buffer: Any) -> int:
            raise error

    return Broken


@pytest.mark.parametrize("when", ["making", "opening", "reading"])
@pytest.mark.parametrize(
    "path", ["bob:s3cret@host/a.csv", "host/a.csv?key=s3cret", "host/*.csv?key=s3cret", "bob:s3cret@host/a.parquet"]
)
@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("403 Forbidden", "403 Forbidden"),
        ("url='https://bob:s3cret@host/a.csv?key=s3cret'", "url='https://host/a.csv'"),
        ("no number: 's3cret'", ""),
        ("", ""),
    ],
)
def test_errors_of_a_remote_file_name_it_without_secrets(path: str, when: str, message: str, shown: str) -> None:
    import fsspec

    kind = OSError if path.endswith("parquet") else RuntimeError
    fsspec.register_implementation("broken", unreachable(kind(message), when), clobber=True)
    for use in (records, Source.describe):
        with pytest.raises(FinetuneError) as caught:
            use(open_source(f"broken://{path}"))
        text = str(caught.value)
        assert SECRET not in text
        assert f"({kind.__name__}: {shown})" in text if shown else f"({kind.__name__})" in text
        assert path.partition("?")[0].rpartition("/")[2] in text


def test_messages_about_paths_hold_no_secrets(tmp_path: Path) -> None:
    url = "https://bob:s3cret@host/a.csv?s3cret"
    for wrong in (
        lambda: open_source([url, url]),
        lambda: open_source([url, "hub:some/name"]),
        lambda: open_source(url, ("hub", {})),
        lambda: open_source("https://bob:s3cret@host/a.xlsx?s3cret"),
        lambda: read(Path(url)),
    ):
        with pytest.raises(FinetuneError, match="https:/.?host/a") as caught:
            wrong()
        assert SECRET not in str(caught.value)


def test_a_glob_behind_a_user_and_a_host_keeps_them() -> None:
    import fsspec

    class Hosted(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "hosted"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.partition("://")[2].partition("/")[2] if "://" in path else path

        def glob(self, path: str, **_: Any) -> list[str]:
            return [path.replace("*", name) for name in "ba"]

    fsspec.register_implementation("hosted", Hosted, clobber=True)
    found = open_source("hosted://bob:s3cret@host/data/*.csv").files
    assert [file.path for file in found] == [f"hosted://bob:s3cret@host/data/{name}.csv" for name in "ab"]
    assert [file.name for file in found] == ["data/a.csv", "data/b.csv"]


def test_a_web_address_may_have_a_query() -> None:
    source = open_source("https://example.com/data/rows.csv.gz?version=2&raw=a.b")
    assert [(file.name, file.suffix, file.is_compressed) for file in source.files] == [("rows.csv.gz", "csv", True)]


def test_a_description_holds_what_decides_the_rows_and_no_paths(tmp_path: Path) -> None:
    one = open_source(str(write(tmp_path, "one.csv", "a\n1\n")))
    other = open_source(str(write(tmp_path, "other.csv", "a\n1\n")), ("csv", {"delimiter": ","}))
    assert one.describe() == other.describe()
    assert json.loads(json.dumps(one.describe())) == one.describe()
    assert str(tmp_path) not in json.dumps(one.describe())
    changed = [
        open_source(str(write(tmp_path, "third.csv", "a\n2\n"))),
        open_source(str(tmp_path / "one.csv"), ("csv", {"delimiter": ";"})),
        open_source(str(tmp_path / "one.csv"), ("tsv", {})),
        open_source([str(tmp_path / "one.csv"), str(tmp_path / "other.csv")]),
    ]
    described = [json.dumps(source.describe()) for source in (one, *changed)]
    assert len(set(described)) == len(described)


def test_a_guessed_encoding_is_part_of_the_description(tmp_path: Path) -> None:
    path = str(write(tmp_path, "rows.csv", GERMAN.encode("latin-1")))
    assert open_source(path).describe()["encodings"] == ["cp1252"]
    assert "encodings" not in open_source(path, ("csv", {"encoding": "latin-1"})).describe()
    damaged = open_source(str(write(tmp_path, "rows.csv.gz", gzip.compress(b"a\n1\n")[:-4])))
    with pytest.raises(FinetuneError, match=r"^rows\.csv\.gz: the compressed file is cut off"):
        damaged.describe()


# Files without rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b"", "{path}: expected rows, found an empty file (0 bytes)"),
        ("rows.jsonl", b" ", "{path}: expected rows, found an empty file (1 bytes)"),
        ("rows.csv", b"", "{path}: expected rows, found an empty file (0 bytes)"),
        ("rows.csv", b"body,intent\n", "{path}: expected rows, found a header and nothing else"),
        ("rows.json", b"[]", "{path}: expected rows, found none in the file"),
        ("rows.jsonl", None, "{path}: expected a file of rows, found nothing"),
    ],
)
def test_a_file_without_rows_is_named_with_what_was_found(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FinetuneError) as caught:
        read(path)
    assert str(caught.value) == message.format(path=path)


def test_a_file_that_vanished_is_one_error(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path, "rows.csv", "a\n1\n")))
    (tmp_path / "rows.csv").unlink()
    with pytest.raises(FinetuneError, match=r"^rows\.csv: cannot be read \(No such file"):
        records(source)
    with pytest.raises(FinetuneError, match=r"^rows\.csv: cannot be read \(No such file"):
        source.describe()


# The Hub


@pytest.fixture
def dataset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a dataset of the Hub has it, whose classes have names."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tags = datasets.ClassLabel(names=["O", "B-X"])
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["bad", "good"]),
            "tags": datasets.List(tags),
            "inner": {"tag": tags, "number": datasets.Value("int64")},
        }
    )
    rows = {
        "text": ["a", "b", "c"],
        "label": [1, 0, -1],
        "tags": [[0, 1], [], None],
        "inner": [{"tag": 1, "number": 1}, None, {"tag": None, "number": None}],
    }
    folder = tmp_path / "dataset"
    folder.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_class_numbers_of_a_dataset_become_names(dataset_folder: Path, streaming: bool) -> None:
    source = open_source(f"hub:{dataset_folder}", ("hub", {"streaming": streaming}))
    found = records(source)
    assert [record.line for record in found] == [1, 2, 3]
    assert [record.values["label"] for record in found] == ["good", "bad", None]
    assert [record.values["tags"] for record in found] == [["O", "B-X"], [], None]
    assert found[0].values["inner"] == {"tag": "B-X", "number": 1}
    assert found[2].values["inner"] in (None, {"tag": None, "number": None})


def test_a_path_names_the_split_of_its_dataset(dataset_folder: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"label": ["only in test"]}).to_parquet(dataset_folder / "test.parquet")
    for file in dataset_folder.glob("train.parquet"):
        datasets.Dataset.from_dict({"label": ["a", "b"]}).to_parquet(file)
    train, test, default = (
        open_source(f"hub:{dataset_folder}{split}", ("hub", {})) for split in ("#train", "#test", "")
    )
    assert [record.values["label"] for record in records(test)] == ["only in test"]
    assert [record.values for record in records(train)] == [record.values for record in records(default)]
    assert test.describe()["files"][0]["split"] == "test"


def test_a_dataset_is_described_by_its_content(dataset_folder: Path) -> None:
    before = open_source(f"hub:{dataset_folder}").describe()
    assert json.loads(json.dumps(before)) == before
    assert before["options"] == {"config": None, "split": "train", "streaming": False}
    write(dataset_folder, "README.md", "changed")
    assert open_source(f"hub:{dataset_folder}").describe()["files"] != before["files"]


@pytest.mark.parametrize(
    ("options", "message"), [({"split": "tests"}, "Unknown split"), ({"config": "german"}, "'german' not found")]
)
def test_a_split_or_config_that_is_not_there_is_named(
    dataset_folder: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(FinetuneError, match=f"cannot be loaded .*{message}"):
        records(open_source(f"hub:{dataset_folder}", ("hub", options)))


def test_a_dataset_out_of_reach_is_one_error() -> None:
    source = open_source("hub:nobody/nothing@v1")
    for use in (source.describe, lambda: records(source)):
        with pytest.raises(FinetuneError, match="the Hub's dataset nobody/nothing cannot be reached"):
            use()


def test_a_pinned_commit_describes_itself_without_the_hub() -> None:
    commit = "0123456789" * 4
    assert open_source(f"hub:some/name@{commit}").describe()["files"] == [{"name": "some/name", "revision": commit}]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FinetuneError, match=r"finetune-toolkit\[hub\]"):
        records(open_source(f"hub:{tmp_path}"))


def test_a_source_file_knows_what_it_is() -> None:
    remote = SourceFile("s3://bucket/rows.csv.zst", "rows.csv.zst", "csv")
    local = SourceFile("rows.csv", "rows.csv", "csv")
    assert [(file.is_remote, file.is_compressed) for file in (remote, local)] == [(True, True), (False, False)]
    assert list(itertools.islice(urls.path_parts("zip://a/rows.csv::s3://bucket/x.zip"), 2)) == ["a", "rows.csv"]
