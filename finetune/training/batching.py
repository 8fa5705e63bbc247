"""The order of rows as a pure function of seed and epoch, so that training can stop and go on anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from finetune.artifacts import FeatureTable
    from finetune.recipe import Recipe, TrainSection
    from finetune.tasks import TaskSpec

StepGroup = list[list[int]]  # the micro-batches of one optimizer step, each a list of numbers of windows
StepKind = Literal["parts", "whole"] | None  # how steps are drawn (`TaskSpec.steps`)

# How many step groups' worth of rows are sorted by length together: enough to keep padding low, few enough that
# every epoch meets its rows in other company. A small set is cut into pools too, as transformers' sampler does:
# sorted as a whole, it would have the same batches in every epoch, some of them without a label that goes with length.
POOL_STEPS = 64
FEWEST_POOLS = 4
# What computing one more part of a step costs, in tokens that could be padding instead: little on a processor, while
# the launches of an accelerator take as long for a few tokens as for thousands
PART_TOKENS = {"cpu": 100}
PART_TOKENS_ELSEWHERE = 4000
WHOLE = 1 << 40


class Together:
    """Which windows share a micro-batch: each its own, unless some have equal keys.

    `lengths` are those of the groups, by their longest window.
    """

    def __init__(self, lengths: Sequence[int], keys: NDArray[Any] | None = None) -> None:
        """Take the tokens of each window and its key; without keys each window is a group."""
        import numpy as np

        self.lengths: Sequence[int] = lengths
        self._order = None
        if keys is None:
            return
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        group = np.argsort(np.argsort(first))[inverse]  # groups in the order in which they begin
        self._order = np.argsort(group, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=len(first)))]).astype(np.int64)
        longest = np.zeros(len(first), dtype=np.int64)
        np.maximum.at(longest, group, np.asarray(lengths))
        self.lengths = longest.tolist()

    def __len__(self) -> int:
        return len(self.lengths)

    def size(self, group: int) -> int:
        """Return how many windows a group has."""
        return 1 if self._order is None else int(self._starts[group + 1] - self._starts[group])

    def windows(self, groups: Sequence[int]) -> list[int]:
        """Return the windows of some groups."""
        if self._order is None:
            return list(groups)
        parts = (self._order[self._starts[group] : self._starts[group + 1]].tolist() for group in groups)
        return [window for part in parts for window in part]


class Batches:
    """The order in which a training meets its windows: which step group each optimizer step of each epoch gathers."""

    def __init__(
        self,
        together: Together,
        settings: TrainSection,
        seed: int,
        steps: StepKind = None,
        device: str = "cpu",
        classes: NDArray[Any] | None = None,
    ) -> None:
        """Take what shares a micro-batch, the settings, and how steps are drawn (`TaskSpec.steps`) for a device.

        With `classes`, the class of each group, every epoch has as many rows as there are, of each class equally many.
        """
        self.together, self.settings, self._seed, self._classes = together, settings, seed, classes
        self._part_tokens = part_tokens(steps, device)
        self._sizes = {"batch_size": settings.batch_size, "accumulation": settings.gradient_accumulation}
        groups = len(together)
        self.total_steps = total_steps(groups, **self._sizes, epochs=settings.epochs, max_steps=settings.max_steps)
        self.steps_per_epoch = total_steps(groups, **self._sizes, epochs=1, max_steps=None)

    @classmethod
    def of(cls, recipe: Recipe, features: FeatureTable, spec: TaskSpec, device: str) -> Batches:
        """Return the order in which a recipe's training meets these windows."""
        together = Together(features.lengths_of(spec.sized_by), features.keys(spec.together))
        balanced = recipe.train.sampling == "balanced" and spec.class_id is not None
        classes = features.first_of_rows(spec.class_id) if balanced and spec.class_id else None
        return cls(together, recipe.train, recipe.seed, spec.steps, device, classes)

    def describe_sampling(self, labels: Sequence[str]) -> str:
        """Return in a sentence how often rows come in an epoch, if classes are balanced; else nothing."""
        if self._classes is None:
            return ""
        import numpy as np

        there, counts = np.unique(self._classes, return_counts=True)
        places = len(self._classes) / len(there)
        few, many = int(counts.argmin()), int(counts.argmax())
        named = [f"{labels[there[place]]!r} has {counts[place]:,}" for place in dict.fromkeys((few, many))]
        return (
            f"balanced sampling: in an epoch each of {len(there)} labels fills about {places:,.0f} places; "
            f"{' and '.join(named)} training rows, of which each comes {places / counts[few]:.3g} times"
            + (f" and {places / counts[many]:.3g} times" if few != many else "")
        )

    def epoch(self, epoch: int) -> list[StepGroup]:
        """Return the windows of each micro-batch of each optimizer step of one epoch."""
        steps = step_groups(
            self.together.lengths,
            **self._sizes,
            seed=self._seed,
            epoch=epoch,
            bucket_by_length=self.settings.bucket_by_length,
            part_tokens=self._part_tokens,
            classes=self._classes,
        )
        return [[self.together.windows(micro_batch) for micro_batch in step] for step in steps]


