"""Memory is what training takes: counted by hand, and compared with what autograd keeps in a real step."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.errors import FinetuneError
from finetune.planning import memory
from finetune.planning.memory import (
    Estimate,
    available_bytes,
    estimate_memory,
    largest_step,
    peak_process_bytes,
    process_bytes,
)
from finetune.recipe import TrainSection
from finetune.runtime import Runtime
from finetune.training.batching import Batches, Together
from tests.conftest import write_jsonl
from tests.planning.world import CPU, KINDS, Plans, kept_by_autograd, old_model
from tests.training.test_loop import make_features, make_learner, take_steps

CLASSIFYING = "text-classification"
FLOAT = 4
ENCODER = {"freeze": "encoder"}
TWICE = {"train": {"gradient_checkpointing": True}}


@pytest.fixture(scope="module", params=list(KINDS))
def estimated(request: pytest.FixtureRequest, plans: Plans) -> tuple[str, Estimate]:
    return request.param, plans.estimate(request.param)


def parameters_of(estimate: Estimate) -> list[Any]:
    return list(estimate.learner.model.parameters())


def buffers_of(estimate: Estimate) -> int:
    """Return the bytes of a model's buffers: places, kinds of tokens, frequencies."""
    return sum(buffer.numel() * buffer.element_size() for buffer in estimate.learner.model.buffers())


# ---------------------------------------------------------------------------------------------------------------------
# What every training holds
# ---------------------------------------------------------------------------------------------------------------------


def test_weights_gradients_and_optimizer_are_bytes_of_parameters(estimated: tuple[str, Estimate]) -> None:
    _, estimate = estimated
    parameters = parameters_of(estimate)
    count = sum(parameter.numel() for parameter in parameters)
    assert estimate.freezing.total == estimate.freezing.trainable == count
    found = estimate.memory
    assert found.gradients == FLOAT * count
    assert found.weights == FLOAT * count + buffers_of(estimate)
    assert found.optimizer == 2 * FLOAT * count + FLOAT * len(parameters), "AdamW counts its steps for each of them"


def test_activations_are_what_autograd_keeps_of_a_real_step(estimated: tuple[str, Estimate], plans: Plans) -> None:
    kind, estimate = estimated
    recipe = plans.recipe(kind)
    data = plans.data(recipe)
    sizes = data.split("train").features.lengths_of(estimate.spec.sized_by)
    windows = largest_step(estimate.batches, sizes)[0]
    assert estimate.memory.activations == pytest.approx(kept_by_autograd(recipe, data, windows), rel=0.01)
    assert estimate.memory.rows == len(windows)


def test_the_largest_micro_batch_is_the_largest_of_its_epoch(estimated: tuple[str, Estimate], plans: Plans) -> None:
    kind, estimate = estimated
    features = plans.data(plans.recipe(kind)).split("train").features
    sizes = features.lengths_of(estimate.spec.sized_by)
    micro_batches = [windows for step in estimate.batches.epoch(0) for windows in step]
    largest = max(len(windows) * max(sizes[window] for window in windows) for windows in micro_batches)
    if kind in ("causal-lm packed", "seq2seq"):  # rows share sequences; sources and targets have padding of their own
        assert 0.5 * largest < estimate.memory.tokens < 1.5 * largest
    else:
        assert estimate.memory.tokens == largest


def test_the_most_that_is_alive_holds_all_that_stays_and_more_than_any_part(estimated: tuple[str, Estimate]) -> None:
    _, estimate = estimated
    found = estimate.memory
    kept = found.weights + found.optimizer
    assert found.tensors >= max(kept + found.gradients, kept + found.scoring, kept + found.caches)
    assert found.tensors >= kept + found.activations, "gradients come while activations go"
    assert found.tensors < kept + 2 * found.gradients + 2 * found.activations + found.scoring + found.caches
    assert found.peak > found.tensors + found.process


