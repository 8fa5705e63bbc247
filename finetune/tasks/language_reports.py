"""How people read a language model: the guesses for hidden words, the texts and the words that it knows least."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune.evaluation.sections import Histogram, Section, Table
from finetune.tasks import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune.evaluation.predictions.language import LanguagePredictions

WORDS_LISTED = 20
WORDS_IN_EXAMPLE = 8
POINTS_DRAWN = 1000


def describe_fills(predictions: LanguagePredictions, answer: int, row: Row) -> dict[str, Any]:  # noqa: ARG001
    """Return for each mask of a text, in its order, the tokens that the model holds most probable there."""
    import numpy as np

    asked = predictions.best[answer]
    return {
        "masks": [
            [
                {"token": predictions.words[int(token)], "probability": round(float(probability), 6)}
                for token, probability in zip(asked.best[place], asked.probabilities[place], strict=True)
            ]
            for place in np.flatnonzero(asked.ids == predictions.mask)
        ]
    }


def difficulty(predictions: LanguagePredictions) -> NDArray[Any]:
    """Return the mean loss of a token of each row in nats; 0 for a row without any."""
    import numpy as np

    return np.array([float(row.losses.mean()) if len(row.losses) else 0.0 for row in predictions.guesses])


def example(predictions: LanguagePredictions, answer: int, row: Row) -> dict[str, Any]:
    """Return a text with the tokens that it was least expected to have, and what was expected in their place."""
    import numpy as np

    found = predictions.guesses[answer]
    worst = np.argsort(-found.losses, kind="stable")[:WORDS_IN_EXAMPLE]
    return {
        "text": row["text"],
        "least expected": ", ".join(predictions.words[int(found.targets[place])] for place in worst),
        "guessed instead": ", ".join(predictions.words[int(found.firsts[place])] for place in worst),
        "loss of a token": round(float(found.losses.mean()), 3) if len(found.losses) else None,
    }


def details(predictions: LanguagePredictions, seed: int) -> dict[str, Any]:  # noqa: ARG001
    """Return how many tokens were guessed, the losses of rows, and the tokens that cost most."""
    losses: dict[int, list[float]] = defaultdict(list)
    for row in predictions.guesses:
        for token, loss in zip(row.targets.tolist(), row.losses.tolist(), strict=True):
            losses[token].append(loss)
    costly = sorted(losses, key=lambda token: (-sum(losses[token]), token))[:WORDS_LISTED]
    return {
        "tokens": sum(map(len, losses.values())),
        "loss_by_row": [round(value, 4) for value in difficulty(predictions)[:POINTS_DRAWN].tolist()],
        "costly_tokens": [
            {
                "token": predictions.words[token],
                "times": len(losses[token]),
                "mean_loss": sum(losses[token]) / len(losses[token]),
            }
            for token in costly
        ],
        **({"samples": [list(sample) for sample in predictions.samples]} if predictions.samples else {}),
    }


def sections(report: Mapping[str, Any]) -> list[Section]:
    """Return the tokens that cost most, and how rows differ."""
    rows = [[entry["token"], entry["times"], entry["mean_loss"]] for entry in report["costly_tokens"]]
    note = "How the model goes on from the beginnings of the split's first texts."
    shown = report.get("samples", [])
    samples = [Table("Samples", ["beginning", "continuation"], shown, note, text_columns=2)] if shown else []
    return [
        *samples,
        Table(
            "Tokens that cost most",
            ["token", "times", "mean loss (nats)"],
            rows,
            "By the sum of their losses: frequent ones that are hard, and rare ones that are very hard.",
        ),
        Histogram("Loss of a token, by row", report["loss_by_row"], "mean loss of a row's tokens (nats)"),
    ]
