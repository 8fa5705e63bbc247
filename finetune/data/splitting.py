"""Splitters: which rows train the model, which choose it, and which judge it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from finetune.registry import splitters

SPLITS = ("train", "validation", "test")

Fraction = Annotated[float, Field(gt=0, lt=1)]
FractionOrNone = Annotated[float, Field(ge=0, lt=1)]


def check_fractions(options: Mapping[str, Any]) -> None:
    """Raise ValueError unless the fractions add up to 1."""
    fractions = {name: options[name] for name in SPLITS}
    if abs(sum(fractions.values()) - 1) > 1e-6:
        given = ", ".join(f"{name} {fraction:g}" for name, fraction in fractions.items())
        raise ValueError(f"expected fractions that add up to 1, found {sum(fractions.values()):g} ({given})")


@splitters.register("random", check=check_fractions)
def random(
    labels: Sequence[str],
    clusters: Sequence[int],
    seed: int,
    *,
    train: Fraction = 0.8,
    validation: Fraction = 0.1,
    test: FractionOrNone = 0.1,
) -> list[str]:
    """Return each row's split, drawn at random; the rows of one cluster stay together."""
    return _deal([""] * len(labels), clusters, seed, (train, validation, test))


@splitters.register("stratified", check=check_fractions)
def stratified(
    labels: Sequence[str],
    clusters: Sequence[int],
    seed: int,
    *,
    train: Fraction = 0.8,
    validation: Fraction = 0.1,
    test: FractionOrNone = 0.1,
) -> list[str]:
    """Return each row's split, so that every label has its share in each; the rows of one cluster stay together."""
    return _deal(labels, clusters, seed, (train, validation, test))


def _deal(
    strata: Sequence[str], clusters: Sequence[int], seed: int, fractions: tuple[float, float, float]
) -> list[str]:
    """Deal whole clusters, stratum by stratum, each to the split that lags furthest behind its share."""
    import numpy as np

    members: dict[int, list[int]] = {}
    for row, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(row)
    by_stratum: dict[str, list[list[int]]] = {}
    for rows in members.values():
        by_stratum.setdefault(strata[rows[0]], []).append(rows)

    generator = np.random.default_rng(seed)
    wanted = [index for index, fraction in enumerate(fractions) if fraction]
    result = [""] * len(strata)
    overall = [0, 0, 0]
    for stratum in sorted(by_stratum):
        groups = by_stratum[stratum]
        size = sum(len(rows) for rows in groups)
        dealt = [0, 0, 0]
        for turn, index in enumerate(generator.permutation(len(groups))):
            if len(groups) >= len(wanted) > turn:
                split = wanted[turn]  # a label with enough rows is in every split, however small its share
            else:
                split = max(wanted, key=lambda i: _lag(fractions[i], size, dealt[i], sum(overall), overall[i]))
            dealt[split] += len(groups[index])
            overall[split] += len(groups[index])
            for row in groups[index]:
                result[row] = SPLITS[split]
    return result


def _lag(fraction: float, size: int, dealt: int, rows: int, dealt_overall: int) -> tuple[float, float]:
    """How many rows a split lacks in its stratum and, between equals, overall, so that rounding favours none."""
    return round(fraction * size - dealt, 9), fraction * rows - dealt_overall
