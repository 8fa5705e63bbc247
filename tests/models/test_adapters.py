"""What is trained when a model has adapters, and what stays as it is."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from finetune.errors import FinetuneError
from finetune.models.adapter_files import load_adapter, save_adapter
from finetune.models.adapter_merging import merge
from finetune.models.adapters import AdapterSettings, apply_adapter, quantization_config
from finetune.models.freezing import set_training_mode
from finetune.training.checkpoints import trained_tensors
from tests.models.adapter_world import (
    BATCH,
    FAMILIES,
    LAYERS,
    RANK,
    SETTINGS,
    adapted,
    build,
    learn,
    logits,
    trainable_names,
)

# The linear layers of a block that `auto` takes, as (inputs, outputs); llama has one head of values for two of queries
TARGETS = {
    "bert": {"query": (16, 16), "value": (16, 16)},
    "roberta": {"query": (16, 16), "value": (16, 16)},
    "distilbert": {"q_lin": (16, 16), "v_lin": (16, 16)},
    "gpt2": {"c_attn": (16, 48)},
    "llama": {"q_proj": (16, 16), "v_proj": (16, 8)},
}
HEADS = {
    "bert": {"classifier": 16 * 3 + 3},
    "roberta": {"classifier": 16 * 16 + 16 + 16 * 3 + 3},
    "distilbert": {"pre_classifier": 16 * 16 + 16, "classifier": 16 * 3 + 3},
    "gpt2": {"score": 16 * 3},
    "llama": {"score": 16 * 3},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_the_adapters_of_attention_and_the_head_are_trained(family: str) -> None:
    applied = adapted(family)
    assert applied.targets == tuple(TARGETS[family])
    assert set(applied.whole) == set(HEADS[family])
    prefix = "base_model.model."
    targets = [n for n, _ in build(family).named_modules() if n.rpartition(".")[2] in TARGETS[family]]
    expected = {f"{prefix}{name}.lora_{side}.default.weight" for name in targets for side in "AB"}
    expected |= {
        f"{prefix}{head}.modules_to_save.default.{name}"
        for head in HEADS[family]
        for name, _ in build(family).get_submodule(head).named_parameters()
    }
    assert len(targets) == LAYERS * len(TARGETS[family])
    assert trainable_names(applied.model) == expected
    assert repr(family) in applied.notices[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_counts_parameters_as_by_hand(family: str) -> None:
    applied = adapted(family)
    expected = {f"adapters of {name}": (LAYERS, LAYERS * RANK * (i + o)) for name, (i, o) in TARGETS[family].items()}
    expected |= {f"{name}, whole": (1, size) for name, size in HEADS[family].items()}
    assert {row.group: (row.modules, row.parameters) for row in applied.table} == expected
    trainable = sum(size for _, size in expected.values())
    assert applied.freezing.trainable == trainable
    assert trainable == sum(p.numel() for p in applied.model.parameters() if p.requires_grad)
    head = sum(HEADS[family].values())
    assert applied.freezing.total == sum(p.numel() for p in build(family).parameters()) - head + trainable


@pytest.mark.parametrize("family", FAMILIES)
def test_training_moves_adapters_and_head_and_no_bit_of_the_base_model(family: str) -> None:
    applied = adapted(family)
    before = {name: parameter.detach().clone() for name, parameter in applied.model.named_parameters()}
    learn(applied.model)
    moved = {name for name, parameter in applied.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == trainable_names(applied.model)
    inner = applied.model.get_base_model().state_dict()
    kept = {name.replace("base_layer.", "").replace("original_module.", ""): part for name, part in inner.items()}
    assert all(torch.equal(kept[name], tensor) for name, tensor in build(family).state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_begin_as_no_change(family: str) -> None:
    assert torch.equal(logits(adapted(family).model), logits(build(family)))


def test_dropout_is_on_in_training_and_off_in_evaluation() -> None:
    torch.manual_seed(1)
    model = build("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    applied = apply_adapter(model, AdapterSettings(rank=RANK, dropout=0.5), (), "sequence")
    learn(applied.model)
    assert torch.equal(logits(applied.model), logits(applied.model))
    set_training_mode(applied.model, applied.freezing)
    assert not torch.equal(logits(applied.model), logits(applied.model))


@pytest.mark.parametrize(
    ("kind", "auto_class", "head"),
    [("tokens", "TokenClassification", "classifier"), ("spans", "QuestionAnswering", "qa_outputs")],
)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_every_kind_of_head_learns(kind: str, auto_class: str, head: str, family: str) -> None:
    applied = apply_adapter(build(family, auto_class, labels=2), SETTINGS, (), kind)
    assert applied.whole == (head,)
    assert {name for name in trainable_names(applied.model) if "lora" not in name} == {
        f"base_model.model.{head}.modules_to_save.default.{name}" for name in ("weight", "bias")
    }


def test_new_parameters_inside_the_encoder_learn_too_and_are_saved(tmp_path: Path) -> None:
    new = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    applied = apply_adapter(build("bert"), AdapterSettings(rank=RANK, targets="all-linear"), new, "sequence")
    assert set(applied.whole) == {"classifier", "bert.pooler.dense"}
    learn(applied.model)
    save_adapter(applied.model, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")["base_model.model.bert.pooler.dense.weight"]
    assert not torch.equal(saved, build("bert").bert.pooler.dense.weight)


def test_an_encoder_without_a_head_has_adapters_alone(tmp_path: Path) -> None:
    applied = apply_adapter(build("bert", ""), SETTINGS, (), "none")
    assert applied.whole == ()
    assert all("lora" in name for name in trainable_names(applied.model))
    save_adapter(applied.model, tmp_path)
    loaded = load_adapter(build("bert", ""), tmp_path)
    assert torch.equal(loaded(**BATCH).last_hidden_state, applied.model(**BATCH).last_hidden_state)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_new_head_over_the_vocabulary_learns_and_stays_tied_to_the_embeddings(family: str, tmp_path: Path) -> None:
    model = build(family, "MaskedLM")
    encoder = {name for name, _ in model.named_parameters() if name.startswith(f"{model.base_model_prefix}.")}
    new = {name for name, _ in model.named_parameters()} - encoder
    applied = apply_adapter(model, SETTINGS, new, "masked")
    embeddings = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embeddings
    assert not embeddings.requires_grad
    assert any(notice.startswith("tied") for notice in applied.notices)
    before = embeddings.detach().clone()
    learn(applied.model)
    assert torch.equal(embeddings, before)
    old = dict(build(family, "MaskedLM").named_parameters())
    for name in new:
        module = next(module for module in applied.whole if name.startswith(f"{module}."))
        copy = model.get_submodule(module).modules_to_save["default"]
        assert not torch.equal(copy.get_parameter(name.removeprefix(f"{module}.")), old[name])
    save_adapter(applied.model, tmp_path / "adapter")
    wanted = logits(applied.model)
    assert torch.equal(logits(load_adapter(build(family, "MaskedLM"), tmp_path / "adapter")), wanted)
    merge(applied.model).save_pretrained(tmp_path / "merged")
    reopened = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(reopened), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_a_checkpoint_of_training_holds_what_is_trained_alone() -> None:
    applied = adapted("bert")
    held = trained_tensors(applied.model, applied.freezing.frozen)
    buffers = {name for name, _ in applied.model.named_buffers()}
    assert held.keys() - buffers == trainable_names(applied.model)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"targets": ()}])
def test_settings_that_make_no_adapter_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(FinetuneError, match="expected a rank and an alpha of at least 1"):
        AdapterSettings(**wrong)


def test_without_peft_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(FinetuneError, match=r"pip install 'finetune-toolkit\[adapters\]'"):
        apply_adapter(build("bert"), SETTINGS, (), "sequence")


@pytest.mark.parametrize("bits", [4, 8])
def test_quantization_is_refused_without_a_gpu_or_bitsandbytes(bits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FinetuneError, match="not found: an NVIDIA GPU and the library bitsandbytes. Leave"):
        quantization_config(AdapterSettings(bits=bits))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(FinetuneError, match="not found: the library bitsandbytes"):
        quantization_config(AdapterSettings(bits=bits))


def test_four_bits_are_those_of_qlora(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.49.0")
    assert quantization_config(AdapterSettings()) is None
    config = quantization_config(AdapterSettings(bits=4), keep=["classifier"])
    assert config.load_in_4bit
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", True)
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
    assert config.llm_int8_skip_modules == ["classifier"]
    assert quantization_config(AdapterSettings(bits=8)).load_in_8bit
