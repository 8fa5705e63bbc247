"""Single-label text classification.

Rows: `text`, `label`; or `text`, `text_pair`, `label`. The model reads one text, or a pair (cut at `model.max_length`,
every cut counted; or in windows, whose probabilities are averaged) and gives one score per label; training minimizes
the loss that the recipe chooses, else cross-entropy. Metrics are scikit-learn's: accuracy; precision, recall and F1,
macro, micro, weighted and per label; log loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune.data.rows import Column
from finetune.data.tokenization import Encoded, Encoder
from finetune.evaluation.sections import Matrix, Section, Table
from finetune.models.heads import Head
from finetune.registry import tasks
from finetune.tasks import Batch, Criterion, Fitted, Frequencies, Row, TaskSpec
from finetune.tasks.sequences import pad_inputs, pooled, weighted, weights_of
from finetune.tasks.voting import Voting, mean_of_probabilities

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from finetune.artifacts import FeatureTable, Split
    from finetune.evaluation.predictions.labels import LabelPredictions


def describe(predictions: LabelPredictions, answer: int, row: Row) -> dict[str, Any]:  # noqa: ARG001
    """Return the label that is given, and the probability of each."""
    probabilities = predictions.probabilities[answer]
    predicted = int(probabilities.argmax())
    return {
        "label": predictions.labels[predicted],
        "probability": round(float(probabilities[predicted]), 6),
        "probabilities": {
            label: round(float(value), 6) for label, value in zip(predictions.labels, probabilities, strict=True)
        },
    }


def difficulty(predictions: LabelPredictions) -> NDArray[Any]:
    """Return for each row how little probability its true label was given."""
    import numpy as np

    return -predictions.probabilities[np.arange(len(predictions)), predictions.targets]  # type: ignore[no-any-return]


def example(predictions: LabelPredictions, answer: int, row: Row) -> dict[str, Any]:
    """Return a text with its true label and what was said of it."""
    predicted = int(predictions.predicted[answer])
    return {
        **{role: row[role] for role in ("text", "text_pair") if role in row},
        "label": row["label"],
        "predicted": predictions.labels[predicted],
        "probability": float(predictions.probabilities[answer, predicted]),
        "probability_of_label": float(predictions.probabilities[answer, predictions.targets[answer]]),
    }


def details(predictions: LabelPredictions, seed: int) -> dict[str, Any]:
    """Return the confusion matrix, and each label's scores."""
    from finetune.evaluation.statistics import per_label

    return {"confusion": predictions.confusion().tolist(), "per_label": per_label(predictions, seed)}


def sections(report: Mapping[str, Any]) -> list[Section]:
    """Return the scores by label and the confusion matrix."""
    rows = [
        [label, scores["rows"], *(scores[kind] for kind in ("precision", "recall", "f1"))]
        for label, scores in report["per_label"].items()
    ]
    return [
        Table("By label", ["label", "rows", "precision", "recall", "F1"], rows),
        Matrix("Confusion matrix", report["labels"], report["confusion"]),
    ]


def frequencies(split: Split, labels: Sequence[str]) -> Frequencies:
    """Return how many rows have each label."""
    found = Counter(row["label"] for row in split.rows)
    return Frequencies({label: found[label] for label in labels}, len(split.rows))


SPEC = TaskSpec(
    kind="label",
    metrics=(
        "accuracy",
        *(f"{kind}-{average}" for average in ("macro", "micro", "weighted") for kind in ("f1", "precision", "recall")),
        "log-loss",
    ),
    baselines=("majority", "tfidf-logreg"),
    text_roles=("text", "text_pair"),
    label_role="label",
    class_id="label_id",
    loss="cross-entropy",
    frequencies=frequencies,
    describe=describe,
    example=example,
    difficulty=difficulty,
    worst_means="The rows on which the model gave the true label the least probability.",
    voting=Voting("the probabilities of the labels", mean_of_probabilities),
    details=details,
    sections=sections,
)


@tasks.register("text-classification", spec=SPEC)
class TextClassification:
    """One text, or a pair, and one label out of a fixed list."""

    criterion: Criterion

    columns = {"text": Column("text"), "text_pair": Column("text", required=False), "label": Column("label")}  # noqa: RUF012 -- read-only

    def head(self, labels: Sequence[str]) -> Head:
        """Return a classification head with an output for each label."""
        return Head("sequence", tuple(labels), problem="single_label_classification")

    def encode(self, rows: Mapping[str, Sequence[Any]], encoder: Encoder, labels: Sequence[str]) -> Encoded:
        """Return token ids and, where the rows have a label, its index."""
        encoded = encoder.texts(rows["text"], rows.get("text_pair"))
        if "label" not in rows:
            return encoded
        import pyarrow as pa

        index = {label: number for number, label in enumerate(labels)}
        return encoded.with_features(label_id=pa.array([index[label] for label in rows["label"]], pa.int32()))

    def collate(self, features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Batch:
        """Pad to the longest row; the targets are there when the rows have a label."""
        import torch

        inputs = pad_inputs(features, tokenizer)
        if "label_id" not in features[0]:
            return Batch(inputs, {})
        labels = torch.tensor([row["label_id"] for row in features])
        return Batch(inputs, {"labels": labels, **weights_of(features)})

    def forward(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return logits of shape (windows, labels)."""
        return model(**inputs).logits  # type: ignore[no-any-return]

    def loss(self, outputs: torch.Tensor, batch: Batch, fitted: Fitted) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed loss and the number of rows; each window of a row counts as its share of the row."""
        return weighted(*self.criterion(outputs.float(), batch.targets["labels"], fitted), batch)

    def decode(
        self,
        outputs: Sequence[NDArray[Any]],
        features: FeatureTable,
        rows: Sequence[Row],
        labels: Sequence[str],
        fitted: Fitted,  # noqa: ARG002
    ) -> LabelPredictions:
        """Turn logits into probabilities; those of a row are the mean over its windows."""
        import numpy as np

        from finetune.evaluation.predictions.labels import LabelPredictions

        index = {label: number for number, label in enumerate(labels)}
        targets = [index[row["label"]] for row in rows] if len(rows) and "label" in rows[0] else []
        logits = np.asarray(outputs, dtype=np.float64)
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        probabilities = pooled(exponentials / exponentials.sum(axis=-1, keepdims=True), features, rows)
        return LabelPredictions(tuple(labels), np.asarray(targets, dtype=np.int64), probabilities)
