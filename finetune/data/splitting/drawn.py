"""Splits drawn from the seed: at random or in proportion to the target, once or as one of several folds."""

from __future__ import annotations

import warnings
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from finetune.data.splitting.balance import deal, draw
from finetune.data.splitting.base import (
    Clusters,
    Fold,
    Folds,
    Fraction,
    FractionOrNone,
    SplitInput,
    check_fractions,
    find_clusters,
)
from finetune.data.splitting.strata import LabelPairs, build_strata, label_pairs
from finetune.errors import FinetuneError
from finetune.registry import splitters

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Bins = Annotated[int, Field(ge=2, le=1_000)]


@splitters.register("random", check=check_fractions)
def random(
    rows: SplitInput,
    seed: int,
    *,
    train: Fraction = 0.8,
    validation: Fraction = 0.1,
    test: FractionOrNone = 0.1,
    folds: Folds = None,
    fold: Fold = 0,
) -> NDArray[np.int8]:
    """Return each row's split, drawn at random; the rows of one cluster stay together.

    With `folds` the test split is one fold of scikit-learn's `KFold(folds, shuffle=True, random_state=seed)` over the
    clusters, which is `GroupKFold(folds, shuffle=True, random_state=seed)` over the rows.
    """
    return _at_random(rows, seed, (train, validation, test), folds, fold)


@splitters.register("grouped", check=check_fractions, groups=True)
def grouped(
    rows: SplitInput,
    seed: int,
    *,
    train: Fraction = 0.8,
    validation: Fraction = 0.1,
    test: FractionOrNone = 0.1,
    folds: Folds = None,
    fold: Fold = 0,
    shuffle: bool = True,
) -> NDArray[np.int8]:
    """Return each row's split, drawn at random over the groups of `data.group_by`, so that the rows are balanced.

    With `folds` the test split is one fold of scikit-learn's `GroupKFold(folds, shuffle=True, random_state=seed)`,
    where each fold has as many groups. With `shuffle: false` it is one of `GroupKFold(folds)`, where each fold has as
    many rows as the groups allow, and the seed does not matter to the folds.
    """
    return _at_random(rows, seed, (train, validation, test), folds, fold, shuffle=shuffle)


@splitters.register("stratified", check=check_fractions)
def stratified(
    rows: SplitInput,
    seed: int,
    *,
    train: Fraction = 0.8,
    validation: Fraction = 0.1,
    test: FractionOrNone = 0.1,
    folds: Folds = None,
    fold: Fold = 0,
    bins: Bins = 10,
) -> NDArray[np.int8]:
    """Return each row's split, so that every label has its share in each; the rows of one cluster stay together.

    Several labels, and the types of entities in tags, are divided by iterative stratification, numbers by `bins`
    quantiles; without a target the split is drawn at random. A label with as many clusters as there are splits is in
    every split; of a number only the shares are kept. With `folds`, where each row has one label and is its own
    cluster, the test split is one fold of scikit-learn's `StratifiedKFold(folds, shuffle=True, random_state=seed)`.
    """
    return _in_proportion(rows, seed, (train, validation, test), folds, fold, bins, "StratifiedKFold")


@splitters.register("stratified-grouped", check=check_fractions, groups=True)
def stratified_grouped(
    rows: SplitInput,
    seed: int,
    *,
    train: Fraction = 0.8,
    validation: Fraction = 0.1,
    test: FractionOrNone = 0.1,
    folds: Folds = None,
    fold: Fold = 0,
    bins: Bins = 10,
) -> NDArray[np.int8]:
    """Return each row's split, so that every label has about its share in each and no group is in two.

    The groups are dealt greedily, the largest first. With `folds`, where each row has one label, the test split is one
    fold of scikit-learn's `StratifiedGroupKFold(folds, shuffle=True, random_state=seed)`, which takes about a tenth
    of a millisecond for each group and as many numbers in memory as there are groups times labels.
    """
    return _in_proportion(rows, seed, (train, validation, test), folds, fold, bins, "StratifiedGroupKFold")


