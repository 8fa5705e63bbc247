"""CoNLL: one token a line with its columns, an empty line between sentences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Any, Literal, NamedTuple

from finetune.data.rows import Record
from finetune.data.sources.files import SourceFile
from finetune.data.sources.plain import lines_of
from finetune.data.tagging import Scheme, guess_scheme, to_iob2
from finetune.registry import sources

# Sentences that decide how the file is written: its separator, its number of columns, its tagging scheme
_LOOKED_AT = 10_000
_DOCUMENT = "-DOCSTART-"
_BLANKS = re.compile("[ \t]+")  # a no-break space is part of a token
_TAG = re.compile(r"O|[BIESLUM]-.+")

Separator = Literal["auto", "tab", "space"]


class _Sentence(NamedTuple):
    """The lines of a sentence, or None in place of a line that is not UTF-8, and the number of the first."""

    line: int
    lines: list[str | None]


def _check(options: Mapping[str, Any]) -> None:
    if options["token"] == options["tag"]:
        raise ValueError(f"token, tag: expected different columns, found {options['tag']} for both")


@sources.register("conll", suffixes=("conll", "bio", "iob"), check=_check)
def conll(
    file: SourceFile,
    *,
    separator: Separator = "auto",
    token: int = 0,
    tag: int = -1,
    scheme: Literal["auto"] | Scheme = "auto",
) -> Iterator[Record]:
    """CoNLL columns as `tokens` and `tags`, one row a sentence, its tags as IOB2; UTF-8.

    `token` and `tag` are numbers of columns, from 0, or from -1 backwards. `separator: auto` and `scheme: auto` go by
    the first 10,000 sentences. A sentence with a line that has fewer or more columns than most lines of these is
    unreadable. `-DOCSTART-` lines are left out, and so are comments: lines before a sentence that start with `# `,
    unless they are cut into a token and a tag like the others.
    """
    with file.open() as stream:
        sentences = _sentences(lines_of(stream))
        first = list(islice(sentences, _LOOKED_AT))
        split = "\t" if separator == "tab" or (separator == "auto" and _has_tabs(first)) else None
        columns = _Columns(split, token, tag)
        columns.learn_width(first)
        known = scheme if scheme != "auto" else guess_scheme(columns.tags_of(first))
        for sentence in chain(first, sentences):
            yield from columns.records(sentence, known)


def _sentences(lines: Iterator[tuple[int, bytes]]) -> Iterator[_Sentence]:
    pending = _Sentence(0, [])
    for number, content in lines:
        line = _decoded(content)
        if line is not None and _ends_sentence(line.strip(" \t")):
            if pending.lines:
                yield pending
            pending = _Sentence(0, [])
        else:
            pending = pending if pending.lines else _Sentence(number, [])
            pending.lines.append(line)
    if pending.lines:
        yield pending


def _ends_sentence(line: str) -> bool:
    return not line or (line.startswith(_DOCUMENT) and _BLANKS.split(line, maxsplit=1)[0] == _DOCUMENT)


def _decoded(content: bytes) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _has_tabs(sentences: list[_Sentence]) -> bool:
    lines = [line for sentence in sentences for line in sentence.lines if line and not line.startswith("# ")]
    return 2 * sum("\t" in line for line in lines) > len(lines)


class _Columns:
    """How a file's lines are cut into columns, and which of these matter."""

    def __init__(self, separator: str | None, token: int, tag: int) -> None:
        self._separator = separator
        self._token, self._tag = token, tag
        self._width = 0
        self._has_both = False

    def learn_width(self, sentences: list[_Sentence]) -> None:
        """Take the most frequent number of columns for the file's."""
        lines = chain.from_iterable(sentence.lines for sentence in sentences)
        widths = Counter(len(self._cut(line)) for line in lines if line and not line.startswith("# "))
        self._width = widths.most_common(1)[0][0] if widths else 0
        places = {column % max(self._width, 1) for column in (self._token, self._tag)}
        inside = all(-self._width <= column < self._width for column in (self._token, self._tag))
        self._has_both = inside and len(places) == 2

    def tags_of(self, sentences: list[_Sentence]) -> Iterator[list[str]]:
        """Yield the tags of the sentences that can be read, as they are written."""
        for sentence in sentences:
            rows = self._rows(sentence)[1]
            if self._reason(rows) == "":
                yield [row[self._tag] for row in rows if row]

    def records(self, sentence: _Sentence, scheme: Scheme) -> Iterator[Record]:
        """Yield the sentence's record, or nothing when it is made of comments alone."""
        line, rows = self._rows(sentence)
        reason = self._reason(rows)
        if reason:
            yield Record(line, {}, reason)
        elif rows:
            tokens = [row[self._token] for row in rows if row]
            yield Record(line, {"tokens": tokens, "tags": to_iob2([row[self._tag] for row in rows if row], scheme)})

    def _cut(self, line: str) -> list[str]:
        return line.split(self._separator) if self._separator else _BLANKS.split(line.strip(" \t"))

    def _rows(self, sentence: _Sentence) -> tuple[int, list[list[str] | None]]:
        """Return the sentence's columns, below its comments, with the number of its first line."""
        rows = [None if line is None else self._cut(line) for line in sentence.lines]
        comments = 0
        for written, row in zip(sentence.lines, rows, strict=True):
            if written is None or not written.startswith("# ") or self._is_token(row or []):
                break
            comments += 1
        return sentence.line + comments, rows[comments:]

    def _is_token(self, row: list[str]) -> bool:
        return self._fits(row) and _TAG.fullmatch(row[self._tag]) is not None

    def _fits(self, row: list[str]) -> bool:
        return self._has_both and len(row) == self._width

    def _reason(self, rows: list[list[str] | None]) -> str:
        if any(row is None for row in rows):
            return "not_utf8"
        return "" if all(self._fits(row or []) for row in rows) else "wrong_number_of_columns"
