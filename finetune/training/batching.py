"""The order of rows as a pure function of seed and epoch, so that training can stop and go on anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

StepGroup = list[list[int]]  # the micro-batches of one optimizer step, each a list of row numbers

# How many step groups' worth of rows are sorted by length together: enough to keep padding low, few enough that
# every epoch meets its rows in other company.
POOL_STEPS = 64


def step_groups(
    lengths: Sequence[int], *, batch_size: int, accumulation: int, seed: int, epoch: int, bucket_by_length: bool = True
) -> list[StepGroup]:
    """Return the optimizer steps of one epoch; every row is in exactly one.

    A step group is drawn first and cut into micro-batches after, so that 8×1, 2×4 and 1×8 see the same rows. The
    same seed and epoch always give the same order; nothing is drawn from a global generator.
    """
    import numpy as np

    generator = np.random.default_rng([seed, epoch])
    rows = generator.permutation(len(lengths))
    size = batch_size * accumulation
    if bucket_by_length:
        pool = size * POOL_STEPS
        rows = np.concatenate([_by_length(rows[start : start + pool], lengths) for start in range(0, len(rows), pool)])
    groups = [rows[start : start + size].tolist() for start in range(0, len(rows), size)]
    order = generator.permutation(len(groups))
    return [[groups[i][start : start + batch_size] for start in range(0, len(groups[i]), batch_size)] for i in order]


def _by_length(rows: NDArray[Any], lengths: Sequence[int]) -> NDArray[Any]:
    """Sort a shuffled pool by length; rows of equal length stay shuffled."""
    import numpy as np

    by_length: NDArray[Any] = rows[np.argsort(np.asarray(lengths)[rows], kind="stable")]
    return by_length


def evaluation_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches of rows of similar length, the longest first, so that a lack of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def total_steps(rows: int, *, batch_size: int, accumulation: int, epochs: int, max_steps: int | None) -> int:
    """Return how many optimizer steps a training takes if nothing stops it early; `max_steps` wins over the epochs."""
    return epochs * math.ceil(rows / (batch_size * accumulation)) if max_steps is None else max_steps
