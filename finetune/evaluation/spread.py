"""How a score differs between several trainings of one recipe."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Return mean, standard deviation (of a sample: n - 1), lowest and highest of scores, beside the scores.

    Where one of them is not defined (None), neither is any of these.
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"mean": None, "deviation": None, "lowest": None, "highest": None, "values": list(values)}
    return {
        "mean": statistics.fmean(known),
        "deviation": statistics.stdev(known),
        "lowest": min(known),
        "highest": max(known),
        "values": known,
    }


def spreads(scores: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, Any]]:
    """Return the spread of each metric that all trainings have."""
    names = [name for name in scores[0] if all(name in each for each in scores)]
    return {name: spread([each[name] for each in scores]) for name in names}
