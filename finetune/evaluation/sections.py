"""What a report shows of one task: tables and pictures as plain data, which the reports draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

UNITS = {"row": "rows", "document": "documents", "query": "queries", "source": "sources"}  # what intervals are over
# A cell is text, a number, an interval {"value", "low", "high"}, or nothing
Cell = str | int | float | Mapping[str, float | None] | None


@dataclass(frozen=True)
class Table:
    """Rows under a header; the first `text_columns` hold text, the others numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    text_columns: int = 1


@dataclass(frozen=True)
class Matrix:
    """Counts by true label (rows) and predicted label (columns), drawn as a confusion matrix."""

    title: str
    labels: Sequence[str]
    counts: Sequence[Sequence[int]]
    note: str = ""


@dataclass(frozen=True)
class Scatter:
    """Points; with `diagonal` the line on which both are equal is drawn too."""

    title: str
    x: Sequence[float]
    y: Sequence[float]
    x_label: str
    y_label: str
    diagonal: bool = False
    note: str = ""


@dataclass(frozen=True)
class Histogram:
    """How often values occur; several named series are drawn over each other."""

    title: str
    values: Sequence[float] | Mapping[str, Sequence[float]]
    x_label: str
    note: str = ""


Section = Table | Matrix | Scatter | Histogram
