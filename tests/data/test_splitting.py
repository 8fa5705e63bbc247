"""Splitters: exact shares, whole clusters, every label everywhere, the folds of scikit-learn, the same for a seed."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.model_selection import (
    GroupKFold,
    KFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    TimeSeriesSplit,
    train_test_split,
)

from finetune import registry
from finetune.data.splitting import (
    SPLITS,
    SplitInput,
    by_hash,
    by_time,
    grouped,
    predefined,
    random,
    stratified,
    stratified_grouped,
)
from finetune.errors import FinetuneError

Splitter = Callable[..., NDArray[np.int8]]
LABELS = ["a", "b", "b", "c", "c", "c"] * 20
TYPES = {"label": pa.string(), "number": pa.float64(), "labels": pa.list_(pa.string()), "tags": pa.list_(pa.string())}
DRAWN = pytest.mark.parametrize("splitter", [random, grouped, stratified, stratified_grouped])
BOTH = pytest.mark.parametrize("splitter", [random, stratified])


def chunked(values: Sequence[Any], kind: str = "label", chunk: int = 7) -> pa.ChunkedArray:
    parts = [pa.array(values[start : start + chunk], TYPES[kind]) for start in range(0, len(values), chunk)]
    return pa.chunked_array(parts, TYPES[kind])


def lowest(clusters: Iterable[int]) -> NDArray[np.int64]:
    """Return each row's cluster by the lowest row in it, as clusters are numbered."""
    _, first, of = np.unique(np.array(list(clusters)), return_index=True, return_inverse=True)
    return np.asarray(first[of])


def rows_of(
    values: Sequence[Any],
    clusters: Iterable[int] | None = None,
    *,
    kind: str = "label",
    chunk: int = 7,
    extras: Mapping[str, Sequence[str | None]] | None = None,
    texts: Sequence[int] | None = None,
) -> SplitInput:
    """Return rows with these targets; each is its own cluster, and has its own text, unless they are given."""
    count = len(values)
    keys = np.random.default_rng(0).integers(0, 2**63, (count, 2)).astype(np.uint64)
    return SplitInput(
        clusters=np.arange(count) if clusters is None else lowest(clusters),
        kind=kind,
        target=chunked(values, kind, chunk) if kind else None,
        keys=keys if texts is None else keys[list(texts)],
        extras={name: chunked(column, chunk=chunk) for name, column in (extras or {}).items()},
        names=lambda row: f"line {row + 1}",
    )


def by_column(column: Sequence[str | None], clusters: Iterable[int] | None = None, chunk: int = 7) -> SplitInput:
    return rows_of([None] * len(column), clusters, kind="", extras={"column": column}, chunk=chunk)


def sizes(assigned: NDArray[np.int8]) -> tuple[int, ...]:
    return tuple(np.bincount(assigned, minlength=3).tolist())


