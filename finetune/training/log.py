"""`log.jsonl`: one line for each step and each evaluation, cut back to the checkpoint when training goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.training.tracking import Trackers


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class NoLog:
    """The log of a process that is not the main one."""

    size_bytes = 0

    def write(self, line: dict[str, Any]) -> None:
        """Leave it to the main process."""

    def losses(self) -> list[float]:
        """Return nothing: the main process knows."""
        return []

    def close(self) -> None:
        """Leave it to the main process."""


class Log:
    """A log that is being written; every line is on the disk at once."""

    def __init__(self, path: Path, keep_bytes: int, trackers: Trackers | None = None) -> None:
        """Go on behind the first `keep_bytes`; `trackers` are told each line as well."""
        self._path, self._trackers = path, trackers
        self._stream = path.open("ab")
        self._stream.truncate(keep_bytes)
        self._stream.seek(keep_bytes)

    def write(self, line: dict[str, Any]) -> None:
        """Add a line."""
        self._stream.write((json.dumps(line, allow_nan=False) + "\n").encode())
        self._stream.flush()
        if self._trackers is not None:
            self._trackers.log(line)

    def losses(self) -> list[float]:
        """Return the training losses so far."""
        return [line["loss"] for line in read_log(self._path) if "loss" in line]

    @property
    def size_bytes(self) -> int:
        """Where the log ends."""
        return self._stream.tell()

    def close(self) -> None:
        """End writing."""
        self._stream.close()
