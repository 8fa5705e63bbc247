"""From raw records to usable rows: values found, read and cleaned, or the reason why a row cannot be used."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from finetune.data.cleaning import CleanerReport, Pipeline
from finetune.data.contexts import CONTEXT_ROLE, answers_type, keep_answers, read_answers
from finetune.data.conversations import messages_type, read_messages
from finetune.data.rows import Column, Record
from finetune.data.tagging import blank_bounded, fits, to_iob2
from finetune.data.values import (
    as_text,
    raw_json,
    read_label,
    read_marked,
    read_number,
    read_spans,
    read_texts,
    without_surrogates,
)
from finetune.errors import FinetuneError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

# Beside the task's roles a row carries: its number among all records, the file it came from (an index), its line there,
# the raw record as JSON, and the hash of its texts. Columns of the file that splitters and groups need have the prefix.
RAW, KEY_HIGH, KEY_LOW, JOINED, EXTRA = "raw", "key_high", "key_low", "joined", "extra:"
JOINED_KINDS = ("tokens", "messages")  # what is compared as one text, though it is none


@dataclass(frozen=True)
class SelectionSettings:
    """What decides how records become rows; plain values, so that it can be sent to another process."""

    columns: Mapping[str, Column]
    names: Mapping[str, str]
    clean: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    fill: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    label_map: Mapping[str, str] = field(default_factory=dict)
    label_separator: str | None = None
    label_columns: tuple[str, ...] = ()
    tag_scheme: str = "iob2"
    spans: bool = False
    extras: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

    @property
    def text_roles(self) -> tuple[str, ...]:
        """The roles whose values are what a model reads."""
        return tuple(role for role, column in self.columns.items() if column.kind in {"text", *JOINED_KINDS})


class RawDrop(NamedTuple):
    """A row dropped while reading: its number among all records, its place, the reason, and the record as JSON."""

    number: int
    file: int
    line: int
    reason: str
    raw: bytes


class SelectorWork(NamedTuple):
    """A batch of records: the number of the first, and (index of the file, how many records) for each file in it."""

    first: int
    files: list[tuple[int, int]]
    records: list[Record]


class Selected(NamedTuple):
    """What became of a batch of records: the usable rows as Arrow, the dropped ones, and what the cleaners did."""

    rows: Any
    dropped: list[RawDrop]
    reports: list[CleanerReport]


def row_schema(settings: SelectionSettings) -> pa.Schema:
    """Return the columns of the rows that a selector gives."""
    import pyarrow as pa

    types = {
        "text": pa.string(),
        "label": pa.string(),
        "labels": pa.list_(pa.string()),
        "tokens": pa.list_(pa.string()),
        "tags": pa.list_(pa.string()),
        "texts": pa.list_(pa.string()),
        "number": pa.float64(),
        "answers": answers_type(),
        "messages": messages_type(),
    }
    fields = [("number", pa.int64()), ("file", pa.int32()), ("line", pa.int64())]
    fields += [(role, types[column.kind]) for role, column in settings.columns.items()]
    fields += [(f"{EXTRA}{name}", pa.string()) for name in settings.extras]
    if any(column.kind in JOINED_KINDS for column in settings.columns.values()):
        fields.append((JOINED, pa.string()))
    return pa.schema([*fields, (RAW, pa.binary()), (KEY_HIGH, pa.uint64()), (KEY_LOW, pa.uint64())])


class Selector:
    """Turns batches of records into rows, column by column."""

    def __init__(self, settings: SelectionSettings) -> None:
        self.settings = settings
        self._tags = next((role for role, column in settings.columns.items() if column.kind == "tags"), None)
        tokens = any(column.kind == "tokens" for column in settings.columns.values())
        self._clean = Pipeline(settings.clean, tokens=tokens)
        self._clean_uncounted = Pipeline(settings.clean, tokens=tokens)  # what it does is in no report
        self._spans = CleanerReport("spans")
        self._readers: dict[str, Callable[[Any], tuple[Any, str]]] = {
            "label": self._label,
            "labels": self._labels,
            "messages": functools.partial(read_messages, clean=self._clean),
        }

    def __call__(self, work: SelectorWork) -> Selected:
        """Return the usable rows of a batch, and the dropped ones."""
        import numpy as np

        first, _, records = work
        files = np.repeat(*np.asarray(work.files, dtype=np.int32).T)
        values, reasons = self.values(records)
        kept = [index for index, reason in enumerate(reasons) if not reason]
        dropped = [
            RawDrop(first + index, int(files[index]), records[index].line, reason, raw_json(records[index].values))
            for index, reason in enumerate(reasons)
            if reason
        ]
        return Selected(self._rows(first, files, records, values, kept), dropped, self._take_reports())

    def _take_reports(self) -> list[CleanerReport]:
        """Return what the cleaners did, and before them the cutting of spans into words, if there are any."""
        reports = self._clean.take_reports()
        if not self.settings.spans:
            return reports
        spans, self._spans = self._spans, CleanerReport("spans")
        return [spans, *reports]

    def values(self, records: Sequence[Record]) -> tuple[dict[str, list[Any]], list[str]]:
        """Return each role's values, and for each record the reason why it cannot be used, or nothing."""
        reasons = [record.unreadable for record in records]
        values: dict[str, list[Any]] = {}
        answers: str | None = None
        if self.settings.spans:
            self._read_spans(records, values, reasons)
        for role, column in self.settings.columns.items():
            if role in values:
                continue
            raw = self._raw_values(records, role)
            if column.kind == "text":
                values[role] = self._texts(role, raw, reasons, column.required)
            elif column.kind in {"tokens", "tags"}:
                values[role] = self._words(role, raw, reasons)
            elif column.kind == "number":
                values[role] = self._read(role, raw, reasons, functools.partial(_number_within, column))
            elif column.kind == "answers":
                answers = role
            elif column.kind == "texts":
                read = functools.partial(read_texts, clean=self._clean, least=column.least)
                values[role] = self._read(role, raw, reasons, read)
            elif column.kind == "labels" and self.settings.label_columns:
                values[role] = self._read(role, records, reasons, self._marked_labels)
            else:
                values[role] = self._read(role, raw, reasons, self._readers[column.kind])
        if answers is None:
            self._clean_texts(values, reasons)
        else:
            self._clean_around_answers(answers, records, values, reasons)
        return values, reasons

    def _clean_around_answers(
        self, role: str, records: Sequence[Record], values: dict[str, list[Any]], reasons: list[str]
    ) -> None:
        """Read the answers in their contexts as these were given, and find their places again after cleaning."""
        before = list(values[CONTEXT_ROLE])
        values[role] = []
        for index, value in enumerate(self._raw_values(records, role)):
            answers, reason = ([], reasons[index]) if reasons[index] else read_answers(value, before[index])
            values[role].append(answers)
            reasons[index] = reason
        self._clean_texts(values, reasons)
        for index, text in enumerate(values[CONTEXT_ROLE]):
            if not reasons[index] and text != before[index]:
                found = keep_answers(values[role][index], before[index], text, self._clean_uncounted)
                values[role][index], reasons[index] = found

    def _raw_values(self, records: Sequence[Record], role: str) -> list[Any]:
        name = self.settings.names[role]
        raw = [record.values.get(name) for record in records]
        if role in self.settings.fill:
            fill = self.settings.fill[role]
            if role in self.settings.columns and self.settings.columns[role].kind != "number":
                fill = str(fill)
            raw = [fill if value is None or (type(value) is str and not value.strip()) else value for value in raw]
        return raw

    def _texts(self, role: str, raw: list[Any], reasons: list[str], required: bool) -> list[str]:
        texts = []
        for index, value in enumerate(raw):
            if type(value) is str and value and not value.isspace():
                texts.append(value if value.isascii() else without_surrogates(value))
                continue
            texts.append("")
            if (required or value is not None) and not reasons[index]:
                blank = isinstance(value, str)
                reasons[index] = f"{'blank' if blank else 'missing' if value is None else 'wrong_type_of'}_{role}"
        return texts

    def _read(
        self, role: str, raw: Sequence[Any], reasons: list[str], read: Callable[[Any], tuple[Any, str]]
    ) -> list[Any]:
        values = []
        for index, value in enumerate(raw):
            found, reason = read(value)
            values.append(found)
            if reason and not reasons[index]:
                reasons[index] = reason if reason == "unknown_label" else f"{reason}_{role}"
        return values

    def _label(self, value: Any) -> tuple[str | None, str]:
        label, reason = read_label(value)
        if reason:
            return None, reason
        label = self.settings.label_map.get(label, label)
        known = self.settings.labels
        return (None, "unknown_label") if known and label not in known else (label, "")

    def _labels(self, value: Any) -> tuple[list[str] | None, str]:
        if value is None:
            return None, "missing"
        separator = self.settings.label_separator
        if isinstance(value, str):
            value = [item for item in value.split(separator) if item.strip()] if separator else [value]
        if not isinstance(value, list):
            return None, "wrong_type_of"
        labels: list[str] = []
        for item in value:
            label, reason = self._label(item)
            if label is None:
                return None, reason
            labels.append(label)
        return sorted(set(labels)), ""

    def _marked_labels(self, record: Record) -> tuple[list[str] | None, str]:
        marked, reason = read_marked(record.values, self.settings.label_columns)
        return (None, reason) if reason else self._labels(marked)

    def _words(self, role: str, raw: list[Any], reasons: list[str]) -> list[list[str]]:
        lists = []
        for index, value in enumerate(raw):
            words = value.split() if isinstance(value, str) else value
            good = isinstance(words, list) and bool(words) and all(isinstance(word, str) for word in words)
            lists.append([without_surrogates(word) for word in words] if good else [])
            if not good and not reasons[index]:
                missing = value is None or (isinstance(words, list) and not words)
                reasons[index] = f"{'missing' if missing else 'wrong_type_of'}_{role}"
        if role == self._tags and self.settings.tag_scheme != "iob2":
            lists = [to_iob2(tags, self.settings.tag_scheme) for tags in lists]  # type: ignore[arg-type]
        if role == self._tags and self.settings.label_map:
            lists = [self._map_types(tags) for tags in lists]
        return lists

    def _map_types(self, tags: list[str]) -> list[str]:
        """Give entities the types that the recipe maps theirs to."""
        mapped = self.settings.label_map
        return [tag[:2] + mapped.get(tag[2:], tag[2:]) if tag[:2] in {"B-", "I-"} else tag for tag in tags]

    def _read_spans(self, records: Sequence[Record], values: dict[str, list[Any]], reasons: list[str]) -> None:
        """Read texts with spans in characters as words with IOB2 tags, before anything moves a character."""
        assert self._tags is not None
        tokens_role = next(role for role, column in self.settings.columns.items() if column.kind == "tokens")
        values[tokens_role], values[self._tags] = [], []
        texts, annotations = self._raw_values(records, "text"), self._raw_values(records, "spans")
        for index, (text, spans) in enumerate(zip(texts, annotations, strict=True)):
            tokens, tags, reason = read_spans(text, spans)
            if not reason and (blank_bounded(text, spans) or any(_cuts_word(text, span) for span in spans)):
                self._spans.count(_marked(text, spans), " ".join(tokens))
            values[tokens_role].append(tokens)
            values[self._tags].append(self._map_types(tags))
            reasons[index] = reasons[index] or reason

    def _clean_texts(self, values: dict[str, list[Any]], reasons: list[str]) -> None:
        for role, column in self.settings.columns.items():
            if column.kind == "text":
                self._clean_texts_of(role, values[role], reasons)
            elif column.kind == "tokens":
                self._clean_tokens(role, values, reasons)

    def _clean_texts_of(self, role: str, texts: list[str], reasons: list[str]) -> None:
        usable = [index for index, reason in enumerate(reasons) if not reason]
        cleaned, rejected = self._clean.texts([texts[index] for index in usable])
        for position, (index, text) in enumerate(zip(usable, cleaned, strict=True)):
            texts[index] = text
            if not text or text.isspace():
                reasons[index] = rejected.get(position) or f"nothing_left_after_cleaning_{role}"

    def _clean_tokens(self, role: str, values: dict[str, list[Any]], reasons: list[str]) -> None:
        for index, tokens in enumerate(values[role]):
            if reasons[index]:
                continue
            tags = values[self._tags][index] if self._tags else None
            if tags is not None and not fits(tokens, tags):
                reasons[index] = f"tokens_and_{self._tags}_differ_in_number"
                continue
            cleaned, aligned, reason = self._clean.tokens(tokens, tags)
            values[role][index] = cleaned
            if self._tags and aligned is not None:
                values[self._tags][index] = aligned
            if reason or not cleaned:
                reasons[index] = reason or f"nothing_left_after_cleaning_{role}"

    def _rows(
        self, first: int, files: Any, records: Sequence[Record], values: dict[str, list[Any]], kept: list[int]
    ) -> pa.RecordBatch:
        import numpy as np
        import pyarrow as pa

        from finetune.data.duplicates import text_keys

        schema = row_schema(self.settings)
        whole = len(kept) == len(records)
        chosen = values if whole else {role: [column[i] for i in kept] for role, column in values.items()}
        rows = records if whole else [records[i] for i in kept]
        columns: dict[str, Any] = {
            "number": np.asarray(kept, dtype=np.int64) + first,
            "file": files[kept],
            "line": [record.line for record in rows],
            **chosen,
            RAW: [raw_json(record.values) for record in rows],
        }
        for name in self.settings.extras:
            columns[f"{EXTRA}{name}"] = [as_text(record.values.get(name)) for record in rows]
        if JOINED in schema.names:
            kinds = {role: self.settings.columns[role].kind for role in self.settings.text_roles}
            role = next(role for role, kind in kinds.items() if kind in JOINED_KINDS)
            columns[JOINED] = [as_one_text(value) for value in chosen[role]]
        keys = text_keys(self._compared(columns))
        columns |= {KEY_HIGH: keys[:, 0], KEY_LOW: keys[:, 1]}
        arrays = [pa.array(columns[column.name], column.type) for column in schema]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _compared(self, columns: Mapping[str, Any]) -> list[list[str]]:
        """Return what duplicates are told by: the texts of each role; several texts in a list in any order."""
        lists = [role for role, column in self.settings.columns.items() if column.kind == "texts"]
        return [
            *(
                columns[JOINED if self.settings.columns[role].kind in JOINED_KINDS else role]
                for role in self.settings.text_roles
            ),
            *(["\0".join(sorted(texts)) for texts in columns[role]] for role in lists),
        ]


