"""Equal texts: dropped, kept together or refused; and texts under two labels."""

from __future__ import annotations

from typing import Literal

import pytest

from finetune.data.duplicates import resolve_duplicates, text_key
from finetune.data.rows import Dropped, Row
from finetune.errors import FinetuneError


def labelled(*pairs: tuple[str, str]) -> list[Row]:
    return [Row(line, {"text": text, "label": label}) for line, (text, label) in enumerate(pairs, start=1)]


def resolve(
    rows: list[Row],
    duplicates: Literal["drop", "keep", "error"] = "drop",
    conflicts: Literal["drop", "error"] = "drop",
    label_role: str | None = "label",
) -> tuple[list[int], list[int], list[tuple[int, str]]]:
    kept, clusters, dropped = resolve_duplicates(rows, ["text"], label_role, duplicates=duplicates, conflicts=conflicts)
    return [row.line for row in kept], clusters, [(row.line, row.reason) for row in dropped]


REPEATED = labelled(("Hello there", "a"), ("bye", "b"), ("hello  THERE ", "a"), ("hello there", "a"), ("else", "b"))
CONFLICTING = labelled(("hello", "a"), ("bye", "b"), ("Hello", "b"), ("hello", "a"), ("else", "b"))


@pytest.mark.parametrize("other", ["hello there", " HELLO\tthere\n", "hello\u00a0there"])
def test_case_and_white_space_do_not_tell_texts_apart(other: str) -> None:
    assert text_key([other]) == text_key(["Hello there"])


@pytest.mark.parametrize("other", ["Hello there!", "Hellothere", "Hello", ""])
def test_anything_else_tells_texts_apart(other: str) -> None:
    assert text_key([other]) != text_key(["Hello there"])


def test_texts_of_two_columns_do_not_run_into_each_other() -> None:
    keys = {text_key(pair) for pair in (["a b", "c"], ["a", "b c"], ["a b c", ""], ["a b c"], ["c", "a b"])}
    assert len(keys) == 5


def test_of_a_repeated_text_the_first_row_is_kept() -> None:
    assert resolve(REPEATED) == ([1, 2, 5], [0, 1, 2], [(3, "duplicate"), (4, "duplicate")])


def test_kept_duplicates_are_one_cluster() -> None:
    assert resolve(REPEATED, "keep") == ([1, 2, 3, 4, 5], [0, 1, 0, 0, 2], [])


def test_repeated_texts_are_refused_with_their_lines_on_demand() -> None:
    with pytest.raises(FinetuneError) as caught:
        resolve(REPEATED, "error")
    assert str(caught.value) == (
        "expected no repeated texts, found 1: lines 1, 3, 4. Mend the data, or set data.duplicates: drop."
    )


@pytest.mark.parametrize("duplicates", ["drop", "keep", "error"])
def test_every_row_of_a_text_under_two_labels_is_dropped(duplicates: Literal["drop", "keep", "error"]) -> None:
    kept, clusters, dropped = resolve(CONFLICTING, duplicates)
    assert (kept, len(set(clusters))) == ([2, 5], 2)
    assert dropped == [(1, "conflicting_labels"), (3, "conflicting_labels"), (4, "conflicting_labels")]


def test_texts_under_two_labels_are_refused_with_their_lines_on_demand() -> None:
    with pytest.raises(FinetuneError) as caught:
        resolve(CONFLICTING, conflicts="error")
    assert str(caught.value) == (
        "expected no texts under different labels, found 1: lines 1, 3, 4. Mend the data, or set data.conflicts: drop."
    )


@pytest.mark.parametrize("setting", ["duplicates", "conflicts"])
def test_a_refusal_shows_the_first_five_texts_in_the_order_of_the_file(setting: str) -> None:
    second = "a" if setting == "duplicates" else "b"
    rows = labelled(*[(f"text {number}", label) for number in range(8) for label in ("a", second)])
    with pytest.raises(FinetuneError) as caught:
        resolve(rows, "error" if setting == "duplicates" else "drop", "error" if setting == "conflicts" else "drop")
    assert "found 8: lines 1, 2; lines 3, 4; lines 5, 6; lines 7, 8; lines 9, 10 and 3 more." in str(caught.value)


def test_a_refusal_stays_short_however_often_a_text_is_repeated() -> None:
    with pytest.raises(FinetuneError) as caught:
        resolve(labelled(*[("same", "a")] * 1_000), "error")
    assert len(str(caught.value)) < 500


def test_without_a_label_there_is_no_conflict() -> None:
    assert resolve(CONFLICTING, label_role=None) == ([1, 2, 5], [0, 1, 2], [(3, "duplicate"), (4, "duplicate")])


def test_a_dropped_row_keeps_its_values() -> None:
    _, _, dropped = resolve_duplicates(REPEATED, ["text"], "label", duplicates="drop", conflicts="drop")
    assert dropped[0] == Dropped(3, "duplicate", {"text": "hello  THERE ", "label": "a"})
