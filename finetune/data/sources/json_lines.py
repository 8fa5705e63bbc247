"""JSON: one object a line, or an array of objects."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from finetune.data.rows import Record
from finetune.data.sources.encodings import ESCAPED_BYTE
from finetune.data.sources.files import SourceFile
from finetune.errors import FinetuneError
from finetune.registry import sources

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLOCK = 1 << 20
# Beyond it orjson makes a rounded number of a whole one
_LARGEST = float(2**63)


@sources.register("jsonl", suffixes=("jsonl", "ndjson"))
def jsonl(file: SourceFile) -> Iterator[Record]:
    """JSON lines: one object a line, in UTF-8; empty lines are records too, so that every line is accounted for."""
    import orjson

    parse, new = orjson.loads, tuple.__new__
    with file.open() as stream:
        for number, line in enumerate(stream, start=1):
            try:
                values = parse(line)
            except ValueError:
                values = None
            if type(values) is dict and float not in map(type, values.values()):
                yield new(Record, (number, values, ""))  # a third faster than Record(...)
            elif not (line.isspace() and not line.endswith(b"\n")):  # the last line break ends a line and starts none
                yield from _json_record(number, line, values)


def _json_record(number: int, line: bytes, values: Any) -> Iterator[Record]:
    """Yield the record of a line that orjson refuses, that is no object, or that has numbers to look at again."""
    if type(values) is dict and all(type(v) is not float or abs(v) < _LARGEST for v in values.values()):
        yield Record(number, values)
        return
    if number == 1 and line.startswith(_BYTE_ORDER_MARK):
        line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            return
    yield _parse_carefully(number, line)


def _parse_carefully(number: int, line: bytes) -> Record:
    """Return the record of a line by the standard library, which takes lone surrogates and numbers of any length."""
    if not line.strip():
        return Record(number, {}, "empty_line")
    try:
        values = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        return Record(number, {}, "not_utf8")
    except (ValueError, RecursionError):
        return Record(number, {}, "not_json")
    if not isinstance(values, dict):
        return Record(number, {}, "not_an_object")
    return Record(number, values)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@sources.register("json", suffixes=("json",))
def json_(file: SourceFile, *, field: str | None = None) -> Iterator[Record]:
    """JSON: an array of objects, or an object with one array of them; a record's line is its number in the array.

    `field` names the array when an object has several, with dots for objects inside objects: `data.rows`. The file is
    read in blocks. Raise FinetuneError for a file that is no JSON, or has no such array.
    """
    with file.open() as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        document = _Document(text)
        first = document.peek()
        if first == "[" and field is None:
            yield from _elements(document)
        elif first == "{":
            yield from _array_inside(document, field.split(".") if field is not None else [])
        elif first:
            expected = "an array of objects" if field is None else f"an object with the field {field}"
            raise FinetuneError(f"expected {expected}, found {first!r} at the start")
        if document.peek():
            raise FinetuneError("expected one JSON value, found more behind it; name JSON lines .jsonl")


class _Document:
    """The values of a JSON document, taken one after another from a text that is read in blocks."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._buffer = ""
        self._at = 0
        self._constants: list[str] = []
        self._decoder = json.JSONDecoder(parse_constant=self._constants.append)

    def peek(self) -> str:
        """Return the next character that is no white space, or nothing at the end."""
        while True:
            while self._at < len(self._buffer):
                if self._buffer[self._at] not in " \t\r\n":
                    return self._buffer[self._at]
                self._at += 1
            if not self._fill():
                return ""

    def take(self, expected: str) -> str:
        """Take the next character; raise FinetuneError when it is not among the expected ones."""
        found = self.peek()
        if not found or found not in expected:
            wanted = " or ".join(expected)
            raise FinetuneError(f"is no JSON: expected {wanted}, found {found or 'the end of the file'}")
        self._at += 1
        return found

    def value(self) -> tuple[Any, str]:
        """Take one value; return it with the reason why it is unreadable, if it is."""
        self.peek()
        while True:
            try:
                self._constants.clear()
                value, end = self._decoder.raw_decode(self._buffer, self._at)
                # a number may go on in the next block: 1 may be cut off 1.5 or, with two more characters, off 1e-7
                whole = end + 2 < len(self._buffer) or not self._fill()
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self._fill():
                    raise FinetuneError(f"is no JSON: {getattr(error, 'msg', error)}; is the file cut off?") from None
                continue
            if whole:
                break
        written, self._at = self._buffer[self._at : end], end
        reason = "not_utf8" if ESCAPED_BYTE.search(written) else "not_json" if self._constants else ""
        return value, reason

    def _fill(self) -> bool:
        """Read on, at least as much as is pending, so that a long value is not parsed over and over."""
        pending = self._buffer[self._at :]
        block = self._text.read(max(_BLOCK, len(pending)))
        if block:
            self._buffer, self._at = pending + block, 0
        return bool(block)


def _elements(document: _Document) -> Iterator[Record]:
    document.take("[")
    if document.peek() == "]":
        document.take("]")
        return
    number, mark = 0, ","
    while mark == ",":
        number += 1
        value, reason = document.value()
        if reason:
            yield Record(number, {}, reason)
        else:
            yield Record(number, value) if isinstance(value, dict) else Record(number, {}, "not_an_object")
        mark = document.take(",]")


def _array_inside(document: _Document, path: Sequence[str]) -> Iterator[Record]:
    """Yield the elements of the array that stands at `path` inside an object; of the only array without a path."""
    found: list[str] = []
    names: list[str] = []
    for name in _names(document):
        names.append(name)
        opening = document.peek()
        if (path and name != path[0]) or (not path and opening != "["):
            document.value()
            continue
        found.append(name)
        if len(found) > 1:
            raise FinetuneError(f"expected one array of rows, found {', '.join(found)}; choose one with `field`")
        if len(path) > 1 and opening == "{":
            yield from _array_inside(document, path[1:])
        elif len(path) <= 1 and opening == "[":
            yield from _elements(document)
        else:
            raise FinetuneError(
                f"expected {'an object' if len(path) > 1 else 'an array'} at `{name}`, found {opening!r}"
            )
    if not found:
        wanted = f"the field `{path[0]}`" if path else "an array of objects"
        raise FinetuneError(f"expected {wanted}, found an object with {', '.join(names[:10]) or 'nothing'}")


def _names(document: _Document) -> Iterator[str]:
    """Yield the names of an object's fields; each time the value has to be taken before the next one."""
    document.take("{")
    if document.peek() == "}":
        document.take("}")
        return
    mark = ","
    while mark == ",":
        name, _ = document.value()
        if not isinstance(name, str):
            raise FinetuneError(f"is no JSON: expected a name in quotes, found {name!r}")
        document.take(":")
        yield name
        mark = document.take(",}")