def as_one_text(value: Sequence[Any]) -> str:
    """Return words as one text, or a conversation as one, who says what included."""
    if value and not isinstance(value[0], str):
        return "\n".join(f"{message['role']}: {message['content']}" for message in value)
    return " ".join(value)


def _number_within(column: Column, value: Any) -> tuple[float | None, str]:
    """Return a number in its column's range, or the reason why there is none."""
    number, reason = read_number(value)
    if number is None:
        return None, reason
    low, high = column.minimum, column.maximum
    outside = (low is not None and number < low) or (high is not None and number > high)
    return (None, "out_of_range") if outside else (number, "")


def _cuts_word(text: str, span: Mapping[str, Any]) -> bool:
    """Tell whether a span begins or ends within a word: mostly a slip of the annotation."""
    places = (span["start"], span["end"])
    return any(0 < place < len(text) and text[place - 1].isalnum() and text[place].isalnum() for place in places)


def _marked(text: str, spans: Sequence[Mapping[str, Any]]) -> str:
    """Return a text with its spans in brackets, the last first, so that the places of the others stay right."""
    for span in sorted(spans, key=lambda span: span["start"], reverse=True):
        text = f"{text[: span['start']]}[{text[span['start'] : span['end']]}]{text[span['end'] :]}"
    return text


