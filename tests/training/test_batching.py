"""The order of rows: every row once, cheap padding, a pure function of seed and epoch."""

from __future__ import annotations

import random

import numpy as np
import pytest

from finetune.artifacts import feature_table
from finetune.recipe import TrainSection
from finetune.training.batching import (
    Batches,
    StepKind,
    Together,
    evaluation_batches,
    padding_share,
    part_tokens,
    step_groups,
    total_steps,
)

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


# ---------------------------------------------------------------------------------------------------------------------
# Steps that are drawn whatever their rows' lengths, and computed in parts
# ---------------------------------------------------------------------------------------------------------------------


def in_parts(lengths: list[int], size: int, cost: int, accumulation: int = 1, epoch: int = 0) -> list[list[list[int]]]:
    return step_groups(lengths, batch_size=size, accumulation=accumulation, seed=1, epoch=epoch, part_tokens=cost)


@pytest.mark.parametrize(("size", "accumulation"), [(32, 1), (8, 4), (7, 3), (5000, 1)])
def test_steps_in_parts_have_the_rows_of_steps_that_were_not_sorted(size: int, accumulation: int) -> None:
    plain = step_groups(LENGTHS, batch_size=size, accumulation=accumulation, seed=1, epoch=3, bucket_by_length=False)
    parts = in_parts(LENGTHS, size, 50, accumulation, epoch=3)
    assert [sorted(flat([step])) for step in parts] == [sorted(flat([step])) for step in plain]
    assert all(len(part) <= size for part in flat_batches(parts))


def cost_of(step: list[list[int]], lengths: list[int], part_tokens: int) -> int:
    return sum(len(part) * max(lengths[row] for row in part) + part_tokens for part in step)


