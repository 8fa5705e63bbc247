"""What an adapter's folder holds, and which folders and base models are refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from finetune.errors import FinetuneError
from finetune.models.adapter_files import load_adapter, save_adapter
from finetune.models.adapters import AdapterSettings, apply_adapter
from tests.models.adapter_world import FAMILIES, RANK, adapted, build, learn, logits, trainable_names


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_adapter_on_a_fresh_base_model_computes_the_same(family: str, tmp_path: Path) -> None:
    model = adapted(family, AdapterSettings(rank=RANK, dropout=0.1)).model
    learn(model)
    save_adapter(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    loaded = load_adapter(build(family), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert not trainable_names(loaded)
    assert trainable_names(load_adapter(build(family), tmp_path, trainable=True)) == trainable_names(model)


def test_peft_itself_opens_what_is_saved(tmp_path: Path) -> None:
    model = adapted("bert").model
    learn(model)
    save_adapter(model, tmp_path)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(build("bert"), tmp_path)), logits(model))


def test_equal_adapters_make_equal_files_that_name_no_folder(tmp_path: Path) -> None:
    settings = AdapterSettings(rank=RANK, targets="all-linear")
    for place in ("a", "b"):
        model = build("distilbert")
        model.name_or_path = str(tmp_path / place)
        torch.manual_seed(1)
        save_adapter(apply_adapter(model, settings, (), "sequence").model, tmp_path / place, "some/model")
    files = [{path.name: path.read_bytes() for path in (tmp_path / place).iterdir()} for place in ("a", "b")]
    assert files[0] == files[1]
    config = json.loads(files[0]["adapter_config.json"])
    assert config["base_model_name_or_path"] == "some/model"
    assert config["target_modules"] == ["k_lin", "lin1", "lin2", "out_lin", "q_lin", "v_lin"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_adapter(adapted("bert").model, tmp_path / "adapter")
    return tmp_path / "adapter"


def change(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", ["adapter_model.bin", "training_args.bin", "state.pt", "extra.pkl", "modeling.py"])
def test_a_folder_that_holds_pickles_or_code_is_refused(name: str, saved: Path) -> None:
    (saved / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(FinetuneError, match=f"files that can run code: {name}"):
        load_adapter(build("bert"), saved)


@pytest.mark.parametrize(
    "values",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        {"corda_config": {"cache_file": "cache.pt"}},
        {"arrow_config": {"top_k": 1}},
        {"init_lora_weights": "pissa"},
        {"layer_replication": [[0, 1], [0, 2]]},
        {"a_setting_of_tomorrow": 3},
    ],
)
def test_settings_that_could_run_code_or_change_the_base_model_are_refused(values: dict[str, Any], saved: Path) -> None:
    change(saved, **values)
    with pytest.raises(FinetuneError, match=f"does not follow.*{next(iter(values))}"):
        load_adapter(build("bert"), saved)
    assert "antigravity" not in sys.modules


def test_the_class_that_a_folder_names_is_not_imported(saved: Path) -> None:
    change(saved, auto_mapping={"base_model_class": "X", "parent_library": "antigravity"}, task_type=None)
    load_adapter(build("bert"), saved)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda: build("bert", labels=5), "2 of another shape: base_model.model.classifier.bias has [3]"),
        (lambda: build("bert", num_hidden_layers=3), "4 tensors missing"),
        (lambda: build("bert", num_hidden_layers=1), "4 tensors without a place"),
        (lambda: build("bert", ""), "tensors missing"),
        (lambda: build("roberta"), "another base model"),
        (lambda: build("distilbert"), "an adapter for another model"),
    ],
)
def test_a_base_model_that_does_not_fit_is_one_clear_message(base: Any, message: str, saved: Path) -> None:
    with pytest.raises(FinetuneError) as caught:
        load_adapter(base(), saved)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_adapter_of_ours_is_refused(saved: Path) -> None:
    change(saved, peft_type="IA3")
    with pytest.raises(FinetuneError, match="of the type LORA, found 'IA3'"):
        load_adapter(build("bert"), saved)
    change(saved, peft_type="LORA")
    (saved / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(FinetuneError, match="expected tensors as safetensors"):
        load_adapter(build("bert"), saved)
    (saved / "adapter_model.safetensors").unlink()
    with pytest.raises(FinetuneError, match="expected an adapter"):
        load_adapter(build("bert"), saved)
