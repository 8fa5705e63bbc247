"""Embedding: a vector for each text, so that texts that belong together are near each other (a bi-encoder).

Rows, by the option `rows`: `pairs`: `anchor`, `positive`; `triplets`: `anchor`, `positive`, `negative`; `scored`:
`text`, `text_pair`, `score`. Anchors may have a `topic`, from which nothing is learned: it judges their clusters; rows
with the same anchor share a split, and intervals are over anchors. Each text is read by itself, cut at
`model.max_length` (every cut counted); its vector is the mean over its tokens, or that of the first, and of length 1
with `normalize` (Reimers & Gurevych 2019). Training, by the option `loss`: `in-batch-negatives` (for pairs and
triplets; wrong answers are the positives and negatives of the other rows of the batch, unless they are the same text,
so that it refuses accumulation), `triplet-margin`, and for scores, which become 0 to 1 between `minimum` and `maximum`,
`cosine` (squared error) or `cosent`. Metrics: how early the positive comes among all positives and negatives of the
split (recall@k, MRR) and which triplets are in order; silhouette and adjusted Rand index of the topics, scikit-learn's;
of scored pairs scipy's correlations of cosine and score.

Why not by sentence-transformers: its losses are a few lines each, to which tests hold ours, and its trainer would be
a second loop with steps, checkpoints and reports of its own. It opens the model's folder of a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from finetune.data.rows import Column
from finetune.data.tokenization import Encoded, Encoder
from finetune.errors import FinetuneError
from finetune.models.heads import Head
from finetune.registry import tasks
from finetune.tasks import Batch, Fitted, Row, TaskSpec
from finetune.tasks.contrastive import (
    also_right,
    cosent_losses,
    cosine_errors,
    in_batch_losses,
    same_texts,
    triplet_losses,
)
from finetune.tasks.embedding_reports import REPORTS, describe
from finetune.tasks.sequences import pad_inputs

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from numpy.typing import NDArray

    from finetune.artifacts import FeatureTable
    from finetune.evaluation.predictions import Predictions

Rows = Literal["pairs", "triplets", "scored"]
Loss = Literal["in-batch-negatives", "triplet-margin", "cosine", "cosent"]
Positive = Annotated[float, Field(gt=0)]

PARTS: dict[Rows, tuple[str, ...]] = {
    "pairs": ("anchor", "positive"),
    "triplets": ("anchor", "positive", "negative"),
    "scored": ("text", "text_pair"),
}
LOSSES: dict[Rows, tuple[Loss, ...]] = {  # the first is what one gets without asking
    "pairs": ("in-batch-negatives",),
    "triplets": ("in-batch-negatives", "triplet-margin"),
    "scored": ("cosine", "cosent"),
}
KINDS: dict[Rows, str] = {"pairs": "retrieval", "triplets": "triplets", "scored": "similarity"}
RETRIEVAL = ("recall@1", "retrieval-mrr", "recall@5", "recall@10")
METRICS: dict[Rows, tuple[str, ...]] = {
    "pairs": RETRIEVAL,
    "triplets": (*RETRIEVAL, "triplet-accuracy"),
    "scored": ("spearman", "pearson"),
}


def declare(options: Mapping[str, Any]) -> TaskSpec:
    """Return the declaration for rows and loss as the options have them."""
    rows: Rows = options.get("rows", "pairs")
    scored = rows == "scored"
    return TaskSpec(
        kind=KINDS[rows],
        metrics=METRICS[rows],
        baselines=("tfidf-cosine", "pretrained"),
        text_roles=PARTS[rows],
        label_role="score" if scored else None,
        question={"text": Column("text")},
        describe=describe,
        **REPORTS[KINDS[rows]],
        unit="row" if scored else "query",
        unit_role=None if scored else "anchor",
        together="row",
        adds_up=_loss_of(options) not in {"in-batch-negatives", "cosent"},
        windows=False,
    )


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError for a loss that is for other rows, or an empty range of scores."""
    rows, loss = options["rows"], _loss_of(options)
    if loss not in LOSSES[rows]:
        fitting = [name for name, losses in LOSSES.items() if loss in losses]
        raise ValueError(
            f"loss: expected {' or '.join(LOSSES[rows])} for rows: {rows}, found {loss}, which is for rows: "
            f"{' or '.join(fitting)}"
        )
    if (low := options["minimum"]) >= (high := options["maximum"]):
        raise ValueError(f"minimum: expected less than the maximum ({high:g}), found {low:g}")


