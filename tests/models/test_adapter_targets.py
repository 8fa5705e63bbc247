"""Which layers get adapters: by family, by name, by pattern, and what is trained whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from finetune.errors import FinetuneError
from finetune.models.adapter_files import load_adapter, save_adapter
from finetune.models.adapter_merging import check_merged, merge
from finetune.models.adapters import AdapterSettings, apply_adapter
from finetune.models.families import KNOWN
from tests.models.adapter_world import (
    BATCH,
    BERT,
    FAMILIES,
    LAYERS,
    RANK,
    SETTINGS,
    build,
    learn,
    logits,
    trainable_names,
)


@pytest.mark.parametrize("family", sorted(KNOWN))
def test_the_attention_of_every_well_known_family_is_known_by_name(family: str) -> None:
    special = {
        "distilbert": {"dim": 16, "n_heads": 2, "n_layers": 2},
        "gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 2},
    }
    few = {**BERT, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    sizes = special.get(family, few | ({"num_key_value_heads": 2} if family in ("llama", "qwen3") else {}))
    config = transformers.AutoConfig.for_model(family, **sizes)
    applied = apply_adapter(transformers.AutoModel.from_config(config), SETTINGS, (), "none")
    assert f"that LoRA adapts in the family {family!r}" in applied.notices[0]


BLOCK = {
    "bert": {"query", "key", "value", "dense"},
    "roberta": {"query", "key", "value", "dense"},
    "distilbert": {"q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"},
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_of_an_unknown_family_every_linear_layer_of_the_blocks_is_taken(family: str, tmp_path: Path) -> None:
    model = build(family)
    blocks = {"bert": 6, "roberta": 6, "distilbert": 6, "gpt2": 4, "llama": 7}
    model.config.model_type = "unheard-of"
    applied = apply_adapter(model, SETTINGS, (), "sequence")
    assert set(applied.targets) == BLOCK[family]
    assert sum(row.modules for row in applied.table if row.group.startswith("adapters")) == LAYERS * blocks[family]
    assert "'unheard-of' are not known by name" in applied.notices[0]
    learn(applied.model)
    save_adapter(applied.model, tmp_path)
    assert torch.equal(logits(load_adapter(build(family), tmp_path)), logits(applied.model))


@pytest.mark.parametrize(
    ("targets", "modules"),
    [
        (("query",), 2),
        (("attention.output.dense", "value"), 4),
        (r".*layer\.1\.attention\.self\.\w+", 3),
        ("all-linear", 12),
    ],
)
def test_targets_are_endings_or_a_regular_expression(targets: Any, modules: int, tmp_path: Path) -> None:
    applied = apply_adapter(build("bert"), AdapterSettings(rank=RANK, targets=targets), (), "sequence")
    assert sum(row.modules for row in applied.table if row.group.startswith("adapters")) == modules
    save_adapter(applied.model, tmp_path)
    assert trainable_names(load_adapter(build("bert"), tmp_path, trainable=True)) == trainable_names(applied.model)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("query", "q_proj"), "'q_proj' matches no linear layer outside the head. There are: query, key, value, dense"),
        (("classifier",), "'classifier' matches no linear layer"),
        (("word_embeddings",), "'word_embeddings' matches no linear layer"),
        ("query", "'query' matches no linear layer"),  # a whole name
        ("(", "expected a regular expression"),
    ],
)
def test_a_target_that_matches_nothing_is_refused_with_what_there_is(targets: Any, message: str) -> None:
    with pytest.raises(FinetuneError) as caught:
        apply_adapter(build("bert"), AdapterSettings(targets=targets), (), "sequence")
    assert message in str(caught.value)


def test_a_language_models_output_layer_is_no_target() -> None:
    with pytest.raises(FinetuneError, match="'lm_head' matches no linear layer"):
        apply_adapter(build("llama", "CausalLM"), AdapterSettings(targets=("lm_head",)), (), "causal")


def test_modules_can_be_trained_whole_beside_the_head() -> None:
    settings = AdapterSettings(rank=RANK, also_train=("LayerNorm", "layer.0.attention.self.query"))
    applied = apply_adapter(build("bert"), settings, (), "sequence")
    assert len(applied.whole) == 1 + 5 + 1
    assert {row.group: row.modules for row in applied.table}["adapters of query"] == 1
    learn(applied.model)
    assert check_merged(applied.model, BATCH) < 1e-5


@pytest.mark.parametrize(
    ("family", "auto_class", "ending", "message"),
    [
        ("bert", "SequenceClassification", "LayerNom", "no module is called 'LayerNom', did you mean LayerNorm?"),
        ("gpt2", "CausalLM", "wte", "transformer.wte shares its weights"),
        ("gpt2", "CausalLM", "lm_head", "lm_head shares its weights"),
    ],
)
def test_what_cannot_be_trained_whole_is_refused(family: str, auto_class: str, ending: str, message: str) -> None:
    with pytest.raises(FinetuneError) as caught:
        apply_adapter(build(family, auto_class), AdapterSettings(also_train=(ending,)), (), "causal")
    assert message in str(caught.value)


def test_a_quantized_base_model_takes_every_linear_layer_and_is_not_merged_into() -> None:
    model = build("bert")
    model.is_quantized = True
    applied = apply_adapter(model, AdapterSettings(rank=RANK, bits=4), (), "sequence")
    assert set(applied.targets) == BLOCK["bert"]
    with pytest.raises(FinetuneError, match="found a quantized one"):
        merge(applied.model)
