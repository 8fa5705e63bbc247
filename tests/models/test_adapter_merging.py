"""That a merged model is an ordinary one that computes the same, and what LoRA, rsLoRA and DoRA compute."""

from __future__ import annotations

import math
from pathlib import Path

import peft
import pytest
import torch
import transformers

from finetune.errors import FinetuneError
from finetune.models.adapter_files import load_adapter, save_adapter
from finetune.models.adapter_merging import check_merged, merge
from finetune.models.adapters import AdapterSettings, apply_adapter
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
    query,
    trainable_names,
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings", [SETTINGS, AdapterSettings(rank=4, dora=True), AdapterSettings(rank=4, rslora=True)]
)
def test_a_merged_model_is_an_ordinary_one_that_computes_the_same(
    family: str, settings: AdapterSettings, tmp_path: Path
) -> None:
    model = adapted(family, settings).model
    learn(model)
    wanted = logits(model)
    names = trainable_names(model)
    assert check_merged(model, BATCH) < 1e-5
    assert trainable_names(model) == names
    assert torch.equal(logits(model), wanted)
    merged = merge(model)
    assert [*merged.state_dict()] == [*build(family).state_dict()]
    assert torch.allclose(logits(merged), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    merged.save_pretrained(tmp_path)
    reopened = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(reopened), logits(merged))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merge_that_changes_the_outputs_is_told_with_numbers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(family).model
    learn(model)
    true = peft.tuners.lora.Linear.get_delta_weight
    monkeypatch.setattr(peft.tuners.lora.Linear, "get_delta_weight", lambda self, name: 1.01 * true(self, name))
    with pytest.raises(AssertionError, match=r"moved the outputs by \d.*, and in float64 still by \d.* at most 1e-06"):
        check_merged(model, BATCH)
    assert check_merged(model, BATCH, tolerance=10) > 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_alone_is_measured_and_is_no_mistake(family: str, dtype: torch.dtype) -> None:
    applied = apply_adapter(build(family).to(dtype), SETTINGS, (), "sequence")
    learn(applied.model)
    assert 0 < check_merged(applied.model, BATCH, tolerance=0.0) < (1e-5 if dtype == torch.float32 else 0.2)
    assert next(applied.model.get_base_model().parameters()).dtype == dtype


def test_outputs_that_are_no_numbers_do_not_pass_for_equal() -> None:
    model = build("bert", "QuestionAnswering", labels=2)
    applied = apply_adapter(model, SETTINGS, (), "spans")
    with torch.no_grad():
        model.qa_outputs.modules_to_save["default"].bias[1] = math.nan  # the second of two outputs
    with pytest.raises(AssertionError, match="moved the outputs by nan"):
        check_merged(applied.model, BATCH)


def test_adapters_that_are_no_numbers_are_not_merged() -> None:
    model = adapted("bert").model
    with torch.no_grad():
        query(model).lora_B["default"].weight[0, 0] = math.nan
    with pytest.raises(FinetuneError, match=r"cannot be merged: NaNs detected.* lower learning rate"):
        merge(model)


def test_checking_measures_without_dropout_and_leaves_the_mode_as_it_was() -> None:
    model = adapted("bert", AdapterSettings(rank=RANK, dropout=0.5)).model
    learn(model)
    model.train()
    assert check_merged(model, BATCH) < 1e-5
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 16 / 4), (True, 16 / math.sqrt(4))])
def test_the_product_counts_alpha_over_the_rank_or_over_its_root(rslora: bool, scaling: float) -> None:
    model = adapted("bert", AdapterSettings(rank=RANK, alpha=16, rslora=rslora)).model
    learn(model)
    layer = query(model)
    first, second = layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone()
    merged = merge(model).bert.encoder.layer[0].attention.self.query.weight
    base = build("bert").bert.encoder.layer[0].attention.self.query.weight
    assert torch.allclose(merged, base + scaling * second @ first, atol=1e-6)
    assert second.abs().min() > 0


def test_dora_learns_the_length_of_each_outputs_weights_apart_from_their_direction() -> None:
    applied = adapted("bert", AdapterSettings(rank=RANK, alpha=16, dropout=0.0, dora=True))
    assert {row.group: row.parameters for row in applied.table}["adapters of query"] == LAYERS * (RANK * 32 + 16)
    base = build("bert").bert.encoder.layer[0].attention.self.query.weight
    magnitude = query(applied.model).lora_magnitude_vector["default"].weight
    assert torch.allclose(magnitude, base.norm(dim=1))
    learn(applied.model)
    layer = query(applied.model)
    direction = base + 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    magnitude = layer.lora_magnitude_vector["default"].weight.detach().clone()
    assert not torch.allclose(magnitude, base.norm(dim=1))
    expected = (magnitude / direction.norm(dim=1))[:, None] * direction
    merged = merge(applied.model).bert.encoder.layer[0].attention.self.query.weight
    assert torch.allclose(merged, expected, atol=1e-6)


@pytest.mark.parametrize(("family", "kind", "auto_class"), [
    ("gpt2", "causal", "CausalLM"), ("llama", "causal", "CausalLM"), ("bert", "masked", "MaskedLM"),
])  # fmt: skip
def test_a_language_models_own_head_stays_as_it_is(family: str, kind: str, auto_class: str, tmp_path: Path) -> None:
    applied = apply_adapter(build(family, auto_class), SETTINGS, (), kind)
    assert applied.whole == ()
    learn(applied.model)
    assert check_merged(applied.model, BATCH) < 1e-5
    merged = merge(applied.model)
    merged.save_pretrained(tmp_path)
    reopened = getattr(transformers, f"AutoModelFor{auto_class}").from_pretrained(tmp_path)
    assert torch.equal(logits(reopened), logits(merged))


SEQ2SEQ = {
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    "bart": {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "decoder_start_token_id": 2,
    },
}


@pytest.mark.parametrize(("family", "targets", "modules"), [("t5", ("q", "v"), 12), ("bart", ("v_proj", "q_proj"), 6)])
def test_models_with_a_decoder_get_adapters_in_both_halves(
    family: str, targets: tuple[str, ...], modules: int, tmp_path: Path
) -> None:
    config = transformers.AutoConfig.for_model(family, vocab_size=39, pad_token_id=0, eos_token_id=3, **SEQ2SEQ[family])
    torch.manual_seed(0)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    model.save_pretrained(tmp_path / "base")
    applied = apply_adapter(model, SETTINGS, (), "seq2seq")
    assert applied.targets == targets
    assert sum(row.modules for row in applied.table) == modules
    for name, parameter in applied.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    batch = {**BATCH, "decoder_input_ids": BATCH["input_ids"]}
    check_merged(applied.model, batch)
    save_adapter(applied.model, tmp_path / "adapter")
    base = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    loaded = load_adapter(base, tmp_path / "adapter")
    assert torch.equal(loaded(**batch).logits, applied.model.eval()(**batch).logits)