def _loss_of(options: Mapping[str, Any]) -> Loss:
    return options.get("loss") or LOSSES[options.get("rows", "pairs")][0]


@tasks.register("embedding", spec=declare, check=check_options)
class Embedding:
    """A vector for each text."""

    def __init__(
        self,
        *,
        rows: Rows = "pairs",
        pooling: Literal["mean", "cls"] = "mean",
        normalize: bool = True,
        loss: Loss | None = None,
        scale: Positive = 20.0,
        symmetric: bool = False,
        margin: Positive = 0.2,
        minimum: float = 0.0,
        maximum: float = 1.0,
    ) -> None:
        """Take rows of that form, for a loss that `check_options` found to be for them.

        `scale` is of in-batch negatives and CoSENT, `symmetric` of in-batch negatives, `margin` (a difference of
        cosines) of the triplet loss, and `minimum` and `maximum` are the range of the scores.
        """
        self._rows, self._loss = rows, _loss_of({"rows": rows, "loss": loss})
        self._pooling, self._normalize = pooling, normalize
        self._scale, self._symmetric, self._margin = scale, symmetric, margin
        self._minimum, self._maximum = minimum, maximum
        last = {"score": Column("number", minimum=minimum, maximum=maximum)} if rows == "scored" else {}
        topic = {} if rows == "scored" else {"topic": Column("label", required=False)}
        self.columns: Mapping[str, Column] = {**{role: Column("text") for role in PARTS[rows]}, **last, **topic}

    def head(self, labels: Sequence[str]) -> Head:  # noqa: ARG002
        """Return that an encoder is needed, without a head."""
        return Head("none")

    def encode(
        self,
        rows: Mapping[str, Sequence[Any]],
        encoder: Encoder,
        labels: Sequence[str],  # noqa: ARG002
    ) -> Encoded:
        """Return the token ids of each text of a row, as its parts; of rows with one `text` alone, of that."""
        parts = [encoder.texts(rows[role]) for role in PARTS[self._rows] if role in rows]
        if not parts:
            return encoder.texts(rows["text"])
        encoded = parts[0] if len(parts) == 1 else _side_by_side(parts)
        if "score" not in rows:
            return encoded
        import pyarrow as pa

        span = self._maximum - self._minimum
        return encoded.with_features(target=pa.array([(score - self._minimum) / span for score in rows["score"]]))

    def collate(self, features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Batch:
        """Pad to the longest text; the targets are the row of each text, and the score of that row if it has one."""
        import torch

        inputs = pad_inputs(features, tokenizer)
        if "weight" not in features[0]:  # a text by itself, of which nothing can be learned
            return Batch(inputs, {})
        targets = {"rows": torch.tensor([text["row"] for text in features])}
        if "target" in features[0]:
            targets["scores"] = torch.tensor([text["target"] for text in features], dtype=torch.float32)
        return Batch(inputs, targets)

    def forward(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the vector of each text, shape (texts, width), in float32."""
        from torch.nn import functional

        tokens = model(**inputs).last_hidden_state.float()
        if self._pooling == "cls":
            vectors = tokens[:, 0]
        else:
            mask = inputs["attention_mask"].unsqueeze(-1).to(tokens.dtype)
            vectors = (tokens * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
        return functional.normalize(vectors, dim=-1) if self._normalize else vectors

    def loss(self, outputs: torch.Tensor, batch: Batch, fitted: Fitted) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002
        """Return the sum of the rows' losses and the number of rows; a batch has whole rows, each text in its place."""
        import torch

        parts = len(PARTS[self._rows])
        vectors = outputs.float().reshape(-1, parts, outputs.shape[-1])
        owners = batch.targets["rows"].reshape(-1, parts)
        assert (owners == owners[:, :1]).all(), "the texts of a row share a batch, one after the other"
        losses = self._losses(vectors, batch, parts)
        return losses.sum(), torch.tensor(len(losses), device=losses.device)

    def _losses(self, vectors: torch.Tensor, batch: Batch, parts: int) -> torch.Tensor:
        if self._loss == "in-batch-negatives":
            right = also_right(same_texts(batch.inputs["input_ids"], parts))
            return in_batch_losses(vectors, right, scale=self._scale, symmetric=self._symmetric)
        if self._loss == "triplet-margin":
            return triplet_losses(vectors, margin=self._margin)
        scores = batch.targets["scores"][::parts]
        if self._loss == "cosine":
            return cosine_errors(vectors, scores)
        return cosent_losses(vectors, scores, scale=self._scale)

    def decode(
        self,
        outputs: Sequence[NDArray[Any]],
        features: FeatureTable,
        rows: Sequence[Row],
        labels: Sequence[str],  # noqa: ARG002
        fitted: Fitted,  # noqa: ARG002
    ) -> Predictions:
        """Turn the vectors of rows into similarities, or into the places that positives have among all candidates."""
        import numpy as np

        from finetune.evaluation.predictions.similarities import (
            Corpus,
            EmbeddingPredictions,
            RetrievalPredictions,
            SimilarityPredictions,
            TripletPredictions,
            unit_vectors,
        )

        vectors = np.stack(outputs)
        if not np.isfinite(vectors).all():
            raise FinetuneError("task embedding: expected vectors of finite numbers, found others: the model is broken")
        if len(outputs) == len(rows):  # texts by themselves
            return EmbeddingPredictions(vectors)
        parts = len(PARTS[self._rows])
        assert (features.row_ids == np.repeat(np.arange(len(rows)), parts)).all(), "a row's texts are in their order"
        by_part = unit_vectors(vectors).reshape(len(rows), parts, -1).swapaxes(0, 1)
        if self._rows == "scored":
            scores = np.array([row["score"] for row in rows], dtype=np.float64)
            return SimilarityPredictions.of(by_part[0], by_part[1], scores)
        corpus = Corpus.of(rows)
        candidates = by_part[1:].reshape(-1, vectors.shape[1])[corpus.places]
        topics = [row["topic"] for row in rows] if "topic" in rows[0] else []
        kind = TripletPredictions if self._rows == "triplets" else RetrievalPredictions
        return kind.of(by_part[0], candidates, corpus, topics)

    def save_extras(self, folder: Path, max_length: int) -> None:
        """Write what sentence-transformers reads beside the model: how long a text may be, and how it is pooled."""
        from transformers import AutoConfig

        # what an architecture calls its width (n_embd, d_model, emb_dim), transformers knows by this name too
        width = AutoConfig.from_pretrained(folder, local_files_only=True).hidden_size
        steps = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] * self._normalize)]
        pooling = {"mean": "mean_tokens", "cls": "cls_token"}[self._pooling]
        files: dict[str, Any] = {
            "modules.json": [
                {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for place, (path, kind) in enumerate(steps)
            ],
            "1_Pooling/config.json": {
                "word_embedding_dimension": width,
                **{f"pooling_mode_{name}": name == pooling for name in ("cls_token", "mean_tokens", "max_tokens")},
            },
            "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
            "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        }
        for path, _ in steps:
            (folder / path).mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _side_by_side(parts: Sequence[Encoded]) -> Encoded:
    """Return rows of several texts, each a part of its row; a row is as long as the longest of them."""
    import numpy as np

    count = len(parts[0].whole_lengths)
    order = np.arange(len(parts) * count).reshape(len(parts), count).T.ravel()  # row by row, not part by part
    names = dict.fromkeys(name for part in parts for name in part.features)
    return Encoded(
        {name: _nested([part.features[name] for part in parts], order, count) for name in names},
        np.max([part.whole_lengths for part in parts], axis=0),
        np.sum([part.tokens_lost for part in parts], axis=0),
        *(sum(getattr(part, name) for part in parts) for name in ("unknown_tokens", "words", "text_tokens")),
    )


def _nested(columns: Sequence[pa.Array], order: NDArray[Any], count: int) -> pa.Array:
    """Return lists of lists: for each row the lists that its texts have in the columns."""
    import numpy as np
    import pyarrow as pa

    lists = pa.concat_arrays(columns).take(pa.array(order))
    offsets = np.arange(count + 1, dtype=np.int32) * len(columns)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), lists)
