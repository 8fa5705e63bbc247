"""Folders that stages hand on: complete once their manifest is there, replaced whole, written under a lock."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.errors import FinetuneError
from finetune.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
QUANTIZATION_REPORT = "quantization"
FITTED = "fitted.json"
ENSEMBLE = "ensemble"  # the format of a run that has no model of its own, but the runs whose answers it averages
MEMBER = ("fingerprint", "model_sha256")  # how an ensemble knows a member again
# What an artifact needs while it grows: checkpoints, and what the growing run is made from
SCRATCH = ("checkpoints", "inputs.json")
# What may change in a complete artifact
CHANGING = ("reports", "trackers", "log.jsonl", "recipe.yaml", "report.md", *SCRATCH)
LIBRARIES = ("finetune-toolkit", "torch", "transformers", "tokenizers", "accelerate", "scikit-learn", "numpy")


def fingerprint(value: Any) -> str:
    """Return the SHA-256 of plain values, written as canonical JSON together with the format version."""
    text = json.dumps([FORMAT_VERSION, value], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide results."""
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, *more):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; NaN, which is not JSON, is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write a safetensors file atomically; a full disk is an OSError here as everywhere else."""
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what libraries make of a full disk (safetensors has an exception of its own) into OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        found = as_os_error(error, path)
        if found.errno == errno.EIO:  # nothing that the operating system said
            raise
        raise found from error


def as_os_error(error: Exception, path: Path) -> OSError:
    """Return the OSError that a library wrapped in an exception of its own, by the number in its text."""
    for number in (errno.ENOENT, errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EACCES, errno.EROFS):
        if f"os error {number})" in str(error) or os.strerror(number) in str(error):
            return OSError(number, os.strerror(number), str(path))
    return OSError(errno.EIO, str(error), str(path))


def partial_folder(folder: Path) -> Path:
    """Return the folder in which an artifact grows until it is complete."""
    return folder.with_name(f"{folder.name}.partial")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second writer out of an artifact; the lock goes with the process, however it ends."""
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FinetuneError(
            f"{folder}: another finetune process is writing here. Wait for it, or choose another --output."
        ) from None
    try:
        _finish_interrupted_publish(folder)
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Lock an artifact and give an empty folder to build it in; what is unfinished at an error is removed."""
    partial = partial_folder(folder)
    with locked(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def publish(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Complete the artifact that grew in the partial folder and put it in place of the one that was there before."""
    partial = partial_folder(folder)
    write_json(partial / MANIFEST, {"format_version": FORMAT_VERSION, **manifest, "files": _list_files(partial)})
    _swap(folder)
    _remove_scratch(folder)


def _swap(folder: Path) -> None:
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial_folder(folder).rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of the files that must not change: all but logs, trackers, reports and scratch."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] not in CHANGING:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found[name.as_posix()] = {"size_bytes": path.stat().st_size, "sha256": digest}
    return found


def damages(folder: Path, manifest: Mapping[str, Any], *, below: str = "", thorough: bool = False) -> list[str]:
    """Return the files of an artifact that are missing or changed; `thorough` compares every byte, else the sizes."""
    found = []
    for name, expected in manifest.get("files", {}).items():
        path = folder / name
        if not name.startswith(below):
            continue
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != expected["size_bytes"]:
            found.append(f"{name} has {path.stat().st_size} bytes instead of {expected['size_bytes']}")
        elif thorough:
            with path.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != expected["sha256"]:
                    found.append(f"{name} has other content")
    return found


def has_scratch(folder: Path) -> bool:
    """Tell whether a complete artifact still holds what only its making needed."""
    return any((folder / name).exists() for name in SCRATCH)


def _remove_scratch(folder: Path) -> None:
    """Remove what only the making of an artifact needed: once it is complete, and never before."""
    for name in SCRATCH:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _finish_interrupted_publish(folder: Path) -> None:
    """Put right what a kill between two renames, or just before or after them, left behind."""
    old = folder.with_name(f"{folder.name}.old")
    if (partial_folder(folder) / MANIFEST).is_file():
        _swap(folder)
    elif old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    if has_manifest(folder):
        _remove_scratch(folder)


