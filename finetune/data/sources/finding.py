"""From what a recipe or the command line names to files: globs, folders, lists, URLs, standard input."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from finetune.data.sources.files import STANDARD_INPUT, SourceFile, filesystem, spool_standard_input
from finetune.errors import FinetuneError, suggestion
from finetune.urls import details_of, is_url, path_parts, suffixes, without_secrets

HUB = "hub:"
CLASS_SUFFIX = "txt"
_NAMES_SHOWN = 20


def find_files(paths: Iterable[str], wanted: Collection[str]) -> tuple[SourceFile, ...]:
    """Return the files that the paths name, in their order and sorted within each.

    From a folder come the files whose suffix is one of `wanted`. Raise FinetuneError when a path names nothing, or
    when a file is named twice.
    """
    return with_names([file for path in paths for file in _expand(path, wanted)])


def find_class_files(folders: Iterable[str]) -> tuple[SourceFile, ...]:
    """Return the texts of folders that hold one folder for each class, sorted by class and name."""
    return with_names([file for folder in folders for file in _class_files(Path(folder))])


def is_class_folder(path: str, known: Collection[str]) -> bool:
    """Tell whether a path is a folder of folders, without files of rows beside these."""
    folder = Path(path)
    if is_url(path) or not folder.is_dir():
        return False
    return any(child.is_dir() for child in _visible(folder)) and not _files_in(folder, known)


def with_names(paths: Sequence[str]) -> tuple[SourceFile, ...]:
    """Return files with short names that tell them apart: `b.csv` alone, `a/b.csv` among several."""
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise FinetuneError(
            f"{without_secrets(twice[0])}: expected different files, found this one more than once; name it once"
        )
    parts = [path_parts(path) for path in paths]
    depth = 1 if len(paths) == 1 else 2
    while len({found[-depth:] for found in parts}) < len(parts) and depth < max(map(len, parts)):
        depth += 1
    names = _numbered(["/".join(found[-depth:]) for found in parts])
    return tuple(_named(path, name) for path, name in zip(paths, names, strict=True))


def _numbered(names: Sequence[str]) -> Iterator[str]:
    """Yield the names, those that came before with a number; the queries of URLs, which are not shown, may differ."""
    seen = Counter[str]()
    for name in names:
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name} ({seen[name]})"


def _named(path: str, name: str) -> SourceFile:
    if path == "-":
        return SourceFile(spool_standard_input(), STANDARD_INPUT, "")
    if path.startswith(HUB):
        return SourceFile(path, path.removeprefix(HUB), "")
    return SourceFile(path, name, suffixes(path)[0])


def _expand(path: str, wanted: Collection[str]) -> list[str]:
    if path == "-" or path.startswith(HUB):
        return [path]
    if is_url(path):
        return _expand_url(path)
    if Path(path).is_file():
        return [path]
    if Path(path).is_dir():
        return _expand_folder(Path(path), wanted)
    found = sorted(name for name in glob.glob(path, recursive=True) if Path(name).is_file())  # noqa: PTH207 -- `**`
    if not found:
        raise FinetuneError(f"{without_secrets(path)}: expected a file of rows, found nothing{_beside(Path(path))}")
    return found


def _expand_url(url: str) -> list[str]:
    # a web address may have a question mark, and chained URLs have no way back from a path to a URL
    if url.startswith(("http://", "https://")) or "::" in url or not glob.has_magic(url):
        return [url]
    system, path = filesystem(url)
    try:
        found = sorted(system.glob(path))
    except Exception as error:  # noqa: BLE001 -- each protocol has exceptions of its own
        raise FinetuneError(f"{without_secrets(url)}: cannot be listed ({details_of(error, url)})") from None
    if not found:
        raise FinetuneError(f"{without_secrets(url)}: expected files of rows, found nothing")
    if url.endswith(path):  # what stands in front of the path may be a user and a host
        return [url.removesuffix(path) + name for name in found]
    return [system.unstrip_protocol(name) for name in found]


def _expand_folder(folder: Path, wanted: Collection[str]) -> list[str]:
    found = _files_in(folder, wanted)
    inside = [child.name for child in _visible(folder) if child.is_dir()]
    ends = ", ".join(f".{suffix}" for suffix in sorted(wanted))
    if found and inside:
        raise FinetuneError(
            f"{folder}: expected files of rows or folders of classes, found both {Path(found[0]).name} and the folder "
            f"{inside[0]}; write a glob such as {folder}/*{Path(found[0]).suffix} or {folder}/**/*"
        )
    if not found:
        raise FinetuneError(
            f"{folder}: expected a file of rows, found a folder without files that end in one of {ends}"
        )
    return found


def _class_files(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FinetuneError(f"{folder}: expected a folder with one folder for each class, found no folder")
    classes = [child for child in _visible(folder) if child.is_dir()]
    found = [child for label in classes for child in _visible(label)]
    others = [child for child in found if child.is_dir() or suffixes(child.name)[0] != CLASS_SUFFIX]
    if others or not found:
        what = f"{others[0].parent.name}/{others[0].name}" if others else "no file"
        raise FinetuneError(
            f"{folder}: expected folders named after their classes, with .{CLASS_SUFFIX} files alone; found {what}; "
            f"for files of rows in several folders write a glob such as {folder}/**/*.csv"
        )
    return [str(child) for child in found]


def _visible(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if not child.name.startswith("."))


def _files_in(folder: Path, wanted: Collection[str]) -> list[str]:
    return [str(path) for path in _visible(folder) if path.is_file() and suffixes(path.name)[0] in wanted]


def _beside(path: Path) -> str:
    if glob.has_magic(str(path)) or not path.parent.is_dir():
        return ""
    return suggestion(path.name, [child.name for child in _visible(path.parent) if child.is_file()][:_NAMES_SHOWN])
