"""What language models share: losses over tokens, and what of the scores is kept of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from finetune.data.ownership import NO_WORD
from finetune.data.tokenization import NO_TARGET
from finetune.evaluation.predictions import objects
from finetune.tasks import Batch

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from finetune.artifacts import FeatureTable
    from finetune.evaluation.predictions.language import Guesses, LanguagePredictions

TARGET, LOSS, FIRST = range(3)  # what is kept of each token that was to be guessed
MOST_NAMED = 5


def pad_ids(rows: Sequence[Sequence[int]], tokenizer: Any) -> dict[str, torch.Tensor]:
    """Return ids padded at their ends to the longest row, with the mask of padding; language models read no more."""
    import torch

    ids = torch.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def pad_labels(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return labels padded at their ends with what is no target."""
    import torch

    labels = torch.full((len(rows), max(map(len, rows))), NO_TARGET)
    for place, row in enumerate(rows):
        labels[place, : len(row)] = torch.tensor(row)
    return labels


def sum_of_losses(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return summed cross-entropy and the number of targets; labels have the shape (windows, length).

    With `smoothing` so much of each target's probability is spread evenly over the vocabulary.
    """
    import torch

    wanted = labels != NO_TARGET
    losses = torch.nn.functional.cross_entropy(
        logits[wanted].float(), labels[wanted], reduction="sum", label_smoothing=smoothing
    )
    return losses, wanted.sum()


def reduce_guesses(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return each target's id, loss and most probable token, shape (windows, most targets of a window, 3).

    The target is -100 behind a window's last. Scores of a whole vocabulary for each token would fill any memory. The
    numbers are float64: ids beyond 2^24 are no float32. Where there are no targets it is the ids and the probabilities
    of the five most probable tokens at each place, shape (windows, length, 5, 2).
    """
    import torch

    if not batch.targets:
        best = logits.float().softmax(dim=-1).topk(min(MOST_NAMED, logits.shape[-1]), dim=-1)
        return torch.stack([best.indices.cpu().double(), best.values.cpu().double()], dim=-1)
    labels = batch.targets["labels"]
    wanted = labels != NO_TARGET
    counts = wanted.sum(dim=1)
    kept = torch.full((len(labels), int(counts.max()), 3), float(NO_TARGET), dtype=torch.float64)
    scores = logits[wanted].float()
    targets = labels[wanted]
    losses = torch.nn.functional.cross_entropy(scores, targets, reduction="none")
    # not every device has float64
    columns = (targets, losses, scores.argmax(dim=-1))
    found = torch.stack([column.cpu().double() for column in columns], dim=-1)
    kept[torch.arange(kept.shape[1]) < counts.cpu()[:, None]] = found
    return kept


def guesses_of_rows(
    outputs: Sequence[NDArray[Any]], row_ids: NDArray[Any], texts: Sequence[str], sizes: NDArray[Any] | None = None
) -> LanguagePredictions:
    """Return the guesses of each row, those of its windows one after another, of what `reduce_guesses` kept.

    `sizes` are the bytes of the tokens, if all of a text is guessed.
    """
    import numpy as np

    from finetune.evaluation.predictions.language import LanguagePredictions

    guesses = guesses_by_row(outputs, row_ids, len(texts))
    return LanguagePredictions(
        objects(texts), guesses, np.zeros(len(texts), dtype=np.int64) if sizes is None else sizes
    )


def guesses_by_row(outputs: Sequence[NDArray[Any]], row_ids: NDArray[Any], rows: int) -> tuple[Guesses, ...]:
    """Return the guesses of each row, those of its windows one after another, of what `reduce_guesses` kept."""
    import numpy as np

    from finetune.evaluation.predictions.language import Guesses

    parts: list[list[NDArray[Any]]] = [[] for _ in range(rows)]
    for values, row in zip(outputs, row_ids.tolist(), strict=True):
        parts[row].append(values[values[:, TARGET] != NO_TARGET])
    whole = [np.concatenate(found) for found in parts]
    return tuple(
        Guesses(found[:, TARGET].astype(np.int64), found[:, LOSS], found[:, FIRST].astype(np.int64)) for found in whole
    )


def best_of_rows(outputs: Sequence[NDArray[Any]], features: FeatureTable, texts: Sequence[str]) -> LanguagePredictions:
    """Return what is most probable at each token of each row, its windows one after another."""
    import numpy as np

    from finetune.evaluation.predictions.language import Best, LanguagePredictions

    parts: list[list[tuple[Any, Any]]] = [[] for _ in texts]
    for window, (values, row) in enumerate(zip(outputs, features.row_ids.tolist(), strict=True)):
        asked = features[window]
        own = np.array(asked["asked_ids"]) != NO_WORD  # of what two windows share only one has its say
        parts[row].append((np.array(asked["input_ids"])[own], values[: len(own)][own]))
    best = []
    for found in parts:
        values = np.concatenate([values for _, values in found])
        ids = np.concatenate([ids for ids, _ in found]).astype(np.int64)
        best.append(Best(ids, values[..., 0].astype(np.int64), values[..., 1]))
    return LanguagePredictions(objects(texts), (), np.zeros(len(texts), dtype=np.int64), tuple(best))


def in_words(predictions: LanguagePredictions, tokenizer: Any) -> LanguagePredictions:
    """Return predictions with the tokens that occur in them as people read them."""
    import numpy as np

    rows = [*((row.targets, row.firsts) for row in predictions.guesses), *((row.best,) for row in predictions.best)]
    ids = np.unique(np.concatenate([np.ravel(values) for row in rows for values in row]) if rows else np.zeros(0, int))
    words = {token: tokenizer.decode([token]).strip() for token in ids.tolist()}
    return replace(predictions, words=words, mask=tokenizer.mask_token_id)