def part_tokens(steps: StepKind, device: str) -> int | None:
    """Return what a part of a step costs on a type of device, in tokens; None: steps hold rows of like length."""
    if steps is None:
        return None
    return WHOLE if steps == "whole" else PART_TOKENS.get(device, PART_TOKENS_ELSEWHERE)


def step_groups(
    lengths: Sequence[int],
    *,
    batch_size: int,
    accumulation: int,
    seed: int,
    epoch: int,
    bucket_by_length: bool = True,
    part_tokens: int | None = None,
    classes: NDArray[Any] | None = None,
) -> list[StepGroup]:
    """Return the optimizer steps of one epoch; every row is in exactly one, unless `classes` are to be balanced.

    A step group is drawn first and cut into micro-batches after, so that 8×1, 2×4 and 1×8 see the same rows. The
    same seed and epoch always give the same order; nothing is drawn from a global generator. With `part_tokens` the
    groups are drawn whatever their rows' lengths, and cut where that spares more padding than so many tokens.
    """
    size, in_parts = batch_size * accumulation, bucket_by_length and part_tokens is not None
    pooled = bucket_by_length and not in_parts
    rows, order = _order(lengths, size=size, seed=seed, epoch=epoch, bucket_by_length=pooled, classes=classes)
    if in_parts:
        assert part_tokens is not None
        parts = parts_of_steps(rows, lengths, size=size, most=batch_size, part_tokens=part_tokens)
        return [parts[number] for number in order]
    groups = [rows[start : start + size].tolist() for start in range(0, len(rows), size)]
    return [[groups[i][start : start + batch_size] for start in range(0, len(groups[i]), batch_size)] for i in order]


def parts_of_steps(
    rows: NDArray[Any], lengths: Sequence[int] | NDArray[Any], *, size: int, most: int, part_tokens: int
) -> list[StepGroup]:
    """Cut each step of `size` rows into parts of at most `most`, rows of like length together, for the least cost.

    A part costs its rows times the longest of them, and `part_tokens`; the steps' least costs are found together, by
    dynamic programming over their rows in the order of length.
    """
    import numpy as np

    known = np.asarray(lengths, dtype=np.int64)
    whole = len(rows) // size
    steps = [rows[: whole * size].reshape(whole, size), rows[whole * size :].reshape(1, -1)]
    found: list[StepGroup] = []
    for group in steps:
        if not group.size:
            continue
        ordered = np.take_along_axis(group, np.argsort(known[group], axis=1, kind="stable"), axis=1)
        starts = _cheapest_starts(known[ordered], most, part_tokens)
        found += [_cut(step, own) for step, own in zip(ordered.tolist(), starts.tolist(), strict=True)]
    return found