def test_tied_parameters_are_counted_once(plans: Plans) -> None:
    estimate = plans.estimate("causal-lm answers")
    model = estimate.learner.model
    assert model.lm_head.weight is model.transformer.wte.weight
    embeddings = model.lm_head.weight.numel()
    assert estimate.memory.weights == FLOAT * sum(parameter.numel() for parameter in model.parameters())
    untied = plans.estimate("causal-lm answers", model={"id": str(untied_model(plans.folder)), "max_length": 32})
    assert untied.memory.weights == estimate.memory.weights + FLOAT * embeddings


def untied_model(folder: Path) -> Path:
    from tests.tasks.written_world import gpt2, save, word_tokenizer

    return save(folder / "untied", gpt2(tie_word_embeddings=False), word_tokenizer())


# ---------------------------------------------------------------------------------------------------------------------
# What settings change
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(plans: Plans) -> Estimate:
    return plans.estimate(CLASSIFYING)


def test_a_frozen_encoder_has_no_gradients_and_keeps_no_activations(plans: Plans, plain: Estimate) -> None:
    frozen = plans.estimate(CLASSIFYING, **ENCODER)
    assert frozen.memory.weights == plain.memory.weights
    assert frozen.memory.gradients == FLOAT * (32 * 3 + 3), "the head's alone"
    assert frozen.memory.activations < plain.memory.activations / 50
    assert frozen.memory.tensors < plain.memory.tensors


@pytest.mark.parametrize("kind", [CLASSIFYING, "causal-lm", "seq2seq"])
def test_computing_activations_twice_keeps_few_of_them(plans: Plans, kind: str) -> None:
    once, twice = plans.estimate(kind), plans.estimate(kind, **TWICE)
    assert twice.memory.activations < once.memory.activations / 3
    assert twice.memory.tensors < once.memory.tensors
    assert (twice.memory.weights, twice.memory.gradients) == (once.memory.weights, once.memory.gradients)


def test_computing_activations_twice_keeps_nothing_of_frozen_layers(plans: Plans) -> None:
    once, twice = plans.estimate(CLASSIFYING, **ENCODER), plans.estimate(CLASSIFYING, **ENCODER, **TWICE)
    assert twice.memory.activations <= once.memory.activations


def test_with_accumulation_gradients_lie_beside_the_next_activations(plans: Plans) -> None:
    single = plans.estimate(CLASSIFYING, train={"batch_size": 4}).memory
    twice = plans.estimate(CLASSIFYING, train={"batch_size": 4, "gradient_accumulation": 2}).memory
    assert (twice.rows, twice.gradients, twice.optimizer) == (single.rows, single.gradients, single.optimizer)
    each = twice.weights + twice.optimizer + twice.gradients + twice.activations
    assert each <= twice.tensors
    assert twice.tensors - twice.activations > single.tensors - single.activations


@pytest.mark.parametrize("kind", [CLASSIFYING, "causal-lm"])
def test_adapters_have_few_gradients_and_an_optimizer_for_them_alone(plans: Plans, kind: str) -> None:
    whole, beside = plans.estimate(kind), plans.estimate(kind, adapter="lora")
    trained = [parameter for parameter in parameters_of(beside) if parameter.requires_grad]
    count = sum(parameter.numel() for parameter in trained)
    assert beside.memory.gradients == FLOAT * count < whole.memory.gradients / 2
    assert beside.memory.optimizer == 2 * FLOAT * count + FLOAT * len(trained)
    assert beside.memory.weights > whole.memory.weights
    assert beside.memory.activations < whole.memory.activations


def test_weights_in_half_precision_are_half_as_large(plans: Plans, plain: Estimate) -> None:
    half = plans.estimate(CLASSIFYING, model={"dtype": "bfloat16"})
    assert half.memory.gradients * 2 == plain.memory.gradients
    assert (half.memory.weights - buffers_of(half)) * 2 == plain.memory.weights - buffers_of(plain)
    assert half.memory.activations < 0.75 * plain.memory.activations