def has_manifest(folder: Path) -> bool:
    """Tell whether a complete artifact is there."""
    return (folder / MANIFEST).is_file()


REQUIRED_KEYS = {
    "data": ("labels", "roles", "features", "splits", "limits", "fingerprint", "inputs"),
    "run": ("format", "labels", "limits", "fingerprint", "inputs", "data_fingerprint"),
}


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """Return an artifact's manifest; raise FinetuneError if there is none, or one of another kind or version."""
    path = folder / MANIFEST
    if not path.is_file():
        raise FinetuneError(f"{folder}: expected {kind} (a folder with a {MANIFEST}), found none")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = (manifest["format_version"], manifest["kind"])
    except (ValueError, KeyError, TypeError):
        raise FinetuneError(f"{path}: damaged; remove {folder} and make it again") from None
    if found != (FORMAT_VERSION, kind):
        raise FinetuneError(
            f"{path}: expected {kind} of format {FORMAT_VERSION}, found {found[1]} of format {found[0]}"
        )
    if missing := [key for key in REQUIRED_KEYS[kind] if key not in manifest]:
        raise FinetuneError(f"{path}: damaged, lacks {', '.join(missing)}; remove {folder} and make it again")
    return dict(manifest)


class FeatureTable(Sequence[dict[str, Any]]):
    """The model's features of a split, one entry a window, straight from the memory-mapped file.

    A row that was not cut into windows is one window. `row_ids` says to which row each window belongs; the features
    of a row with several have a `weight`, so that they count as one row together, and each says its `row`.
    """

    def __init__(self, table: Any) -> None:
        """Take feature columns: one number a row, lists of int32, or lists of those: one a window."""
        import numpy as np

        self._chunks = [_FeatureChunk(batch) for batch in table.to_batches() if batch.num_rows]
        self._starts = np.cumsum([0, *(len(chunk) for chunk in self._chunks)])
        rows = np.cumsum([0, *(chunk.rows for chunk in self._chunks)])
        self.row_ids: NDArray[np.int64] = np.concatenate(
            [np.zeros(0, np.int64), *(chunk.row_ids + first for chunk, first in zip(self._chunks, rows, strict=False))]
        )

        self._first_rows = rows

    @property
    def lengths(self) -> list[int]:
        """Tokens per window."""
        return self.lengths_of(("input_ids",))

    def lengths_of(self, names: Sequence[str]) -> list[int]:
        """Return how long some features of a window are together, for each window."""
        return [length for chunk in self._chunks for length in chunk.lengths(names)]

    def values(self, name: str) -> NDArray[Any]:
        """Return the numbers of a feature that is a list in each window, those of all windows one after another."""
        import numpy as np

        return np.concatenate([np.zeros(0, np.int32), *(chunk.values(name) for chunk in self._chunks)])

    def scalars(self, name: str) -> NDArray[Any]:
        """Return a number that each row has, for each window the one of its row, shape (windows,)."""
        import numpy as np

        return np.concatenate([chunk.scalars(name) for chunk in self._chunks])

    def first_of_rows(self, name: str) -> NDArray[Any]:
        """Return a number that each row has, shape (rows,)."""
        import numpy as np

        _, first = np.unique(self.row_ids, return_index=True)
        values: NDArray[Any] = self.scalars(name)[first]
        return values

    def keys(self, together: str | None) -> NDArray[Any] | None:
        """Return by what windows belong together: their row, or a number of it; None: each stands for itself."""
        if together is None:
            return None
        return self.row_ids if together == "row" else self.scalars(together)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        number = int(self._starts.searchsorted(index, side="right")) - 1
        found = self._chunks[number].window(int(index - self._starts[number]))
        found["row"] += int(self._first_rows[number])
        return found


