"""Asking a run about new texts: labels and probabilities, in the order in which the texts came."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.artifacts import Run
from finetune.data.rows import check_columns, column_names, read_text
from finetune.data.sources import Record, read
from finetune.inference import Predictor, open_run
from finetune.prepare import cleaning
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
        self._roles = self._predictor.spec.text_roles
        self._columns = column_names(self._predictor.task.columns, self._recipe.data.columns)
        self._clean = cleaning(self._recipe)

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
        records = read(path)
        check_columns(records, {role: self._columns[role] for role in self._roles}, str(path))
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
            if question.error:
                yield {"row": question.number, "error": question.error}
            else:
                yield {"row": question.number, **answers[question.number]}

    def _predict(self, asked: list[_Question]) -> list[dict[str, Any]]:
        if not asked:
            return []
        predictor, recipe = self._predictor, self._recipe
        values = [question.values for question in asked]
        columns, lost = predictor.task.encode(values, predictor.tokenizer, recipe.model.max_length, predictor.labels)
        features = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        predictions = predictor.predict(values, features, recipe.train.eval_batch_size)
        answers = [predictor.spec.describe(predictions, index) for index in range(len(asked))]
        return [
            {**answer, "truncated_tokens": cut} if cut else answer for answer, cut in zip(answers, lost, strict=True)
        ]