@pytest.mark.parametrize("most", [3, 8])
@pytest.mark.parametrize("part_tokens", [0, 7, 25, 1000])
def test_no_other_parts_of_a_step_cost_less(most: int, part_tokens: int) -> None:
    lengths = [GENERATOR.randint(1, 30) for _ in range(8)]
    ordered = sorted(range(8), key=lengths.__getitem__)
    best = min(
        cost_of(parts, lengths, part_tokens)
        for cuts in range(2**7)
        for parts in [cut_at(ordered, [place + 1 for place in range(7) if cuts >> place & 1])]
        if max(map(len, parts)) <= most
    )
    (step,) = step_groups(
        lengths, batch_size=most, accumulation=-(-8 // most), seed=1, epoch=0, part_tokens=part_tokens
    )
    assert cost_of(step, lengths, part_tokens) == best


def cut_at(rows: list[int], places: list[int]) -> list[list[int]]:
    return [rows[start:end] for start, end in zip([0, *places], [*places, len(rows)], strict=True)]


def test_parts_spare_padding_and_a_part_that_costs_much_is_the_whole_step() -> None:
    assert padding(in_parts(LENGTHS, 32, 0)) == 0
    assert padding(in_parts(LENGTHS, 32, 100)) < 0.18
    assert padding(step_groups(LENGTHS, batch_size=32, accumulation=1, seed=1, epoch=0, bucket_by_length=False)) > 0.4
    assert {len(step) for step in in_parts(LENGTHS, 32, 1 << 40)} == {1}
    assert sorted(len(step) for step in in_parts(LENGTHS, 8, 1 << 40, accumulation=4)) == [1] + [4] * 31


def test_the_parts_of_a_step_begin_with_the_longest() -> None:
    for step in in_parts(LENGTHS, 64, 100):
        longest = [max(LENGTHS[row] for row in part) for part in step]
        assert longest == sorted(longest, reverse=True)


def test_what_a_part_costs_follows_from_the_task_and_the_device() -> None:
    assert part_tokens(None, "cpu") is None
    assert part_tokens("parts", "cpu") == 100
    assert part_tokens("parts", "cuda") == part_tokens("parts", "mps") == 4000
    assert padding(drawn(Together(LENGTHS), steps="whole", batch_size=8).epoch(0)) > 0.4
    assert padding(drawn(Together(LENGTHS), steps="parts", batch_size=64).epoch(0)) < 0.15
    assert padding(drawn(Together(LENGTHS), steps="parts", batch_size=64, bucket_by_length=False).epoch(0)) > 0.4


@pytest.mark.parametrize("bucketed", [True, False])
@pytest.mark.parametrize("cost", [None, 0, 60])
def test_the_share_of_padding_is_that_of_the_steps(cost: int | None, bucketed: bool) -> None:
    settings = {"batch_size": 12, "accumulation": 2, "seed": 4}
    found = padding_share(np.array(LENGTHS), **settings, bucket_by_length=bucketed, part_tokens=cost)
    steps = step_groups(LENGTHS, **settings, epoch=0, bucket_by_length=bucketed, part_tokens=cost)
    assert found == pytest.approx(padding(steps), abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Whole trainings
# ---------------------------------------------------------------------------------------------------------------------


def drawn(together: Together, seed: int = 1, steps: StepKind = None, **settings: object) -> Batches:
    return Batches(together, TrainSection.model_validate(settings), seed, steps)


def test_batches_are_the_steps_of_each_epoch_as_the_settings_cut_them() -> None:
    batches = drawn(Together(LENGTHS), batch_size=8, gradient_accumulation=3, epochs=4)
    assert (batches.steps_per_epoch, batches.total_steps) == (42, 168)
    for epoch in (0, 3):
        expected = step_groups(LENGTHS, batch_size=8, accumulation=3, seed=1, epoch=epoch)
        assert batches.epoch(epoch) == expected
        assert len(expected) == 42
    assert batches.epoch(0) != batches.epoch(1)
    assert drawn(Together(LENGTHS), seed=2, batch_size=8).epoch(0) != drawn(Together(LENGTHS), batch_size=8).epoch(0)


def test_the_steps_of_an_epoch_stay_where_a_training_has_fewer_or_more() -> None:
    for most in (5, 500):
        batches = drawn(Together(LENGTHS), batch_size=100, epochs=3, max_steps=most)
        assert (batches.steps_per_epoch, batches.total_steps) == (10, most)


def test_batches_are_bucketed_unless_they_are_not_to_be() -> None:
    bucketed, mixed = (drawn(Together(LENGTHS), batch_size=8, bucket_by_length=by) for by in (True, False))
    assert padding(bucketed.epoch(0)) < 0.04
    assert padding(mixed.epoch(0)) > 0.4


def test_batches_of_groups_hold_windows_and_count_groups() -> None:
    keys = np.repeat(np.arange(10), 3)
    batches = drawn(Together([5] * 30, keys), batch_size=2, gradient_accumulation=2, epochs=2)
    assert (batches.steps_per_epoch, batches.total_steps) == (3, 6)
    for epoch in (0, 1):
        steps = batches.epoch(epoch)
        assert [[len(batch) for batch in step] for step in steps if len(step) == 2] == [[6, 6]] * 2
        assert sorted(flat(steps)) == list(range(30))
        assert all(len({*keys[batch].tolist()}) * 3 == len(batch) for batch in flat_batches(steps))


def test_windows_of_like_source_and_target_share_a_batch() -> None:
    """Of equal sources and of targets of any length: by the sources alone, targets would be mostly padding."""
    import pyarrow as pa

    lists = pa.list_(pa.list_(pa.int32()))
    targets = [GENERATOR.randint(1, 60) for _ in range(400)]
    table = feature_table(
        {
            "input_ids": pa.array([[[1] * 6] for _ in targets], lists),
            "label_ids": pa.array([[[2] * length] for length in targets], lists),
        }
    )

    def padded(*sized_by: str) -> float:
        batches = drawn(Together(table.lengths_of(sized_by)), batch_size=8).epoch(0)
        given = sum(len(batch) * max(targets[window] for window in batch) for batch in flat_batches(batches))
        return 1 - sum(targets) / given

    assert padded("input_ids", "label_ids") < 0.1
    assert padded("input_ids") > 0.3


# ---------------------------------------------------------------------------------------------------------------------
# Balanced classes
# ---------------------------------------------------------------------------------------------------------------------

CLASSES = np.array([0] * 700 + [1] * 7 + [3] * 293)  # none of class 2


@pytest.mark.parametrize("cost", [None, 40])
@pytest.mark.parametrize("bucketed", [True, False])
def test_an_epoch_has_as_many_rows_and_of_each_class_equally_many(bucketed: bool, cost: int | None) -> None:
    steps = step_groups(
        LENGTHS, batch_size=8, accumulation=2, seed=1, epoch=0, bucket_by_length=bucketed, part_tokens=cost,
        classes=CLASSES,
    )  # fmt: skip
    rows = np.array(flat(steps))
    assert len(rows) == 1000
    assert sorted(np.bincount(CLASSES[rows]).tolist()) == [0, 333, 333, 334]


def test_no_row_comes_again_before_the_others_of_its_class_and_each_epoch_draws_others() -> None:
    def times(epoch: int) -> np.ndarray:
        settings = {"batch_size": 8, "accumulation": 1, "seed": 1}
        return np.bincount(flat(step_groups(LENGTHS, **settings, epoch=epoch, classes=CLASSES)), minlength=1000)

    first, second = times(0), times(1)
    for one, often in ((0, {0, 1}), (1, {47, 48}), (3, {1, 2})):
        assert set(first[one == CLASSES].tolist()) == often
    assert (first != second).any()
    assert (first == times(0)).all()


def test_balanced_sampling_says_how_often_rows_come() -> None:
    together = Together([3] * 1000)
    batches = Batches(together, TrainSection(), 1, classes=CLASSES)
    assert batches.describe_sampling(["a", "b", "c", "d"]) == (
        "balanced sampling: in an epoch each of 3 labels fills about 333 places; 'b' has 7 and 'a' has 700 training "
        "rows, of which each comes 47.6 times and 0.476 times"
    )
    assert Batches(together, TrainSection(), 1).describe_sampling(["a"]) == ""
