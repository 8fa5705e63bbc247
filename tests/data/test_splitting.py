"""Splitters: exact shares, whole clusters, every label everywhere, the same result for the same seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from finetune import registry
from finetune.data.splitting import SPLITS, random, stratified

BOTH = pytest.mark.parametrize("splitter", [random, stratified])
Splitter = Callable[..., list[str]]
LABELS = ["a", "b", "b", "c", "c", "c"] * 20


def sizes(assigned: list[str]) -> tuple[int, ...]:
    return tuple(assigned.count(name) for name in SPLITS)


@BOTH
@pytest.mark.parametrize(
    ("fractions", "expected"),
    [
        ({}, (96, 12, 12)),
        ({"train": 0.6, "validation": 0.2, "test": 0.2}, (72, 24, 24)),
        ({"train": 0.75, "validation": 0.25, "test": 0}, (90, 30, 0)),
    ],
)
def test_each_split_has_its_share(splitter: Splitter, fractions: dict[str, float], expected: tuple[int, ...]) -> None:
    assert sizes(splitter(LABELS, range(120), 3, **fractions)) == expected


@pytest.mark.parametrize("seed", range(5))
def test_a_stratified_split_has_each_label_in_its_share(seed: int) -> None:
    assigned = stratified(LABELS, range(120), seed, train=0.6, validation=0.2, test=0.2)
    assert Counter(zip(LABELS, assigned, strict=True)) == {
        ("a", "train"): 12, ("a", "validation"): 4, ("a", "test"): 4,
        ("b", "train"): 24, ("b", "validation"): 8, ("b", "test"): 8,
        ("c", "train"): 36, ("c", "validation"): 12, ("c", "test"): 12,
    }  # fmt: skip


@BOTH
def test_the_seed_alone_decides_the_split(splitter: Splitter) -> None:
    first = splitter(LABELS, range(120), 3)
    assert splitter(LABELS, range(120), 3) == first
    assert splitter(LABELS, range(120), 4) != first


def test_the_same_rows_under_other_cluster_numbers_are_split_alike() -> None:
    assert stratified(LABELS, range(120), 3) == stratified(LABELS, range(1_000, 1_120), 3)


@BOTH
@pytest.mark.parametrize("seed", range(5))
def test_a_cluster_never_straddles_splits(splitter: Splitter, seed: int) -> None:
    clusters = [row % 40 for row in range(120)]
    labels = [f"label {cluster % 4}" for cluster in clusters]
    assigned = splitter(labels, clusters, seed, train=0.5, validation=0.25, test=0.25)
    assert len(set(zip(clusters, assigned, strict=True))) == 40
    assert sizes(assigned) == (60, 30, 30)


@pytest.mark.parametrize("seed", range(5))
def test_a_label_with_as_many_rows_as_splits_is_in_every_split(seed: int) -> None:
    labels = ["rare"] * 3 + ["common"] * 60
    assert sorted(stratified(labels, range(63), seed)[:3]) == ["test", "train", "validation"]


def test_rounding_of_many_small_labels_favours_no_split() -> None:
    labels = [f"label {row // 15}" for row in range(150)]  # 1.5 rows of each label for validation and for test
    assert sizes(stratified(labels, range(150), 0)) == (120, 15, 15)


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
    name = splitter.__name__  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="expected fractions that add up to 1") as caught:
        registry.splitters.get(name).attributes["check"]({"validation": 0.1, "test": 0.1, **fractions})
    assert str(caught.value).endswith(found)