class _FeatureChunk:
    """The features of some rows as flat arrays over the file's own bytes."""

    def __init__(self, batch: Any) -> None:
        import numpy as np
        import pyarrow as pa

        self.rows = batch.num_rows
        self._scalars: dict[str, Any] = {}
        self._row_lists: dict[str, tuple[Any, Any]] = {}
        self._lists: dict[str, tuple[Any, Any]] = {}
        self._in_windows = pa.types.is_list(batch.schema.field("input_ids").type.value_type)
        outer = None
        for name in batch.schema.names:
            column = batch[name]
            if not pa.types.is_list(column.type):
                self._scalars[name] = np.asarray(column)
            elif pa.types.is_list(column.type.value_type):
                outer = np.asarray(column.offsets)
                inner = column.values
                self._lists[name] = (np.asarray(inner.offsets), np.asarray(inner.values))
            else:
                lists = self._row_lists if self._in_windows else self._lists
                lists[name] = (np.asarray(column.offsets), np.asarray(column.values))
        if outer is None:
            self._first, self.row_ids, self._counts = 0, np.arange(self.rows), np.ones(self.rows, np.int64)
        else:
            self._first, self._counts = int(outer[0]), np.diff(outer)
            self.row_ids = np.repeat(np.arange(self.rows), self._counts)

    def __len__(self) -> int:
        return len(self.row_ids)

    def lengths(self, names: Sequence[str]) -> list[int]:
        import numpy as np

        found = np.zeros(len(self), np.int64)
        for name in names:
            if name in self._lists:  # rows to be answered have no targets
                offsets = self._lists[name][0][self._first : self._first + len(self) + 1]
                found += offsets[1:] - offsets[:-1]
        return found.tolist()

    def window(self, index: int) -> dict[str, Any]:
        row, position = int(self.row_ids[index]), index + self._first
        found: dict[str, Any] = {
            name: values[offsets[position] : offsets[position + 1]].tolist()
            for name, (offsets, values) in self._lists.items()
        }
        for name, (offsets, values) in self._row_lists.items():
            found[name] = values[offsets[row] : offsets[row + 1]].tolist()
        for name, values in self._scalars.items():
            found[name] = values[row].item()
        found["row"] = row
        if self._in_windows:
            found["weight"] = 1.0 / int(self._counts[row])
        return found

    def values(self, name: str) -> NDArray[Any]:
        offsets, values = self._lists[name]
        return values[offsets[self._first] : offsets[self._first + len(self)]]  # type: ignore[no-any-return]

    def scalars(self, name: str) -> NDArray[Any]:
        return self._scalars[name][self.row_ids]  # type: ignore[no-any-return]


def feature_table(features: Mapping[str, Any]) -> FeatureTable:
    """Return features that were just made (Arrow arrays, one entry a row) as those of a split are read."""
    import pyarrow as pa

    return FeatureTable(pa.table(dict(features)))


