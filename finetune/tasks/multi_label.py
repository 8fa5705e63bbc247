"""Multi-label text classification: any number of labels for each text, none included.

Rows: `text` (or `text`, `text_pair`) and `labels`: a list, empty where no label applies, or text that
`data.label_separator` parts. The model reads one text, or a pair (cut at `model.max_length`, every cut counted; or in
windows, whose probabilities are averaged), and gives one score per label, the labels in alphabetical order or in that
of `data.labels`. The sigmoid of a score is the label's probability; training minimizes the loss that the recipe
chooses, else binary cross-entropy, the mean over all decisions (rows × labels), as transformers does for
`multi_label_classification`. What is new of the head
begins with a probability of 0.1 for its labels.

A row has the labels whose probability reaches their threshold. Option `threshold`:

- `per-label` (default): for each label the threshold with the best F1 on the validation split; 0.5 for a label that no
  validation row has. With few positives the best in hindsight is a guess: compare `global`.
- `global`: one threshold for all labels, with the best micro F1 on validation.
- a number between 0 and 1: that one; nothing is fitted.

They are kept in the run (`fitted.json`) and used by `eval`, `quantize` and `predict` alike.

Metrics are scikit-learn's on 0/1 matrices (rows × labels): precision, recall and F1, micro, macro (over all labels; 0
where undefined) and weighted; subset accuracy, Hamming loss, samples Jaccard; and without thresholds
label-ranking average precision, macro average precision and macro ROC AUC.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from finetune.data.rows import Column
from finetune.data.tokenization import Encoded, Encoder
from finetune.evaluation.sections import Matrix, Section, Table
from finetune.models.heads import Head
from finetune.registry import tasks
from finetune.tasks import Batch, Criterion, Fitted, Frequencies, Row, TaskSpec
from finetune.tasks.sequences import pad_inputs, pooled, weighted, weights_of
from finetune.tasks.voting import Voting, mean_of_label_probabilities

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from finetune.artifacts import FeatureTable, Split
    from finetune.evaluation.predictions.label_sets import LabelSetPredictions

Threshold = Annotated[float, Field(gt=0, lt=1)]
NONE = "(none)"
# What a new head starts from: most labels are on few rows. From one half, the first steps only push all scores down,
# by one direction that the encoder gives up its features for (Lin et al. 2017, Focal Loss, section 3.3).
PRIOR = 0.1


def describe(predictions: LabelSetPredictions, answer: int, row: Row) -> dict[str, Any]:  # noqa: ARG001
    """Return the labels that reach their thresholds, the most probable first, and the probability of every label."""
    probabilities = predictions.probabilities[answer]
    said = [label for label in (-probabilities).argsort(kind="stable") if predictions.predicted[answer, label]]
    return {
        "labels": [
            {"label": predictions.labels[label], "probability": round(float(probabilities[label]), 6)} for label in said
        ],
        "probabilities": {
            label: round(float(value), 6) for label, value in zip(predictions.labels, probabilities, strict=True)
        },
    }


def difficulty(predictions: LabelSetPredictions) -> NDArray[Any]:
    """Return the binary cross-entropy of each row, summed over its labels, in nats."""
    import numpy as np

    true, said = predictions.targets == 1, predictions.probabilities
    tiny = np.finfo(said.dtype).tiny
    return -np.log(np.maximum(np.where(true, said, 1 - said), tiny)).sum(axis=1)  # type: ignore[no-any-return]


def example(predictions: LabelSetPredictions, answer: int, row: Row) -> dict[str, Any]:
    """Return a text with its true labels, and those that are missing and too many with the probability of each."""
    true, said = predictions.targets[answer], predictions.predicted[answer]

    def listed(chosen: NDArray[Any]) -> str:
        return ", ".join(
            f"{predictions.labels[label]} {predictions.probabilities[answer, label]:.2f}"
            for label in chosen.nonzero()[0]
        )

    return {
        **{role: row[role] for role in ("text", "text_pair") if role in row},
        "labels": ", ".join(row["labels"]) or NONE,
        "predicted": ", ".join(predictions.labels[label] for label in said.nonzero()[0]) or NONE,
        "missing": listed(true > said),
        "too many": listed(said > true),
    }


def details(predictions: LabelSetPredictions, seed: int) -> dict[str, Any]:
    """Return how often each label is true and said, its threshold and scores, and what is said in place of what."""
    from finetune.evaluation.statistics import per_label

    shares, said = predictions.targets.mean(axis=0), predictions.predicted.mean(axis=0)
    scores = per_label(predictions, seed)
    return {
        "per_label": {
            label: {
                "threshold": float(predictions.thresholds[index]),
                "share": float(shares[index]),
                "predicted_share": float(said[index]),
                **scores[label],
            }
            for index, label in enumerate(predictions.labels)
        },
        "labels_per_row": labels_per_row(predictions),
        "confusion": predictions.confusion().tolist(),
    }


def labels_per_row(predictions: LabelSetPredictions) -> list[dict[str, int]]:
    """Return, for each number of labels, how many rows have it, are given it, and have it and are answered exactly."""
    import numpy as np

    true, said = predictions.targets.sum(axis=1), predictions.predicted.sum(axis=1)
    exact = true[(predictions.targets == predictions.predicted).all(axis=1)]
    length = int(max(true.max(), said.max())) + 1
    columns = [np.bincount(numbers, minlength=length).tolist() for numbers in (true, said, exact)]
    return [
        {"labels": number, "rows": rows, "predicted": predicted, "exact": right}
        for number, (rows, predicted, right) in enumerate(zip(*columns, strict=True))
    ]


def sections(report: Mapping[str, Any]) -> list[Section]:
    """Return the scores by label, rows by their number of labels, and what is said in place of what."""
    kinds = ("rows", "share", "predicted_share", "threshold", "precision", "recall", "f1")
    by_label = [[label, *(scores[kind] for kind in kinds)] for label, scores in report["per_label"].items()]
    by_number = [[str(row["labels"]), row["rows"], row["predicted"], row["exact"]] for row in report["labels_per_row"]]
    return [
        Table(
            "By label",
            ["label", "rows", "share of rows", "share predicted", "threshold", "precision", "recall", "F1"],
            by_label,
            "In the order of the model's outputs. A label is predicted where its probability reaches its threshold.",
        ),
        Table("By number of labels", ["labels on a row", "rows", "predicted", "answered exactly"], by_number),
        Matrix(
            "Labels found and missed",
            [*report["per_label"], NONE],
            report["confusion"],
            "On the diagonal the labels found. Elsewhere, on how many rows the label of the line was missed while that "
            f"of the column was predicted wrongly; {NONE}: nothing was predicted wrongly beside it, or nothing missed.",
        ),
    ]


def fit_decisions(predictions: LabelSetPredictions) -> dict[str, Any]:
    """Return a threshold for each label, fitted as the task's option says."""
    from finetune.evaluation.predictions.label_sets import fit_thresholds

    found = fit_thresholds(predictions.targets, predictions.probabilities, predictions.rule)
    return {"thresholds": dict(zip(predictions.labels, found.tolist(), strict=True))}


