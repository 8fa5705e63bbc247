"""Sequence to sequence: what is read and learned, what it costs, and that every token of a reference counts once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.trainer_pt_utils import LabelSmoother

from finetune.artifacts import FeatureTable, feature_table
from finetune.data.tokenization import NO_TARGET, Encoder, Limits
from finetune.errors import FinetuneError
from finetune.evaluation.predictions.texts import TextPredictions
from finetune.evaluation.statistics import point
from finetune.inference import Outputs, Predictor, run_model
from finetune.tasks import Task, open_task
from tests.tasks.written_world import END, PAD, UNKNOWN, bart, t5, word_tokenizer

ROWS: dict[str, list[Any]] = {
    "source": ["the red apple", "a big saw near the old hammer today", "rain", "we had snow with wind"],
    "target": [
        ["my plum"],
        ["they bought this new small drill again", "a saw"],
        ["very very big storm"],
        ["fog", "your cherry near the storm", "rain today"],
    ],
}
PAIRS = [
    (source, target)
    for source, targets in zip(ROWS["source"], ROWS["target"], strict=True)
    for target in targets
]  # fmt: skip
FAMILIES: list[tuple[Callable[[], Any], str]] = [(t5, "$A </s>"), (bart, "<s> $A </s>")]
families = pytest.mark.parametrize(("build", "framing"), FAMILIES, ids=["t5", "bart"])


def encoded(tokenizer: Any, rows: dict[str, list[Any]], *, max_length: int = 16, **options: Any) -> tuple[Task, Any]:
    task, _ = open_task("seq2seq", options)
    return task, task.encode(rows, Encoder.of(tokenizer, Limits(max_length)), ())


def features_of(tokenizer: Any, rows: dict[str, list[Any]] = ROWS, **options: Any) -> tuple[Task, FeatureTable]:
    task, found = encoded(tokenizer, rows, **options)
    return task, feature_table(found.features)


def label_ids(features: FeatureTable) -> list[list[int]]:
    return [list(features[part]["label_ids"]) for part in range(len(features))]


def outputs_of(model: Any, tokenizer: Any, batch_size: int, **options: Any) -> tuple[Outputs, TextPredictions]:
    task, features = features_of(tokenizer, **options)
    _, spec = open_task("seq2seq", options)
    encoder = Encoder.of(tokenizer, Limits(16))
    forward = lambda inputs: task.forward(model, inputs)  # noqa: E731
    predictor = Predictor(model, forward, tokenizer, task, spec, [], torch.device("cpu"), encoder)
    outputs = run_model(predictor, features, batch_size)
    rows = [dict(zip(ROWS, values, strict=True)) for values in zip(*ROWS.values(), strict=True)]
    return outputs, predictor.decode(outputs, rows, features, {})  # type: ignore[return-value]


# --- the loss


def own_loss(model: Any, tokenizer: Any, source: str, target: str, smoothing: float = 0.0) -> tuple[float, int]:
    """Return what transformers' own model makes of one pair without any padding: the sum of its losses, and targets."""
    labels = tokenizer(target, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = model(**_read(tokenizer, source), labels=labels)
    mean = LabelSmoother(smoothing)(found, labels) if smoothing else found.loss
    return float(mean) * labels.numel(), labels.numel()


def _read(tokenizer: Any, source: str) -> dict[str, torch.Tensor]:
    return {name: tokenizer(source, return_tensors="pt")[name] for name in ("input_ids", "attention_mask")}


@families
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_a_batch_is_the_sum_of_what_transformers_computes_for_each_pair(
    build: Callable[[], Any], framing: str, smoothing: float
) -> None:
    model, tokenizer = build(), word_tokenizer(framing)
    task, features = features_of(tokenizer, label_smoothing=smoothing)
    batch = task.collate([features[part] for part in range(len(features))], tokenizer)
    with torch.no_grad():
        logits = task.forward(model, batch.inputs)
    total, count = task.loss(logits, batch, {})
    expected = [own_loss(model, tokenizer, *pair, smoothing) for pair in PAIRS]
    assert float(total) == pytest.approx(sum(loss for loss, _ in expected), rel=1e-5)
    assert int(count) == sum(tokens for _, tokens in expected)
    labels = batch.targets["labels"]
    by_torch = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=smoothing, ignore_index=NO_TARGET
    )
    assert float(total) == pytest.approx(float(by_torch), rel=1e-5)
    if smoothing:
        plain, _ = open_task("seq2seq", {})[0].loss(logits, batch, {})
        assert float(plain) != pytest.approx(float(total), rel=1e-4)


