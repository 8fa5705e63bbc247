"""Plain text: a row for each line, paragraph or file, and folders of texts named after their classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

from finetune.data.rows import Record
from finetune.data.sources.files import SourceFile
from finetune.registry import sources

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def lines_of(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield each line of a stream with its number, without its line break and without a byte-order mark."""
    for number, line in enumerate(stream, start=1):
        if number == 1 and line.startswith(_BYTE_ORDER_MARK):
            line = line.removeprefix(_BYTE_ORDER_MARK)
            if not line:
                return
        yield number, line.removesuffix(b"\n").removesuffix(b"\r")


@sources.register("text", suffixes=("txt",))
def text(file: SourceFile, *, unit: Literal["line", "paragraph", "file"] = "line") -> Iterator[Record]:
    """Text in UTF-8, as the column `text`: a row for each line, for each paragraph, or for the whole file.

    Empty lines are records for `line`; for `paragraph` they stand between the rows.
    """
    with file.open() as stream:
        if unit == "file":
            yield _text_record(1, stream.read().removeprefix(_BYTE_ORDER_MARK))
        elif unit == "line":
            for number, line in lines_of(stream):
                yield _text_record(number, line)
        else:
            for number, lines in _paragraphs(stream):
                yield _text_record(number, b"\n".join(lines))


def _paragraphs(stream: BinaryIO) -> Iterator[tuple[int, list[bytes]]]:
    """Yield each run of lines that are not empty with the number of its first line."""
    first, pending = 0, list[bytes]()
    for number, line in lines_of(stream):
        if line.strip():
            first = first if pending else number
            pending.append(line)
        elif pending:
            yield first, pending
            pending = []
    if pending:
        yield first, pending


def _text_record(number: int, content: bytes) -> Record:
    if not content.strip():
        return Record(number, {}, "empty_line")
    try:
        return Record(number, {"text": content.decode("utf-8")})
    except UnicodeDecodeError:
        return Record(number, {}, "not_utf8")


def _describe_folders(files: Sequence[SourceFile], options: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """Return one digest for all files: there may be very many, and their folders' names are their labels."""
    import hashlib

    listing = hashlib.sha256()
    for file in files:
        label, name = Path(file.path).parts[-2:]
        listing.update(f"{file.describe()}  {label}/{name}\n".encode("utf-8", "surrogateescape"))
    return {"files": [listing.hexdigest()]}


@sources.register("folders", describe=_describe_folders)
def folders(file: SourceFile) -> Iterator[Record]:
    """One folder for each class, one `.txt` file for each row: columns `text`, `label` and `file`; UTF-8."""
    label, name = Path(file.path).parts[-2:]
    with file.open() as stream:
        content = stream.read().removeprefix(_BYTE_ORDER_MARK)
    values = {"label": label, "file": f"{label}/{name}"}
    try:
        yield Record(1, {"text": content.decode("utf-8"), **values})
    except UnicodeDecodeError:
        yield Record(1, values, "not_utf8")