def frequencies(split: Split, labels: Sequence[str]) -> Frequencies:
    """Return how many rows have each label."""
    found = Counter(label for row in split.rows for label in set(row["labels"]))
    return Frequencies({label: found[label] for label in labels}, len(split.rows))


SPEC = TaskSpec(
    kind="labels",
    metrics=(
        *(f"{kind}-{average}" for kind in ("f1", "precision", "recall") for average in ("micro", "macro", "weighted")),
        "subset-accuracy",
        "hamming-loss",
        "jaccard-samples",
        "label-ranking-average-precision",
        "average-precision-macro",
        "roc-auc-macro",
    ),
    baselines=("prevalence", "tfidf-one-vs-rest"),
    text_roles=("text", "text_pair"),
    label_role="labels",
    loss="binary-cross-entropy",
    frequencies=frequencies,
    describe=describe,
    example=example,
    difficulty=difficulty,
    worst_means="The rows on which the model gave the true answer, for all labels together, the least probability.",
    voting=Voting("the probabilities of the labels, and their thresholds", mean_of_label_probabilities),
    details=details,
    sections=sections,
    fit_decisions=fit_decisions,
)


@tasks.register("multi-label", spec=SPEC)
class MultiLabel:
    """One text, or a pair, and any number of labels out of a fixed list."""

    criterion: Criterion

    columns = {"text": Column("text"), "text_pair": Column("text", required=False), "labels": Column("labels")}  # noqa: RUF012 -- read-only

    def __init__(self, *, threshold: Literal["per-label", "global"] | Threshold = "per-label") -> None:
        self._threshold = threshold

    def head(self, labels: Sequence[str]) -> Head:
        """Return a classification head with an output for each label, in which new labels begin as rare ones."""
        return Head("sequence", tuple(labels), problem="multi_label_classification", prior=PRIOR)

    def encode(self, rows: Mapping[str, Sequence[Any]], encoder: Encoder, labels: Sequence[str]) -> Encoded:
        """Return token ids and, where the rows have labels, a 0 or 1 for each label there is."""
        encoded = encoder.texts(rows["text"], rows.get("text_pair"))
        if "labels" not in rows:
            return encoded
        import pyarrow as pa

        from finetune.evaluation.predictions.label_sets import label_matrix

        targets = label_matrix(rows["labels"], labels)
        return encoded.with_features(label_ids=pa.array(targets.tolist(), pa.list_(pa.int32())))

    def collate(self, features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Batch:
        """Pad to the longest window; the targets, of shape (windows, labels), are there when the rows have labels."""
        import torch

        inputs = pad_inputs(features, tokenizer)
        if "label_ids" not in features[0]:
            return Batch(inputs, {})
        labels = torch.tensor([row["label_ids"] for row in features], dtype=torch.float32)
        return Batch(inputs, {"labels": labels, **weights_of(features)})

    def forward(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return logits of shape (windows, labels)."""
        return model(**inputs).logits  # type: ignore[no-any-return]

    def loss(self, outputs: torch.Tensor, batch: Batch, fitted: Fitted) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed loss and the number of decisions: rows × labels.

        Each window of a row counts as its share of the row, so that a row of three windows, too, is one decision for
        each label.
        """
        return weighted(*self.criterion(outputs.float(), batch.targets["labels"], fitted), batch)

    def decode(
        self,
        outputs: Sequence[NDArray[Any]],
        features: FeatureTable,
        rows: Sequence[Row],
        labels: Sequence[str],
        fitted: Fitted,
    ) -> LabelSetPredictions:
        """Turn logits into probabilities; those of a row are the mean over its windows."""
        import numpy as np
        from scipy.special import expit

        from finetune.evaluation.predictions.label_sets import UNFITTED, LabelSetPredictions, label_matrix

        known = len(rows) > 0 and "labels" in rows[0]
        targets = label_matrix((row["labels"] for row in rows) if known else (), labels)
        probabilities = pooled(expit(np.asarray(outputs, dtype=np.float64)), features, rows)
        default = UNFITTED if isinstance(self._threshold, str) else self._threshold
        thresholds = np.array([fitted.get("thresholds", {}).get(label, default) for label in labels])
        return LabelSetPredictions(tuple(labels), targets, probabilities, thresholds, self._threshold)
