"""Masked language modelling: an encoder learns a domain's text by guessing tokens that are hidden from it.

Rows: `text`. Long ones are cut at `model.max_length` (every cut counted), or read in windows (`model.overflow:
window`): each token may be hidden in the window in which it has most context, and in no other.

Of each window's tokens `probability` (0.15) are chosen, at least one: single tokens, or with `whole_words` all tokens
of a word as the tokenizer parts the text. Of the chosen ones 80 % are replaced by the mask, 10 % by a token drawn from
the vocabulary, 10 % stay (Devlin et al. 2019, BERT, section 3.1; whole words: the note of May 2019 in BERT's
repository). In training each epoch chooses anew (Liu et al. 2019, RoBERTa, section 4.1), in evaluation the choice is
always the same, whatever the seed, so that scores of several models are of the same tokens.

Training minimizes cross-entropy, each chosen token counting the same; metrics are over the chosen tokens of the split.
`predict` takes texts with the mask's own token in them, from the column `masked`, and gives the best guesses for each.

The run is an ordinary model: give `run/model` as `model.id` to any task that reads texts, and it starts from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from finetune.data.ownership import NO_WORD, deciding_words
from finetune.data.rows import Column
from finetune.data.tokenization import NO_TARGET, Encoded, Encoder, nested
from finetune.errors import FinetuneError
from finetune.models.heads import Head
from finetune.registry import tasks
from finetune.tasks import Batch, Fitted, Row, TaskSpec
from finetune.tasks.language_reports import describe_fills, details, difficulty, example, sections
from finetune.tasks.language_targets import best_of_rows, guesses_of_rows, in_words, reduce_guesses, sum_of_losses
from finetune.tasks.sequences import pad_inputs

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from finetune.artifacts import FeatureTable
    from finetune.evaluation.predictions.language import LanguagePredictions

MASKED, REPLACED = 0.8, 0.1  # of the chosen tokens; the others stay

SPEC = TaskSpec(
    kind="language",
    metrics=("perplexity", "top-1-accuracy"),
    baselines=("unigram",),
    text_roles=("text",),
    label_role=None,
    question={"masked": Column("text")},
    describe=describe_fills,
    example=example,
    difficulty=difficulty,
    worst_means="The texts whose hidden tokens were guessed worst, by the mean loss of a token in nats.",
    details=details,
    sections=sections,
    draws=True,
    reduce=reduce_guesses,
    in_words=in_words,
    undefined={"bits-per-byte": "only a part of a text's tokens is guessed"},
)


@tasks.register("masked-lm", spec=SPEC)
class MaskedLM:
    """Texts, of which some tokens are hidden and guessed."""

    columns = {"text": Column("text")}  # noqa: RUF012 -- read-only

    def __init__(self, *, probability: Annotated[float, Field(gt=0, lt=1)] = 0.15, whole_words: bool = False) -> None:
        self._probability, self._whole_words = probability, whole_words

    def head(self, labels: Sequence[str]) -> Head:  # noqa: ARG002
        """Return a head that gives each token of the vocabulary a score."""
        return Head("masked")

    def prepare_tokenizer(self, tokenizer: Any) -> None:
        """Raise FinetuneError for a tokenizer without a token that hides others."""
        if tokenizer.mask_token_id is None:
            raise FinetuneError(
                "task masked-lm: expected a tokenizer with a mask token, found none. Choose an encoder, or train a "
                "tokenizer with the template bert or roberta"
            )

    def encode(self, rows: Mapping[str, Sequence[Any]], encoder: Encoder, labels: Sequence[str]) -> Encoded:  # noqa: ARG002
        """Return token ids and, of texts to learn from, the word of each token that may be hidden (else -1)."""
        texts = rows["masked"] if "masked" in rows else rows["text"]
        windows, lengths, lost = encoder.words(texts)
        limits = encoder.limits
        words = [deciding_words(row, limits.stride, every_token=True) for row in windows]
        features = {
            "input_ids": nested([[window.ids for window in row] for row in windows], limits),
            "asked_ids" if "masked" in rows else "word_ids": nested(words, limits),
        }
        unknown = sum(token == encoder.unknown_id for row in windows for window in row for token in window.ids)
        text_tokens = int(lengths.sum()) - encoder.special_tokens() * len(windows)
        return Encoded(features, lengths, lost, unknown, sum(len(text.split()) for text in texts), text_tokens)

    def collate(self, features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Batch:
        """Pad to the longest window and hide what each window's `draw` chooses; `labels` are the hidden tokens' ids."""
        import torch

        if "word_ids" not in features[0]:
            return Batch(pad_inputs(features, tokenizer), {})
        hidden = [self._hide(window, tokenizer) for window in features]
        inputs = pad_inputs(
            [{**window, "input_ids": ids} for window, (ids, _) in zip(features, hidden, strict=True)], tokenizer
        )
        labels = torch.full_like(inputs["input_ids"], NO_TARGET)
        for row, (_, targets) in enumerate(hidden):
            labels[row, : len(targets)] = torch.tensor(targets)
        return Batch(inputs, {"labels": labels})

    def forward(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return logits of shape (windows, length, vocabulary)."""
        return model(**inputs).logits  # type: ignore[no-any-return]

    def loss(self, outputs: torch.Tensor, batch: Batch, fitted: Fitted) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002
        """Return summed cross-entropy and the number of hidden tokens."""
        return sum_of_losses(outputs, batch.targets["labels"])

    def decode(
        self,
        outputs: Sequence[NDArray[Any]],
        features: FeatureTable,
        rows: Sequence[Row],
        labels: Sequence[str],  # noqa: ARG002
        fitted: Fitted,  # noqa: ARG002
    ) -> LanguagePredictions:
        """Return how well each row's hidden tokens were guessed, over all of its windows."""
        if rows and "masked" in rows[0]:
            return best_of_rows(outputs, features, [row["masked"] for row in rows])
        return guesses_of_rows(outputs, features.row_ids, [row["text"] for row in rows])

    def _hide(self, window: Mapping[str, Any], tokenizer: Any) -> tuple[list[int], list[int]]:
        """Return a window's token ids with some replaced, and the true ids of these, -100 elsewhere."""
        import numpy as np

        generator = np.random.default_rng(window["draw"])
        words = np.asarray(window["word_ids"])
        ids = np.array(window["input_ids"])
        chosen = self._chosen(words, generator)
        targets = np.where(chosen, ids, NO_TARGET)
        fate = generator.random(len(ids))
        drawn = generator.integers(0, len(tokenizer), len(ids))
        ids[chosen & (fate < MASKED)] = tokenizer.mask_token_id
        replaced = chosen & (fate >= MASKED) & (fate < MASKED + REPLACED)
        ids[replaced] = drawn[replaced]
        return ids.tolist(), targets.tolist()

    def _chosen(self, words: NDArray[Any], generator: np.random.Generator) -> NDArray[Any]:
        """Return which tokens are hidden, shape (tokens,): the share of those that may be, rounded, at least one."""
        import numpy as np

        places = np.flatnonzero(words != NO_WORD)
        wanted = max(1, round(self._probability * len(places)))
        chosen = np.zeros(len(words), dtype=bool)
        if not self._whole_words:
            chosen[generator.permutation(places)[:wanted]] = True
            return chosen
        for word in generator.permutation(np.unique(words[places])):
            chosen[words == word] = True
            if chosen.sum() >= wanted:
                break
        return chosen
