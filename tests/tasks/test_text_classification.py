"""Single-label classification against plain torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from finetune.artifacts import FeatureTable, feature_table
from finetune.data.tokenization import Encoder, Limits
from finetune.models.loading import load_tokenizer
from finetune.tasks import Batch, open_task

LABELS = ["fruit", "tool", "weather"]
ROWS = [{"text": "the apple", "label": "fruit"}, {"text": "a very big saw with a hammer", "label": "tool"}]


def windows_of_rows(*counts: int) -> FeatureTable:
    """Return features of rows that have so many windows each."""
    return feature_table(
        {"input_ids": pa.array([[[2, 3]] * count for count in counts], pa.list_(pa.list_(pa.int32())))}
    )


def test_rows_become_ids_and_label_indices(tiny_model: Path) -> None:
    task, _ = open_task("text-classification", {})
    columns = {role: [row[role] for row in ROWS] for role in ("text", "label")}
    encoded = task.encode(columns, Encoder.of(load_tokenizer(tiny_model), Limits(6)), LABELS)
    assert encoded.features["label_id"].to_pylist() == [0, 1]
    assert [len(ids) for ids in encoded.features["input_ids"].to_pylist()] == [4, 6]
    assert encoded.tokens_lost.tolist() == [0, 3]


def test_rows_without_labels_can_be_encoded_to_be_predicted(tiny_model: Path) -> None:
    task, _ = open_task("text-classification", {})
    encoded = task.encode({"text": ["rain"]}, Encoder.of(load_tokenizer(tiny_model), Limits(8)), LABELS)
    assert encoded.features.keys() == {"input_ids"}


def test_batches_are_padded_masked_and_have_segment_ids_where_the_model_reads_them(tiny_model: Path) -> None:
    task, _ = open_task("text-classification", {})
    tokenizer = load_tokenizer(tiny_model)
    batch = task.collate(
        [{"input_ids": [2, 5, 3], "label_id": 2}, {"input_ids": [2, 5, 6, 7, 3], "label_id": 0}], tokenizer
    )
    inputs = batch.inputs
    assert inputs["input_ids"].tolist() == [[2, 5, 3, 0, 0], [2, 5, 6, 7, 3]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert inputs["token_type_ids"].eq(0).all()
    assert batch.targets["labels"].tolist() == [2, 0]
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    unlabelled = task.collate([{"input_ids": [2, 3]}], tokenizer)
    assert set(unlabelled.inputs) == {"input_ids", "attention_mask"}
    assert not unlabelled.targets


def test_the_loss_is_a_sum_with_its_count_in_single_precision() -> None:
    task, _ = open_task("text-classification", {})
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([0, 1, 2, 1, 0])
    total, count = task.loss(logits.bfloat16(), Batch({}, {"labels": targets}), {})
    expected = torch.nn.functional.cross_entropy(logits.bfloat16().float(), targets)
    assert total.dtype == torch.float32
    assert (total / count).item() == pytest.approx(expected.item())
    assert count.item() == 5


def test_decoding_is_a_softmax_that_does_not_overflow() -> None:
    task, _ = open_task("text-classification", {})
    logits = np.array([[1e4, 0.0, -1e4], [0.5, 0.25, 0.0]], dtype=np.float32)
    predictions = task.decode(logits, windows_of_rows(1, 1), ROWS, LABELS, {})
    assert predictions.targets.tolist() == [0, 1]
    np.testing.assert_allclose(predictions.probabilities[1], torch.tensor(logits[1]).double().softmax(-1), rtol=1e-9)
    assert predictions.probabilities[0].tolist() == [1.0, 0.0, 0.0]


def test_the_windows_of_a_row_weigh_as_much_as_one_row() -> None:
    task, _ = open_task("text-classification", {})
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(2))
    targets = {"labels": torch.tensor([0, 0, 2]), "weights": torch.tensor([0.5, 0.5, 1.0])}
    total, count = task.loss(logits, Batch({}, targets), {})
    losses = torch.nn.functional.cross_entropy(logits, targets["labels"], reduction="none")
    assert total.item() == pytest.approx((losses[:2].mean() + losses[2]).item())
    assert count.item() == 2


def test_a_row_in_windows_has_the_mean_of_their_probabilities() -> None:
    task, _ = open_task("text-classification", {})
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]]))
    predictions = task.decode(logits, windows_of_rows(1, 2), ROWS, LABELS, {})
    np.testing.assert_allclose(predictions.probabilities, [[0.5, 0.25, 0.25], [0.2, 0.7, 0.1]])
    assert predictions.targets.tolist() == [0, 1]