@families
def test_a_decoder_reads_its_start_and_then_the_true_tokens(build: Callable[[], Any], framing: str) -> None:
    model, tokenizer = build(), word_tokenizer(framing)
    task, features = features_of(tokenizer)
    batch = task.collate([features[part] for part in range(len(features))], tokenizer)
    read: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, __, given: read.append(given["decoder_input_ids"]), with_kwargs=True)
    task.forward(model, batch.inputs)
    for row, ids in zip(read[0].tolist(), label_ids(features), strict=True):
        shifted = [model.config.decoder_start_token_id, *ids]
        assert row == [*shifted, *[PAD] * len(row)][: len(row)]


def test_sources_and_targets_are_padded_each_to_their_longest() -> None:
    tokenizer = word_tokenizer()
    task, features = features_of(tokenizer)
    batch = task.collate([features[0], features[2]], tokenizer)  # 3 and 8 words; 2 and 2 words
    assert batch.inputs["input_ids"].shape == batch.inputs["attention_mask"].shape == (2, 9)
    assert batch.inputs["attention_mask"].sum(dim=1).tolist() == [4, 9]
    assert batch.targets["labels"].shape == (2, 3)
    longer = task.collate([features[0], features[1]], tokenizer).targets["labels"]
    assert (longer[0] == NO_TARGET).tolist() == [False] * 3 + [True] * 5


# --- what is read and learned


def test_a_target_ends_with_the_end_of_text_unless_it_is_cut() -> None:
    tokenizer = word_tokenizer()
    targets = ["fog", "rain today", "we had snow", "we had snow today"]
    _, found = encoded(
        tokenizer, {"source": ["apple"] * 4, "target": [[text] for text in targets]}, max_target_length=3
    )
    ids = label_ids(feature_table(found.features))
    whole = [tokenizer(text)["input_ids"] for text in targets]
    assert [len(one) for one in whole] == [2, 3, 4, 5]
    assert ids == [one[:3] for one in whole]
    assert [one[-1] == END for one in ids] == [True, True, False, False]
    assert found.tokens_lost.tolist() == [0, 0, 1, 2]


def test_a_tokenizer_that_frames_texts_otherwise_is_given_the_end_that_it_names() -> None:
    tokenizer = word_tokenizer("$A")
    _, features = features_of(tokenizer)
    assert label_ids(features) == [[*tokenizer(target)["input_ids"], END] for _, target in PAIRS]


def test_what_is_cut_of_a_source_is_counted_beside_what_is_cut_of_its_targets() -> None:
    _, found = encoded(word_tokenizer(), ROWS, max_length=4, max_target_length=4)
    assert found.whole_lengths.tolist() == [4, 9, 2, 6]
    assert found.tokens_lost.tolist() == [0, 5 + 4, 1, 2 + 2]
    features = feature_table(found.features)
    assert max(len(features[part]["input_ids"]) for part in range(len(features))) == 4


def test_words_and_unknown_tokens_of_both_sides_are_counted() -> None:
    rows: dict[str, list[Any]] = {"source": ["the qwerty apple"], "target": [["asdf plum", "zxcv"]]}
    _, found = encoded(word_tokenizer(), rows)
    assert (found.unknown_tokens, found.words, found.text_tokens) == (3, 6, 6)
    assert UNKNOWN in label_ids(feature_table(found.features))[1]


def test_each_reference_is_a_part_of_its_row() -> None:
    tokenizer = word_tokenizer()
    _, features = features_of(tokenizer)
    assert features.row_ids.tolist() == [0, 1, 1, 2, 3, 3, 3]
    assert label_ids(features) == [tokenizer(target)["input_ids"] for _, target in PAIRS]
    read = [list(features[part]["input_ids"]) for part in range(len(features))]
    assert read == [tokenizer(source)["input_ids"] for source, _ in PAIRS]


@pytest.mark.parametrize("known", [True, False])
def test_the_prefix_is_put_before_every_source_and_stays_out_of_what_people_read(*, known: bool) -> None:
    tokenizer = word_tokenizer()
    rows = ROWS if known else {"source": ROWS["source"]}
    _, features = features_of(tokenizer, rows, prefix="your new ")
    sources = [source for source, _ in PAIRS] if known else ROWS["source"]
    read = [list(features[part]["input_ids"]) for part in range(len(features))]
    assert read == [tokenizer(f"your new {source}")["input_ids"] for source in sources]
    assert ("label_ids" in features[0]) == known
    _, predictions = outputs_of(t5(), tokenizer, 4, prefix="your new ")
    assert predictions.sources.tolist() == ROWS["source"]


def test_a_tokenizer_without_an_end_of_text_is_refused() -> None:
    with pytest.raises(FinetuneError, match="expected a tokenizer with an end-of-text token"):
        features_of(word_tokenizer("$A", end=False))
    _, features = features_of(word_tokenizer("$A", end=False), {"source": ROWS["source"]})
    assert len(features) == 4, "nothing is learned from a source alone"