def test_mixed_precision_keeps_the_weights_and_makes_activations_smaller(plans: Plans, plain: Estimate) -> None:
    recipe = plans.recipe(CLASSIFYING)
    data = plans.data(recipe)
    mixed = estimate_memory(recipe, data, dataclasses.replace(CPU, precision="bf16")).memory
    assert (mixed.weights, mixed.gradients) == (plain.memory.weights, plain.memory.gradients)
    assert mixed.activations < 0.9 * plain.memory.activations
    assert estimate_memory(recipe, data, CPU).memory.activations == plain.memory.activations, "as if it had not been"


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({"model": {"attention": "eager"}}, id="eager attention"),
        pytest.param({"model": {"max_length": 8, "overflow": "window", "stride": 2}}, id="windows"),
        pytest.param({"freeze": {"name": "first-layers", "count": 1}}, id="first layers frozen"),
        pytest.param({"adapter": {"name": "lora", "merge": True}}, id="adapters to be merged"),
        pytest.param({"train": {"max_gradient_norm": None, "eval_every": 1000}}, id="no clipping"),
    ],
)
def test_odd_recipes_keep_what_autograd_keeps(plans: Plans, sections: dict[str, Any]) -> None:
    recipe = plans.recipe(CLASSIFYING, **sections)
    data = plans.data(recipe)
    estimate = estimate_memory(recipe, data, CPU)
    windows = largest_step(estimate.batches, data.split("train").features.lengths)[0]
    assert estimate.memory.activations == pytest.approx(kept_by_autograd(recipe, data, windows), rel=0.01)


def test_the_largest_batch_of_an_evaluation_need_not_be_its_first(plans: Plans) -> None:
    """A loss that compares the rows of a batch takes them in their order."""
    long, short = (
        [{"anchor": f"plum {n} old", "positive": "the " * size + f"n{n}"} for n in range(40)] for size in (25, 1)
    )
    found = {}
    for name, rows in (
        ("long first", long[:2] + short[2:8]),
        ("long last", short[:6] + long[6:8]),
        ("short", short[:8]),
    ):
        files = {"train": short[10:], "validation": rows}
        source = {split: str(write_jsonl(plans.folder / f"{name} {split}.jsonl", files[split])) for split in files}
        data = {"source": source, "split": "stratified", "duplicates": "keep"}
        found[name] = plans.estimate("embedding", data=data, train={"batch_size": 2}).memory.scoring
    assert found["long first"] == found["long last"] > 1.5 * found["short"]


def test_scoring_grows_with_its_batch(plans: Plans, plain: Estimate) -> None:
    small = plans.estimate(CLASSIFYING, train={"eval_batch_size": 2})
    assert small.memory.scoring < plain.memory.scoring / 4
    assert small.memory.activations == plain.memory.activations


def test_a_model_with_too_few_embeddings_gets_as_many_as_its_tokenizer_has(plans: Plans, plain: Estimate) -> None:
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = plans.folder / "few words"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=30, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(plans.model("bert")).save_pretrained(folder)
    estimate = plans.estimate(CLASSIFYING, model={"id": str(folder)})
    assert estimate.memory.weights == plain.memory.weights
    assert estimate.freezing.total == plain.freezing.total


# ---------------------------------------------------------------------------------------------------------------------
# What writing keeps
# ---------------------------------------------------------------------------------------------------------------------

HIDDEN, LAYERS = 16, 2  # of all tiny models that write: 2 heads of 8
ALL_ROWS = {"validation_rows": 100, "batch_size": 32}


def written(plans: Plans, model: str, kind: str = "causal-lm answers", **generation: Any) -> int:
    """Return the bytes of the caches."""
    name = {"model": {"id": str(plans.model(model)), "max_length": 32}}
    return plans.estimate(kind, **name, generation={**ALL_ROWS, **generation}).memory.caches


