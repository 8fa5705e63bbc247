"""Sources: files of raw rows, read one record at a time, each with the line that it came from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import FinetuneError, suggestion
from finetune.registry import sources


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
        raise FinetuneError(f"{path}: expected a file that ends in one of {known}{suggestion(name, sources.names())}")
    if not path.is_file():
        raise FinetuneError(f"{path}: expected a file of rows, found {'a folder' if path.is_dir() else 'nothing'}")
    records = list(sources.get(name).target(path.read_bytes()))
    if not records:
        raise FinetuneError(f"{path}: expected rows, found an empty file ({path.stat().st_size} bytes)")
    return records


@sources.register("jsonl")
def jsonl(content: bytes) -> Iterator[Record]:
    """JSON lines: one object a line, in UTF-8; empty lines are records too, so that every line is accounted for."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines and not lines[-1].strip():
        lines.pop()  # the file's last line break ends a line and starts none
    for number, line in enumerate(lines, start=1):
        yield _json_record(number, line)


def _json_record(number: int, line: bytes) -> Record:
    if not line.strip():
        return Record(number, {}, "empty_line")
    try:
        values = json.loads(line.decode("utf-8"))
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
    csv.field_size_limit(10_000_000)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = next(reader, None)
    if not header:
        return
    end = reader.line_num
    for cells in reader:
        start, end = end + 1, reader.line_num
        if not cells:
            yield Record(start, {}, "empty_line")
        elif len(cells) != len(header):
            yield Record(start, {}, "wrong_number_of_columns")
        else:
            yield Record(start, dict(zip(header, cells, strict=True)))
