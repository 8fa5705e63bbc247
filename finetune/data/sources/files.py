"""One file of raw rows: local or remote, compressed or not, opened as a stream of bytes."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import io
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from finetune.errors import FinetuneError
from finetune.urls import details_of, is_url, suffixes, without_secrets

BUFFER = 1 << 20
STANDARD_INPUT = "standard input"
_COMPRESSED_BLOCK = 1 << 16
# What stores of files say about a file's content, and about when it changed; each store has its own names
_CONTENT_MARKS = ("ETag", "etag", "Content-MD5", "md5Hash", "crc32c", "content_md5", "checksum")
_TIME_MARKS = ("LastModified", "last_modified", "mtime", "updated", "created")


@dataclass(frozen=True)
class SourceFile:
    """One file of raw rows.

    `path` is what is opened: a local path, a URL, or the copy of standard input; it may hold a password. `name` stands
    in messages and in `dropped.jsonl`, and holds no secrets. `suffix` is in lower case, without its dot and without the
    compression: `csv` for `a.csv.gz`.
    """

    path: str = field(repr=False)
    name: str
    suffix: str

    @property
    def is_remote(self) -> bool:
        """Tell whether the file is behind a URL."""
        return is_url(self.path)

    @property
    def is_compressed(self) -> bool:
        """Tell whether opening the file decompresses it."""
        return suffixes(self.path)[1] != ""

    def open(self) -> BinaryIO:
        """Return the file's bytes, decompressed, as a stream; raise FinetuneError or OSError when it cannot be read."""
        raw = open_url(self.path) if self.is_remote else cast(BinaryIO, io.FileIO(self.path))
        compression = suffixes(self.path)[1]
        if compression:
            raw = cast(BinaryIO, _Decompressed(raw, *_decompressor(compression)))
        return io.BufferedReader(cast(io.RawIOBase, raw), BUFFER)

    def describe(self) -> str | dict[str, str]:
        """Return the SHA-256 of the file's bytes, or what a remote store offers in its place."""
        if self.is_remote and (marks := _remote_marks(self.path)):
            return marks
        with self.explained(), open_url(self.path) if self.is_remote else Path(self.path).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
        return digest  # noqa: RET504 -- for mypy, an error may end in the block

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Make a FinetuneError with the file's name of what opening and reading the file raise inside."""
        try:
            yield
        except FinetuneError as error:
            raise FinetuneError(f"{self.name}: {error}") from None
        except AssertionError:
            raise
        except Exception as error:
            if self.is_remote:  # each protocol has exceptions of its own
                raise FinetuneError(f"{self.name}: cannot be read ({details_of(error, self.path)})") from None
            if isinstance(error, OSError):
                raise FinetuneError(f"{self.name}: cannot be read ({error.strerror or error})") from None
            raise


@functools.cache
def spool_standard_input() -> str:
    """Copy standard input to a temporary file, once in a process, and return its path."""
    if sys.stdin is None or sys.stdin.isatty():
        raise FinetuneError(f"expected rows on {STANDARD_INPUT}, found a terminal; pipe a file in, or name one")
    handle, path = tempfile.mkstemp(prefix="finetune-")
    atexit.register(functools.partial(Path(path).unlink, missing_ok=True))
    with os.fdopen(handle, "wb") as spool:
        shutil.copyfileobj(sys.stdin.buffer, spool, BUFFER)
    return path


def filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL and the path in it; raise FinetuneError when there is none."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)  # type: ignore[no-any-return]
    except Exception as error:  # noqa: BLE001 -- some protocols connect at once
        raise FinetuneError(
            f"expected a URL that fsspec can open, found {without_secrets(url)} ({details_of(error, url)})"
        ) from None


def open_url(url: str) -> BinaryIO:
    """Return a stream of a remote file's bytes as they are stored; raise FinetuneError when it cannot be reached."""
    system, path = filesystem(url)
    try:
        return system.open(path, "rb")  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise FinetuneError(f"expected a file of rows, found nothing at {without_secrets(url)}") from None
    except Exception as error:  # noqa: BLE001 -- each protocol has exceptions of its own
        raise FinetuneError(f"{without_secrets(url)} cannot be opened ({details_of(error, url)})") from None


def _remote_marks(url: str) -> dict[str, str]:
    system, path = filesystem(url)
    try:
        details = system.info(path)
    except Exception:  # noqa: BLE001 -- without details the bytes decide, and opening says what is wrong
        return {}
    for marks in (_CONTENT_MARKS, _TIME_MARKS):
        found = {mark: str(details[mark]) for mark in marks if details.get(mark)}
        if found:
            return {"size": str(details.get("size")), **found}
    return {}


def _decompressor(compression: str) -> tuple[Callable[[], Any], type[Exception]]:
    if compression == "gz":
        return functools.partial(zlib.decompressobj, 16 + zlib.MAX_WBITS), zlib.error
    try:
        import zstandard
    except ImportError:
        raise FinetuneError(
            "expected the library zstandard for .zst files; install it: pip install zstandard"
        ) from None
    return zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError


class _Decompressed(io.RawIOBase):
    """A decompressed stream of one or more members; unlike zstandard's own, it notices a file that was cut off."""

    def __init__(self, raw: BinaryIO, start: Callable[[], Any], damage: type[Exception]) -> None:
        self._raw, self._start, self._damage = raw, start, damage
        self._member: Any = None
        self._compressed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and self._fill():
            pass
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()

    def _fill(self) -> bool:
        block = self._compressed or self._raw.read(_COMPRESSED_BLOCK)
        if self._member is None:
            block = block.lstrip(b"\0")  # members may be padded
            self._member = self._start() if block else None
        if not block:
            if self._member is not None:
                raise FinetuneError("the compressed file is cut off; copy it again")
            return False
        try:
            self._ready = memoryview(self._member.decompress(block))
        except self._damage as error:
            raise FinetuneError(f"cannot be decompressed ({error}); is the file damaged?") from None
        self._compressed = self._member.unused_data if self._member.eof else b""
        if self._member.eof:
            self._member = None
        return True
