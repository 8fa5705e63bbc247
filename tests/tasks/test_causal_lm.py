"""Causal language modelling: each token once, and completions behind their prompts."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers

from finetune import registry
from finetune.artifacts import feature_table
from finetune.data.tokenization import Encoder, Limits
from finetune.errors import FinetuneError
from finetune.evaluation.statistics import point
from finetune.inference import Predictor, run_model
from finetune.models.families import check_family
from finetune.models.scratch import scratch_config
from finetune.recipe import Scratch
from finetune.tasks import open_task
from tests.data.test_chat_templates import byte_tokenizer

NO_TARGET = -100
PIECES = ["the", "saw", "plum", "a", "Behind", "house", "well", "猫", "é", "old,", "\n", "red.", "x", "???", "them"]


def texts(count: int, longest: int, seed: int = 3) -> list[str]:
    """Return texts of 1 to `longest` pieces."""
    generator = random.Random(seed)
    return [" ".join(generator.choices(PIECES, k=1 + number * longest // count)) for number in range(count)]


def tokenizer_of(*, bos: bool) -> Any:
    """Return a byte-level tokenizer that pads with its end of text, as load_tokenizer has them."""
    tokenizer = byte_tokenizer(bos=bos)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def model_of(family: str, vocabulary: int, attention: str = "eager") -> Any:
    """Return a random decoder whose scores depend much on what it reads."""
    sizes: dict[str, Any] = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if family == "gpt2":
        still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config: Any = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **still, **sizes)
    else:
        config = transformers.LlamaConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=64, **sizes,
        )  # fmt: skip
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.5)
    return model


def encoded(columns: Mapping[str, Sequence[Any]], tokenizer: Any, limits: Limits, **options: Any) -> Any:
    task, _ = open_task("causal-lm", options)
    return task.encode(columns, Encoder.of(tokenizer, limits, whole=True), [])


def learned(label_ids: Sequence[int]) -> list[int]:
    return [label for label in label_ids if label != NO_TARGET]


def whole_ids(tokenizer: Any, text: str) -> list[int]:
    """Return a text between its start (begin of text, or else end of text) and its end."""
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return [start, *ids, tokenizer.eos_token_id]


def bytes_of(tokenizer: Any, ids: Sequence[int]) -> int:
    """Return how many bytes tokens stand for: a byte-level token has a character for each."""
    special = set(tokenizer.all_special_ids)
    return sum(len(tokenizer.convert_ids_to_tokens(token)) for token in ids if token not in special)


# -- plain text


@pytest.mark.parametrize("stride", [0, 1, 5, 10])
@pytest.mark.parametrize("bos", [False, True])
def test_windows_of_a_row_learn_each_of_its_tokens_once_and_in_order(bos: bool, stride: int) -> None:
    tokenizer, rows = tokenizer_of(bos=bos), texts(12, 40)
    found = encoded({"text": rows}, tokenizer, Limits(12, "window", stride))
    parted = 0
    for row, text in enumerate(rows):
        whole = whole_ids(tokenizer, text)
        windows = found.features["input_ids"][row].as_py()
        labels = found.features["label_ids"][row].as_py()
        assert [token for window in labels for token in learned(window)] == whole[1:]
        told, ends = 1, []  # tokens that are learned by the windows before, and the start
        for ids, targets in zip(windows, labels, strict=True):
            first = next(place for place, label in enumerate(targets) if label != NO_TARGET)
            start = told - first
            assert len(ids) <= 12
            assert ids == whole[start : start + len(ids)], "a window is a piece of its row"
            assert targets == [NO_TARGET] * first + ids[first:]
            assert first >= 1, "the first token of a window is told from nothing"
            told += len(targets) - first
            ends.append((start, start + len(ids)))
        shared = [end - start for (_, end), (start, _) in pairwise(ends)]
        assert shared == [max(1, stride)] * (len(windows) - 1)
        parted += len(windows) > 1
    assert parted > 6
    assert found.tokens_lost.tolist() == [0] * len(rows)
    assert found.features["bytes"].to_pylist() == [len(text.encode()) for text in rows]


def test_truncation_counts_the_tokens_that_it_cuts_and_the_bytes_that_it_leaves() -> None:
    tokenizer, rows = tokenizer_of(bos=True), [text.replace("猫", "o").replace("é", "e") for text in texts(12, 40)]
    found = encoded({"text": rows}, tokenizer, Limits(12))
    whole = [whole_ids(tokenizer, text) for text in rows]
    assert max(map(len, whole)) > 30
    assert found.features["input_ids"].to_pylist() == [ids[:12] for ids in whole]
    assert list(map(learned, found.features["label_ids"].to_pylist())) == [ids[1:12] for ids in whole]
    assert found.tokens_lost.tolist() == [max(0, len(ids) - 12) for ids in whole]
    assert found.whole_lengths.tolist() == list(map(len, whole))
    assert found.features["bytes"].to_pylist() == [bytes_of(tokenizer, ids[1:12]) for ids in whole]
    assert not found.untrainable.any()


def log_probabilities(model: Any, rows: Sequence[Sequence[int]], limits: Limits) -> list[float]:
    """Return the logarithm of each token's probability after the tokens of its window before it, one by one."""
    found = []
    step = limits.max_length - max(1, limits.stride)
    for ids in rows:
        for place in range(1, len(ids)):
            start = 0 if place < limits.max_length else (place - limits.max_length) // step * step + step
            with torch.no_grad():
                scores = model(input_ids=torch.tensor([ids[start:place]])).logits[0, -1].double()
            found.append(float(scores[ids[place]] - torch.logsumexp(scores, 0)))
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("limits", [Limits(64), Limits(12, "window", 0), Limits(12, "window", 5)])
def test_perplexity_and_bits_per_byte_are_a_sum_over_every_token_once(family: str, limits: Limits) -> None:
    tokenizer, rows = tokenizer_of(bos=family == "llama"), texts(4, 16)
    task, spec = open_task("causal-lm", {})
    model = model_of(family, len(tokenizer))
    encoder = Encoder.of(tokenizer, limits, whole=True)
    forward = partial(task.forward, model)
    predictor = Predictor(model, forward, tokenizer, task, spec, [], torch.device("cpu"), encoder)
    features = feature_table(task.encode({"text": rows}, encoder, []).features)
    outputs = run_model(predictor, features, 3)
    said = predictor.decode(outputs, [{"text": text} for text in rows], features, {})
    whole = [whole_ids(tokenizer, text) for text in rows]
    assert max(map(len, whole)) > 24
    expected = log_probabilities(model.double(), whole, limits)
    assert len(expected) == sum(len(ids) - 1 for ids in whole)
    assert point("perplexity", said) == pytest.approx(math.exp(-math.fsum(expected) / len(expected)), rel=1e-5)
    size = len("".join(rows).encode())
    assert point("bits-per-byte", said) == pytest.approx(-math.fsum(expected) / math.log(2) / size, rel=1e-5)
    assert outputs.loss == pytest.approx(-math.fsum(expected) / len(expected), rel=1e-5)


