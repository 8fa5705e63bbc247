"""Merging adapters into their model, and the proof that the merged model computes the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from finetune.errors import FinetuneError

# What needs no second look, relative to the largest output: some roundings of the weights' number format
ROUNDING = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
# What may remain in float64, where another formula leaves more: some families compute norms in float32 in any case
EXACT = 1e-6


def merge(model: Any) -> Any:
    """Return the transformers model with the adapters added into its weights; peft's model is used up.

    W + scaling * B A for LoRA, and for DoRA that times the learned length over its length. Raises FinetuneError for a
    quantized base model, whose weights are too coarse to add to, and for adapters that are not numbers.
    """
    return _merge(model.base_model)


def _merge(tuner: Any) -> Any:
    if getattr(tuner.model, "is_quantized", False):
        raise FinetuneError(
            "adapter: expected a base model in full or half precision to merge into, found a quantized one. Load the "
            "base model without adapter.bits, put the saved adapter on it, and merge that"
        )
    try:
        return tuner.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise FinetuneError(f"adapter: cannot be merged: {error}. Train it again at a lower learning rate") from error


def check_merged(model: Any, batch: Mapping[str, Any], tolerance: float | None = None) -> float:
    """Return how far merging moves the outputs, as a part of the largest output; `model` stays as it is.

    Compared are all tensors of numbers that the model returns for a batch of inputs in eval mode, without autocast,
    before and after merging a copy. Rounding grows with depth and with coarse weights, so what exceeds `tolerance` (by
    default some roundings of the weights' format) is computed again in float64. If the two differ there as well, or are
    no numbers, the merged model is another one; that is never the user's doing: AssertionError. Memory holds a copy of
    the model, for the second look one in float64.
    """
    before = outputs_of(model.get_base_model(), batch)  # below peft's model, whose forward Accelerate may have wrapped
    merged = _merge(copy.deepcopy(model.base_model))
    difference = relative_difference(before, outputs_of(merged, batch))
    number_format = str(next(merged.parameters()).dtype).removeprefix("torch.")
    del merged
    if difference <= (ROUNDING[number_format] if tolerance is None else tolerance):
        return difference
    exact = _difference_in_float64(model, batch)
    if not exact <= EXACT:
        raise AssertionError(
            f"merging the adapter moved the outputs by {difference:.1e} of their largest value, and in float64 still "
            f"by {exact:.1e}, where rounding explains at most {EXACT:.0e}: the merged model is not the trained one"
        )
    return difference


def _difference_in_float64(model: Any, batch: Mapping[str, Any]) -> float:
    import torch

    tuner = copy.deepcopy(model.base_model).cpu().double()  # not every device has float64
    batch = {name: value.cpu() if torch.is_tensor(value) else value for name, value in batch.items()}
    tuner.model.set_attn_implementation("eager")  # the only one that every model has in every number format
    before = outputs_of(tuner.model, batch)
    return relative_difference(before, outputs_of(_merge(tuner), batch))


def outputs_of(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return every tensor of floating point numbers that a transformers model returns, in eval mode."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(next(model.parameters()).device.type, enabled=False):
            outputs = model(**batch)
    finally:
        model.train(was_training)
    return {name: value for name, value in outputs.items() if torch.is_tensor(value) and value.is_floating_point()}


def relative_difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """Return the largest difference of outputs over their largest absolute value, the worst of all tensors."""
    import torch

    assert before.keys() == after.keys(), f"the model returned {sorted(before)}, merged {sorted(after)}"
    pairs = [(value.cpu().double(), after[name].cpu().double()) for name, value in before.items()]
    parts = [(old - new).abs().max() / old.abs().max().clamp_min(1e-30) for old, new in pairs]
    return float(torch.stack(parts).max())  # torch's max, unlike Python's, is NaN where one of them is
