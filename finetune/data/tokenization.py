"""From text to token ids, with a count of what truncation cut off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

CHUNK_ROWS = 1000


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> tuple[dict[str, list[list[int]]], list[int]]:
    """Return the model's inputs for each text (without padding) and how many tokens each text lost.

    The attention mask is left out: it follows from the lengths. All-zero segment ids are left out for the same reason.
    """
    columns: dict[str, list[list[int]]] = {"input_ids": []}
    lost: list[int] = []
    for start in range(0, len(texts), CHUNK_ROWS):  # the tokenizer's own records weigh far more than the ids
        chunk, lost_of_chunk = _tokenize_chunk(tokenizer, list(texts[start : start + CHUNK_ROWS]), max_length)
        for name, values in chunk.items():
            columns.setdefault(name, []).extend(values)
        lost += lost_of_chunk
    return {name: values for name, values in columns.items() if name == "input_ids" or any(map(any, values))}, lost


def _tokenize_chunk(tokenizer: Any, texts: list[str], max_length: int) -> tuple[dict[str, list[list[int]]], list[int]]:
    encoded = dict(tokenizer(texts, truncation=False, verbose=False, return_attention_mask=False))
    lost = [max(0, len(ids) - max_length) for ids in encoded["input_ids"]]
    too_long = [index for index, count in enumerate(lost) if count]
    if too_long:
        long_texts = [texts[index] for index in too_long]
        cut = tokenizer(long_texts, truncation=True, max_length=max_length, return_attention_mask=False)
        for name in encoded:
            for index, ids in zip(too_long, cut[name], strict=True):
                encoded[name][index] = ids
    return encoded, lost