# -- prompts and completions

PROMPTS = [f"Where? {text}" for text in texts(10, 12, seed=5)]
COMPLETIONS = [f" {text}" for text in reversed(texts(10, 6, seed=6))]
PAIRS = {"prompt": PROMPTS, "completion": COMPLETIONS}


@pytest.mark.parametrize("separator", ["", "\nAnswer:"])
@pytest.mark.parametrize("bos", [False, True])
def test_learned_are_the_tokens_behind_the_characters_of_the_prompt(bos: bool, separator: str) -> None:
    tokenizer = tokenizer_of(bos=bos)
    found = encoded(PAIRS, tokenizer, Limits(500), rows="completion", separator=separator)
    pairs = zip(PROMPTS, COMPLETIONS, strict=True)
    columns = (found.features[name].to_pylist() for name in ("input_ids", "label_ids", "prompt_ids"))
    for (prompt, completion), ids, labels, asked in zip(pairs, *columns, strict=True):
        assert tokenizer.decode(ids) == "<s>" * bos + prompt + separator + completion + "</s>"
        ends = [bytes_of(tokenizer, ids[: place + 1]) for place in range(len(ids))]
        own = [end > len((prompt + separator).encode()) for end in ends[:-1]] + [
            True
        ]  # the end of text has no characters
        assert labels == [token if one else NO_TARGET for token, one in zip(ids, own, strict=True)]
        assert asked == ids[: own.index(True)], "an answer is asked for by how its row begins"
    count = sum(len(tokenizer.encode(text, add_special_tokens=False)) + 1 for text in COMPLETIONS)
    assert sum(map(len, map(learned, found.features["label_ids"].to_pylist()))) == count
    assert found.features["bytes"].to_pylist() == [len(text.encode()) for text in COMPLETIONS]
    assert found.asked_otherwise == 0


