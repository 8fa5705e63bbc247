"""What a model learns: one file per task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from finetune import registry
from finetune.data.rows import Column

if TYPE_CHECKING:
    import torch

    from finetune.evaluation.predictions import Predictions
    from finetune.models.loading import LoadedModel

Batch = dict[str, Any]


class Task(Protocol):
    """What a task has to do; `batch` maps input names to tensors of shape (rows, length) or (rows,)."""

    columns: Mapping[str, Column]

    def build_model(self, folder: Path, labels: Sequence[str], *, allow_code: bool) -> LoadedModel:
        """Load the pretrained model in `folder` under a head for these labels."""

    def encode(
        self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, max_length: int, labels: Sequence[str]
    ) -> tuple[dict[str, list[Any]], list[int]]:
        """Return the features of the rows, column by column, and how many tokens each row lost to truncation."""

    def collate(self, features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Batch:
        """Pad the features of a few rows into one batch of tensors."""

    def loss(self, outputs: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of the losses and the number of targets that it is a sum over."""

    def decode(self, outputs: Any, rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Predictions:
        """Turn the model's raw outputs for these rows (a float array) into predictions that metrics understand."""


@dataclass(frozen=True)
class TaskSpec:
    """What the rest of the toolkit must know about a task without knowing the task."""

    metrics: tuple[str, ...]
    baselines: tuple[str, ...]
    unit: Literal["row", "document", "query"]
    text_roles: tuple[str, ...]
    label_role: str | None
    describe: Callable[[Predictions, int], dict[str, Any]]


def open_task(name: str, options: Mapping[str, Any]) -> tuple[Task, TaskSpec]:
    """Return the task of that name and its declaration."""
    entry = registry.tasks.get(name)
    return cast(Task, entry.build(options)), cast(TaskSpec, entry.attributes["spec"])
