"""Delimited text: comma-separated and tab-separated values, and their relatives."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune.data.rows import Record
from finetune.data.sources.encodings import AUTO, ESCAPED_BYTE, find_encoding, is_encoding
from finetune.data.sources.files import SourceFile
from finetune.errors import FinetuneError
from finetune.registry import sources

# Longer cells are the mark of a quote that was never closed
MAX_CELL = 10_000_000
DELIMITERS = ",;\t|"
_SNIFFED = 1 << 16

Delimiter = Annotated[str, Field(pattern=r'^(auto|[^"\r\n])$')]


def _check(options: Mapping[str, Any]) -> None:
    if options["encoding"] != AUTO and not is_encoding(options["encoding"]):
        raise ValueError(f"encoding: expected auto or an encoding such as utf-8, found {options['encoding']}")
    names = options["names"]
    if names is not None and options["header"]:
        raise ValueError("names: expected with `header: false` alone; the header names the columns")
    if names is not None and (not names or len(set(names)) < len(names)):
        raise ValueError(f"names: expected different names, found {', '.join(names) or 'none'}")


def _describe(files: Sequence[SourceFile], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the files' content, and the encodings that were found: a guess may change with the library behind it."""
    content = {"files": [file.describe() for file in files]}
    if options["encoding"] != AUTO or any(file.is_remote for file in files):  # that would fetch whole files
        return content
    return {**content, "encodings": [_encoding_of(file) for file in files]}


def _encoding_of(file: SourceFile) -> str:
    with file.explained():
        encoding, _ = find_encoding(file, AUTO)
    return encoding


@sources.register("csv", suffixes=("csv",), check=_check, describe=_describe)
def csv_(
    file: SourceFile,
    *,
    delimiter: Delimiter = ",",
    quoting: bool = True,
    header: bool = True,
    names: list[str] | None = None,
    encoding: str = AUTO,
) -> Iterator[Record]:
    """Comma-separated values; a record's line is the one on which it starts.

    `delimiter: auto` chooses among comma, semicolon, tab and bar; `quoting: false` takes quotes as they are; without a
    header the columns are called by `names`, or 0, 1, 2 and so on. `encoding: auto` goes by the byte-order mark, by
    UTF-8, or by a guess. Raise FinetuneError for a quote never closed or columns of one name.
    """
    return _delimited(file, delimiter, quoting=quoting, names=_names(header, names), encoding=encoding)


@sources.register("tsv", suffixes=("tsv",), check=_check, describe=_describe)
def tsv(
    file: SourceFile,
    *,
    delimiter: Delimiter = "\t",
    quoting: bool = True,
    header: bool = True,
    names: list[str] | None = None,
    encoding: str = AUTO,
) -> Iterator[Record]:
    """Tab-separated values, with the options of `csv`."""
    return _delimited(file, delimiter, quoting=quoting, names=_names(header, names), encoding=encoding)


def _names(header: bool, names: Sequence[str] | None) -> list[str] | None:
    """Return the columns' names, empty when they are to be counted, or None when the header has them."""
    return None if header else list(names or [])


def _delimited(
    file: SourceFile, delimiter: str, *, quoting: bool, names: list[str] | None, encoding: str
) -> Iterator[Record]:
    codec, errors = find_encoding(file, encoding)
    quotes: Literal[0, 3] = csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
    with file.open() as stream:
        if delimiter == AUTO:
            delimiter = _sniff(_start_of(file, codec, errors), quotes)
        csv.field_size_limit(MAX_CELL)
        text = io.TextIOWrapper(stream, encoding=codec, errors=errors, newline="")
        # strict: a quote that is never closed would otherwise swallow the rest of the file as one cell
        reader = csv.reader(text, delimiter=delimiter, quoting=quotes, strict=quoting)
        yield from _records(_numbered(reader, codec), names, damaged=errors != "strict")


def _records(rows: Iterator[tuple[int, list[str]]], names: list[str] | None, *, damaged: bool) -> Iterator[Record]:
    for start, cells in rows:
        if names is None:
            names = _header(cells) or None  # a header stands below empty lines, too
            continue
        if not names and cells:
            names = [str(index) for index in range(len(cells))]
        if not cells:
            yield Record(start, {}, "empty_line")
        elif len(cells) != len(names):
            yield Record(start, {}, "wrong_number_of_columns")
        elif damaged and ESCAPED_BYTE.search("".join(cells)):
            yield Record(start, {}, "not_utf8")
        else:
            yield Record(start, dict(zip(names, cells, strict=True)))


def _header(cells: list[str]) -> list[str]:
    repeated = [name for name, count in Counter(cells).items() if count > 1]
    if repeated:
        raise FinetuneError(f"expected different column names, found {repeated[0]!r} more than once")
    if ESCAPED_BYTE.search("".join(cells)):
        raise FinetuneError(
            "expected a header in UTF-8, found other bytes; set `encoding`, or re-save the file as UTF-8"
        )
    return cells


def _numbered(reader: Any, codec: str) -> Iterator[tuple[int, list[str]]]:
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
        except UnicodeError as error:
            raise FinetuneError(
                f"expected text in {codec}, found other bytes behind line {start - 1} "
                f"({getattr(error, 'reason', error)}); set `encoding`, or re-save the file as UTF-8"
            ) from None
        yield start, cells


def _start_of(file: SourceFile, codec: str, errors: str) -> str:
    with file.open() as stream:
        try:
            return io.TextIOWrapper(stream, encoding=codec, errors=errors, newline="").read(_SNIFFED)
        except UnicodeError:
            return ""


def _sniff(text: str, quotes: Literal[0, 3]) -> str:
    """Return the delimiter that cuts most rows into as many cells as the first, and more than one; else the comma."""
    found = {delimiter: _fitness(text, delimiter, quotes) for delimiter in DELIMITERS}
    return max(found, key=lambda delimiter: found[delimiter])


def _fitness(text: str, delimiter: str, quotes: Literal[0, 3]) -> tuple[float, int]:
    try:
        # the last line may be cut off
        lines = io.StringIO(text, newline="").readlines()
        rows = [row for row in csv.reader(lines[:-1] or lines, delimiter=delimiter, quoting=quotes) if row]
    except csv.Error:
        return 0.0, 0
    width = len(rows[0]) if rows else 0
    if width < 2:
        return 0.0, 0
    return sum(len(row) == width for row in rows) / len(rows), width
