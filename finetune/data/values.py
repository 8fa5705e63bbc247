"""Values: one value of a record read as what a task needs, or the reason why it cannot be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.data.cleaning import Pipeline
from finetune.data.tagging import SpanError, spans_to_iob2

# What a column that marks its label may hold, in lower case
MARKS = {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "false": False, "no": False}


def read_text(value: Any, clean: Pipeline) -> tuple[str, str]:
    """Return one cleaned text, or the reason why there is none."""
    if value is None:
        return "", "missing"
    if not isinstance(value, str):
        return "", "wrong_type_of"
    if not value.strip():
        return "", "blank"
    text, reason = clean.text(without_surrogates(value))
    return (text, reason) if text.strip() or reason else ("", "nothing_left_after_cleaning")


def read_texts(value: Any, clean: Pipeline, *, least: int = 1) -> tuple[list[str], str]:
    """Return several cleaned texts, or the reason why one of them cannot be used; one text may stand for a list.

    A list of fewer than `least` is missing: where texts are asked about, none is no question.
    """
    if value is None:
        return [], "missing"
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        return [], "wrong_type_of"
    if len(value) < least:
        return [], "missing"
    texts = []
    for item in value:
        text, reason = read_text(item, clean)
        if reason:
            return [], reason
        texts.append(text)
    return texts, ""


def read_label(value: Any) -> tuple[str, str]:
    """Return the label as text, blanks at its ends removed, or the reason why there is none."""
    if type(value) is str:
        label = value.strip()
        return (label if label.isascii() else without_surrogates(label), "" if label else "missing")
    if value is None:
        return "", "missing"
    if isinstance(value, bool):
        return str(value).lower(), ""
    if isinstance(value, int):
        return str(value), ""
    return "", "wrong_type_of"


def read_marked(values: Mapping[str, Any], columns: Sequence[str]) -> tuple[list[str], str]:
    """Return the columns that are marked in a record, or the reason why one of them says neither yes nor no."""
    marked = []
    for name in columns:
        value = values.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            return [], "missing"
        said = MARKS.get(str(value).strip().lower())
        if said is None:
            return [], "neither_yes_nor_no_in"
        marked += [name] if said else []
    return marked, ""


def read_number(value: Any) -> tuple[float | None, str]:
    """Return a finite number, or the reason why there is none; text that reads as a number is one."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None, "missing"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None, "wrong_type_of"
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None, "not_a_number_in"
    return (number, "") if math.isfinite(number) else (None, "not_a_number_in")


def read_spans(text: Any, spans: Any) -> tuple[list[str], list[str], str]:
    """Return words and IOB2 tags for a text with spans in characters, or the reason why there are none."""
    if text is None or spans is None:
        return [], [], "missing_text" if text is None else "missing_spans"
    if not isinstance(text, str) or not isinstance(spans, list) or not all(isinstance(span, dict) for span in spans):
        return [], [], "wrong_type_of_text" if not isinstance(text, str) else "wrong_type_of_spans"
    if not text.strip():
        return [], [], "blank_text"
    try:
        tokens, tags = spans_to_iob2(without_surrogates(text), spans)
    except SpanError as error:
        return [], [], error.reason
    return tokens, tags, ""


def without_surrogates(text: str) -> str:
    """Replace lone surrogates: valid in JSON, but no text, since neither UTF-8 nor a tokenizer takes them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def raw_json(values: Mapping[str, Any]) -> bytes:
    """Return a record as JSON, whatever it holds."""
    import orjson

    try:
        return orjson.dumps(values, default=str, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # lone surrogates, integers beyond 64 bits
        return _deep_json(values).encode()


def as_text(value: Any) -> str | None:
    """Return a value that splits or groups rows as text; no value stays none."""
    if value is None:
        return None
    return without_surrogates(value if isinstance(value, str) else _deep_json(value))


def _deep_json(value: Any) -> str:
    """Return JSON of a value that was read; the little that is nested deeper than can be written is said to be so."""
    try:
        return json.dumps(value, default=str)
    except RecursionError:
        return '{"unreadable": "nested too deeply"}'
