"""What becomes of the rows of causal language modelling: pieces that are short enough, and sequences of several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from finetune.data.conversations import cut_front
from finetune.data.tokenization import NO_TARGET, Encoded, Encoder, Limits, nested
from finetune.errors import FinetuneError
from finetune.tasks import Task

if TYPE_CHECKING:
    from finetune.data.conversations import EncodedText

# What rows may do to each other in a pack, as a share of what they do in one text: rounding in half precision is less
SMALL = 0.05
Piece = tuple[list[int], list[int]]  # ids, and which of them are learned


def keep_end(ids: Sequence[int], learned: Sequence[int], prompt: int, length: int, start: int | None) -> Piece:
    """Return a row that is not too long: of its first `prompt` tokens the beginning goes, then the end of the answer.

    A begin-of-text token, `start`, stays; the first token that is left is told from nothing, and not learned.
    """
    head = int(start is not None and ids[0] == start)
    gone = min(max(0, len(ids) - length), max(0, prompt - max(head, 1)))
    kept = [*ids[:head], *ids[head + gone :]], [*learned[:head], *learned[head + gone :]]
    return kept[0][:length], [0, *kept[1][1:length]]


def in_windows(found: EncodedText, texts: Sequence[str], encoder: Encoder) -> Encoded:
    """Return plain texts, cut or in windows; a token that two windows share is learned in the first of them."""
    limits = encoder.limits
    rows = []
    for ids, learned in zip(found.ids, found.learned, strict=True):
        pieces = [(list(ids[: limits.max_length]), list(learned[: limits.max_length]))]
        overlap = max(1, limits.stride)  # without any, the first token of a window would be told from nothing
        start = limits.max_length - overlap
        while limits.windows and start + overlap < len(ids):
            end = start + limits.max_length
            pieces.append((list(ids[start:end]), [0] * overlap + list(learned[start + overlap : end])))
            start = end - overlap
        rows.append(pieces)
    return pieces_encoded(rows, found, texts, encoder, windows=True)


def pieces_encoded(
    rows: Sequence[Sequence[Piece]], found: EncodedText, texts: Sequence[str], encoder: Encoder, *, windows: bool
) -> Encoded:
    """Return pieces of rows as Arrow, with what was lost by cutting them."""
    import numpy as np
    import pyarrow as pa

    limits = encoder.limits if windows else Limits(encoder.limits.max_length)
    labels = [
        [[token if one else NO_TARGET for token, one in zip(*piece, strict=True)] for piece in row] for row in rows
    ]
    lengths = np.array([len(ids) for ids in found.ids], dtype=np.int32)
    over = np.maximum(lengths - limits.max_length, 0).astype(np.int32)
    lost = np.zeros_like(over) if limits.windows else over
    pairs = zip(found.learned, rows, strict=True)
    whole = [sum(learned) == sum(sum(part) for _, part in row) for learned, row in pairs]
    sizes = [
        size if kept else _bytes_left(row, encoder.tokenizer)
        for size, kept, row in zip(found.bytes, whole, rows, strict=True)
    ]
    features = {
        "input_ids": nested([[ids for ids, _ in row] for row in rows], limits),
        "label_ids": nested(labels, limits),
        "bytes": pa.array(sizes, pa.int64()),
    }
    nothing = np.array([not any(1 in learned for _, learned in row) for row in rows])
    tokens = int(lengths.sum())
    return Encoded(
        features,
        lengths,
        lost,
        _unknown((ids for row in rows for ids, _ in row), encoder.unknown_id),
        sum(len(text.split()) for text in texts),
        tokens,
        untrainable=nothing,
        asked_otherwise=len(found.asked_otherwise),
    )


def _bytes_left(row: Sequence[Piece], tokenizer: Any) -> int:
    """Return the bytes of the learned tokens that were not cut off, as the tokenizer writes them."""
    kept = [token for ids, learned in row for token, one in zip(ids, learned, strict=True) if one]
    return len(tokenizer.decode(kept, skip_special_tokens=True).encode())


def questions_encoded(prompts: Sequence[Sequence[int]], texts: Sequence[str], encoder: Encoder) -> Encoded:
    """Return prompts that nobody has answered."""
    import numpy as np

    limit = encoder.limits.max_length
    lengths = np.array([len(ids) for ids in prompts], dtype=np.int32)
    kept = [cut_front(ids, limit, encoder.tokenizer.bos_token_id) for ids in prompts]
    lost = np.maximum(lengths - limit, 0).astype(np.int32)
    features = {"input_ids": nested([[ids] for ids in kept], Limits(limit))}
    unknown = _unknown(kept, encoder.unknown_id)
    return Encoded(features, lengths, lost, unknown, sum(len(text.split()) for text in texts), int(lengths.sum()))


def _unknown(rows: Iterable[Sequence[int]], unknown_id: int | None) -> int:
    return sum(list(ids).count(unknown_id) for ids in rows) if unknown_id is not None else 0


def rows_packed(lengths: Sequence[int]) -> list[list[int]]:
    """Return which rows share a sequence as long as the longest: the longest first, each where it still fits."""
    room = max(lengths)
    sequences: list[list[int]] = []
    left: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        fitting = next((index for index, free in enumerate(left) if free >= lengths[place]), None)
        if fitting is None:
            sequences.append([place])
            left.append(room - lengths[place])
        else:
            sequences[fitting].append(place)
            left[fitting] -= lengths[place]
    return sequences


def check_packing(task: Task, model: Any) -> None:
    """Raise FinetuneError unless packed rows are read as if each stood alone: not every family can part them."""
    import torch

    ids = torch.arange(7, device=model.device)[None] % model.config.vocab_size
    other = torch.cat([ids[:, :3].flip(1), ids[:, 3:]], dim=1)  # another row before the same one
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]], device=model.device)
    training = model.training
    model.eval()
    with torch.no_grad():
        mask = torch.ones_like(ids)
        apart = {"attention_mask": mask}
        alone = task.forward(model, {"input_ids": ids[:, 3:], "attention_mask": mask[:, 3:]})[0].float()
        as_one, as_other = (task.forward(model, {"input_ids": row, **apart})[0, 3:].float() for row in (ids, other))
        try:
            packed = [
                task.forward(model, {"input_ids": row, **apart, "position_ids": positions})[0, 3:].float()
                for row in (ids, other)
            ]
        except TypeError:  # it takes no positions
            packed = [as_one, as_other]
    model.train(training)
    leaks = (packed[0] - packed[1]).abs().max() / (as_one - as_other).abs().max()
    moves = (packed[0] - alone).abs().max() / (as_one - alone).abs().max()
    if not max(leaks, moves) <= SMALL:
        raise FinetuneError(
            "task.pack: expected a model that keeps packed rows apart, as GPT-2, Llama, Mistral and Qwen do; found one "
            f"of the family {model.config.model_type!r}, which reads them as one text. Set task.pack: false"
        )
