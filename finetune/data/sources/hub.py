"""Datasets of the Hugging Face Hub, and local folders written like them."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data.rows import Record
from finetune.data.sources.batching import BATCH_ROWS
from finetune.data.sources.columnar import records_of
from finetune.data.sources.files import SourceFile
from finetune.errors import FinetuneError
from finetune.registry import sources
from finetune.urls import details_of

if TYPE_CHECKING:
    from collections.abc import Callable

_COMMIT = re.compile("[0-9a-f]{40}")
_PATIENCE = 10.0  # seconds


def _describe(files: Sequence[SourceFile], options: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """Return each dataset's name with its commit, or with a digest of its files when it is a local folder."""
    found = []
    for file in files:
        name, revision, split = _parts(file)
        own = {"split": split} if split else {}
        if Path(name).is_dir():
            found.append({"sha256": _folder_digest(Path(name)), **own})
        else:
            found.append({"name": name, "revision": _commit(name, revision), **own})
    return {"files": found}


@sources.register("hub", describe=_describe)
def hub(
    file: SourceFile, *, config: str | None = None, split: str = "train", streaming: bool = False
) -> Iterator[Record]:
    """A dataset of the Hub, `hub:name@revision#split`, or a local folder of one; its own code is never run.

    A path names its split behind a `#`, so that `data.source` can say which is for training; without one it is the
    option `split`. Class numbers become the classes' names, and -1, the mark of a row without a label, becomes nothing.
    `streaming` reads the rows from the Hub as they come, in place of downloading them first.
    """
    try:
        import datasets
    except ImportError:
        raise FinetuneError(
            "expected the library datasets for hub: sources; install it: pip install 'finetune-toolkit[hub]'"
        ) from None
    name, revision, own_split = _parts(file)
    commit = None if Path(name).is_dir() else _commit(name, revision)
    try:
        with _without_progress_bars():
            loaded = datasets.load_dataset(name, config, split=own_split or split, revision=commit, streaming=streaming)
            batches = loaded.with_format("arrow").iter(batch_size=BATCH_ROWS)
            decoders = {column: _decoder(feature) for column, feature in (loaded.features or {}).items()}
            yield from _decoded(records_of(batches), decoders)
    except FinetuneError:
        raise
    except Exception as error:  # noqa: BLE001 -- the library passes on whatever its many readers raise
        raise FinetuneError(f"cannot be loaded ({details_of(error, file.path)})") from None


def _parts(file: SourceFile) -> tuple[str, str | None, str | None]:
    """Return a dataset's name or folder, its revision, and its split, of `hub:name@revision#split`."""
    path = file.path.removeprefix("hub:")
    if Path(path).is_dir():
        return path, None, None
    path, _, split = path.partition("#")
    if Path(path).is_dir() or "@" not in path:
        return path, None, split or None
    name, _, revision = path.rpartition("@")
    return name, revision, split or None


def _commit(name: str, revision: str | None) -> str:
    """Return the commit that a revision stands for: as the Hub says, or else the copy on this machine."""
    if revision and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi, constants

    try:
        found = HfApi().dataset_info(name, revision=revision, timeout=_PATIENCE).sha
    except Exception as error:  # noqa: BLE001 -- offline, not found, not allowed, not a name: each has its own
        known = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "refs" / (revision or "main")
        if not known.is_file():
            raise FinetuneError(
                f"the Hub's dataset {name} cannot be reached ({details_of(error, name)}), and there "
                "is no copy on this machine; check the name, the revision and the connection"
            ) from None
        return known.read_text(encoding="ascii").strip()
    assert found, "the Hub's answer has a commit"
    return str(found)


def _folder_digest(folder: Path) -> str:
    listing = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        listing.update(f"{digest}  {path.relative_to(folder).as_posix()}\n".encode("utf-8", "surrogateescape"))
    return listing.hexdigest()


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    import datasets

    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not shown:
            datasets.enable_progress_bars()


def _decoded(records: Iterator[Record], decoders: Mapping[str, Callable[[Any], Any] | None]) -> Iterator[Record]:
    needed = [(column, decode) for column, decode in decoders.items() if decode is not None]
    for record in records:
        for column, decode in needed:
            if column in record.values:
                record.values[column] = decode(record.values[column])
        yield record


def _decoder(feature: Any) -> Callable[[Any], Any] | None:
    """Return what turns a feature's class numbers into names, at any depth, or None when there are none."""
    import datasets

    if isinstance(feature, datasets.ClassLabel):
        names = list(feature.names)
        return lambda value: names[value] if isinstance(value, int) and 0 <= value < len(names) else None
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        inner = _decoder(feature.feature)
        return inner and (lambda value: None if value is None else [inner(item) for item in value])
    if isinstance(feature, dict):
        fields = {name: decode for name, part in feature.items() if (decode := _decoder(part)) is not None}
        return (
            (lambda value: value and {**value, **{k: d(value.get(k)) for k, d in fields.items()}}) if fields else None
        )
    return None
