"""Equal texts: their keys and clusters, conflicts between their labels, groups, and leaks between splits."""

from __future__ import annotations

import tracemalloc
from collections.abc import Hashable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from finetune.data.duplicates import (
    clusters_of,
    find_conflicts,
    find_leaks,
    join_clusters,
    merge_clusters,
    repeats,
    text_key,
    text_keys,
)

TEXT = st.text(st.characters(), max_size=12)  # lone surrogates are among these characters
FEW = st.lists(st.integers(0, 5), max_size=30)


def firsts(keys: Sequence[Hashable]) -> list[int]:
    """Return for each row the first row with the same key."""
    return [keys.index(key) for key in keys]


def partition(groups: Sequence[int]) -> NDArray[np.int64]:
    return np.array(firsts(groups), dtype=np.int64)


def merge_naively(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Return the lowest row reachable from each row over shared clusters and groups."""
    lowest = list(range(len(one)))
    for _ in one:
        for a in range(len(one)):
            for b in range(len(one)):
                if one[a] == one[b] or other[a] == other[b]:
                    lowest[a] = lowest[b] = min(lowest[a], lowest[b])
    return lowest


@pytest.mark.parametrize("other", ["hello there", " HELLO\tthere\n", "hello\u00a0there"])
def test_case_and_white_space_do_not_tell_texts_apart(other: str) -> None:
    assert text_key([other]) == text_key(["Hello there"])


@pytest.mark.parametrize("other", ["Hello there!", "Hellothere", "Hello", ""])
def test_anything_else_tells_texts_apart(other: str) -> None:
    assert text_key([other]) != text_key(["Hello there"])


def test_case_is_folded_as_unicode_does() -> None:
    assert text_key(["STRASSE ΣΊΣΥΦΟΣ"]) == text_key(["straße σίσυφος"])


def test_texts_of_two_columns_do_not_run_into_each_other() -> None:
    keys = {text_key(pair) for pair in (["a b", "c"], ["a", "b c"], ["a b c", ""], ["a b c"], ["c", "a b"])}
    assert len(keys) == 5


def test_a_key_is_the_same_in_every_release() -> None:
    assert text_key(["Hello  there"]) == "6dff0440702f9edff648eb94e235e0d2"


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(TEXT, TEXT), max_size=8))
def test_the_keys_of_many_rows_are_those_of_single_rows(rows: list[tuple[str, str]]) -> None:
    for columns in ([[a for a, _ in rows]], [[a for a, _ in rows], [b for _, b in rows]]):
        keys = text_keys(columns)
        assert keys.shape == (len(rows), 2)
        assert [f"{high:016x}{low:016x}" for high, low in keys.tolist()] == [
            text_key(row) for row in zip(*columns, strict=True)
        ]


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        text_keys([["a", "b"], ["a"]])


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=30))
def test_rows_of_the_same_key_make_a_cluster_numbered_by_its_first_row(keys: list[tuple[int, int]]) -> None:
    clusters = clusters_of(np.array(keys, dtype=np.uint64).reshape(-1, 2))
    assert clusters.tolist() == firsts(keys)
    assert repeats(clusters).tolist() == [keys.index(key) < row for row, key in enumerate(keys)]


def test_clusters_of_keys_that_need_all_of_their_bits() -> None:
    keys = np.array([[2**64 - 1, 0], [2**64 - 2, 0], [0, 2**64 - 1], [2**64 - 1, 0]], dtype=np.uint64)
    assert clusters_of(keys).tolist() == [0, 1, 2, 0]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=30))
def test_a_conflict_is_every_row_of_a_cluster_with_two_labels(rows: list[tuple[int, int]]) -> None:
    labels = np.array([label for _, label in rows], dtype=np.int32)
    found = find_conflicts(partition([group for group, _ in rows]), labels)
    assert found.tolist() == [len({label for other, label in rows if other == group}) > 1 for group, _ in rows]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(-3, 9)), max_size=15))
def test_merging_joins_what_shares_a_cluster_or_a_group(rows: list[tuple[int, int]]) -> None:
    clusters = partition([cluster for cluster, _ in rows])
    groups = np.array([group for _, group in rows], dtype=np.int64)
    assert merge_clusters(clusters, groups).tolist() == merge_naively(clusters.tolist(), groups.tolist())


def test_a_chain_of_links_is_one_cluster_under_its_lowest_row() -> None:
    rows = np.random.default_rng(0).permutation(5_000)
    joined = join_clusters(np.arange(5_001), rows[:-1], rows[1:])
    assert joined.tolist() == [0] * 5_000 + [5_000]


def test_no_links_leave_the_clusters_alone() -> None:
    none = np.empty(0, dtype=np.int64)
    assert join_clusters(np.array([0, 0, 2]), none, none).tolist() == [0, 0, 2]


def test_a_leak_names_the_lowest_row_of_each_earlier_split() -> None:
    clusters = partition([0, 1, 0, 0, 1, 2, 0, 2])
    splits = np.array([2, 0, 0, 0, 1, 1, 1, 2], dtype=np.int8)
    assert find_leaks(clusters, splits).tolist() == [[0, 2], [0, 6], [4, 1], [6, 2], [7, 5]]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), max_size=30))
def test_there_are_no_leaks_just_when_each_cluster_lies_in_one_split(rows: list[tuple[int, int]]) -> None:
    splits = np.array([split for _, split in rows], dtype=np.int8)
    leaks = find_leaks(partition([group for group, _ in rows]), splits)
    expected = sorted(
        [row, rows.index((group, earlier))]
        for row, (group, split) in enumerate(rows)
        for earlier in range(split)
        if (group, earlier) in rows
    )
    assert leaks.tolist() == expected


def test_no_rows_give_no_results() -> None:
    empty = clusters_of(text_keys([[]]))
    assert empty.shape == (0,)
    assert find_leaks(empty, np.empty(0, dtype=np.int8)).shape == (0, 2)
    assert not find_conflicts(empty, np.empty(0, dtype=np.int32)).any()
    assert not merge_clusters(empty, empty).any()


def test_bulk_work_needs_few_bytes_a_row() -> None:
    keys = np.random.default_rng(0).integers(0, 50_000, (100_000, 2), dtype=np.uint64)
    keys[:, 1] = 0
    merge_clusters(np.arange(2), np.zeros(2, dtype=np.int64))  # the imports
    tracemalloc.start()
    clusters = clusters_of(keys)
    assert tracemalloc.get_traced_memory()[1] < 80 * len(keys)
    find_leaks(clusters, (np.arange(len(clusters)) % 3).astype(np.int8))
    merge_clusters(clusters, np.arange(len(clusters)) // 2)
    assert tracemalloc.get_traced_memory()[1] < 200 * len(keys)
    tracemalloc.stop()
