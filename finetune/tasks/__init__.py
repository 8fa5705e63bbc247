"""What a model learns: one file per task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from finetune import registry
from finetune.data.rows import Column
from finetune.data.tokenization import Encoded, Encoder

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from finetune.evaluation.predictions import Predictions
    from finetune.models.loading import LoadedModel

Batch = dict[str, Any]
# What a batch holds beside the inputs of the model: what the loss needs, and what no model takes
NOT_FOR_THE_MODEL = ("labels", "weights")


class PreparesRows(Protocol):
    """The half of a task that `prepare` needs: which columns there are, and what the model reads of them."""

    columns: Mapping[str, Column]

    def encode(self, rows: Mapping[str, Sequence[Any]], encoder: Encoder, labels: Sequence[str]) -> Encoded:
        """Return the features of rows that are given column by column; targets only where the rows have them."""


class Task(PreparesRows, Protocol):
    """What a task has to do; `batch` maps input names to tensors of shape (rows, length) or (rows,)."""

    def build_model(self, folder: Path, labels: Sequence[str], *, allow_code: bool) -> LoadedModel:
        """Load the pretrained model in `folder` under a head for these labels."""

    def collate(self, features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Batch:
        """Pad the features of a few rows into one batch of tensors."""

    def loss(self, outputs: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of the losses and the number of targets (with weights: their sum) that it is a sum over."""

    def decode(
        self, outputs: Any, row_ids: NDArray[Any], rows: Sequence[Mapping[str, Any]], labels: Sequence[str]
    ) -> Predictions:
        """Turn the model's raw outputs (a float array, one entry a window) into predictions that metrics understand.

        `row_ids` says for each output which row it is about: a long row may have been read in several windows.
        """


@dataclass(frozen=True)
class TaskSpec:
    """What the rest of the toolkit must know about a task without knowing the task."""

    metrics: tuple[str, ...]
    baselines: tuple[str, ...]
    unit: Literal["row", "document", "query"]
    text_roles: tuple[str, ...]
    label_role: str | None
    describe: Callable[[Predictions, int], dict[str, Any]] | None = None
    trains: bool = True  # False: its rows can be prepared and checked, but nothing learns from them yet


def open_task(name: str, options: Mapping[str, Any]) -> tuple[Task, TaskSpec]:
    """Return the task of that name and its declaration."""
    entry = registry.tasks.get(name)
    return cast(Task, entry.build(options)), cast(TaskSpec, entry.attributes["spec"])
