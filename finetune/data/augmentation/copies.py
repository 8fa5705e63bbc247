"""How many copies each row of the train split gets."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from finetune.errors import FinetuneError

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray


def plan_copies(
    labels: Iterable[str] | None, *, rows: int, copies: int, balance: bool, target: float = 1.0
) -> NDArray[numpy.int64]:
    """Return for each row how many copies are made of it, shape (rows,).

    Each row gets `copies`. With `balance` the rows of a class that then has less than `target` times the rows of the
    largest class get as many more as it needs; they are spread evenly, and what does not divide goes to the first
    rows. Raises FinetuneError when there are no labels to balance.
    """
    import numpy

    plan = numpy.full(rows, copies, dtype=numpy.int64)
    if not balance:
        return plan
    if labels is None:
        raise FinetuneError("data.augment.balance: expected rows with one label each, found none. Remove the setting")
    numbers: dict[str, int] = {}
    classes = numpy.fromiter((numbers.setdefault(label, len(numbers)) for label in labels), numpy.int64, count=rows)
    counts = numpy.bincount(classes)
    wanted = math.ceil(target * int(counts.max(initial=0)) * (1 + copies) - 1e-9)  # 0.1 * 30 is a little above 3
    missing = numpy.maximum(0, wanted - counts * (1 + copies))
    each, rest = numpy.divmod(missing, counts)
    rank = numpy.empty(rows, dtype=numpy.int64)  # of each row among those of its class
    rank[numpy.argsort(classes, kind="stable")] = numpy.arange(rows) - numpy.repeat(counts.cumsum() - counts, counts)
    more: NDArray[numpy.int64] = each[classes] + (rank < rest[classes])
    return plan + more
