"""Sequence to sequence: an encoder reads a text, a decoder writes another (T5, BART, Marian, Pegasus and their kin).

Rows: `source`, and `target`, one text or a list of several that are all right (references). A row with several is
learned from with each of them; metrics take the best of them, or all, as their definitions say. `prefix` is put before
every source ("summarize: "). Sources are cut at `model.max_length`, targets at `max_target_length`, every cut counted;
a target that was cut has no end of text, so that nothing learns to stop there.

Training minimizes cross-entropy over the target's tokens and its end, each told from the true ones before it, with
`label_smoothing` (Szegedy et al. 2016) if one is given. Validation and test rows are also answered by writing
(`generation`): during training a sample of `generation.validation_rows`, always the same. ROUGE is rouge_score's, with
the words of every script; BLEU and chrF are sacreBLEU's, with their signatures in the report; perplexity is over the
tokens of all references. Rows with the same source share a split, and intervals are over sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from finetune.data.rows import Column
from finetune.data.tokenization import Encoded, Encoder
from finetune.models.heads import Head
from finetune.registry import tasks
from finetune.tasks import Batch, Fitted, Row, TaskSpec
from finetune.tasks.language_targets import guesses_by_row, pad_ids, pad_labels, reduce_guesses, sum_of_losses
from finetune.tasks.text_reports import describe, details, difficulty, example, sections

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from finetune.artifacts import FeatureTable
    from finetune.evaluation.predictions.texts import TextPredictions


def prompt_ids(window: Mapping[str, Any]) -> list[int]:
    """Return the ids that the encoder reads."""
    return list(window["input_ids"])


SPEC = TaskSpec(
    kind="texts",
    metrics=("rougeL", "chrf", "exact-match", "rouge1", "rouge2", "rougeLsum", "bleu", "perplexity"),
    baselines=("copy-source", "lead-sentence"),
    text_roles=("source",),
    label_role=None,
    question={"source": Column("text")},
    describe=describe,
    example=example,
    difficulty=difficulty,
    worst_means="The rows whose texts have least in common with a reference (ROUGE-L).",
    details=details,
    sections=sections,
    unit="source",
    unit_role="source",
    reduce=reduce_guesses,
    prompt=prompt_ids,
    sized_by=("input_ids", "label_ids"),  # the decoder's padding costs as much as the encoder's
    steps="parts",
    windows=False,
    undefined={
        "answer-match": "it needs a pattern, which this task has not",
        "bits-per-byte": "targets may be cut, and what is left of a text has no bytes to count",
    },
)


@tasks.register("seq2seq", spec=SPEC)
class Seq2Seq:
    """A source, and the text to be written about it."""

    columns = {"source": Column("text"), "target": Column("texts", least=1)}  # noqa: RUF012 -- read-only

    def __init__(
        self,
        *,
        prefix: str = "",
        max_target_length: Annotated[int, Field(ge=2)] = 128,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        self._prefix, self._smoothing = prefix, label_smoothing
        self.max_target_length = max_target_length

    def head(self, labels: Sequence[str]) -> Head:  # noqa: ARG002
        """Return a head that gives each token of the vocabulary a score."""
        return Head("seq2seq")

    def encode(self, rows: Mapping[str, Sequence[Any]], encoder: Encoder, labels: Sequence[str]) -> Encoded:  # noqa: ARG002
        """Return token ids; where targets are known one part of a row for each of them, with `label_ids`."""
        import numpy as np
        import pyarrow as pa

        sources = encoder.texts([self._prefix + source for source in rows["source"]])
        if "target" not in rows:
            return sources
        counts = np.array([len(targets) for targets in rows["target"]], dtype=np.int32)
        written = encoder.targets([target for targets in rows["target"] for target in targets], self.max_target_length)
        offsets = pa.array(np.concatenate([[0], counts.cumsum()]).astype(np.int32))
        owners = pa.array(np.repeat(np.arange(len(counts)), counts))
        features = {
            name: pa.ListArray.from_arrays(offsets, values.take(owners)) for name, values in sources.features.items()
        }
        features["label_ids"] = pa.ListArray.from_arrays(offsets, written.ids)
        lost = np.bincount(np.asarray(owners), weights=written.tokens_lost, minlength=len(counts)).astype(np.int32)
        return Encoded(
            features,
            sources.whole_lengths,
            sources.tokens_lost + lost,
            sources.unknown_tokens + written.unknown_tokens,
            sources.words + written.words,
            sources.text_tokens + written.text_tokens,
        )

    def collate(self, features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Batch:
        """Pad sources and targets, each to their longest; `labels` are among the inputs, as decoders read them."""
        inputs = pad_ids([row["input_ids"] for row in features], tokenizer)
        if "label_ids" not in features[0]:
            return Batch(inputs, {})
        labels = pad_labels([row["label_ids"] for row in features])
        return Batch({**inputs, "labels": labels}, {"labels": labels})

    def forward(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return logits for each token of the target, of shape (rows, target length, vocabulary)."""
        given = dict(inputs)
        labels = given.pop("labels")
        whole = getattr(model, "module", model)  # several processes wrap it
        return model(  # type: ignore[no-any-return]
            **given, decoder_input_ids=whole.prepare_decoder_input_ids_from_labels(labels), use_cache=False
        ).logits

    def loss(self, outputs: torch.Tensor, batch: Batch, fitted: Fitted) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002
        """Return summed cross-entropy, smoothed if that was asked for, and the number of target tokens."""
        return sum_of_losses(outputs, batch.targets["labels"], self._smoothing)

    def decode(
        self,
        outputs: Sequence[NDArray[Any]],
        features: FeatureTable,
        rows: Sequence[Row],
        labels: Sequence[str],  # noqa: ARG002
        fitted: Fitted,  # noqa: ARG002
    ) -> TextPredictions:
        """Return what was wanted and how well it was guessed, token by token; nothing is written yet."""
        from finetune.evaluation.predictions.texts import TextPredictions

        sources = [row["source"] for row in rows]
        if not outputs:
            return TextPredictions.of([], [row["target"] for row in rows if "target" in row], sources)
        guesses = guesses_by_row(outputs, features.row_ids, len(rows))
        return TextPredictions.of([], [row["target"] for row in rows], sources, guesses=guesses)
