"""Asking a run about new rows: one answer each, in the order in which they came."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from finetune.artifacts import Run, feature_table
from finetune.data.cleaning import Pipeline
from finetune.data.conversations import read_messages
from finetune.data.questions import read_words
from finetune.data.rows import Column, Record, used_columns
from finetune.data.selection import check_columns
from finetune.data.sources import read
from finetune.data.tokenization import Encoded
from finetune.data.values import read_text, read_texts
from finetune.errors import FinetuneError, RowError
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

    def __init__(
        self,
        run: Run,
        runtime: Runtime | None = None,
        on_piece: Callable[[str], None] | None = None,
        *,
        cleaned: bool = False,
    ) -> None:
        """Open the run; `on_piece` is told the words of a text as they are written, if the run writes texts.

        What is asked has been `cleaned` already where it comes from prepared data.
        """
        self._recipe = run.recipe
        self._predictor: Predictor = replace(open_run(run, runtime or Runtime()), on_piece=on_piece)
        mapped = self._recipe.data.columns
        task, spec = self._predictor.task, self._predictor.spec
        used = used_columns(task.columns, mapped)
        asked = spec.question or {role: column for role, column in used.items() if role in spec.text_roles}
        self._names = {role: mapped.get(role, role) for role in asked}
        words = any(column.kind == "tokens" for column in asked.values())
        cleaners = () if cleaned else self._recipe.data.clean
        clean = Pipeline([(part.name, part.options) for part in cleaners], tokens=words)
        self._readers = {role: _reader(role, column, clean) for role, column in asked.items()}
        # words may come as a text, under the name that the text has beside its spans
        self._text_of_words = mapped.get("text", "text") if words else None

    def texts(self, texts: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Answer texts; one that the run's cleaners leave nothing of gives `{"row", "error"}` in its place."""
        self._require_one_text()
        return self.records(Record(number, {self._first: text}) for number, text in enumerate(texts, start=1))

    def records(self, records: Iterable[Record]) -> Iterator[dict[str, Any]]:
        """Answer records by the run's own columns; a record without usable text gives an error in its place."""
        numbered = (self._question(number, record) for number, record in enumerate(records, start=1))
        while chunk := list(islice(numbered, CHUNK_ROWS)):
            yield from self._answer(chunk)

    @property
    def roles(self) -> list[str]:
        """What is asked for of each row."""
        return list(self._readers)

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Answer rows of prepared data, whose values are called by their roles."""
        return self.records(
            Record(number, {self._names[role]: row[role] for role in self._readers})
            for number, row in enumerate(rows, start=1)
        )

    def file(self, path: Path) -> Iterator[dict[str, Any]]:
        """Answer a file of rows; raise FinetuneError if it has not the run's columns."""
        records = read(path, self._recipe.data.form)
        check_columns(records, [(role, self._column(role, records)) for role in self._readers], str(path))
        return self.records(records)

    def lines(self, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Answer lines: a line that holds a JSON object is a record, any other line is a text."""
        return self.records(self._record(number, line) for number, line in enumerate(lines, start=1))

    @property
    def _first(self) -> str:
        return next(iter(self._names.values()))

    def _require_one_text(self) -> None:
        needed = list(self._readers)
        if len(needed) > 1:
            names = ", ".join(repr(self._names[role]) for role in needed)
            raise FinetuneError(
                f"predict: this run reads {len(needed)} columns of each row ({names}), so one text is not enough; give "
                "--input FILE, or JSON objects on standard input"
            )

    def _column(self, role: str, records: Iterable[Record]) -> str:
        """Return the column to look a role up in: words may come as a text."""
        name = self._names[role]
        instead = self._text_of_words
        if instead and not any(name in record.values for record in records):
            return instead if any(instead in record.values for record in records) else name
        return name

    def _record(self, number: int, line: str) -> Record:
        text = line.rstrip("\r\n")
        if text.lstrip().startswith("{"):
            try:
                values = json.loads(text)
            except (ValueError, RecursionError):
                values = None
            if isinstance(values, dict):
                return Record(number, values)
        return Record(number, {self._first: text})

    def _question(self, number: int, record: Record) -> _Question:
        values: dict[str, Any] = {}
        error = record.unreadable
        for role, reader in self._readers.items():
            if error:
                break
            found, error = reader(record.values.get(self._column(role, [record])))
            values.update(found)
        return _Question(number, values, error)

    def _answer(self, chunk: list[_Question]) -> Iterator[dict[str, Any]]:
        asked = [question for question in chunk if not question.error]
        answers = self._predict(asked)
        for question in chunk:
            answer = {"error": question.error} if question.error else answers[question.number]
            yield {"row": question.number, **answer}

    def _predict(self, asked: list[_Question]) -> dict[int, dict[str, Any]]:
        """Return the answers by the questions' numbers."""
        asked, encoded, refused = self._encode(asked)
        if encoded is None:
            return refused
        predictor, recipe = self._predictor, self._recipe
        rows = [question.values for question in asked]
        predictions = predictor.predict(rows, feature_table(encoded.features), recipe.train.eval_batch_size)
        assert len(predictions) == len(asked), "every question has one answer"
        describe = predictor.spec.describe
        settings = {} if predictor.spec.prompt is None else {"settings": recipe.generation.deciding(recipe.seed)}
        answers = {
            question.number: self._with_loss({**describe(predictions, index, rows[index]), **settings}, int(cut))
            for index, (question, cut) in enumerate(zip(asked, encoded.tokens_lost, strict=True))
        }
        return answers | refused

    def _encode(self, asked: list[_Question]) -> tuple[list[_Question], Encoded | None, dict[int, dict[str, Any]]]:
        """Return the questions that can be encoded, their features, and for each other one why it cannot."""
        refused: dict[int, dict[str, Any]] = {}
        while asked:
            try:
                columns = {role: [question.values[role] for question in asked] for role in self._readers}
                return asked, self._predictor.encode(columns), refused
            except RowError as error:  # such as a conversation that a chat template refuses
                refused[asked[error.row].number] = {"error": str(error)}
                asked = [*asked[: error.row], *asked[error.row + 1 :]]
        return asked, None, refused

    def _with_loss(self, answer: dict[str, Any], tokens_lost: int) -> dict[str, Any]:
        """Say what was cut off, or answer nothing at all where the run refuses texts that are too long."""
        if not tokens_lost:
            return answer
        if self._predictor.encoder.limits.overflow == "error":
            return {"error": f"too_long: {tokens_lost} tokens more than the run accepts"}
        return {**answer, "truncated_tokens": tokens_lost}


def _reader(role: str, column: Column, clean: Pipeline) -> Callable[[Any], tuple[dict[str, Any], str]]:
    """Return what reads a value of a question: what the row then holds, or the reason why it cannot be used."""
    if column.kind == "tokens":
        return lambda value: read_words(value, clean)

    if column.kind == "messages":
        return lambda value: _read_conversation(role, value, clean)
    read = read_texts if column.kind == "texts" else read_text

    def read_one(value: Any) -> tuple[dict[str, Any], str]:
        found, reason = read(value, clean)
        changed = isinstance(value, str) and found not in (value, [value])
        # places in a cleaned text mean nothing to who gave another
        return {role: found, **({f"given_{role}": value} if changed else {})}, reason and f"{reason}_{role}"

    return read_one


def _read_conversation(role: str, value: Any, clean: Pipeline) -> tuple[dict[str, Any], str]:
    """Return a conversation to be answered; a text is what the user says first."""
    messages = [{"role": "user", "content": value}] if isinstance(value, str) and value.strip() else value
    found, reason = read_messages(messages, answered=False, clean=clean)
    # an answer that is there already is not asked for again
    asked = found[:-1] if found and found[-1]["role"] == "assistant" else found
    return {role: asked}, reason and f"{reason}_{role}"