def validation_of(plans: Plans, kind: str) -> Any:
    return plans.data(plans.recipe(kind)).split("validation")


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_each_new_token_adds_its_keys_and_values_in_every_layer(plans: Plans, model: str) -> None:
    rows = len(validation_of(plans, "causal-lm answers").rows)
    few, more = (written(plans, model, max_new_tokens=new) for new in (3, 13))
    assert more - few == LAYERS * 2 * HIDDEN * rows * 10 * FLOAT
    assert written(plans, model, max_new_tokens=3, beams=3) == 3 * few
    assert written(plans, model, max_new_tokens=3, batch_size=2) < few / 4


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_decoders_cache_holds_prompts_and_what_is_written(plans: Plans, model: str) -> None:
    split = validation_of(plans, "causal-lm answers")
    longest = max(len(window["prompt_ids"]) for window in split.features)
    expected = LAYERS * 2 * HIDDEN * len(split.rows) * (longest + 6) * FLOAT
    assert written(plans, model, max_new_tokens=6) == expected


@pytest.mark.parametrize("beams", [1, 3])
def test_an_encoder_decoders_cache_holds_what_is_read_and_what_is_written(plans: Plans, beams: int) -> None:
    split = validation_of(plans, "seq2seq")
    longest = max(len(window["input_ids"]) for window in split.features)
    expected = LAYERS * 2 * HIDDEN * len(split.rows) * beams * (longest + 6) * FLOAT
    assert written(plans, "t5", "seq2seq", max_new_tokens=6, beams=beams) == expected


def test_no_cache_is_longer_than_the_context(plans: Plans) -> None:
    rows = len(validation_of(plans, "causal-lm answers").rows)
    assert written(plans, "gpt2", max_new_tokens=1000) <= LAYERS * 2 * HIDDEN * rows * 64 * FLOAT


def test_a_family_without_a_cache_is_planned(plans: Plans) -> None:
    name = {"model": {"id": str(old_model(plans.folder / "no cache")), "max_length": 32}}
    assert plans.estimate("causal-lm answers", **name).memory.caches == 0


def test_as_many_rows_have_a_cache_as_are_written_at_once(plans: Plans) -> None:
    few, more = (written(plans, "t5", "seq2seq", validation_rows=rows) for rows in (2, 6))
    assert 0 < 3 * few == more
    assert written(plans, "t5", "seq2seq", validation_rows=6, batch_size=2) == few
    assert written(plans, "t5", "seq2seq", validation_rows=0) == 0


def test_what_is_not_written_during_training_has_no_cache(plans: Plans, plain: Estimate) -> None:
    assert plain.memory.caches == 0
    assert plans.estimate("causal-lm").memory.caches == 0, "it is shown once training is over"


# ---------------------------------------------------------------------------------------------------------------------
# Nothing of it stays
# ---------------------------------------------------------------------------------------------------------------------


def test_a_training_goes_on_after_an_estimate_in_the_same_program(plans: Plans, tiny_model: Path) -> None:
    features = make_features(tiny_model, 24)
    learner = make_learner(tiny_model)
    take_steps(learner, features, steps=1)
    recipe = plans.recipe(CLASSIFYING)
    estimate_memory(recipe, plans.data(recipe), CPU)
    assert take_steps(learner, features, steps=2, done=1)


def test_an_estimate_leaves_every_generator_as_it_was(plans: Plans) -> None:
    recipe = plans.recipe("masked-lm")
    data = plans.data(recipe)

    def draw() -> list[Any]:
        return [torch.rand(3).tolist(), random.random(), np.random.rand()]

    def seed() -> None:
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)

    seed()
    expected = draw()
    seed()
    estimate_memory(recipe, data, CPU)
    assert draw() == expected


def test_a_real_model_learns_the_same_after_an_estimate(plans: Plans, tiny_model: Path) -> None:
    features = make_features(tiny_model, 24)

    def steps() -> list[tuple[float, float]]:
        return [(step.loss, step.gradient_norm) for step in take_steps(make_learner(tiny_model), features, steps=3)]

    expected = steps()
    recipe = plans.recipe(CLASSIFYING)
    estimate_memory(recipe, plans.data(recipe), CPU)
    assert steps() == expected