def _at_random(
    rows: SplitInput,
    seed: int,
    fractions: tuple[float, float, float],
    folds: int | None,
    fold: int,
    *,
    shuffle: bool = True,
) -> NDArray[np.int8]:
    """Draw clusters for the splits; or take a fold for test, and draw the validation split from the rest."""
    import numpy as np

    clusters = _clusters(rows, fractions, folds)
    if folds is None:
        return draw(clusters.sizes, fractions, seed)[clusters.of]
    from sklearn.model_selection import GroupKFold, KFold  # a second to import, for folds alone

    splits = np.full(len(clusters.sizes), 2, np.int8)
    if shuffle:
        ways = KFold(folds, shuffle=True, random_state=seed).split(clusters.sizes)
    else:
        ways = GroupKFold(folds).split(clusters.of, groups=clusters.of)
    (rest,) = (learned for learned, _ in islice(ways, fold, fold + 1))
    rest = rest if shuffle else np.unique(clusters.of[rest])
    splits[rest] = draw(clusters.sizes[rest], (fractions[0], fractions[1], 0.0), seed)
    return splits[clusters.of]


def _in_proportion(
    rows: SplitInput,
    seed: int,
    fractions: tuple[float, float, float],
    folds: int | None,
    fold: int,
    bins: int,
    method: Literal["StratifiedKFold", "StratifiedGroupKFold"],
) -> NDArray[np.int8]:
    """Deal clusters to the splits; or take a fold for test, and deal the rest to train and validation."""
    import numpy as np

    clusters = _clusters(rows, fractions, folds)
    pairs = label_pairs(rows, bins)
    strata = build_strata(pairs, clusters)
    if folds is None:
        return deal(strata, [fraction for fraction in fractions if fraction], seed)[clusters.of]
    if rows.kind == "label" and (clusters.single or method == "StratifiedGroupKFold"):
        tested = _tested(method, pairs, clusters, folds, fold, seed)
    else:
        tested = deal(strata, [1 / folds] * folds, seed) == fold
    splits = np.full(len(clusters.sizes), 2, np.int8)
    learned = fractions[0] + fractions[1]
    splits[~tested] = deal(strata.take(~tested), [fractions[0] / learned, fractions[1] / learned], seed)
    return splits[clusters.of]


def _clusters(rows: SplitInput, fractions: tuple[float, float, float], folds: int | None) -> Clusters:
    """Return the clusters; raise FinetuneError where there are too few for every split to have one."""
    if folds is None:
        return find_clusters(rows, 3 if fractions[2] else 2, "every split to have one")
    return find_clusters(
        rows, max(folds, 3 if folds > 2 else 4), f"{folds} folds, of which the rest is split once more"
    )


def _tested(method: str, pairs: LabelPairs, clusters: Clusters, folds: int, fold: int, seed: int) -> NDArray[np.bool_]:
    """Return which clusters are in the fold of a method of scikit-learn that knows one label for each row."""
    import numpy as np
    from sklearn import model_selection

    labels = np.full(len(clusters.of), len(pairs.names), np.int64)  # rows without a label are a label of their own
    labels[pairs.row] = pairs.label
    ways = getattr(model_selection, method)(folds, shuffle=True, random_state=seed)
    if np.bincount(labels).max() < folds:
        raise FinetuneError(
            f"data.split: expected at least {folds} rows under some label for {folds} stratified folds, found "
            f"{np.bincount(labels).max()} under the most frequent. Ask for fewer folds, or for random ones."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels with fewer rows than folds, which are reported by name
        chosen = islice(ways.split(labels, labels, clusters.of if "Group" in method else None), fold, fold + 1)
        (rows,) = (tested for _, tested in chosen)
    found = np.zeros(len(clusters.sizes), np.bool_)
    found[clusters.of[rows]] = True
    return found
