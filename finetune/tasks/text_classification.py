"""Single-label text classification.

Rows: `text`, `label`; or `text`, `text_pair`, `label`. The model reads one text, or a pair (cut at `model.max_length`,
every cut counted; or in windows, whose probabilities are averaged) and gives one score per label; training minimizes
cross-entropy. Metrics are scikit-learn's: accuracy; precision, recall and F1, macro, micro,
weighted and per label; log loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data.rows import Column
from finetune.data.tokenization import Encoded, Encoder
from finetune.registry import tasks
from finetune.tasks import Batch, TaskSpec

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from finetune.evaluation.predictions import Predictions
    from finetune.models.loading import LoadedModel


def describe(predictions: Predictions, index: int) -> dict[str, Any]:
    """Return one prediction as a person reads it."""
    probabilities = predictions.probabilities[index]
    predicted = int(probabilities.argmax())
    return {
        "label": predictions.labels[predicted],
        "probability": round(float(probabilities[predicted]), 6),
        "probabilities": {
            label: round(float(value), 6) for label, value in zip(predictions.labels, probabilities, strict=True)
        },
    }


SPEC = TaskSpec(
    metrics=(
        "accuracy",
        *(f"{kind}-{average}" for average in ("macro", "micro", "weighted") for kind in ("f1", "precision", "recall")),
        "log-loss",
    ),
    baselines=("majority", "tfidf-logreg"),
    unit="row",
    text_roles=("text", "text_pair"),
    label_role="label",
    describe=describe,
)


@tasks.register("text-classification", spec=SPEC)
class TextClassification:
    """One text, or a pair, and one label out of a fixed list."""

    columns = {"text": Column("text"), "text_pair": Column("text", required=False), "label": Column("label")}  # noqa: RUF012 -- read-only

    def build_model(self, folder: Path, labels: Sequence[str], *, allow_code: bool) -> LoadedModel:
        """Load an encoder (or decoder) under a classification head."""
        from finetune.models.loading import load_classifier

        return load_classifier(folder, labels, allow_code=allow_code)

    def encode(self, rows: Mapping[str, Sequence[Any]], encoder: Encoder, labels: Sequence[str]) -> Encoded:
        """Return token ids and, where the rows have a label, its index."""
        encoded = encoder.texts(rows["text"], rows.get("text_pair"))
        if "label" not in rows:
            return encoded
        import pyarrow as pa

        index = {label: number for number, label in enumerate(labels)}
        return encoded.with_features(label_id=pa.array([index[label] for label in rows["label"]], pa.int32()))

    def collate(self, features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Batch:
        """Pad to the longest row; `labels` is there when the rows have one."""
        import torch

        names = [name for name in features[0] if name in tokenizer.model_input_names]
        padded = tokenizer.pad(
            [{name: row[name] for name in names} for row in features], padding=True, return_tensors="pt", verbose=False
        )
        batch: Batch = dict(padded)
        if "token_type_ids" in tokenizer.model_input_names and "token_type_ids" not in batch:
            batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
        if "label_id" in features[0]:
            batch["labels"] = torch.tensor([row["label_id"] for row in features])
        if "weight" in features[0]:
            batch["weights"] = torch.tensor([row["weight"] for row in features], dtype=torch.float32)
        return batch

    def loss(self, outputs: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return summed cross-entropy and the number of rows; each window of a row counts as its share of the row."""
        import torch

        targets = batch["labels"]
        losses = torch.nn.functional.cross_entropy(outputs.logits.float(), targets, reduction="none")
        if "weights" not in batch:
            return losses.sum(), torch.tensor(len(targets), device=losses.device)
        return (losses * batch["weights"]).sum(), batch["weights"].sum()

    def decode(
        self, outputs: Any, row_ids: NDArray[Any], rows: Sequence[Mapping[str, Any]], labels: Sequence[str]
    ) -> Predictions:
        """Turn logits of shape (windows, labels) into probabilities; those of a row are the mean over its windows."""
        import numpy as np

        from finetune.evaluation.predictions import Predictions

        index = {label: number for number, label in enumerate(labels)}
        targets = [index[row["label"]] for row in rows] if len(rows) and "label" in rows[0] else []
        logits = np.asarray(outputs, dtype=np.float64)
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
        if len(probabilities) != len(rows):
            pooled = np.zeros((len(rows), len(labels)))
            np.add.at(pooled, row_ids, probabilities)
            probabilities = pooled / np.bincount(row_ids, minlength=len(rows))[:, None]
        return Predictions(tuple(labels), np.asarray(targets, dtype=np.int64), probabilities)
