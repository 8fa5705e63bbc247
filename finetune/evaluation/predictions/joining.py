"""Predictions of several models, each about rows of its own, as predictions about all of these rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.evaluation.predictions import Predictions


def join(parts: Sequence[Predictions], first_rows: Sequence[int]) -> Predictions | None:
    """Return the predictions of all parts, one part after the other; None if those of this kind cannot be joined.

    `first_rows` are the numbers that the first row of each part has among the rows of all of them. Each answer stays
    decided as its own model decides it, by its own thresholds.
    """
    joined = _JOINED.get(parts[0].kind)
    return None if joined is None else joined(parts, first_rows)


def _labels(parts: Sequence[Any], first_rows: Sequence[int]) -> Any:  # noqa: ARG001
    return replace(parts[0], **_arrays(parts, "targets", "probabilities"))


def _label_sets(parts: Sequence[Any], first_rows: Sequence[int]) -> Any:  # noqa: ARG001
    import numpy as np

    thresholds = np.concatenate([np.tile(part.thresholds, (len(part), 1)) for part in parts])
    return replace(parts[0], **_arrays(parts, "targets", "probabilities"), thresholds=thresholds)


def _numbers(parts: Sequence[Any], first_rows: Sequence[int]) -> Any:  # noqa: ARG001
    import numpy as np

    deviations = np.mean([part.deviations for part in parts], axis=0)
    return replace(parts[0], **_arrays(parts, "targets", "values"), deviations=deviations)


def _tags(parts: Sequence[Any], first_rows: Sequence[int]) -> Any:  # noqa: ARG001
    joined = {name: sum((getattr(part, name) for part in parts), ()) for name in ("targets", "predicted", "scores")}
    labels = tuple(dict.fromkeys(label for part in parts for label in part.labels))
    return replace(parts[0], labels=labels, **joined)


def _answers(parts: Sequence[Any], first_rows: Sequence[int]) -> Any:  # noqa: ARG001
    """Join spans; scores of "no answer" are taken from the threshold of their model, so that one, 0, is for all."""
    import numpy as np

    names = ("questions", "targets", "texts", "starts", "ends", "probabilities")
    # without a threshold an answer is always given
    silence = [
        np.full(len(part), -np.inf) if part.threshold is None else part.no_answer - part.threshold for part in parts
    ]
    contexts, known = [], 0
    for part in parts:
        contexts.append(part.contexts + known)
        known += int(part.contexts.max(initial=-1)) + 1
    unlimited = all(part.threshold is None for part in parts)
    return replace(
        parts[0],
        **_arrays(parts, *names),
        contexts=np.concatenate(contexts),
        no_answer=np.concatenate(silence),
        threshold=None if unlimited else 0.0,
    )


def _rankings(parts: Sequence[Any], first_rows: Sequence[int]) -> Any:
    import numpy as np

    counts = np.concatenate([np.diff(part.offsets) for part in parts])
    rows = [part.candidate_rows + first for part, first in zip(parts, first_rows, strict=True)]
    return replace(
        parts[0],
        **_arrays(parts, "queries", "texts", "scores", "relevance"),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        candidate_rows=np.concatenate(rows),
    )


def _texts(parts: Sequence[Any], first_rows: Sequence[int]) -> Any:
    import numpy as np

    rows = np.concatenate([part.rows + first for part, first in zip(parts, first_rows, strict=True)])
    optional = [name for name in ("bytes", "finished", "cut") if all(getattr(part, name) is not None for part in parts)]
    missing = dict.fromkeys({"bytes", "finished", "cut"} - set(optional))
    guesses = sum((part.guesses for part in parts), ())
    arrays = _arrays(parts, "said", "references", "sources", *optional)
    return replace(parts[0], **arrays, **missing, rows=rows, guesses=guesses)


def _arrays(parts: Sequence[Any], *names: str) -> dict[str, Any]:
    import numpy as np

    return {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}


_JOINED: dict[str, Callable[[Sequence[Any], Sequence[int]], Any]] = {
    "label": _labels,
    "labels": _label_sets,
    "numbers": _numbers,
    "tags": _tags,
    "answers": _answers,
    "ranking": _rankings,
    "texts": _texts,
}