@pytest.mark.parametrize("bos", [False, True])
def test_a_prompt_that_is_too_long_loses_its_beginning_and_never_the_completion(bos: bool) -> None:
    tokenizer = tokenizer_of(bos=bos)
    prompts, completions = texts(10, 40, seed=7), ["o the well"] * 10
    rows = {"prompt": prompts, "completion": completions}
    whole = encoded(rows, tokenizer, Limits(500), rows="completion").features["input_ids"].to_pylist()
    found = encoded(rows, tokenizer, Limits(16), rows="completion")
    answer = [*tokenizer.encode("o the well", add_special_tokens=False), tokenizer.eos_token_id]
    assert 3 < len(answer) < 12
    for ids, labels, all_of_it in zip(
        found.features["input_ids"].to_pylist(), found.features["label_ids"].to_pylist(), whole, strict=True
    ):
        head = all_of_it[:1] if bos else []  # only a begin-of-text token stays
        assert ids == (all_of_it if len(all_of_it) <= 16 else [*head, *all_of_it[-16 + len(head) :]])
        assert labels == [NO_TARGET] * (len(ids) - len(answer)) + answer
    assert found.tokens_lost.tolist() == [max(0, len(ids) - 16) for ids in whole]
    assert sum(found.tokens_lost) > 50
    assert found.features["bytes"].to_pylist() == [len(b"o the well")] * 10
    for ids, all_of_it in zip(found.features["prompt_ids"].to_pylist(), whole, strict=True):
        prompt = all_of_it[: -len(answer)]
        assert len(ids) <= 16
        head = prompt[:1] if bos else []
        assert ids == [*head, *prompt[len(prompt) - len(ids) + len(head) :]], "its end is what is asked with"


def test_a_completion_that_is_too_long_itself_loses_its_end_and_all_of_its_prompt_but_the_first_token() -> None:
    tokenizer = tokenizer_of(bos=True)
    completion = " ".join(["well"] * 30)
    found = encoded({"prompt": ["a house"], "completion": [completion]}, tokenizer, Limits(12), rows="completion")
    answer = tokenizer.encode(completion, add_special_tokens=False)
    assert found.features["input_ids"].to_pylist() == [[tokenizer.bos_token_id, *answer[:11]]]
    assert found.features["label_ids"].to_pylist() == [[NO_TARGET, *answer[:11]]]
    whole = 1 + len(tokenizer.encode("a house", add_special_tokens=False)) + len(answer) + 1
    assert (found.whole_lengths.tolist(), found.tokens_lost.tolist()) == ([whole], [whole - 12])
    assert found.features["bytes"].to_pylist() == [bytes_of(tokenizer, answer[:11])]


