"""What is asked of a model: dropout by any name, an attention that it has, a family that can do the task."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers

from finetune.errors import FinetuneError
from finetune.models.dropout import set_dropout
from finetune.models.families import KNOWN, NEEDS, Kind, fitting
from finetune.models.heads import Head
from finetune.models.loading import ModelSettings, load_model
from tests.models.world import CONFIGS, example, save

LABELS = ("a", "b")
TEXT = [family for family in CONFIGS if family not in ("vit", "clip")]


@pytest.mark.parametrize("family", TEXT)
def test_dropout_is_set_everywhere_and_saved_with_the_model(family: str, tmp_path: Path) -> None:
    save(family, tmp_path / "base")
    model = load_model(tmp_path / "base", Head("sequence", LABELS), ModelSettings(dropout=0.37)).model
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert rates
    assert set(rates.values()) == {0.37}
    model.save_pretrained(tmp_path / "saved")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "saved").to_dict()
    named = {key: value for key, value in config.items() if "dropout" in key or key.endswith("pdrop")}
    assert set(named.values()) == {0.37}


def test_without_dropout_training_and_evaluation_compute_the_same(tmp_path: Path) -> None:
    save("bert", tmp_path)
    model = load_model(tmp_path, Head("sequence", LABELS), ModelSettings(dropout=0.0)).model
    with torch.no_grad():
        assert torch.equal(model.train()(**example()).logits, model.eval()(**example()).logits)


def test_switches_and_left_out_layers_are_no_rates_of_dropout() -> None:
    config = transformers.BartConfig(encoder_layerdrop=0.0, token_dropout=True)
    set_dropout(config, 0.5)
    assert (config.encoder_layerdrop, config.token_dropout, config.activation_dropout) == (0.0, True, 0.5)


def test_dropout_for_a_family_without_any_is_refused() -> None:
    with pytest.raises(FinetuneError, match=r"model\.dropout: expected a model that has dropout.*'mamba'"):
        set_dropout(transformers.MambaConfig(), 0.1)


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_an_attention_that_the_family_lacks_is_one_clear_message(
    attention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("deberta-v2", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(FinetuneError, match=r"model\.attention: expected.*found " + attention) as caught:
        load_model(tmp_path, Head("sequence", LABELS), ModelSettings(attention=attention))
    assert "every model has eager" in str(caught.value)
    assert "http" not in str(caught.value)
    assert load_model(tmp_path, Head("sequence", LABELS), ModelSettings(attention="eager")).model


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_flash_attention_without_its_package_is_one_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("bert", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(FinetuneError, match=r"model\.attention: expected.*found flash_attention_2 \(.*package"):
        load_model(tmp_path, Head("sequence", LABELS), ModelSettings(attention="flash_attention_2"))


@pytest.mark.parametrize(
    ("family", "kind", "found"),
    [
        ("vit", "tokens", "'vit', which has no such head"),
        ("vit", "none", "'vit', which reads pixel_values, not text"),
        ("vit", "sequence", "'vit', which has no such head"),
        ("clip", "none", "'clip', which needs a picture beside the text"),
        ("bart", "tokens", "'bart', which has no such head"),
        ("bart", "spans", "'bart', which has an encoder and a decoder"),
        ("t5", "spans", "'t5', which has an encoder and a decoder"),
        ("t5", "none", "'t5', which has an encoder and a decoder"),
    ],
)
def test_a_model_of_the_wrong_kind_is_told_what_is_needed_and_what_fits(
    family: str, kind: Kind, found: str, tmp_path: Path
) -> None:
    save(family, tmp_path)
    labels = LABELS if kind in ("sequence", "tokens") else ()
    with pytest.raises(FinetuneError) as caught:
        load_model(tmp_path, Head(kind, labels), ModelSettings())
    message = str(caught.value)
    assert message.startswith(
        f"model.id: expected {NEEDS[kind]}, found a model of the family {found}. Families that fit: "
    )
    assert "BERT, RoBERTa" in message


def test_families_that_are_named_as_fitting_are_checked_against_transformers() -> None:
    assert {"ELECTRA", "ModernBERT", "GPT-2"} <= set(fitting("sequence"))
    assert "ELECTRA" in fitting("tokens")
    both = {"T5", "BART", "Marian", "Pegasus"}
    assert set(fitting("none")) == set(KNOWN.values()) - both
    assert "GPT-2" in fitting("spans")
    assert set(fitting("seq2seq")) == both
    assert set(fitting("causal")) == {"GPT-2", "Llama", "Qwen 3"}


def test_an_encoder_alone_has_no_layer_for_the_first_token_that_nothing_would_train(tmp_path: Path) -> None:
    save("bert", tmp_path)
    loaded = load_model(tmp_path, Head("none"), ModelSettings())
    assert loaded.model.pooler is None
    assert loaded.new_parameters == frozenset()
    assert loaded.notices == ["in the checkpoint but not used: pooler.dense.bias, pooler.dense.weight"]
    assert loaded.model(**example()).last_hidden_state.shape == (2, 5, 16)


def test_an_encoder_alone_without_its_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save("bert", tmp_path)
    save_file({"something.else": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FinetuneError, match="another architecture"):
        load_model(tmp_path, Head("none"), ModelSettings())
