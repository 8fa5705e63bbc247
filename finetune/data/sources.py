"""Sources: files of raw rows, read one record at a time, each with the line that it came from."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError
from finetune.registry import sources

# Longer cells are the mark of a quote that was never closed
MAX_CELL = 10_000_000


@dataclass(frozen=True)
class Record:
    """One raw row: its line in the file (from 1), and its values, or why it could not be read."""

    line: int
    values: dict[str, Any]
    unreadable: str = ""


def read(path: Path) -> list[Record]:
    """Read all records of a file, by the kind that its suffix names; raise FinetuneError if there are none."""
    name = path.suffix.removeprefix(".").lower()
    if name not in sources.names():
        known = ", ".join("." + name for name in sources.names())
        raise FinetuneError(f"{path}: expected a file that ends in one of {known}; found {path.suffix or 'no suffix'}")
    if not path.is_file():
        raise FinetuneError(f"{path}: expected a file of rows, found {'a folder' if path.is_dir() else 'nothing'}")
    content = path.read_bytes()
    try:
        records = list(sources.get(name).target(content))
    except FinetuneError as error:
        raise FinetuneError(f"{path}: {error}") from None
    if not records:
        found = "a header and nothing else" if content.strip() else f"an empty file ({len(content)} bytes)"
        raise FinetuneError(f"{path}: expected rows, found {found}")
    return records


@sources.register("jsonl")
def jsonl(content: bytes) -> Iterator[Record]:
    """JSON lines: one object a line, in UTF-8; empty lines are records too, so that every line is accounted for."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines and not lines[-1].strip():
        lines.pop()  # the file's last line break ends a line and starts none
    for number, line in enumerate(lines, start=1):
        yield _json_record(number, line)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _json_record(number: int, line: bytes) -> Record:
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


@sources.register("csv")
def csv_(content: bytes) -> Iterator[Record]:
    """Comma-separated values with a header, in UTF-8."""
    return _delimited(content, ",")


@sources.register("tsv")
def tsv(content: bytes) -> Iterator[Record]:
    """Tab-separated values with a header, in UTF-8."""
    return _delimited(content, "\t")


def _delimited(content: bytes, delimiter: str) -> Iterator[Record]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FinetuneError(
            f"expected UTF-8 text, found other bytes at position {error.start}; re-save the file as UTF-8"
        ) from None
    csv.field_size_limit(MAX_CELL)
    # strict: a quote that is never closed would otherwise swallow the rest of the file as one cell
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    for start, cells in _numbered(reader):
        if not header:
            header = cells
            repeated = [name for name, count in Counter(header).items() if count > 1]
            if repeated:
                raise FinetuneError(f"expected different column names, found {repeated[0]!r} more than once")
        elif not cells:
            yield Record(start, {}, "empty_line")
        elif len(cells) != len(header):
            yield Record(start, {}, "wrong_number_of_columns")
        else:
            yield Record(start, dict(zip(header, cells, strict=True)))


def _numbered(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield each row's cells with the line on which the row starts."""
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            hint = f"cells have at most {MAX_CELL:,} characters; " if "limit" in str(error) else ""
            message = f"line {start}: cannot be cut into cells ({error}); {hint}is a quote never closed?"
            raise FinetuneError(message) from None
        yield start, cells
