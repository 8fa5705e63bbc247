"""Runs with adapters: what is trained, what is saved, and that merged, unmerged and reopened models say the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from finetune.artifacts import PreparedData, Run
from finetune.errors import FinetuneError, RecipeError
from finetune.evaluate import evaluate
from finetune.inference import open_run
from finetune.models.loading import weights_digest
from finetune.prepare import prepare
from finetune.recipe import load_recipe
from finetune.runtime import Runtime
from finetune.train import train
from tests.conftest import RecipeMaker

CPU = Runtime("cpu", threads=1)
SETTINGS = {"max_steps": 6, "learning_rate": 2e-2}
LORA = {"name": "lora", "rank": 4, "alpha": 8, "dropout": 0.0}


@pytest.fixture
def data(make_recipe: RecipeMaker, tmp_path: Path) -> PreparedData:
    return prepare(load_recipe(make_recipe()), tmp_path / "data")


def trained(make_recipe: RecipeMaker, data: PreparedData, folder: Path, **adapter: Any) -> Run:
    path = make_recipe(train=SETTINGS, adapter={**LORA, **adapter})
    return train(load_recipe(path), data, folder, runtime=CPU)


def probabilities(run: Run, data: PreparedData) -> np.ndarray:
    split = data.split("test")
    return open_run(run, CPU).predict(split.rows, split.features, 16).probabilities  # type: ignore[attr-defined]


def test_merged_and_alone_are_the_same_model(make_recipe: RecipeMaker, data: PreparedData, tmp_path: Path) -> None:
    alone = trained(make_recipe, data, tmp_path / "alone" / "run")
    merged = trained(make_recipe, data, tmp_path / "merged" / "run", merge=True)
    assert (alone.format, merged.format) == ("adapter", "transformers")
    np.testing.assert_allclose(probabilities(alone, data), probabilities(merged, data), atol=1e-6)
    assert weights_digest(tmp_path / "merged" / "run" / "adapter") == weights_digest(alone.model_folder)
    assert not (alone.folder / "adapter").exists()


def test_only_adapters_and_the_head_are_trained_and_saved(
    make_recipe: RecipeMaker, data: PreparedData, tmp_path: Path, tiny_model: Path
) -> None:
    run = trained(make_recipe, data, tmp_path / "run")
    with safe_open(run.model_folder / "adapter_model.safetensors", framework="pt") as stored:
        names = set(stored.keys())
    assert all("lora_" in name or "classifier" in name for name in names)
    assert any("lora_B" in name for name in names)
    counts = run.manifest["parameters"]
    assert 0 < counts["trainable"] < counts["total"] / 4
    assert json.loads((run.model_folder / "adapter_config.json").read_text())["base_model_name_or_path"] == ""
    base = load_file(tiny_model / "model.safetensors")
    merged = load_file(trained(make_recipe, data, tmp_path / "merged", merge=True).model_folder / "model.safetensors")
    frozen = next(name for name in base if "word_embeddings" in name)
    moved = next(name for name in base if name.endswith("query.weight"))
    prefix = "" if frozen in merged else "bert."
    assert (merged[prefix + frozen] == base[frozen]).all()
    assert (merged[prefix + moved] != base[moved]).any()


def test_an_adapter_alone_is_scored_like_any_run(make_recipe: RecipeMaker, data: PreparedData, tmp_path: Path) -> None:
    run = trained(make_recipe, data, tmp_path / "run")
    report = evaluate(run, split="validation", runtime=CPU)
    logged = run.manifest["metrics"]["accuracy"]
    assert report["metrics"]["accuracy"]["value"] == pytest.approx(logged)


def test_an_adapter_refuses_a_base_model_of_other_weights(
    make_recipe: RecipeMaker, data: PreparedData, tmp_path: Path
) -> None:
    run = trained(make_recipe, data, tmp_path / "run")
    manifest = json.loads((run.folder / "manifest.json").read_text())
    changed = Run(run.folder)
    changed.__dict__["manifest"] = {**manifest, "pretrained_sha256": "0" * 64}
    with pytest.raises(FinetuneError, match="expected weights with SHA-256 0000"):
        open_run(changed, CPU)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"adapter": "lora", "freeze": "encoder"}, "freeze: with `adapter` the model is frozen already"),
        ({"adapter": "lora", "quantize": "onnx-int8"}, "adapter.merge: expected true, since what is quantized"),
        ({"adapter": {"name": "lora", "bits": 4, "merge": True}}, "adapter.merge: a model in few bits cannot"),
        ({"adapter": {"name": "lora", "rank": 0}}, "adapter.rank: expected greater than or equal to 1"),
        ({"adapter": "prefix"}, "adapter.name: expected 'lora'"),
    ],
)
def test_what_does_not_go_with_an_adapter_is_a_problem_of_the_recipe(
    make_recipe: RecipeMaker, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(make_recipe(**sections))
    assert message in str(caught.value)


def test_few_bits_are_refused_without_a_graphics_card(
    make_recipe: RecipeMaker, data: PreparedData, tmp_path: Path
) -> None:
    with pytest.raises(FinetuneError, match=r"adapter\.bits: a base model in 4 bits needs an NVIDIA GPU"):
        trained(make_recipe, data, tmp_path / "run", bits=4)


def test_a_padding_token_that_the_base_model_lacks_is_known_to_a_reopened_adapter(
    make_recipe: RecipeMaker, tmp_path: Path, tiny_model: Path
) -> None:
    """Classifiers on decoders read the last token that is no padding."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64, pad_token_id=None)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    path = make_recipe(model={"id": str(tmp_path / "gpt2"), "max_length": 32}, train=SETTINGS, adapter=LORA)
    recipe = load_recipe(path)
    run = train(recipe, prepare(recipe, tmp_path / "data"), tmp_path / "run", runtime=CPU)
    report = evaluate(run, split="validation", runtime=CPU)
    assert report["metrics"]["log-loss"]["value"] == pytest.approx(run.manifest["metrics"]["loss"], abs=1e-4)
