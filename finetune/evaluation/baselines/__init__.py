"""Baselines: what one gets without fine-tuning, judged on the same rows, so that a reader sees whether it paid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.evaluation.predictions import Predictions

Row = Mapping[str, Any]


@dataclass(frozen=True)
class BaselineInput:
    """What a baseline may learn from, and the rows that it is judged on, all by role.

    `like` are the model's own predictions for `rows`: a baseline gives the same with other answers in it.
    `pretrained` gives what the model said before it was fine-tuned. `train_features` is what it read of the training
    rows, window by window, and `vocabulary` how many tokens its tokenizer knows.
    """

    train: Sequence[Row]
    validation: Sequence[Row]
    rows: Sequence[Row]
    labels: tuple[str, ...]
    text_roles: tuple[str, ...]
    label_role: str | None
    like: Predictions
    pretrained: Callable[[], Predictions]
    train_features: Sequence[Mapping[str, Any]] = ()
    vocabulary: int = 0

    def texts(self, rows: Iterable[Row]) -> list[str]:
        """Return what a model reads of each row, as one text."""
        return [" ".join(as_text(row[role]) for role in self.text_roles if role in row) for row in rows]

    def targets(self, rows: Iterable[Row]) -> list[int]:
        """Return the index of each row's label."""
        assert self.label_role is not None
        index = {label: number for number, label in enumerate(self.labels)}
        return [index[row[self.label_role]] for row in rows]


def as_text(value: Any) -> str:
    """Return a text, or words, or what was said in a conversation, as a text."""
    if isinstance(value, str):
        return value
    return " ".join(item if isinstance(item, str) else item["content"] for item in value)
