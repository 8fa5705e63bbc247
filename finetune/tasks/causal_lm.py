"""Causal language modelling: a decoder learns to go on from a text (GPT-2, Llama, Qwen and their kin).

Rows, by the option `rows`:

- `text`: `text`. All of it is learned, and the end of text behind it. Long ones are cut at `model.max_length` (every
  cut counted), or read in windows that overlap (`model.overflow: window`): each token is learned, and scored, once.
- `completion`: `prompt`, `completion`, with `separator` between them. Learned is the completion with its end (`learn:
  all`: the prompt, too).
- `messages`: `messages`, a list of `{role, content}` (or ShareGPT's `{from, value}`), written by the tokenizer's own
  chat template or a named one (`template`). Learned is what the assistant says, in all of its turns or in the `last`.

A row that is too long loses the beginning of its prompt, behind the begin-of-text token, and with it what would have
been learned there; of its last answer it loses the end, if that alone is too long. Every cut is counted, and a row of
which nothing can be learned is an error. With `pack` the rows of a batch share sequences in training, without
attention from one to another and each with positions of its own, so that less is padded.

Metrics: perplexity and bits per byte over all tokens that are learned, each once; of answers also what was written
(`generation`), by exact match, ROUGE, BLEU, chrF, or by the last place in it where a regular expression (`pattern`)
finds an answer, in the manner of GSM8K's evaluation (Cobbe et al. 2021). The report of plain texts shows how the model
goes on from their beginnings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from finetune.data.chat_templates import wanted_tokens
from finetune.data.conversations import (
    LearnText,
    LearnTurns,
    cut_front,
    encode_beginnings,
    encode_completions,
    encode_conversations,
    encode_plain,
    encode_prompts,
    prompts_of,
)
from finetune.data.rows import Column
from finetune.data.tokenization import NO_TARGET, Encoded, Encoder, Limits, nested
from finetune.errors import FinetuneError
from finetune.models.heads import Head
from finetune.registry import tasks
from finetune.tasks import Batch, Fitted, Row, TaskSpec, language_reports, text_reports
from finetune.tasks.causal_pieces import (
    check_packing,
    in_windows,
    keep_end,
    pieces_encoded,
    questions_encoded,
    rows_packed,
)
from finetune.tasks.language_targets import (
    guesses_by_row,
    guesses_of_rows,
    in_words,
    pad_ids,
    pad_labels,
    reduce_guesses,
    sum_of_losses,
)

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from finetune.artifacts import FeatureTable
    from finetune.evaluation.predictions.language import LanguagePredictions
    from finetune.evaluation.predictions.texts import TextPredictions

Rows = Literal["text", "completion", "messages"]
COLUMNS: dict[str, dict[str, Column]] = {
    "text": {"text": Column("text")},
    "completion": {"prompt": Column("text"), "completion": Column("text")},
    "messages": {"messages": Column("messages")},
}
QUESTIONS = {
    "text": {"prompt": Column("text")},
    "completion": {"prompt": Column("text")},
    "messages": {"messages": Column("messages")},
}
BEGINNING = 16  # tokens of a text after which a sample goes on


def prompt_ids(window: Mapping[str, Any]) -> list[int]:
    """Return the ids after which an answer is asked for; of a whole text its beginning."""
    if "prompt_ids" in window:
        return list(window["prompt_ids"])
    ids = list(window["input_ids"])
    return ids[: max(1, min(BEGINNING, len(ids) // 2))] if "label_ids" in window else ids


def declare(options: Mapping[str, Any]) -> TaskSpec:
    """Return the declaration for rows as the options have them."""
    rows = options.get("rows", "text")
    steps: Literal["parts", "whole"] = "whole" if options.get("pack") else "parts"
    if rows == "text":
        return TaskSpec(
            kind="language",
            metrics=("perplexity", "bits-per-byte", "top-1-accuracy"),
            baselines=("unigram",),
            text_roles=("text",),
            label_role=None,
            question=QUESTIONS[rows],
            describe=text_reports.describe,
            example=language_reports.example,
            difficulty=language_reports.difficulty,
            worst_means="The texts whose tokens were least expected, by the mean loss of a token in nats.",
            details=language_reports.details,
            sections=language_reports.sections,
            reduce=reduce_guesses,
            in_words=in_words,
            prompt=prompt_ids,
            steps=steps,
            whole_tokenizer=True,
        )
    source = "prompt" if rows == "completion" else "messages"
    answers = ("answer-match",) if options.get("pattern") else ()
    return TaskSpec(
        kind="texts",
        metrics=(*answers, "exact-match", "rougeL", "chrf", "perplexity", "bits-per-byte"),
        baselines=("copy-source",),
        text_roles=(source,),
        label_role=None,
        question=QUESTIONS[rows],
        describe=text_reports.describe,
        example=text_reports.example,
        difficulty=text_reports.difficulty,
        worst_means="The rows whose answers have least in common with the true ones (ROUGE-L).",
        details=text_reports.details,
        sections=text_reports.sections,
        unit="source" if rows == "completion" else "row",
        unit_role=source if rows == "completion" else None,
        reduce=reduce_guesses,
        prompt=prompt_ids,
        steps=steps,
        windows=False,
        whole_tokenizer=True,
        undefined={} if answers else {"answer-match": "it needs task.pattern"},
    )


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options that these rows have no use for, and for a pattern that is none."""
    from finetune.evaluation.predictions.texts import compiled

    rows = options["rows"]
    if options["template"]:
        try:
            wanted_tokens(options["template"])
        except FinetuneError as error:
            raise ValueError(f"template: {error}") from None
    if rows != "messages" and options["template"]:
        raise ValueError(f"template is for rows of messages; remove it, or set `rows: messages` (found {rows})")
    if rows != "completion" and options["separator"]:
        raise ValueError(f"separator stands between a prompt and its completion; remove it (found rows of {rows})")
    if rows == "text" and options["pattern"]:
        raise ValueError("pattern finds the answer in what is written for a prompt, and rows of text have none")
    fitting = {"text": ("all",), "completion": ("completion", "all"), "messages": ("assistant", "last", "all")}[rows]
    if options["learn"] is not None and options["learn"] not in fitting:
        raise ValueError(f"learn: expected {' or '.join(fitting)} for rows of {rows}, found {options['learn']}")
    if options["pattern"]:
        try:
            compiled(options["pattern"])
        except FinetuneError as error:
            raise ValueError(f"pattern: {error}") from None


