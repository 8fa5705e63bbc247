"""From text to token ids, with a count of what truncation cut off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> tuple[dict[str, list[list[int]]], list[int]]:
    """Return the model's inputs for each text (without padding) and how many tokens each text lost.

    The attention mask is left out: it follows from the lengths. All-zero segment ids are left out for the same reason.
    """
    if not texts:
        return {"input_ids": []}, []
    encoded = tokenizer(list(texts), truncation=False, verbose=False, return_attention_mask=False)
    lost = [max(0, len(ids) - max_length) for ids in encoded["input_ids"]]
    too_long = [index for index, count in enumerate(lost) if count]
    if too_long:
        cut = tokenizer(
            [texts[index] for index in too_long], truncation=True, max_length=max_length, return_attention_mask=False
        )
        for name in encoded:
            for index, ids in zip(too_long, cut[name], strict=True):
                encoded[name][index] = ids
    return {name: values for name, values in encoded.items() if name == "input_ids" or any(map(any, values))}, lost