def test_the_same_recipe_has_the_same_estimate_again(plans: Plans, plain: Estimate) -> None:
    recipe = plans.recipe(CLASSIFYING)
    again = estimate_memory(recipe, plans.data(recipe), CPU)
    same = dataclasses.replace(again.memory, process=plain.memory.process, peak=plain.memory.peak)
    assert same == plain.memory


# ---------------------------------------------------------------------------------------------------------------------
# Its parts
# ---------------------------------------------------------------------------------------------------------------------


def batches(lengths: list[int], **settings: Any) -> Batches:
    return Batches(Together(lengths), TrainSection(bucket_by_length=False, **settings), seed=1)


def test_the_largest_step_is_its_largest_micro_batch_once_for_each_up_to_two() -> None:
    lengths = [3, 9, 2, 9, 9, 1, 4]
    for accumulation, times in ((1, 1), (2, 2), (5, 2)):
        drawn = batches(lengths, batch_size=2, gradient_accumulation=accumulation)
        step = largest_step(drawn, lengths)
        assert len(step) == times
        sizes = [len(b) * max(lengths[w] for w in b) for group in drawn.epoch(0) for b in group]
        assert all(len(b) * max(lengths[w] for w in b) == max(sizes) for b in step)


def test_without_the_longest_windows_the_largest_step_is_another() -> None:
    lengths = [2, 3, 4, 50]
    drawn = batches(lengths, batch_size=1)
    assert largest_step(drawn, lengths) == [[3]]
    assert largest_step(drawn, lengths, longest=4) == [[2]]
    assert largest_step(drawn, lengths, longest=3) == [[1]]
    assert largest_step(drawn, lengths, longest=1) == [[3]], "there is no other"


@pytest.fixture
def limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], int]]:
    """Return a function that says what memory there is when a control group's file has some text."""
    path_of = memory.Path

    def available(text: str) -> int:
        (tmp_path / "limit").write_text(text)
        monkeypatch.setattr(memory, "Path", lambda name: path_of(tmp_path / "limit"))
        return available_bytes(CPU)

    yield available
    monkeypatch.setattr(memory, "Path", path_of)


def test_a_containers_limit_is_all_the_memory_that_there_is(limits: Callable[[str], int]) -> None:
    everything = limits("max\n")
    assert everything > 1e8
    assert limits("123456789\n") == 123456789
    assert limits(f"{10**18}\n") == pytest.approx(everything, rel=0.5)


def test_the_most_that_a_program_held_is_not_less_than_it_holds() -> None:
    assert 1e7 < process_bytes() <= peak_process_bytes() < 1e12


def test_what_training_would_refuse_is_refused(plans: Plans) -> None:
    recipe = plans.recipe(CLASSIFYING, adapter={"name": "lora", "targets": ["no_such_layer"]})
    with pytest.raises(FinetuneError, match="no_such_layer"):
        estimate_memory(recipe, plans.data(recipe), CPU)
    recipe = plans.recipe(CLASSIFYING)
    with pytest.raises(FinetuneError, match="--device"):
        estimate_memory(recipe, plans.data(recipe), Runtime("cuda:99"))


def test_the_copy_that_checks_a_merged_adapter_is_in_the_peak(plans: Plans) -> None:
    """One short row at a time: then nothing in training needs as much as a second model."""
    small = {"batch_size": 1, "eval_batch_size": 1}
    memory = plans.estimate("text-classification", adapter={"name": "lora"}, train=small).memory
    assert memory.tensors >= 2 * memory.weights + memory.optimizer


@pytest.mark.parametrize("setting", [{"ema": 0.9}, {"penalty": {"l2": 0.1, "around": "start"}}])
def test_copies_of_the_weights_that_training_keeps_are_in_the_peak(plans: Plans, setting: dict[str, Any]) -> None:
    without = plans.estimate("text-classification").memory
    kept = plans.estimate("text-classification", train=setting).memory
    added = kept.tensors - without.tensors
    assert 0.9 * without.gradients <= added <= 2.1 * without.gradients  # the copy, and what computing with it needs