class RowTable(Sequence[dict[str, Any]]):
    """The readable values of a split, row by row, from the memory-mapped file."""

    def __init__(self, table: Any) -> None:
        """Take the columns that people read."""
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._table.slice(index % len(self), 1).to_pylist()[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._table.to_batches(max_chunksize=1000):
            yield from batch.to_pylist()


@dataclass(frozen=True)
class Split:
    """One split: the line that each row came from, its readable values, and the model's features."""

    name: str
    lines: list[int]
    rows: RowTable
    features: FeatureTable
    files: list[str] | None = None  # if they came from several

    def place(self, row: int) -> str:
        """Return where a row came from, as messages say it."""
        return f"{f'{self.files[row]} ' if self.files else ''}line {self.lines[row]}"

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class PreparedData:
    """Cleaned, split, tokenized rows in a folder."""

    folder: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What is in the folder, and what it was made from."""
        return read_manifest(self.folder, "data")

    @property
    def labels(self) -> list[str]:
        """The labels in the order of their indices."""
        return list(self.manifest["labels"])

    @property
    def fingerprint(self) -> str:
        """The hash of all that decides the tokens."""
        return str(self.manifest["fingerprint"])

    @cached_property
    def report(self) -> dict[str, Any]:
        """What happened to every row."""
        if damaged := damages(self.folder, self.manifest, below="report.json", thorough=True):
            raise FinetuneError(f"{self.folder}: damaged ({'; '.join(damaged)}); prepare again with --force")
        return dict(json.loads((self.folder / "report.json").read_text(encoding="utf-8")))

    def split(self, name: str) -> Split:
        """Read one split; raise FinetuneError if the data has none of that name."""
        import pyarrow as pa

        known = self.manifest["splits"]
        if name not in known:
            raise FinetuneError(f"--split: expected one of {', '.join(known)}; found {name}")
        if damaged := damages(self.folder, self.manifest, below=f"{name}.arrow", thorough=True):
            raise FinetuneError(f"{self.folder}: damaged ({'; '.join(damaged)}); prepare again with --force")
        with pa.memory_map(str(self.folder / f"{name}.arrow")) as source, pa.ipc.open_stream(source) as reader:
            table = reader.read_all()
        rows, features = table.select(self.manifest["roles"]), table.select(self.manifest["features"])
        files = table["file"].to_pylist() if "file" in table.column_names else None
        return Split(name, table["line"].to_pylist(), RowTable(rows), FeatureTable(features), files)

    @property
    def limits(self) -> dict[str, Any]:
        """How long a row may become, as it was decided: `max_length`, `overflow`, `stride`."""
        return dict(self.manifest["limits"])

    @property
    def tokenizer_folder(self) -> Path | None:
        """The tokenizer that was trained on the rows; None: it is the model's own."""
        name = self.manifest["tokenizer"]
        return self.folder / name if name else None


@dataclass(frozen=True)
class Run:
    """A trained model in a folder, with its recipe, its log and its reports; quantized runs have the same shape."""

    folder: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the run is, and what it was made from."""
        return read_manifest(self.folder, "run")

    @property
    def format(self) -> str:
        """Which loader opens the model: transformers, onnx, ..."""
        return str(self.manifest["format"])

    @property
    def fingerprint(self) -> str:
        """The hash of all that decides the weights."""
        return str(self.manifest["fingerprint"])

    @property
    def labels(self) -> list[str]:
        """The labels in the order of their indices."""
        return list(self.manifest["labels"])

    @property
    def limits(self) -> dict[str, Any]:
        """How long a row may become for this model: `max_length`, `overflow`, `stride`."""
        return dict(self.manifest["limits"])

    @property
    def model_folder(self) -> Path:
        """An ordinary Hugging Face folder."""
        return self.folder / "model"

    def check_model(self) -> None:
        """Raise FinetuneError unless the model's files, and what goes with them, are those that were written."""
        damaged = [
            damage
            for below in ("model/", FITTED)
            for damage in damages(self.folder, self.manifest, below=below, thorough=True)
        ]
        if damaged:
            raise FinetuneError(f"{self.folder}: damaged ({'; '.join(damaged)}); make it again with --force")

    @property
    def reports(self) -> Path:
        """Where reports about this run are."""
        return self.folder / "reports"

    @cached_property
    def fitted(self) -> dict[str, Any]:
        """What was fitted beside the weights: thresholds, the scale of the targets."""
        path = self.folder / FITTED
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    @cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe that made it."""
        return load_recipe(self.folder / "recipe.yaml")

    @cached_property
    def members(self) -> list[Run]:
        """The runs whose answers an ensemble averages; raise FinetuneError if one was moved, or is another by now."""
        return [self._member(described) for described in self.manifest.get("members", ())]

    def _member(self, described: Mapping[str, Any]) -> Run:
        member = Run((self.folder / str(described["folder"])).resolve())
        how = "quantize --force" if "backend" in self.manifest else "train"
        again = f"Put it back, or make the ensemble again with `finetune {how}` of the recipe {self.recipe.name}."
        if not has_manifest(member.folder):
            raise FinetuneError(
                f"{self.folder}: expected its {described['name']} at {member.folder}, found nothing. {again}"
            )
        if describe_member(member) != tuple(described[key] for key in MEMBER):
            raise FinetuneError(
                f"{self.folder}: expected its {described['name']} at {member.folder} as it was when the ensemble was "
                f"made, found a run that was trained again since. {again}"
            )
        return member

    def data_folder(self) -> Path:
        """Where the data that it was trained on is, unless somebody moved one of the two."""
        return (self.folder / str(self.manifest.get("data_folder", "../data"))).resolve()


def describe_member(run: Run) -> tuple[str, str]:
    """Return by what an ensemble knows a run again: its fingerprint, and a hash of its model's files."""
    files = {name: one for name, one in run.manifest.get("files", {}).items() if name.startswith(("model/", FITTED))}
    return run.fingerprint, fingerprint(files)
