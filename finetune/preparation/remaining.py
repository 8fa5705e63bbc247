"""The rows that remain while decisions are made, where each came from, and the record of those that went."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data.rows import Column
from finetune.data.selection import JOINED, JOINED_KINDS, KEY_HIGH, KEY_LOW, RAW, RawDrop
from finetune.preparation.reading import EXAMPLES_OF_DROPS, Collected, drop_line

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


SHOWN_CHARACTERS = 300
TOO_DEEP = {"unreadable": "nested too deeply"}


class Remaining:
    """All usable rows at first; each `drop` leaves fewer, in a file of their own, and remembers why the others went."""

    def __init__(
        self, collected: Collected, columns: Mapping[str, Column], text_roles: Sequence[str], folder: Path
    ) -> None:
        import numpy as np

        self.rows = collected.rows
        self.files = collected.files
        used = [role for role in text_roles if role in columns]
        self.text_columns = [JOINED if columns[role].kind in JOINED_KINDS else role for role in used]
        self._collected, self._folder = collected, folder
        self._alive = np.arange(len(self.rows))
        self._reasons = np.zeros(len(self.rows), dtype=np.int8)
        self._reason_names = [""]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def name(self) -> str:
        """The files as a message names them."""
        return ", ".join(self.files[:3])

    def drop(self, mask: NDArray[np.bool_], reason: str) -> None:
        """Drop rows, given one truth value a row that is still there; the store is made anew from the others."""
        if not mask.any():
            return
        if reason not in self._reason_names:
            self._reason_names.append(reason)
        self._reasons[self._alive[mask]] = self._reason_names.index(reason)
        self._alive = self._alive[~mask]
        before, number = self.rows, len(self._reason_names)
        self.rows = before.keep(~mask, self._folder / f"kept-{number}-{reason}.arrow", without=(RAW,))
        if before is not self._collected.rows:
            before.path.unlink()

    def dropped(self) -> Counter[str]:
        """Return how many rows went for each reason, while reading and since."""
        counts = Counter(self._collected.dropped)
        for code, name in enumerate(self._reason_names):
            if name:
                counts[name] += int((self._reasons == code).sum())
        return counts

    def keys(self) -> NDArray[np.uint64]:
        """Return the hash of each row's texts, shape (rows, 2)."""
        import numpy as np

        return np.stack([self.rows.numbers(KEY_HIGH), self.rows.numbers(KEY_LOW)], axis=1)

    def place(self, row: int) -> dict[str, Any]:
        """Return where a row came from: its line, and its file if there are several."""
        line = {"line": self.rows.column("line")[row].as_py()}
        files = self.files
        return {"file": files[self.rows.column("file")[row].as_py()], **line} if len(files) > 1 else line

    def text(self, row: int) -> str:
        """Return the beginning of a row's text."""
        texts = [str(self.rows.column(name)[row].as_py()) for name in self.text_columns]
        return " / ".join(
            text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…" for text in texts
        )

    def pair(self, first: int, second: int) -> dict[str, Any]:
        """Return two rows side by side: their lines, and their files if there are several, and their texts."""
        places = [self.place(int(row)) for row in (first, second)]
        files = {"files": [place["file"] for place in places]} if "file" in places[0] else {}
        texts = [self.text(int(first)), self.text(int(second))]
        return {**files, "lines": [place["line"] for place in places], "texts": texts}

    def write_dropped(self, target: Path) -> None:
        """Write every dropped row with its place and reason, in the order of the files."""
        with target.open("wb") as sink, self._collected.early_drops.open("rb") as early:
            for _, line in heapq.merge(_numbered(early), _numbered(self._late_drops())):
                sink.write(line)

    def _late_drops(self) -> Iterator[bytes]:
        start = 0
        for batch in self._collected.rows.batches():
            codes = self._reasons[start : start + batch.num_rows]
            for index in codes.nonzero()[0].tolist():
                yield drop_line(self._raw_drop(batch, index, codes[index]), self._collected.files)
            start += batch.num_rows

    def _raw_drop(self, batch: pa.RecordBatch, index: int, code: int) -> RawDrop:
        number, file, line, raw = (batch[name][index].as_py() for name in ("number", "file", "line", RAW))
        return RawDrop(number, file, line, self._reason_names[code], raw)

    def dropped_examples(self) -> dict[str, list[dict[str, Any]]]:
        """Return the first few dropped rows of each reason."""
        import numpy as np

        found = {reason: [self._example(drop) for drop in drops] for reason, drops in self._collected.examples.items()}
        starts = np.cumsum([0, *(batch.num_rows for batch in self._collected.rows.batches())])
        batches = list(self._collected.rows.batches())
        for code, name in enumerate(self._reason_names):
            if not name:
                continue
            for row in np.flatnonzero(self._reasons == code)[:EXAMPLES_OF_DROPS]:
                number = int(starts.searchsorted(row, side="right")) - 1
                drop = self._raw_drop(batches[number], int(row - starts[number]), code)
                found.setdefault(name, []).append(self._example(drop))
        return found

    def _example(self, drop: RawDrop) -> dict[str, Any]:
        place = {"file": self.files[drop.file]} if len(self.files) > 1 else {}
        return {**place, "line": drop.line, "row": _read(drop.raw)}


def _read(raw: bytes) -> Any:
    try:
        return presentable(json.loads(raw))
    except RecursionError:
        return TOO_DEEP


def presentable(values: Any) -> Any:
    """Return plain values that every file takes: lone surrogates replaced, and nothing nested too deeply."""
    try:
        return json.loads(json.dumps(values, ensure_ascii=False, default=str).encode("utf-8", "replace"))
    except RecursionError:
        return TOO_DEEP


def _numbered(lines: Any) -> Iterator[tuple[int, bytes]]:
    for line in lines:
        number, _, rest = line.partition(b"\t")
        yield int(number), rest


def codes_of(values: pa.ChunkedArray) -> tuple[NDArray[np.int32], int]:
    """Return a number for each value, equal values having equal numbers (-1: none), and how many values there are."""
    import numpy as np

    encoded = values.dictionary_encode().combine_chunks()
    chunk = encoded if not hasattr(encoded, "chunks") else encoded.chunk(0)
    indices = chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    return indices, len(chunk.dictionary)


def describe_place(place: Mapping[str, Any]) -> str:
    """Return a row's place as a message names it."""
    return f"{place['file']}: line {place['line']}" if "file" in place else f"line {place['line']}"
