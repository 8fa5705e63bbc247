"""Extractive question answering: the words of a context that answer a question, or none.

Rows: `context`, `question`, `answers` (SQuAD's `{"text": [...], "answer_start": [...]}`; a list of `{"text", "start"}`;
a text, which is taken to stand where the context has it first; empty or null where the context holds no answer). The
first answer of a row is learned, all of them count as true. The model reads the question, then the context, cut or in
windows that share `model.stride` tokens; for each token it says how much it looks like the first and like the last of
the answer. Training minimizes the mean of both cross-entropies over the tokens of the context and the window's first
token, which stands for "no answer here" and is the target of windows that do not see the whole answer (Devlin et al.
2018, BERT); a window of a row with n of them counts 1/n. The answer is the span of at most `max_answer_length` tokens
with the highest sum of both scores in any window. Where training rows have no answer, none is said if the score for
that exceeds the span's by more than a threshold, which is fitted on the validation split. Exact match and F1 are those
of SQuAD's evaluation script (Rajpurkar et al. 2016 and 2018).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from finetune.data.contexts import NO_ANSWER, OUTSIDE, encode_contexts
from finetune.data.rows import Column
from finetune.data.tokenization import Encoded, Encoder
from finetune.evaluation.predictions import objects
from finetune.models.heads import Head
from finetune.registry import tasks
from finetune.tasks import Batch, Fitted, Row, TaskSpec
from finetune.tasks.answer_reports import describe, details, difficulty, example, sections
from finetune.tasks.sequences import pad_inputs, weighted, weights_of
from finetune.tasks.voting import Voting, mean_of_scores

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from finetune.artifacts import FeatureTable
    from finetune.evaluation.predictions.answers import AnswerPredictions

NO_SPAN = -1e9  # the score of the best span where no window has a token of the context


def fit_targets(rows: Iterable[Row]) -> dict[str, Any]:
    """Return whether there are rows without an answer among those to learn from."""
    return {"unanswerable": any(not row["answers"] for row in rows)}


def fit_decisions(predictions: AnswerPredictions) -> dict[str, Any]:
    """Return the threshold above which there is no answer, where there may be none."""
    from finetune.evaluation.predictions.answers import fit_threshold

    return {} if predictions.threshold is None else {"null_threshold": fit_threshold(predictions)}


SPEC = TaskSpec(
    kind="answers",
    metrics=("exact-match", "answer-f1"),
    baselines=("nearest-words",),
    text_roles=("context", "question"),
    label_role=None,
    describe=describe,
    example=example,
    difficulty=difficulty,
    worst_means="The answers that share least with a true one, the most certain of them first.",
    voting=Voting("the scores of where an answer begins and ends, and the threshold for no answer", mean_of_scores),
    details=details,
    sections=sections,
    unit="document",
    unit_role="context",
    fit_targets=fit_targets,
    fit_decisions=fit_decisions,
    by_token=True,
)


@tasks.register("question-answering", spec=SPEC)
class QuestionAnswering:
    """A question, and the span of a context that answers it."""

    columns = {"context": Column("text"), "question": Column("text"), "answers": Column("answers")}  # noqa: RUF012 -- read-only

    def __init__(
        self,
        *,
        max_answer_length: Annotated[int, Field(ge=1)] = 30,
        max_question_length: Annotated[int, Field(ge=1)] = 64,
        no_answer: Literal["auto", "always", "never"] = "auto",
    ) -> None:
        """Limit answers and questions to so many tokens; say "no answer" where training has such rows, or as told."""
        self._max_answer_length, self._max_question_length = max_answer_length, max_question_length
        self._no_answer = no_answer

    def head(self, labels: Sequence[str]) -> Head:  # noqa: ARG002
        """Return a head with two scores for each token."""
        return Head("spans")

    def encode(
        self,
        rows: Mapping[str, Sequence[Any]],
        encoder: Encoder,
        labels: Sequence[str],  # noqa: ARG002
    ) -> Encoded:
        """Return token ids, the characters of the context that each token stands for, and the answer's tokens."""
        return encode_contexts(
            encoder,
            rows["question"],
            rows["context"],
            rows.get("answers"),
            max_question_length=self._max_question_length,
        )

    def collate(self, features: Sequence[Mapping[str, Any]], tokenizer: Any) -> Batch:
        """Pad to the longest window; `places` are the tokens at which an answer, or none, can be."""
        import torch

        inputs = pad_inputs(features, tokenizer)
        if "answer_span" not in features[0]:
            return Batch(inputs, {})
        places = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        places[:, NO_ANSWER] = True
        for number, window in enumerate(features):
            starts = torch.tensor(window["context_starts"])
            places[number, : len(starts)] |= starts != OUTSIDE
        spans = torch.tensor([window["answer_span"] for window in features])
        return Batch(inputs, {"spans": spans, "places": places, **weights_of(features)})

    def forward(self, model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return each token's scores as first and as last of the answer, shape (windows, length, 2)."""
        import torch

        outputs = model(**inputs)
        return torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)

    def loss(
        self,
        outputs: torch.Tensor,
        batch: Batch,
        fitted: Fitted,  # noqa: ARG002
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return summed cross-entropy, the mean of first and last token, and the number of questions."""
        import torch

        outside = ~batch.targets["places"][..., None]
        scores = outputs.float().masked_fill(outside, torch.finfo(torch.float32).min)
        losses = torch.nn.functional.cross_entropy(scores, batch.targets["spans"], reduction="none")
        per_window = losses.mean(dim=1)
        return weighted(per_window, torch.ones_like(per_window), batch)

    def decode(
        self,
        outputs: Sequence[NDArray[Any]],
        features: FeatureTable,
        rows: Sequence[Row],
        labels: Sequence[str],  # noqa: ARG002
        fitted: Fitted,
    ) -> AnswerPredictions:
        """Return each row's best span over all of its windows; `outputs` are arrays of shape (length, 2)."""
        import numpy as np

        from finetune.evaluation.predictions.answers import AnswerPredictions

        spans = [Span(NO_SPAN, 0, 0, 0.0)] * len(rows)
        silence = np.full(len(rows), np.inf)  # a row holds no answer only if none of its windows does
        for window, (scores, row) in enumerate(zip(outputs, features.row_ids.tolist(), strict=True)):
            span = best_span(scores, features[window], self._max_answer_length)
            spans[row] = max(spans[row], span, key=lambda found: found.score)
            silence[row] = min(silence[row], float(scores[NO_ANSWER].sum()))
        asked = list(rows)
        contexts = [row["context"] for row in asked]
        numbers = {context: number for number, context in enumerate(dict.fromkeys(contexts))}
        targets = [tuple(answer["text"] for answer in row["answers"]) for row in asked if "answers" in row]
        places = list(map(_without_blanks, contexts, spans))
        return AnswerPredictions(
            questions=objects([row["question"] for row in asked]),
            contexts=np.array([numbers[context] for context in contexts], dtype=np.int64),
            targets=objects(targets),
            texts=objects([context[start:end] for context, (start, end) in zip(contexts, places, strict=True)]),
            starts=np.array([start for start, _ in places], dtype=np.int64),
            ends=np.array([end for _, end in places], dtype=np.int64),
            probabilities=np.array([span.probability for span in spans]),
            no_answer=silence - np.array([span.score for span in spans]),
            threshold=self._threshold(fitted),
        )

    def _threshold(self, fitted: Fitted) -> float | None:
        """Return how much more than the best span "no answer" has to score; None if it is never said."""
        silent = {"auto": bool(fitted.get("unanswerable")), "always": True, "never": False}[self._no_answer]
        return float(fitted.get("null_threshold", 0.0)) if silent else None


class Span(NamedTuple):
    """Some characters of a context, and what a model thinks of them."""

    score: float
    start: int
    end: int
    probability: float


def best_span(scores: NDArray[Any], window: Mapping[str, Any], longest: int) -> Span:
    """Return the span of at most `longest` tokens of the context with the highest sum of both scores, (length, 2).

    It is exact: every span there is is looked at. Its probability is that of its first token times that of its last,
    each among all tokens of the context and the window's first token, as the loss has them.
    """
    import numpy as np

    inside = np.flatnonzero(np.array(window["context_starts"]) != OUTSIDE)
    if not len(inside):
        return Span(NO_SPAN, 0, 0, 0.0)
    starts, ends = scores[inside].astype(np.float64).T
    followed = np.concatenate([ends, np.full(longest - 1, -np.inf)])
    table = starts[:, None] + np.lib.stride_tricks.sliding_window_view(followed, longest)
    first, more = divmod(int(table.argmax()), longest)
    score, last = float(table[first, more]), first + more
    every = scores[[NO_ANSWER, *inside]].astype(np.float64)
    highest = every.max(axis=0)
    total = float((highest + np.log(np.exp(every - highest).sum(axis=0))).sum())
    places = window["context_starts"][inside[first]], window["context_ends"][inside[last]]
    return Span(score, *places, float(np.exp(score - total)))


def _without_blanks(context: str, span: Span) -> tuple[int, int]:
    """Return the span without blanks at its ends: to some tokenizers the blank before a word is part of it."""
    text = context[span.start : span.end]
    start = span.start + len(text) - len(text.lstrip())
    return start, start + len(text.strip())