def check_columns(sample: Sequence[Record], needed: Iterable[tuple[str, str]], source: str) -> None:
    """Raise FinetuneError if no record of the sample can be read, or if none has one of the columns.

    `needed` has for each column what it is for (a role, or a setting), and its name.
    """
    readable = [record for record in sample if not record.unreadable]
    if not readable:
        counts: dict[str, int] = {}
        for record in sample:
            counts[record.unreadable] = counts.get(record.unreadable, 0) + 1
        listed = ", ".join(f"{reason} {count}" for reason, count in counts.items())
        raise FinetuneError(f"{source}: none of its {len(sample)} rows can be read ({listed})")
    found = list(dict.fromkeys(key for record in readable for key in record.values))
    for role, name in needed:
        if name not in found:
            shown = ", ".join(map(str, found[:50])) or "no columns"
            setting = f"Correct {role}." if role.startswith("data.") else f"Rename it, or set data.columns.{role}."
            if len(found) == 1 and any(mark in str(found[0]) for mark in ";\t|"):
                setting = "Is that the delimiter? Then set data.format: {name: csv, delimiter: auto}."
                found = []
            raise FinetuneError(
                f"{source}: expected a column {name!r} for {role}; found {shown}. "
                f"{nearest(name, [str(key) for key in found])}{setting}"
            )