def _cheapest_starts(lengths: NDArray[Any], most: int, part_tokens: int) -> NDArray[Any]:
    """Return for each step and each end where the part that ends there begins; lengths rise, shape (steps, rows)."""
    import numpy as np

    steps, size = lengths.shape
    costs = np.zeros((steps, size + 1), dtype=np.int64)
    starts = np.zeros((steps, size + 1), dtype=np.int64)
    for end in range(1, size + 1):
        begins = np.arange(max(0, end - most), end)
        tried = costs[:, begins] + (end - begins) * lengths[:, end - 1 : end]
        chosen = tried.argmin(axis=1)
        costs[:, end] = np.take_along_axis(tried, chosen[:, None], axis=1)[:, 0] + part_tokens
        starts[:, end] = begins[chosen]
    return starts


def _cut(step: list[int], starts: list[int]) -> StepGroup:
    """Return a step's parts, the longest first, so that a lack of memory shows at once."""
    parts, end = [], len(step)
    while end:
        parts.append(step[starts[end] : end])
        end = starts[end]
    return parts


def _order(
    lengths: Sequence[int] | NDArray[Any],
    *,
    size: int,
    seed: int,
    epoch: int,
    bucket_by_length: bool,
    classes: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the rows in the order in which they are cut into step groups, and the order of the groups."""
    import numpy as np

    generator = np.random.default_rng([seed, epoch])
    rows = generator.permutation(len(lengths)) if classes is None else _balanced(classes, generator)
    if bucket_by_length:
        steps = math.ceil(len(lengths) / size)
        pool = size * max(1, min(POOL_STEPS, steps // FEWEST_POOLS))
        known = np.asarray(lengths)
        rows = np.concatenate([_by_length(rows[start : start + pool], known) for start in range(0, len(rows), pool)])
    return rows, generator.permutation(-(-len(rows) // size))


def _balanced(classes: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
    """Return as many rows as there are, each class equally often, in random order.

    No row of a class comes again before all the others have; which ones come once more is drawn anew in each epoch.
    """
    import numpy as np

    there = np.unique(classes)
    places = np.full(len(there), len(classes) // len(there))
    places[generator.permutation(len(there))[: len(classes) % len(there)]] += 1
    drawn = []
    for one, wanted in zip(there, places, strict=True):
        own = np.flatnonzero(classes == one)
        rounds = [generator.permutation(own) for _ in range(-(-int(wanted) // len(own)))]
        drawn.append(np.concatenate([np.zeros(0, np.int64), *rounds])[:wanted])
    return generator.permutation(np.concatenate(drawn))


def padding_share(
    lengths: NDArray[Any],
    *,
    batch_size: int,
    accumulation: int,
    seed: int,
    bucket_by_length: bool,
    part_tokens: int | None = None,
) -> float:
    """Return which share of the numbers that the model is given in the first epoch is padding (0 to 1)."""
    import numpy as np

    if not len(lengths):
        return 0.0
    size, in_parts = batch_size * accumulation, bucket_by_length and part_tokens is not None
    rows, _ = _order(lengths, size=size, seed=seed, epoch=0, bucket_by_length=bucket_by_length and not in_parts)
    if in_parts:
        assert part_tokens is not None
        steps = parts_of_steps(rows, lengths, size=size, most=batch_size, part_tokens=part_tokens)
        padded = sum(len(part) * int(lengths[part].max()) for step in steps for part in step)
    else:
        starts = np.unique(
            np.concatenate([np.arange(offset, len(rows), size) for offset in range(0, size, batch_size)])
        )
        longest = np.maximum.reduceat(lengths[rows], starts).astype(np.int64)
        padded = int((longest * np.diff([*starts, len(rows)])).sum())
    return round(1 - int(lengths.sum()) / padded, 6) if padded else 0.0


def _by_length(rows: NDArray[Any], lengths: NDArray[Any]) -> NDArray[Any]:
    """Sort a shuffled pool by length; rows of equal length stay shuffled."""
    import numpy as np

    by_length: NDArray[Any] = rows[np.argsort(lengths[rows], kind="stable")]
    return by_length


def evaluation_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches of rows of similar length, the longest first, so that a lack of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def total_steps(rows: int, *, batch_size: int, accumulation: int, epochs: int, max_steps: int | None) -> int:
    """Return how many optimizer steps a training takes if nothing stops it early; `max_steps` wins over the epochs."""
    return epochs * math.ceil(rows / (batch_size * accumulation)) if max_steps is None else max_steps
