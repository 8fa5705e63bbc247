"""The order of rows: every row once, cheap padding, a pure function of seed and epoch."""

from __future__ import annotations

import random

import numpy as np
import pytest

from finetune.training.batching import Together, evaluation_batches, step_groups, total_steps

GENERATOR = random.Random(2)
LENGTHS = [GENERATOR.randint(3, 80) for _ in range(1000)]


def flat(groups: list[list[list[int]]]) -> list[int]:
    return [row for group in groups for batch in group for row in batch]


def flat_batches(groups: list[list[list[int]]]) -> list[list[int]]:
    return [batch for group in groups for batch in group]


@pytest.mark.parametrize(("size", "accumulation"), [(32, 1), (8, 4), (7, 3), (5000, 1)])
def test_every_row_is_in_exactly_one_step_of_an_epoch(size: int, accumulation: int) -> None:
    groups = step_groups(LENGTHS, batch_size=size, accumulation=accumulation, seed=1, epoch=0)
    assert sorted(flat(groups)) == list(range(1000))
    assert len(groups) == total_steps(1000, batch_size=size, accumulation=accumulation, epochs=1, max_steps=None)
    assert all(len(batch) <= size for group in groups for batch in group)


def test_the_rows_of_a_step_do_not_depend_on_how_it_is_cut_into_micro_batches() -> None:
    whole = step_groups(LENGTHS, batch_size=8, accumulation=1, seed=1, epoch=2)
    cut = step_groups(LENGTHS, batch_size=2, accumulation=4, seed=1, epoch=2)
    assert [sorted(flat([group])) for group in whole] == [sorted(flat([group])) for group in cut]


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return flat(step_groups(LENGTHS, batch_size=32, accumulation=1, seed=seed, epoch=epoch))

    np.random.seed(0)
    first = order(1, 0)
    np.random.seed(123)
    assert order(1, 0) == first
    assert order(1, 1) != first
    assert order(2, 0) != first


def padding(groups: list[list[list[int]]]) -> float:
    padded = sum(len(b) * max(LENGTHS[row] for row in b) for group in groups for b in group)
    return 1 - sum(LENGTHS) / padded


def test_bucketing_by_length_leaves_little_padding() -> None:
    bucketed = step_groups(LENGTHS, batch_size=8, accumulation=1, seed=1, epoch=0)
    plain = step_groups(LENGTHS, batch_size=8, accumulation=1, seed=1, epoch=0, bucket_by_length=False)
    assert padding(bucketed) < 0.04
    assert padding(plain) > 0.4


@pytest.mark.parametrize("rows", [64, 300, 1000])
def test_a_small_set_is_not_sorted_as_a_whole_so_that_rows_meet_others_in_every_epoch(rows: int) -> None:
    first, second = (
        {frozenset(batch) for batch in flat_batches(step_groups(range(rows), batch_size=8, accumulation=1, seed=1,
                                                                epoch=epoch))} for epoch in (0, 1)
    )  # fmt: skip
    assert len(first & second) <= 0.02 * len(first)


def test_short_and_long_batches_come_in_mixed_order() -> None:
    groups = step_groups(LENGTHS, batch_size=32, accumulation=1, seed=1, epoch=0)
    lengths = [LENGTHS[group[0][0]] for group in groups]
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))


def test_evaluation_batches_hold_every_row_once_the_longest_first() -> None:
    batches = evaluation_batches(LENGTHS, 64)
    assert sorted(row for batch in batches for row in batch) == list(range(1000))
    assert LENGTHS[batches[0][0]] == max(LENGTHS)


def test_max_steps_wins_over_the_epochs() -> None:
    assert total_steps(100, batch_size=8, accumulation=2, epochs=3, max_steps=None) == 21
    assert total_steps(100, batch_size=8, accumulation=2, epochs=3, max_steps=5) == 5
    assert total_steps(100, batch_size=8, accumulation=2, epochs=3, max_steps=500) == 500


def test_windows_with_equal_keys_share_a_micro_batch_and_each_is_in_one() -> None:
    keys = np.array([5, 5, 9, 9, 9, 1, 7, 7])
    lengths = [3, 4, 2, 8, 1, 6, 5, 5]
    together = Together(lengths, keys)
    assert (len(together), together.lengths) == (4, [4, 8, 6, 5])
    assert [together.windows([group]) for group in range(4)] == [[0, 1], [2, 3, 4], [5], [6, 7]]
    assert [together.size(group) for group in range(4)] == [2, 3, 1, 2]
    steps = step_groups(together.lengths, batch_size=2, accumulation=2, seed=1, epoch=0)
    batches = [together.windows(batch) for step in steps for batch in step]
    assert sorted(window for batch in batches for window in batch) == list(range(8))
    for key in np.unique(keys):
        assert sum(any(keys[window] == key for window in batch) for batch in batches) == 1


def test_without_keys_each_window_stands_for_itself() -> None:
    together = Together([3, 1, 2])
    assert (len(together), together.lengths, together.windows([2, 0])) == (3, [3, 1, 2], [2, 0])
