"""Sources: files of raw rows, read in batches of records, each with the line that it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune.data.rows import Record
from finetune.data.sources.batching import BATCH_CHARACTERS, BATCH_ROWS, batches_of, characters_of
from finetune.data.sources.files import BUFFER, SourceFile
from finetune.data.sources.finding import HUB, find_class_files, find_files, is_class_folder
from finetune.errors import FinetuneError
from finetune.registry import sources
from finetune.urls import suffixes, without_secrets

__all__ = [
    "BATCH_CHARACTERS",
    "BATCH_ROWS",
    "FIXED_COLUMNS",
    "Record",
    "Source",
    "SourceFile",
    "characters_of",
    "known_suffixes",
    "open_source",
    "read",
    "without_secrets",
]

# Formats whose records all have the columns of their file: a column that one lacks is missing in the whole file
FIXED_COLUMNS = ("csv", "tsv", "parquet", "arrow")
_FORMATS_OF_PATHS = ("hub", "folders")  # the path names them, whatever the suffixes


@dataclass(frozen=True)
class Source:
    """Files of one format, and how to read them; iterating `batches` several times reads them again."""

    files: tuple[SourceFile, ...]
    format: str
    options: Mapping[str, Any]

    def batches(self) -> Iterator[tuple[int, list[Record]]]:
        """Yield the index of a file with its next records; raise FinetuneError with the file's name.

        A batch has at most BATCH_ROWS records, and BATCH_CHARACTERS characters unless it is a single record.
        """
        records_of = sources.get(self.format).build(self.options)
        for index, file in enumerate(self.files):
            batches = batches_of(records_of(file))
            while batch := _next_batch(file, batches):
                yield index, batch

    def describe(self) -> dict[str, Any]:
        """Return what decides how the rows read, as plain JSON values: the content, the format and its options."""
        content = sources.get(self.format).attributes.get("describe", _describe_files)(self.files, self.options)
        return {"format": self.format, "options": dict(self.options), **content}

    def why_empty(self) -> str:
        """Return what was found in place of rows, for a source whose `batches` yield nothing."""
        if self.format in _FORMATS_OF_PATHS:
            return "none"
        size = 0
        for file in self.files:
            with file.open() as stream:
                while block := stream.read(BUFFER):
                    size += len(block)
                    if block.strip():
                        return "a header and nothing else" if self.format in {"csv", "tsv"} else "none in the file"
        return f"an empty file ({size} bytes)" if len(self.files) == 1 else f"empty files ({size} bytes)"


def _next_batch(file: SourceFile, batches: Iterator[list[Record]]) -> list[Record]:
    with file.explained():
        batch = next(batches, [])
    return batch  # noqa: RET504 -- for mypy, an error may end in the block


def _describe_files(files: Sequence[SourceFile], options: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    return {"files": [file.describe() for file in files]}


def open_source(
    paths: str | Sequence[str],
    format: tuple[str, Mapping[str, Any]] | None = None,  # noqa: A002 -- as the recipe calls it
) -> Source:
    """Return the source that the paths name; nothing is read yet, but that standard input is copied.

    A path is a file, a glob (`**` too), a folder of files, a folder of one folder for each class, `-` for standard
    input, a URL that fsspec opens, or `hub:name@revision`. Without `format`, a name and options, the suffixes decide.
    Raise FinetuneError when there is nothing, when the suffixes are unknown or disagree, or for wrong options.
    """
    given = [paths] if isinstance(paths, str) else list(paths)
    if not given:
        raise FinetuneError("expected at least one file of rows, found an empty list")
    name, options = format or (_format_of_paths(given), {})
    files = _find(given, name)
    name = name or _format_of_files(files)
    return Source(files, name, _checked(name, options))


def read(
    path: Path,
    format: tuple[str, Mapping[str, Any]] | None = None,  # noqa: A002 -- as the recipe calls it
) -> list[Record]:
    """Return all records of a file, by the format that its suffix names; raise FinetuneError if there are none.

    `format`, a name and options, is that of other files: it counts for a file of its suffixes, or of an unknown one.
    """
    source = open_source(str(path), format if format and _may_be(format[0], str(path)) else None)
    name = without_secrets(str(path))
    if len(source.files) == 1:  # messages about one file name it as the user did
        source = replace(source, files=(replace(source.files[0], name=name),))
    records = [record for _, batch in source.batches() for record in batch]
    if not records:
        raise FinetuneError(f"{name}: expected rows, found {source.why_empty()}")
    return records


def _may_be(name: str, path: str) -> bool:
    """Tell whether a format fits a path by its suffix, or by those of the files in a folder."""
    formats = _formats_by_suffix()
    own = "" if path == "-" else _format_of_path(path, formats)
    if own or name in _FORMATS_OF_PATHS:
        return own == name
    files = [child.name for child in Path(path).iterdir()] if Path(path).is_dir() else [path]
    found = {formats[suffix] for suffix in (suffixes(file)[0] for file in files) if suffix in formats}
    return bool({name, sources.get(name).attributes.get("written_in")} & found) or not found


def known_suffixes() -> list[str]:
    """Return the suffixes that name a format, sorted, without dots; each may be followed by `.gz` or `.zst`."""
    return sorted(_formats_by_suffix())


def _formats_by_suffix() -> dict[str, str]:
    return {suffix: name for name in sources.names() for suffix in sources.get(name).attributes.get("suffixes", ())}


def _format_of_paths(paths: Sequence[str]) -> str:
    """Return the format that the paths themselves name, or nothing when the suffixes of the files have to decide."""
    formats = _formats_by_suffix()
    kinds = {_format_of_path(path, formats) for path in paths}
    if len(kinds) > 1:
        named = ", ".join(map(without_secrets, paths[:5]))
        raise FinetuneError(
            f"expected files, folders of classes, names on the Hub or standard input, not some of each; found {named}"
        )
    return kinds.pop()


def _format_of_path(path: str, formats: Mapping[str, str]) -> str:
    if path == "-":
        return "jsonl"
    if path.startswith(HUB):
        return "hub"
    return "folders" if is_class_folder(path, formats) else ""


def _find(paths: Sequence[str], name: str) -> tuple[SourceFile, ...]:
    if name == "folders":
        return find_class_files(paths)
    for path in paths:
        if name and (name == "hub") != path.startswith(HUB):
            raise FinetuneError(
                f"{without_secrets(path)}: expected `{HUB}NAME` with the format hub alone, found the format {name}"
            )
    formats = _formats_by_suffix()
    wanted = [suffix for suffix, found in formats.items() if name in {"", found}]
    return find_files(paths, wanted or list(formats))


def _format_of_files(files: Sequence[SourceFile]) -> str:
    formats = _formats_by_suffix()
    for file in files:
        if file.suffix not in formats:
            ends = ", ".join(f".{suffix}" for suffix in known_suffixes())
            found = f".{file.suffix}" if file.suffix else "no suffix"
            where = without_secrets(file.path) if len(files) == 1 else file.name
            raise FinetuneError(
                f"{where}: expected a file that ends in one of {ends}; found {found}; or name its format"
            )
    first = files[0]
    for file in files:
        if formats[file.suffix] != formats[first.suffix]:
            raise FinetuneError(
                f"expected files of one format, found {first.name} (.{first.suffix}) and {file.name} (.{file.suffix}); "
                "prepare them apart, or name the format of all"
            )
    return formats[first.suffix]


def _checked(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a format, those not given with their defaults."""
    entry = sources.get(name)
    try:
        resolved = entry.options.model_validate(dict(options)).model_dump()
        entry.attributes.get("check", lambda _: None)(resolved)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FinetuneError(f"source {name}: {place}: {first['msg']}; found {first['input']!r}") from None
    except ValueError as error:
        raise FinetuneError(f"source {name}: {error}") from None
    return resolved