class TwoLanguages(transformers.PythonBackend):  # type: ignore[misc]
    """A slow tokenizer whose targets are in another language than its sources, as Marian's are."""

    def __init__(self, **options: Any) -> None:
        self.known = ["<pad>", "<unk>", "</s>", "one", "two", "un", "deux"]
        self.writes = False
        super().__init__(pad_token="<pad>", unk_token="<unk>", eos_token="</s>", **options)

    @property
    def vocab_size(self) -> int:
        return len(self.known)

    def get_vocab(self) -> dict[str, int]:
        return {token: place for place, token in enumerate(self.known)}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [{"one": "un", "two": "deux"}.get(word, word) if self.writes else word for word in text.split()]

    def _convert_token_to_id(self, token: str) -> int:
        return self.get_vocab().get(token, 1)

    def _convert_id_to_token(self, index: int) -> str:
        return self.known[index]

    def build_inputs_with_special_tokens(self, first: list[int], second: list[int] | None = None) -> list[int]:
        return [*first, *(second or []), 2]

    def _switch_to_target_mode(self) -> None:
        self.writes = True

    def _switch_to_input_mode(self) -> None:
        self.writes = False


def test_a_slow_tokenizer_reads_sources_and_writes_targets() -> None:
    rows: dict[str, list[Any]] = {"source": ["one two one", "two"], "target": [["one two"], ["two one two one", "one"]]}
    _, found = encoded(TwoLanguages(), rows, max_target_length=4)
    features = feature_table(found.features)
    assert [list(features[part]["input_ids"]) for part in range(3)] == [[3, 4, 3, 2], [4, 2], [4, 2]]
    assert label_ids(features) == [[5, 6, 2], [6, 5, 6, 5], [5, 2]]
    assert found.tokens_lost.tolist() == [0, 1]
    assert (found.words, found.text_tokens, found.unknown_tokens) == (11, 11, 0)


# --- what is measured


def by_hand(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Return the loss of every token of every reference in float64, one at a time: each told from those before it."""
    model = model.double()
    losses = []
    for source, target in pairs:
        before = [model.config.decoder_start_token_id]
        for token in tokenizer(target)["input_ids"]:
            with torch.no_grad():
                logits = model(**_read(tokenizer, source), decoder_input_ids=torch.tensor([before])).logits
            losses.append(-float(torch.log_softmax(logits[0, -1], dim=-1)[token]))
            before.append(token)
    return losses


@families
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_perplexity_is_over_every_token_of_every_reference_once(
    build: Callable[[], Any], framing: str, batch_size: int
) -> None:
    tokenizer = word_tokenizer(framing)
    _, predictions = outputs_of(build(), tokenizer, batch_size, label_smoothing=0.3)
    losses = by_hand(build(), tokenizer, PAIRS)
    assert point("perplexity", predictions) == pytest.approx(math.exp(math.fsum(losses) / len(losses)), rel=1e-5)
    special = framing.count("<")
    counts = [sum(len(text.split()) + special for text in targets) for targets in ROWS["target"]]
    assert predictions.sums()[:, 1].tolist() == counts
    assert sum(counts) == len(losses)
    found = np.concatenate([row.losses for row in predictions.guesses])
    assert found.tolist() == pytest.approx(losses, rel=1e-4)
    targets = [row.targets.tolist() for row in predictions.guesses]
    assert targets == [[token for text in texts for token in tokenizer(text)["input_ids"]] for texts in ROWS["target"]]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_validation_loss_is_that_of_training_over_all_tokens(smoothing: float) -> None:
    tokenizer = word_tokenizer()
    outputs, _ = outputs_of(t5(), tokenizer, 2, label_smoothing=smoothing)
    expected = [own_loss(t5(), tokenizer, *pair, smoothing) for pair in PAIRS]
    assert outputs.loss == pytest.approx(sum(loss for loss, _ in expected) / sum(n for _, n in expected), rel=1e-5)


def test_the_most_probable_token_of_each_place_is_kept() -> None:
    tokenizer, model = word_tokenizer(), t5()
    _, predictions = outputs_of(model, tokenizer, 3)
    firsts = []
    for source, target in PAIRS:
        with torch.no_grad():
            logits = model(
                **_read(tokenizer, source), labels=tokenizer(target, return_tensors="pt")["input_ids"]
            ).logits
        firsts += logits[0].argmax(dim=-1).tolist()
    assert np.concatenate([row.firsts for row in predictions.guesses]).tolist() == firsts
    assert len(set(firsts)) > 3, "a model that always guesses the same shows nothing"