def folds_in(ways: Iterable[tuple[Any, Any]]) -> list[list[int]]:
    """Return the test rows of each of scikit-learn's folds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [sorted(np.array(test).tolist()) for _, test in ways]


def folds_of(splitter: Splitter, rows: SplitInput, seed: int, folds: int, **options: Any) -> list[list[int]]:
    return [
        np.flatnonzero(splitter(rows, seed, folds=folds, fold=fold, **options) == 2).tolist() for fold in range(folds)
    ]


# Shares


@DRAWN
@pytest.mark.parametrize(
    ("fractions", "expected"),
    [
        ({}, (96, 12, 12)),
        ({"train": 0.6, "validation": 0.2, "test": 0.2}, (72, 24, 24)),
        ({"train": 0.75, "validation": 0.25, "test": 0}, (90, 30, 0)),
    ],
)
def test_each_split_has_its_share(splitter: Splitter, fractions: dict[str, float], expected: tuple[int, ...]) -> None:
    assigned = splitter(rows_of(LABELS), 3, **fractions)
    assert sizes(assigned) == expected
    assert assigned.dtype == np.int8


@pytest.mark.parametrize("seed", range(5))
def test_a_stratified_split_has_each_label_in_its_share(seed: int) -> None:
    assigned = stratified(rows_of(LABELS), seed, train=0.6, validation=0.2, test=0.2)
    assert Counter(zip(LABELS, (SPLITS[split] for split in assigned), strict=True)) == {
        ("a", "train"): 12, ("a", "validation"): 4, ("a", "test"): 4,
        ("b", "train"): 24, ("b", "validation"): 8, ("b", "test"): 8,
        ("c", "train"): 36, ("c", "validation"): 12, ("c", "test"): 12,
    }  # fmt: skip


def test_rounding_of_many_small_labels_favours_no_split() -> None:
    labels = [f"label {row // 15}" for row in range(150)]  # 1.5 rows of each label for validation and for test
    assert sizes(stratified(rows_of(labels), 0)) == (120, 15, 15)
    labels = [f"label {row // 16}" for row in range(1600)]  # 12.8 rows of each for training: not 13 of every label
    assert sizes(stratified(rows_of(labels), 0)) == (1280, 160, 160)


@settings(deadline=None, max_examples=80)
@given(
    labels=st.lists(st.integers(0, 5).map(lambda number: number * number // 5), min_size=3, max_size=120),
    seed=st.integers(0, 2**32 - 1),
    fractions=st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.9, 0.1, 0), (1 / 3, 1 / 3, 1 / 3)]),
)
def test_a_label_is_within_one_row_of_its_share_and_in_every_split(
    labels: list[int], seed: int, fractions: tuple[float, float, float]
) -> None:
    names = [f"label {label}" for label in labels]
    assigned = stratified(rows_of(names), seed, train=fractions[0], validation=fractions[1], test=fractions[2])
    wanted = sum(fraction > 0 for fraction in fractions)
    for name, count in Counter(names).items():
        found = Counter(assigned[np.array(names) == name].tolist())
        if count >= wanted:
            assert len(found) == wanted
        for split, fraction in enumerate(fractions):
            guaranteed = count >= wanted and fraction * count < 1  # one row, where its share is less
            others = sum(fraction * count < 1 for fraction in fractions if fraction)
            assert abs(found[split] - fraction * count) < (1 if guaranteed else max(others, 1)) + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_a_label_with_as_many_rows_as_splits_is_in_every_split(seed: int) -> None:
    labels = ["rare"] * 3 + ["common"] * 60
    assert sorted(stratified(rows_of(labels), seed)[:3]) == [0, 1, 2]


@pytest.mark.parametrize("seed", range(5))
def test_a_label_too_rare_for_every_split_is_trained_on_first(seed: int) -> None:
    labels = ["once", "twice", "twice"] + ["common"] * 60
    assigned = stratified(rows_of(labels), seed)
    assert assigned[0] == 0
    assert 0 in assigned[1:3]


# The seed


@DRAWN
@pytest.mark.parametrize("options", [{}, {"folds": 4, "fold": 1}])
def test_the_seed_alone_decides_the_split(splitter: Splitter, options: dict[str, int]) -> None:
    first = splitter(rows_of(LABELS), 3, **options).tolist()
    assert splitter(rows_of(LABELS, chunk=120), 3, **options).tolist() == first
    assert splitter(rows_of(LABELS), 4, **options).tolist() != first


@pytest.mark.parametrize("kind", ["labels", "tags", "number"])
def test_other_targets_are_split_alike_however_they_are_chunked(kind: str) -> None:
    values: list[Any] = [
        {"labels": ["x", "y"][: row % 3], "tags": ["O", "B-x", "B-y"][: row % 4], "number": float(row % 17)}[kind]
        for row in range(100)
    ]
    first = stratified(rows_of(values, kind=kind, chunk=3), 3).tolist()
    assert stratified(rows_of(values, kind=kind, chunk=100), 3).tolist() == first
    assert stratified(rows_of(values, kind=kind), 4).tolist() != first


def test_the_same_rows_under_other_cluster_numbers_are_split_alike() -> None:
    here = rows_of(LABELS)
    assert stratified(replace(here, clusters=np.arange(1_000, 1_120)), 3).tolist() == stratified(here, 3).tolist()


# Clusters


@DRAWN
@pytest.mark.parametrize("seed", range(5))
def test_a_cluster_never_straddles_splits(splitter: Splitter, seed: int) -> None:
    clusters = [row % 40 for row in range(120)]
    labels = [f"label {cluster % 4}" for cluster in clusters]
    assigned = splitter(rows_of(labels, clusters), seed, train=0.5, validation=0.25, test=0.25)
    assert len(set(zip(clusters, assigned.tolist(), strict=True))) == 40
    assert sizes(assigned) == (60, 30, 30)


@settings(deadline=None, max_examples=60)
@given(
    clusters=st.lists(st.integers(0, 25), min_size=12, max_size=150),
    seed=st.integers(0, 2**32 - 1),
    folds=st.sampled_from([None, 2, 3]),
    splitter=st.sampled_from([random, grouped, stratified, stratified_grouped]),
    pure=st.booleans(),
)
def test_clusters_of_any_sizes_stay_whole_and_leave_no_split_empty(
    clusters: list[int], seed: int, folds: int | None, splitter: Splitter, pure: bool
) -> None:
    clusters = [*clusters, *range(100, 104)]
    labels = [f"label {cluster % 2 if pure else row % 3}" for row, cluster in enumerate(clusters)]
    assigned = splitter(rows_of(labels, clusters), seed, folds=folds)
    assert len(set(zip(clusters, assigned.tolist(), strict=True))) == len(set(clusters))
    assert all(sizes(assigned))


@settings(deadline=None, max_examples=60)
@given(
    numbers=st.lists(st.integers(0, 40), min_size=3, max_size=150),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_label_with_as_many_clusters_as_splits_is_in_every_split(numbers: list[int], seed: int) -> None:
    clusters = [*numbers, 100, 101, 102]
    labels = [f"label {cluster % 4}" for cluster in clusters]
    assigned = stratified(rows_of(labels, clusters), seed)
    counts = Counter(label for label, _ in set(zip(labels, clusters, strict=True)))
    for label in [label for label, count in counts.items() if count >= 3]:
        assert set(assigned[np.array(labels) == label].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("splitter", [random, grouped])
@pytest.mark.parametrize("seed", range(5))
def test_a_random_split_of_unequal_groups_balances_rows(splitter: Splitter, seed: int) -> None:
    clusters = [number for number in range(40) for _ in range(1 + number % 7)]
    clusters += [100] * 90  # too large for any split but training
    assigned = splitter(rows_of(["a"] * len(clusters), clusters), seed)
    assert set(assigned[-90:].tolist()) == {0}
    found = np.array(sizes(assigned)) - len(clusters) * np.array([0.8, 0.1, 0.1])
    assert np.abs(found).max() < 2


@pytest.mark.parametrize("seed", range(5))
def test_a_stratified_split_of_unequal_groups_keeps_labels_and_rows_in_proportion(seed: int) -> None:
    generator = np.random.default_rng(seed)
    clusters = np.sort(generator.integers(0, 200, 2_000))
    labels = np.where(generator.random(2_000) < (clusters % 5) / 5, "a", "b")
    assigned = stratified_grouped(rows_of(labels.tolist(), clusters.tolist()), seed)
    for split, fraction in enumerate((0.8, 0.1, 0.1)):
        assert abs((assigned == split).sum() - fraction * 2_000) <= 6
        for label in "ab":
            assert abs((assigned[labels == label] == split).sum() - fraction * (labels == label).sum()) <= 6


@pytest.mark.parametrize("seed", range(5))
def test_single_rows_make_up_for_unequal_clusters(seed: int) -> None:
    clusters = [*(row // 7 for row in range(70)), *range(100, 230)]
    labels = ["a" if cluster % 2 else "b" for cluster in clusters]
    assigned = stratified(rows_of(labels, clusters), seed)
    assert sizes(assigned) == (160, 20, 20)
    assert Counter(assigned[np.array(labels) == "a"].tolist()) == {0: 80, 1: 10, 2: 10}


@DRAWN
def test_too_few_clusters_are_refused(splitter: Splitter) -> None:
    with pytest.raises(FinetuneError, match="at least 3 rows .* found 2 .3 rows, of which some may not be separated"):
        splitter(rows_of(["a"] * 3, [0, 0, 1]), 0)
    with pytest.raises(FinetuneError, match="at least 5 rows that may stand in different splits for 5 folds"):
        splitter(rows_of(["a"] * 4), 0, folds=5)


def test_a_split_by_groups_says_that_it_needs_them() -> None:
    needing = [name for name in registry.splitters.names() if registry.splitters.get(name).attributes.get("groups")]
    assert needing == ["grouped", "stratified-grouped"]


def test_only_a_predefined_split_is_given_by_the_user() -> None:
    given_by_user = [
        name for name in registry.splitters.names() if registry.splitters.get(name).attributes.get("given")
    ]
    assert given_by_user == ["predefined"]


# Agreement with scikit-learn


@pytest.mark.parametrize(("count", "test"), [(100, 0.1), (101, 0.1), (57, 0.25), (33, 0.07)])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_random_test_split_is_that_of_train_test_split(count: int, test: float, seed: int) -> None:
    assigned = random(rows_of(["a"] * count), seed, train=0.9 - test, validation=0.1, test=test)
    _, expected = train_test_split(np.arange(count), test_size=test, random_state=seed)
    assert np.flatnonzero(assigned == 2).tolist() == sorted(expected.tolist())


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("folds", [2, 5])
def test_random_folds_are_those_of_kfold(seed: int, folds: int) -> None:
    expected = folds_in(KFold(folds, shuffle=True, random_state=seed).split(LABELS[:117]))
    assert folds_of(random, rows_of(LABELS[:117]), seed, folds) == expected


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("folds", [2, 5])
def test_stratified_folds_are_those_of_stratified_kfold(seed: int, folds: int) -> None:
    labels = [*LABELS[:117], "rare"]
    expected = folds_in(StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels))
    assert folds_of(stratified, rows_of(labels), seed, folds) == expected


@pytest.mark.parametrize("splitter", [random, grouped])
@pytest.mark.parametrize("seed", [0, 7])
def test_folds_of_groups_are_those_of_group_kfold(splitter: Splitter, seed: int) -> None:
    groups = lowest(np.random.default_rng(1).integers(0, 23, 120))
    expected = folds_in(GroupKFold(4, shuffle=True, random_state=seed).split(LABELS, groups=groups))
    assert folds_of(splitter, rows_of(LABELS, groups), seed, 4) == expected


def test_folds_of_groups_without_shuffling_are_those_that_balance_rows() -> None:
    groups = np.random.default_rng(1).integers(0, 5, 120) ** 2
    groups[:40] = np.arange(100, 140)
    groups = lowest(groups)
    found = folds_of(grouped, rows_of(LABELS, groups), 3, 3, shuffle=False)
    assert found == folds_in(GroupKFold(3).split(LABELS, groups=groups))
    assert [len(rows) for rows in found] == [40, 40, 40]


@pytest.mark.parametrize("seed", [0, 7])
def test_folds_of_groups_in_proportion_are_those_of_stratified_group_kfold(seed: int) -> None:
    groups = lowest(np.random.default_rng(1).integers(0, 23, 120))
    ways = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
    expected = folds_in(ways.split(LABELS, LABELS, groups))
    assert folds_of(stratified_grouped, rows_of(LABELS, groups), seed, 4) == expected


@DRAWN
@pytest.mark.parametrize("kind", ["label", "labels"])
def test_folds_test_every_row_once_and_divide_the_rest_in_proportion(splitter: Splitter, kind: str) -> None:
    values: list[Any] = [[label] for label in LABELS] if kind == "labels" else LABELS
    rows = rows_of(values, kind=kind)
    assert sorted(row for fold in folds_of(splitter, rows, 3, 4) for row in fold) == list(range(120))
    assert sizes(splitter(rows, 3, folds=4, fold=2, train=0.6, validation=0.3)) == (60, 30, 30)


def test_stratified_folds_of_duplicates_keep_them_together_and_labels_in_proportion() -> None:
    clusters = [row - row % 2 if row < 60 else row for row in range(120)]
    labels = ["b" if cluster % 3 else "a" for cluster in clusters]
    for fold in folds_of(stratified, rows_of(labels, clusters), 3, 5):
        assert {clusters[row] for row in fold} & {clusters[row] for row in set(range(120)) - set(fold)} == set()
        assert Counter(labels[row] for row in fold) == {"a": 8, "b": 16}


def test_labels_too_rare_for_any_stratified_fold_are_refused() -> None:
    with pytest.raises(FinetuneError, match="at least 5 rows under some label for 5 .* found 4 under the most"):
        stratified(rows_of(["a", "b", "c"] * 4), 0, folds=5)


# Other targets than one label


def label_table(seed: int, count: int, labels: int) -> NDArray[np.bool_]:
    generator = np.random.default_rng(seed)
    rates = 1 / np.arange(1, labels + 1) ** 1.2
    table = generator.random((count, labels)) < np.minimum(rates * generator.random((count, 1)), 0.9)
    return np.asarray(table[:, table.sum(axis=0) > 3])


def deviation(assigned: NDArray[Any], table: NDArray[np.bool_], shares: Sequence[float]) -> NDArray[np.float64]:
    """Return by how many rows each label misses its share of each split, (splits, labels)."""
    found = np.array([table[assigned == split].sum(axis=0) for split in range(len(shares))])
    return np.asarray(np.abs(found - np.outer(shares, table.sum(axis=0))))


@pytest.mark.parametrize("seed", range(3))
def test_several_labels_are_divided_as_well_as_by_iterative_stratification_row_by_row(seed: int) -> None:
    stratifiers = pytest.importorskip("iterstrat.ml_stratifiers")
    shares = (0.8, 0.1, 0.1)
    table = label_table(seed, 1_500, 28)
    values = [[f"label {label}" for label in np.flatnonzero(row)] for row in table]
    assigned = stratified(rows_of(values, kind="labels", chunk=100), seed)
    reference = stratifiers.IterativeStratification(table, np.array(shares), np.random.RandomState(seed))
    ours, theirs = deviation(assigned, table, shares), deviation(reference, table, shares)
    assert sizes(assigned) == (1200, 150, 150)
    assert ours.mean() < theirs.mean() + 0.2
    assert ours.max() < 2
    by_chance = deviation(random(rows_of(values, kind="labels", chunk=100), seed), table, shares)
    assert ours.mean() < by_chance.mean() / 3
    assert all(set(assigned[table[:, label]].tolist()) == {0, 1, 2} for label in range(table.shape[1]))


@pytest.mark.parametrize("seed", range(3))
def test_folds_of_several_labels_are_as_even_as_those_of_iterative_stratification(seed: int) -> None:
    stratifiers = pytest.importorskip("iterstrat.ml_stratifiers")
    table = label_table(seed, 1_000, 20)
    values = [[f"label {label}" for label in np.flatnonzero(row)] for row in table]
    reference = stratifiers.IterativeStratification(table, np.full(5, 0.2), np.random.RandomState(seed))
    found = np.empty(1_000, np.int64)
    for fold, rows in enumerate(folds_of(stratified, rows_of(values, kind="labels", chunk=100), seed, 5)):
        found[rows] = fold
    ours, theirs = deviation(found, table, [0.2] * 5), deviation(reference, table, [0.2] * 5)
    assert ours.mean() <= theirs.mean() + 0.05
    assert np.bincount(found).tolist() == [200] * 5


def test_rows_without_labels_and_labels_given_twice_are_divided_too() -> None:
    values = [["x", "x"] if row % 2 else None if row % 4 else [] for row in range(200)]
    assigned = stratified(rows_of(values, kind="labels"), 0)
    assert sizes(assigned) == (160, 20, 20)
    assert sizes(assigned[1::2]) == (80, 10, 10)


def test_tags_are_divided_by_the_types_of_entities() -> None:
    tags = [["O", "B-PER", "I-PER", "B-PER"] if row % 10 == 0 else ["B-LOC", "O"] for row in range(200)]
    assigned = stratified(rows_of(tags, kind="tags"), 0, train=0.5, validation=0.25, test=0.25)
    assert sizes(assigned[::10]) == (10, 5, 5)
    assert sizes(assigned) == (100, 50, 50)


def test_numbers_are_divided_by_quantiles() -> None:
    numbers = (np.random.default_rng(0).random(1_000) ** 4).tolist()
    assigned = stratified(rows_of(numbers, kind="number", chunk=100), 0)
    order = np.argsort(numbers)
    for start in range(0, 1_000, 100):
        assert sizes(assigned[order[start : start + 100]]) == (80, 10, 10)
    halves = stratified(rows_of(numbers, kind="number", chunk=100), 0, bins=2)
    assert sizes(halves[order[:500]]) == (400, 50, 50)


@settings(deadline=None, max_examples=80)
@given(
    numbers=st.lists(st.integers(0, 30).map(float) | st.floats(-1, 1), min_size=3, max_size=150),
    seed=st.integers(0, 2**32 - 1),
    fractions=st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.9, 0.1, 0), (0.98, 0.01, 0.01)]),
)
def test_the_bins_of_a_number_move_no_split_from_its_share_and_leave_none_empty(
    numbers: list[float], seed: int, fractions: tuple[float, float, float]
) -> None:
    rows = rows_of(numbers, kind="number")
    found = sizes(stratified(rows, seed, train=fractions[0], validation=fractions[1], test=fractions[2]))
    for size, fraction in zip(found, fractions, strict=True):
        assert size > 0 or not fraction
        assert abs(size - fraction * len(numbers)) < (1 if min(filter(None, fractions)) * len(numbers) >= 1 else 2)


def test_sixty_numbers_are_divided_exactly() -> None:
    numbers = np.random.default_rng(0).random(60).tolist()
    assert sizes(stratified(rows_of(numbers, kind="number"), 0)) == (48, 6, 6)
    assert [len(fold) for fold in folds_of(stratified, rows_of(numbers[:30], kind="number"), 0, 5)] == [6] * 5


def test_a_frequent_number_is_one_stratum() -> None:
    numbers = [1.0] * 60 + [2.0] * 30 + [3.0] * 10
    assigned = stratified(rows_of(numbers, kind="number"), 0)
    assert [sizes(assigned[:60]), sizes(assigned[60:90]), sizes(assigned[90:])] == [(48, 6, 6), (24, 3, 3), (8, 1, 1)]


def test_without_a_target_a_stratified_split_is_a_random_one() -> None:
    rows = rows_of([None] * 50, kind="")
    assert sizes(stratified(rows, 0)) == (40, 5, 5)
    assert sizes(stratified(rows, 0, folds=5)) == (36, 4, 10)
    assert stratified(rows, 0).tolist() != stratified(rows, 1).tolist()


# Time

DAYS = [f"2024-{month:02d}-{day:02d}" for month in range(1, 11) for day in range(1, 11)]
SHUFFLED = np.random.default_rng(5).permutation(100)


def later(text: str) -> str:
    return f"{text}T23:30:00-02:00"  # already the next day in UTC


@pytest.mark.parametrize(
    "column",
    [
        DAYS,
        [later(day) for day in DAYS],
        [f"{day} 10:00" for day in DAYS],
        [f"{number}" for number in range(-20, 80)],
        [f" {number / 3} " for number in range(100)],
        [f"{1_900 + number}-06" for number in range(100)],
    ],
)
@pytest.mark.parametrize("chunk", [7, 100])
def test_the_oldest_rows_train_and_the_newest_test(column: list[str], chunk: int) -> None:
    rows = by_column([column[place] for place in SHUFFLED], chunk=chunk)
    assigned = by_time(rows, 0, by="column")
    assert assigned[np.argsort(SHUFFLED)].tolist() == [0] * 80 + [1] * 10 + [2] * 10


def test_time_zones_count() -> None:
    times = ["2024-05-01T12:00:00+05:00", "2024-05-01T08:00:00", "2024-05-01T09:00:00Z", "2024-05-01T12:00+02:00"]
    assigned = by_time(by_column(times), 0, by="column", train=0.5, validation=0.25, test=0.25)
    assert assigned.tolist() == [0, 0, 1, 2]


def test_without_a_test_split_the_newest_rows_are_for_validation() -> None:
    assigned = by_time(by_column(DAYS), 0, by="column", train=0.9, validation=0.1, test=0)
    assert assigned.tolist() == [0] * 90 + [1] * 10


@pytest.mark.parametrize("count", range(3, 12))
def test_few_rows_leave_no_split_by_time_empty(count: int) -> None:
    assert all(sizes(by_time(by_column(DAYS[:count]), 0, by="column")))


@pytest.mark.parametrize(("count", "folds"), [(100, 5), (97, 4), (12, 10), (9, 2)])
def test_folds_by_time_train_on_the_windows_of_time_series_split_and_test_on_all_that_is_later(
    count: int, folds: int
) -> None:
    rows = by_column([DAYS[place] for place in SHUFFLED if place < count])
    order = np.argsort([place for place in SHUFFLED if place < count])
    for fold, (learned, tested) in enumerate(TimeSeriesSplit(folds).split(order)):
        assigned = by_time(rows, 0, by="column", folds=folds, fold=fold, train=0.6, validation=0.2)[order]
        assert np.flatnonzero(assigned < 2).tolist() == learned.tolist()
        assert np.flatnonzero(assigned == 2).tolist() == list(range(tested[0], count))
        assert (np.diff(assigned) >= 0).all()
        assert abs((assigned == 1).sum() - len(learned) / 4) < 1


def test_folds_by_time_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(FinetuneError, match="at least 7 rows .* for 5 folds behind a first window .* found 6"):
        by_time(by_column(DAYS[:6]), 0, by="column", folds=5)


@settings(deadline=None, max_examples=60)
@given(
    times=st.lists(st.integers(0, 30), min_size=5, max_size=60),
    numbers=st.lists(st.integers(0, 20), min_size=60, max_size=60),
    folds=st.sampled_from([{}, {"folds": 2, "fold": 0}, {"folds": 2, "fold": 1}]),
)
def test_no_cluster_that_trains_reaches_past_the_splits_behind_it(
    times: list[int], numbers: list[int], folds: dict[str, int]
) -> None:
    clusters = [*numbers[: len(times)], 100, 101, 102]
    times = [*times, 3, 4, 5]
    assigned = by_time(by_column([str(time) for time in times], clusters), 0, by="column", **folds)
    assert len(set(zip(clusters, assigned.tolist(), strict=True))) == len(set(clusters))
    latest: dict[int, int] = {}
    for cluster, time in zip(clusters, times, strict=True):
        latest[cluster] = max(latest.get(cluster, time), time)
    reached = np.array([latest[cluster] for cluster in clusters])
    assert reached[assigned == 0].max() <= reached[assigned == 1].min()
    assert reached[assigned == 1].max() <= reached[assigned == 2].min()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([*DAYS, "soon", None], "expected a date .* found 'soon' .line 101., nothing .line 102.. Correct"),
        ([*"123456", "nan", "7-8"], "expected a number in column 'column' .* found 'nan' .line 7., '7-8' .line 8.."),
        (["x"] * 9, "found 'x' .line 1., .* 'x' .line 5. and 4 more"),
    ],
)
def test_values_that_are_no_time_are_named(column: list[str | None], message: str) -> None:
    with pytest.raises(FinetuneError, match=message):
        by_time(by_column(column), 0, by="column")


# Hash


@pytest.mark.parametrize("by", ["column", None])
def test_a_hash_gives_each_split_about_its_share(by: str | None) -> None:
    assigned = by_hash(by_column([f"user {row}" for row in range(5_000)], chunk=500), 0, by=by)
    assert np.abs(np.array(sizes(assigned)) - [4_000, 500, 500]).max() < 120  # four standard deviations


def test_the_split_by_hash_is_what_it_was() -> None:
    assigned = by_hash(by_column(list("klmnopqrst")), 0, by="column", train=0.4, validation=0.3, test=0.3)
    assert assigned.tolist() == [2, 1, 0, 1, 1, 2, 2, 0, 1, 0]


@pytest.mark.parametrize("by", ["column", None])
def test_folds_by_hash_test_every_row_once_and_divide_the_rest_in_proportion(by: str | None) -> None:
    rows = by_column([f"user {row}" for row in range(5_000)], chunk=500)
    folds = folds_of(by_hash, rows, 0, 5, by=by)
    assert sorted(row for fold in folds for row in fold) == list(range(5_000))
    assert max(abs(len(fold) - 1_000) for fold in folds) < 120  # four standard deviations
    found = sizes(by_hash(rows, 0, by=by, folds=5, fold=3, train=0.6, validation=0.2))
    assert np.abs(np.array(found) - [3_000, 1_000, 1_000]).max() < 140


def test_a_fold_by_hash_is_what_it_was() -> None:
    assigned = by_hash(by_column(list("klmnopqrst")), 0, by="column", folds=3, fold=1, train=0.5, validation=0.5)
    assert assigned.tolist() == [1, 0, 0, 2, 2, 1, 0, 1, 2, 2]


@pytest.mark.parametrize("folds", [{}, {"folds": 5, "fold": 3}])
@pytest.mark.parametrize("by", ["column", None])
def test_new_rows_never_move_old_ones(by: str | None, folds: dict[str, Any]) -> None:
    users = [f"user {row % 70}" for row in range(400)]
    all_rows = by_column(users)
    old = SplitInput(np.arange(200), "", None, all_rows.keys[:200], {"column": chunked(users[:200])}, str)
    assert by_hash(old, 0, by=by, **folds).tolist() == by_hash(all_rows, 1, by=by, **folds)[:200].tolist()


def test_equal_values_are_in_one_split_by_hash() -> None:
    users = [f"user {row % 7}" for row in range(200)]
    assigned = by_hash(by_column(users), 0, by="column")
    assert len(set(zip(users, assigned.tolist(), strict=True))) == 7
    texts = [row % 7 for row in range(200)]
    assigned = by_hash(rows_of([None] * 200, kind="", texts=texts), 0)
    assert len(set(zip(texts, assigned.tolist(), strict=True))) == 7


def test_a_new_duplicate_follows_its_cluster() -> None:
    column = [f"user {row}" for row in range(100)]
    alone = by_hash(by_column(column), 0, by="column")
    followed = by_hash(by_column([*column, *(f"new {row}" for row in range(100))], [*range(100)] * 2), 0, by="column")
    assert followed.tolist() == alone.tolist() * 2


def test_another_salt_gives_another_split_and_another_seed_the_same() -> None:
    rows = by_column([f"user {row}" for row in range(100)])
    first = by_hash(rows, 0, by="column").tolist()
    assert by_hash(rows, 1, by="column").tolist() == first
    assert by_hash(rows, 0, by="column", salt="pepper").tolist() != first
    assert set(by_hash(rows, 0, by="column", train=0.9, validation=0.1, test=0).tolist()) == {0, 1}


def test_rows_without_a_value_to_hash_are_named() -> None:
    with pytest.raises(FinetuneError, match="found none in 2 .line 2, line 4."):
        by_hash(by_column(["a", None, "b", None]), 0, by="column")


# Predefined


def test_a_column_names_the_split_of_each_row() -> None:
    column = ["train", "Validation", "valid", "val", "dev ", "TEST", "train"]
    assigned = predefined(by_column(column, [0, 1, 2, 3, 4, 0, 0]), 0, column="column")
    assert assigned.tolist() == [0, 1, 1, 1, 1, 2, 0], "a cluster in two splits is not moved"


def test_values_that_name_no_split_are_listed() -> None:
    column = ["train", "holdout", None, "dev", "holdout", "trian", "test", "x", "y"]
    with pytest.raises(FinetuneError) as caught:
        predefined(by_column(column), 0, column="column")
    assert str(caught.value) == (
        "data.split: expected train, validation (or valid, val, dev) or test in column 'column', "
        "found 'holdout', 'trian', 'x', 'y', nothing in 6 rows (line 2, line 3, line 5, line 6, line 8 and 1 more). "
        "Correct these rows, or remove them."
    )


# The recipe


@pytest.mark.parametrize(
    ("name", "options", "columns"),
    [
        ("time", {"by": "created"}, ["created"]),
        ("hash", {"by": "user"}, ["user"]),
        ("hash", {}, []),
        ("predefined", {}, ["split"]),
        ("predefined", {"column": "part"}, ["part"]),
    ],
)
def test_splitters_say_which_columns_they_need(name: str, options: dict[str, str], columns: list[str]) -> None:
    entry = registry.splitters.get(name)
    assert entry.attributes["needs"](entry.options(**options).model_dump()) == columns


@BOTH
@pytest.mark.parametrize(
    ("fractions", "found"),
    [
        ({"train": 0.5}, "found 0.7 (train 0.5, validation 0.1, test 0.1)"),
        ({"train": 0.9}, "found 1.1 (train 0.9, validation 0.1, test 0.1)"),
    ],
)
def test_fractions_that_do_not_add_up_are_refused_while_the_recipe_is_read(
    splitter: Splitter, fractions: dict[str, Any], found: str
) -> None:
    name = splitter.__name__
    with pytest.raises(ValueError, match="expected fractions that add up to 1") as caught:
        registry.splitters.get(name).attributes["check"]({"validation": 0.1, "test": 0.1, **fractions})
    assert str(caught.value).endswith(found)


@pytest.mark.parametrize("name", ["random", "grouped", "stratified", "stratified-grouped", "time", "hash"])
@pytest.mark.parametrize(
    ("given_options", "message"),
    [
        ({"folds": 5, "fold": 5}, "expected a fold from 0 to 4 .folds is 5., found 5"),
        ({"fold": 1}, "expected `folds`, the number of folds, with fold 1"),
    ],
)
def test_a_fold_that_is_none_of_the_folds_is_refused(name: str, given_options: dict[str, int], message: str) -> None:
    entry = registry.splitters.get(name)
    needed = {"by": "created"} if name in {"time", "hash"} else {}
    options = entry.options(**needed, **given_options).model_dump()
    with pytest.raises(ValueError, match=message):
        entry.attributes["check"](options)


def test_with_folds_the_fractions_need_only_be_a_proportion() -> None:
    entry = registry.splitters.get("random")
    options = entry.options.model_validate({"folds": 5, "fold": 4, "train": 0.9, "validation": 0.1}).model_dump()
    entry.attributes["check"](options)
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        entry.options.model_validate({"folds": 1})
