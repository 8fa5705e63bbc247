"""Asking a run about new texts: labels and probabilities, in the order in which the texts came."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.artifacts import Run, feature_table
from finetune.data.cleaning import Pipeline
from finetune.data.rows import Record, column_names, used_columns
from finetune.data.selection import check_columns
from finetune.data.sources import read
from finetune.data.values import read_text
from finetune.inference import Predictor, open_run
from finetune.runtime import Runtime

CHUNK_ROWS = 512


@dataclass(frozen=True)
class _Question:
    number: int
    values: dict[str, Any]
    error: str


class Answering:
    """A run opened once, to be asked as often as one likes."""

    def __init__(self, run: Run, runtime: Runtime | None = None) -> None:
        self._recipe = run.recipe
        self._predictor: Predictor = open_run(run, runtime or Runtime())
        mapped = self._recipe.data.columns
        used = used_columns(self._predictor.task.columns, mapped)
        self._roles = [role for role in self._predictor.spec.text_roles if role in used]
        self._columns = column_names(used, mapped)
        self._clean = Pipeline([(part.name, part.options) for part in self._recipe.data.clean])

    def texts(self, texts: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Answer texts; one that the run's cleaners leave nothing of gives `{"row", "error"}` in its place."""
        column = self._columns[self._roles[0]]
        return self.records(Record(number, {column: text}) for number, text in enumerate(texts, start=1))

    def records(self, records: Iterable[Record]) -> Iterator[dict[str, Any]]:
        """Answer records by the run's own columns; a record without usable text gives an error in its place."""
        numbered = (self._question(number, record) for number, record in enumerate(records, start=1))
        while chunk := list(islice(numbered, CHUNK_ROWS)):
            yield from self._answer(chunk)

    def file(self, path: Path) -> Iterator[dict[str, Any]]:
        """Answer a file of rows; raise FinetuneError if it has not the run's columns."""
        records = read(path, self._recipe.data.form)
        check_columns(records, [(role, self._columns[role]) for role in self._roles], str(path))
        return self.records(records)

    def lines(self, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Answer lines: a line that holds a JSON object is a record, any other line is a text."""
        return self.records(self._record(number, line) for number, line in enumerate(lines, start=1))

    def _record(self, number: int, line: str) -> Record:
        column = self._columns[self._roles[0]]
        text = line.rstrip("\r\n")
        if text.lstrip().startswith("{"):
            try:
                values = json.loads(text)
            except (ValueError, RecursionError):
                values = None
            if isinstance(values, dict):
                return Record(number, values)
        return Record(number, {column: text})

    def _question(self, number: int, record: Record) -> _Question:
        values, error = {}, record.unreadable
        for role in self._roles:
            if error:
                break
            values[role], reason = read_text(record.values.get(self._columns[role]), self._clean)
            error = reason and f"{reason}_{role}"
        return _Question(number, values, error)

    def _answer(self, chunk: list[_Question]) -> Iterator[dict[str, Any]]:
        asked = [question for question in chunk if not question.error]
        answers = dict(zip([question.number for question in asked], self._predict(asked), strict=True))
        for question in chunk:
            answer = {"error": question.error} if question.error else answers[question.number]
            yield {"row": question.number, **answer}

    def _predict(self, asked: list[_Question]) -> list[dict[str, Any]]:
        if not asked:
            return []
        predictor, recipe = self._predictor, self._recipe
        encoded = predictor.encode({role: [question.values[role] for question in asked] for role in self._roles})
        rows = [question.values for question in asked]
        predictions = predictor.predict(rows, feature_table(encoded.features), recipe.train.eval_batch_size)
        describe = predictor.spec.describe
        assert describe is not None, "a task that trains says how an answer reads"
        return [
            self._with_loss(describe(predictions, index), int(cut)) for index, cut in enumerate(encoded.tokens_lost)
        ]

    def _with_loss(self, answer: dict[str, Any], tokens_lost: int) -> dict[str, Any]:
        """Say what was cut off, or answer nothing at all where the run refuses texts that are too long."""
        if not tokens_lost:
            return answer
        if self._predictor.encoder.limits.overflow == "error":
            return {"error": f"too_long: {tokens_lost} tokens more than the run accepts"}
        return {**answer, "truncated_tokens": tokens_lost}
