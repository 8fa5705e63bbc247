"""Checks of the rows as a whole: how many were dropped, how the splits differ, what numbers there are to predict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from finetune.data.checks.inputs import SPLIT_NAMES, CheckInput, Outcome, amount
from finetune.data.rows import list_reasons
from finetune.data.splitting import KEPT_FOR_TEST
from finetune.registry import checks

if TYPE_CHECKING:
    from numpy.typing import NDArray

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
# Below this many rows in a split, medians and shares vary too much by chance to be compared
LEAST_TO_COMPARE = 30


@checks.register("many-dropped", severity="warning")
def many_dropped(rows: CheckInput, *, share: Share = 0.1) -> list[Outcome]:
    """Find that more than a share of the rows read were dropped, whatever the reasons."""
    lost = {reason: count for reason, count in rows.dropped.items() if reason != KEPT_FOR_TEST}
    count = sum(lost.values())
    if count <= share * rows.rows_read:
        return []
    reasons = dict(sorted(lost.items(), key=lambda item: (-item[1], item[0])))
    message = (
        f"{count} of {amount(rows.rows_read, 'row', 'rows')} ({count / rows.rows_read:.1%}) were dropped: "
        f"{list_reasons(reasons)}; see whether so many should be."
    )
    return [Outcome(count, message, rows.dropped_as_examples(reasons))]


@checks.register("split-shift", severity="warning")
def split_shift(rows: CheckInput, *, length: Annotated[float, Field(gt=1)] = 1.5, labels: Share = 0.1) -> list[Outcome]:
    """Find splits that differ from train: in the median number of words, or in the shares of the labels.

    `length` is the least ratio of the medians. `labels` is the least total variation distance (half of the sum of the
    differences between the shares), beyond twice of what chance alone would give splits of this size.
    """
    import numpy as np

    if 0 not in rows.split_codes:
        return []
    assert rows.splits is not None
    sizes = np.bincount(rows.splits, minlength=3)
    outcomes = []
    for split in (1, 2):
        if min(sizes[0], sizes[split]) < LEAST_TO_COMPARE:
            continue
        train, other = (float(np.median(rows.word_counts[rows.splits == code])) for code in (0, split))
        if max(train, other) >= length * max(min(train, other), 1):
            message = f"The median length is {other:g} words in {SPLIT_NAMES[split]} and {train:g} in train; see "
            message += "whether the splits come from the same source, or split with data.split: random."
            outcomes.append(Outcome(int(sizes[split]), message))
        if rows.target_kind in {"label", "labels", "tags"}:
            outcomes += _label_shift(rows, split, labels)
    return outcomes


def _label_shift(rows: CheckInput, split: int, least: float) -> list[Outcome]:
    import numpy as np

    assert rows.splits is not None
    table = rows.labels
    splits = rows.splits[table.rows]
    counts = [np.bincount(table.codes[splits == code], minlength=len(table.names)) for code in (0, split)]
    if min(count.sum() for count in counts) < LEAST_TO_COMPARE:
        return []
    train, other = (count / count.sum() for count in counts)
    distance = float(np.abs(train - other).sum() / 2)
    if distance < least or distance < 2 * _by_chance(counts):
        return []
    widest = int(np.argmax(np.abs(train - other)))
    message = (
        f"The shares of the labels in {SPLIT_NAMES[split]} differ from train by {distance:.1%}, most that of "
        f"{table.names[widest]!r} ({other[widest]:.1%} against {train[widest]:.1%}); see whether the splits come from "
        "the same source, or split with data.split: stratified."
    )
    return [Outcome(int(counts[1].sum()), message)]


def _by_chance(counts: list[NDArray[Any]]) -> float:
    """Return the total variation distance to be expected of two samples from one distribution (normal approximation).

    The mean absolute deviation of a normal variable is its standard deviation times the root of 2/pi.
    """
    import numpy as np

    pooled = (counts[0] + counts[1]) / (counts[0].sum() + counts[1].sum())
    variance = pooled * (1 - pooled) * (1 / counts[0].sum() + 1 / counts[1].sum())
    return float(np.sqrt(variance * 2 / np.pi).sum() / 2)


@checks.register("number-range", severity="warning", kinds=("number",))
def number_range(rows: CheckInput, *, spread: Positive = 3.0) -> list[Outcome]:
    """Find targets that are no finite numbers, a target that is constant, and outliers.

    An outlier lies more than `spread` interquartile ranges outside of the quartiles: with 3 what Tukey (Exploratory
    Data Analysis, 1977) calls far out.
    """
    return [outcome for role in rows.target_roles for outcome in _range_of(rows, role, spread)]


def _range_of(rows: CheckInput, role: str, spread: float) -> list[Outcome]:
    import numpy as np

    numbers = np.asarray(rows.values[role].to_numpy(), dtype=np.float64)
    outcomes = []
    broken = np.flatnonzero(~np.isfinite(numbers))
    if len(broken):
        message = (
            f"{amount(len(broken), 'row has', 'rows have')} "
            f"a {role} that is no finite number ({rows.places(broken)}); correct it, or remove the row."
        )
        outcomes.append(Outcome(len(broken), message, rows.examples(broken), "error"))
    finite = numbers[np.isfinite(numbers)]
    if len(finite) > 1 and finite.min() == finite.max():
        message = f"All {len(finite)} rows have the same {role}, {finite[0]:g}: there is nothing to learn; see whether "
        message += f"data.columns.{role} names the right column."
        return [*outcomes, Outcome(len(finite), message, severity="error")]
    if not len(finite):
        return outcomes
    lower, upper = np.quantile(finite, [0.25, 0.75])
    bounds = lower - spread * (upper - lower), upper + spread * (upper - lower)
    far = np.flatnonzero(np.isfinite(numbers) & ((numbers < bounds[0]) | (numbers > bounds[1])))
    if len(far) and upper > lower:
        message = (
            f"{amount(len(far), 'row has', 'rows have')} "
            f"a {role} far from the rest (below {bounds[0]:g} or above {bounds[1]:g}, "
            f"where half of all lie from {lower:g} to {upper:g}); see whether it is meant."
        )
        examples = [rows.example(row, **{role: float(numbers[row])}) for row in far[:5]]
        outcomes.append(Outcome(len(far), message, examples))
    return outcomes