@pytest.mark.parametrize("bos", [False, True])
def test_all_of_a_row_is_learned_where_the_prompt_is_to_be_learned_too(bos: bool) -> None:
    tokenizer = tokenizer_of(bos=bos)
    found, usual = (encoded(PAIRS, tokenizer, Limits(500), rows="completion", learn=learn) for learn in ("all", None))
    ids = found.features["input_ids"].to_pylist()
    assert found.features["label_ids"].to_pylist() == [[NO_TARGET, *row[1:]] for row in ids]
    sizes = [bytes_of(tokenizer, row[1:]) for row in ids]
    assert found.features["bytes"].to_pylist() == sizes
    for name in ("input_ids", "prompt_ids"):
        assert found.features[name].equals(usual.features[name])


def test_prompts_alone_are_asked_with_as_they_are_learned() -> None:
    tokenizer, options = tokenizer_of(bos=True), {"rows": "completion", "separator": " ->"}
    asked = encoded({"prompt": PROMPTS}, tokenizer, Limits(500), **options)
    assert set(asked.features) == {"input_ids"}
    assert asked.features["input_ids"].equals(encoded(PAIRS, tokenizer, Limits(500), **options).features["prompt_ids"])


def test_a_text_is_gone_on_with_from_the_start_behind_which_texts_are_learned() -> None:
    for bos in (False, True):
        tokenizer = tokenizer_of(bos=bos)
        (asked,) = encoded({"prompt": ["the well"]}, tokenizer, Limits(64)).features["input_ids"].to_pylist()
        assert asked == whole_ids(tokenizer, "the well")[:-1]


# -- options, and families


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "chatml"}, r"template is for rows of messages; .*`rows: messages` \(found text\)"),
        ({"rows": "completion", "template": "plain"}, r"template is for rows of messages.*\(found completion\)"),
        ({"separator": ":"}, r"separator stands between a prompt and its completion.*\(found rows of text\)"),
        ({"pattern": "x"}, "pattern finds the answer .* rows of text have none"),
        ({"learn": "completion"}, "learn: expected all for rows of text, found completion"),
        ({"rows": "completion", "learn": "last"}, "learn: expected completion or all for rows of completion, found"),
        ({"rows": "messages", "learn": "completion"}, "learn: expected assistant or last or all for rows of messages"),
        ({"rows": "messages", "template": "chatmll"}, "template: .*expected one of chatml, .*found 'chatmll'"),
        ({"rows": "completion", "pattern": "(#"}, r"pattern: expected a regular expression.*found '\(#'"),
    ],
)
def test_options_without_a_use_are_refused(options: dict[str, Any], message: str) -> None:
    entry = registry.tasks.get("causal-lm")
    with pytest.raises((ValueError, FinetuneError), match=message):
        entry.attributes["check"]({**entry.options().model_dump(), **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"learn": "all", "pack": True},
        {"rows": "completion", "learn": "completion", "pattern": r"#### (\S+)"},
        {"rows": "messages", "learn": "last", "template": "chatml", "pattern": "x"},
    ],
)
def test_options_that_fit_are_taken(options: dict[str, Any]) -> None:
    entry = registry.tasks.get("causal-lm")
    entry.attributes["check"]({**entry.options().model_dump(), **options})
    task: Any = open_task("causal-lm", options)[0]
    assert task.packs == options.get("pack", False)


@pytest.mark.parametrize(("family", "why"), [("bert", "reads in both directions"), ("t5", "an encoder and a decoder")])
def test_models_that_do_not_write_from_left_to_right_are_refused_with_those_that_do(family: str, why: str) -> None:
    task, _ = open_task("causal-lm", {})
    with pytest.raises(FinetuneError, match=rf"'{family}', which.*{why}.*: GPT-2, Llama, Qwen 3"):
        check_family(transformers.CONFIG_MAPPING[family](), task.head([]).kind)
    with pytest.raises(FinetuneError, match=rf"'{family}', which.*{why}"):
        scratch_config(Scratch(architecture=family, layers=1, hidden_size=8, heads=1), None, task.head([]).kind)
