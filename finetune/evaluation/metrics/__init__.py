"""Metrics: pure functions of predictions, one file per family, each held by tests to the reference of its field.

A metric says of which kind of predictions it is (`of`), and may say how it follows from sums over answers:

- `from_rows`: it is the mean of one value an answer;
- `from_sums`: a function of summed statistics;
- `from_label_counts`: a function of the counts of each label;
- `from_weights`: a function of how often each answer is drawn.

The bootstrap then computes thousands of resamples at once instead of calling the metric for each. Tests hold both ways
to the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from finetune.errors import FinetuneError
from finetune.registry import Entry, metrics

LOSS = "loss"


def check_code(names: Iterable[str], *, allow_code: bool) -> None:
    """Raise FinetuneError if a metric would run code that nobody on this command line allowed."""
    for name in names:
        if name != LOSS and metrics.get(name).attributes.get("needs_code") and not allow_code:
            raise FinetuneError(
                f"metrics: {name} runs code from outside this package. If you trust it, add --allow-code to the "
                "command; no recipe can switch this on."
            )


def metrics_of(kind: str) -> list[str]:
    """Return the names of the metrics for a kind of predictions."""
    return [name for name in metrics.names() if kind in metrics.get_any(name).attributes["of"]]


def filled(entry: Entry, function: Any) -> Any:
    """Return a function that stands beside a metric with the metric's argument (the 10 of `ndcg@10`) filled in."""
    import functools

    return functools.partial(function, *entry.arguments) if entry.arguments else function