@tasks.register("causal-lm", spec=declare, check=check_options)
class CausalLM:
    """Texts to go on with, prompts to complete, or conversations to answer."""

    def __init__(
        self,
        *,
        rows: Rows = "text",
        learn: Literal["completion", "assistant", "last", "all"] | None = None,
        template: str | None = None,
        separator: str = "",
        pattern: str | None = None,
        pack: bool = False,
    ) -> None:
        self.columns: Mapping[str, Column] = COLUMNS[rows]
        self._rows, self._template, self._pattern, self.packs = rows, template, pattern, pack
        self._learn, self._separator = learn, separator

    def head(self, labels: Sequence[str]) -> Head:  # noqa: ARG002
        """Return a head that gives each token of the vocabulary a score."""
        return Head("causal")

    def prepare_tokenizer(self, tokenizer: Any) -> None:
        """Give the tokenizer the chat template that it will be saved with, and the tokens that this writes."""
        from finetune.data.chat_templates import template_of

        if self._rows != "messages":
            return
        if self._template:
            tokenizer.add_special_tokens(
                {"extra_special_tokens": list(wanted_tokens(self._template))}, replace_extra_special_tokens=False
            )
        tokenizer.chat_template = template_of(tokenizer, self._template)

    def end_ids(self, tokenizer: Any) -> list[int]:
        """Return the tokens with which the assistant ends what it says, where that is not the end of text."""
        from finetune.data.chat_templates import end_marker

        if self._rows != "messages":
            return []
        marker = end_marker(tokenizer, tokenizer.chat_template)
        ids = tokenizer(marker, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise FinetuneError(
                f"the chat template ends an answer with {marker!r}, which is {len(ids)} tokens here, so that writing "
                "would not stop there; name another template (task.template)"
            )
        return [int(ids[0])]

    def encode(self, rows: Mapping[str, Sequence[Any]], encoder: Encoder, labels: Sequence[str]) -> Encoded:  # noqa: ARG002
        """Return token ids, and of rows to learn from `label_ids`: the ids that are learned, -100 elsewhere."""
        tokenizer, limits = encoder.tokenizer, encoder.limits
        if self._rows == "text" and "text" in rows:
            return in_windows(encode_plain(tokenizer, rows["text"]), rows["text"], encoder)
        answered = self._rows == "messages" and all(row and row[-1]["role"] == "assistant" for row in rows["messages"])
        if self._rows == "messages":
            prompts = prompts_of(tokenizer, rows["messages"], tokenizer.chat_template)
            texts = [" ".join(message["content"] for message in row) for row in rows["messages"]]
        elif self._rows == "text":
            prompts, texts = encode_beginnings(tokenizer, rows["prompt"]), list(rows["prompt"])
        else:
            begun = [prompt + self._separator for prompt in rows["prompt"]]
            prompts, texts = encode_prompts(tokenizer, begun), list(rows["prompt"])
        if "completion" in rows:
            found = encode_completions(tokenizer, begun, rows["completion"], self._learn_text)
            texts = [f"{text} {more}" for text, more in zip(texts, rows["completion"], strict=True)]
        elif answered:
            found = encode_conversations(tokenizer, rows["messages"], tokenizer.chat_template, self._learn_turns)
        else:
            return questions_encoded(prompts, texts, encoder)
        kept = [
            keep_end(ids, learned, len(prompt), limits.max_length, tokenizer.bos_token_id)
            for ids, learned, prompt in zip(found.ids, found.learned, prompts, strict=True)
        ]
        encoded = pieces_encoded([[row] for row in kept], found, texts, encoder, windows=False)
        asked = [cut_front(prompt, limits.max_length, tokenizer.bos_token_id) for prompt in prompts]
        return encoded.with_features(prompt_ids=nested([[ids] for ids in asked], Limits(limits.max_length)))

    @property
    def _learn_text(self) -> LearnText:
        return "all" if self._learn == "all" else "completion"

    @property
    def _learn_turns(self) -> LearnTurns:
        return "last" if self._learn == "last" else "all" if self._learn == "all" else "assistant"

    def check_model(self, model: Any) -> None:
        """Raise FinetuneError if rows that share a sequence would be read as one: not every family can part them."""
        if self.packs:
            check_packing(self, model)

    def collate(self, features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Batch:
        """Pad to the longest row; `labels` has at each token the id of the next one, where that is learned."""
        inputs = pad_ids([row["input_ids"] for row in features], tokenizer)
        if "label_ids" not in features[0]:
            return Batch(inputs, {})
        return Batch(inputs, {"labels": pad_labels([[*row["label_ids"][1:], NO_TARGET] for row in features])})

    def pack(self, features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Batch:
        """Return the rows of a training batch one behind another, in sequences as long as the longest of them.

        `position_ids` begin anew with each row, by which transformers' masks keep them apart.
        """
        import torch

        sequences = rows_packed([len(row["input_ids"]) for row in features])
        ids = [[token for place in places for token in features[place]["input_ids"]] for places in sequences]
        labels = [
            [label for place in places for label in (*features[place]["label_ids"][1:], NO_TARGET)]
            for places in sequences
        ]
        inputs = pad_ids(ids, tokenizer)
        positions = torch.zeros_like(inputs["input_ids"])
        for row, places in enumerate(sequences):
            ranges = [torch.arange(len(features[place]["input_ids"])) for place in places]
            found = torch.cat([*ranges, torch.arange(positions.shape[1] - sum(map(len, ranges)))])
            positions[row] = found
        return Batch({**inputs, "position_ids": positions}, {"labels": pad_labels(labels)})

    def forward(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return logits of shape (rows, length, vocabulary), at each token for the next."""
        from finetune.models.loading import quiet_transformers

        if "position_ids" not in inputs:
            return model(**inputs, use_cache=False).logits  # type: ignore[no-any-return]
        # with a mask of padding beside the positions transformers would not part the rows; it warns that there is none
        packed = {name: tensor for name, tensor in inputs.items() if name != "attention_mask"}
        with quiet_transformers():
            return model(**packed, use_cache=False).logits  # type: ignore[no-any-return]

    def loss(self, outputs: torch.Tensor, batch: Batch, fitted: Fitted) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002
        """Return summed cross-entropy and the number of learned tokens."""
        return sum_of_losses(outputs, batch.targets["labels"])

    def decode(
        self,
        outputs: Sequence[NDArray[Any]],
        features: FeatureTable,
        rows: Sequence[Row],
        labels: Sequence[str],  # noqa: ARG002
        fitted: Fitted,  # noqa: ARG002
    ) -> TextPredictions | LanguagePredictions:
        """Return how well each token was guessed, once each; nothing is written yet."""
        from finetune.evaluation.predictions.texts import TextPredictions

        sources = [_asked(row) for row in rows]
        if not outputs:
            return TextPredictions.of([], [], sources, pattern=self._pattern)
        sizes = features.first_of_rows("bytes")
        if self._rows == "text":
            return guesses_of_rows(outputs, features.row_ids, [row["text"] for row in rows], sizes)
        guesses = guesses_by_row(outputs, features.row_ids, len(rows))
        wanted = [[row["completion"] if "completion" in row else row["messages"][-1]["content"]] for row in rows]
        return TextPredictions.of([], wanted, sources, pattern=self._pattern, guesses=guesses, sizes=sizes.tolist())


def _asked(row: Row) -> str:
    """Return what a row asks, as people read it: the prompt, or what was said before the last answer."""
    if "prompt" in row or "text" in row:
        return str(row["prompt"] if "prompt" in row else row["text"])
    messages = row["messages"]
    before = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    return "\n".join(message["content"] for message in before)
