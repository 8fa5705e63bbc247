"""What tasks with one output for each window have in common: padding, the weight of windows, pooling over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune.tasks import Batch, Row

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from finetune.artifacts import FeatureTable

Features = Mapping[str, Any]


def pad_inputs(features: Sequence[Features], tokenizer: Any) -> dict[str, torch.Tensor]:
    """Pad the model's inputs to the longest window; segment ids that were all zeros and not stored are put back."""
    import torch

    names = [name for name in features[0] if name in tokenizer.model_input_names]
    padded = tokenizer.pad(
        [{name: row[name] for name in names} for row in features], padding=True, return_tensors="pt", verbose=False
    )
    inputs = dict(padded)
    if "token_type_ids" in tokenizer.model_input_names and "token_type_ids" not in inputs:
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    return inputs


def weights_of(features: Sequence[Features]) -> dict[str, torch.Tensor]:
    """Return the share of its row that each window counts as, if rows may have several."""
    import torch

    if "weight" not in features[0]:
        return {}
    return {"weights": torch.tensor([row["weight"] for row in features], dtype=torch.float32)}


def weighted(losses: torch.Tensor, counts: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums of losses and of what they count as, whose first dimension is windows, for whole rows.

    Each window counts as its share of its row.
    """
    if "weights" not in batch.targets:
        return losses.sum(), counts.sum()
    weights = batch.targets["weights"].reshape(-1, *[1] * (losses.ndim - 1))
    return (losses * weights).sum(), (counts * weights).sum()


def pooled(values: NDArray[Any], features: FeatureTable, rows: Sequence[Row]) -> NDArray[Any]:
    """Return the mean over each row's windows of values of shape (windows, k), shape (rows, k)."""
    import numpy as np

    if len(values) == len(rows):
        return values
    sums = np.zeros((len(rows), values.shape[1]))
    np.add.at(sums, features.row_ids, values)
    means: NDArray[Any] = sums / np.bincount(features.row_ids, minlength=len(rows))[:, None]
    return means
