"""Models of several families: padding must not change what a row gives, whatever the checkpoint says about padding."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from finetune.artifacts import PreparedData
from finetune.inference import open_run, run_model
from finetune.prepare import prepare
from finetune.recipe import load_recipe
from finetune.runtime import Runtime
from finetune.train import train
from tests.conftest import RecipeMaker

VOCABULARY = 39
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2}
FAMILIES: dict[str, Callable[[], Any]] = {
    "distilbert": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    ),
    "roberta": lambda: transformers.RobertaModel(
        transformers.RobertaConfig(**SIZES, intermediate_size=32, pad_token_id=0)
    ),
    "gpt2 without a pad token": lambda: transformers.GPT2Model(transformers.GPT2Config(**GPT2, pad_token_id=None)),
    "gpt2 with another pad token than its tokenizer": lambda: transformers.GPT2Model(
        transformers.GPT2Config(**GPT2, pad_token_id=7)
    ),
    "llama": lambda: transformers.LlamaModel(
        transformers.LlamaConfig(**SIZES, intermediate_size=32, num_key_value_heads=2, pad_token_id=None)
    ),
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_alone_gives_what_it_gives_in_a_batch(
    family: str, side: str, tiny_model: Path, make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    """Trained for two steps, saved and loaded again, as a user has it."""
    if side == "left" and "gpt2" not in family and family != "llama":
        pytest.skip("encoders pad on the right")
    folder = tmp_path / "family"
    torch.manual_seed(0)
    FAMILIES[family]().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, folder / name)
    settings = folder / "tokenizer_config.json"
    settings.write_text(
        settings.read_text().replace('"token_type_ids",', "").replace("{", f'{{"padding_side": "{side}",', 1)
    )
    recipe = load_recipe(make_recipe(model={"id": str(folder)}, train={"max_steps": 2}))
    data: PreparedData = prepare(recipe, tmp_path / "data")
    run = train(recipe, data, tmp_path / "run", runtime=Runtime("cpu", threads=1))

    predictor = open_run(run, Runtime("cpu", threads=1))
    features = data.split("test").features
    together, alone = (np.stack(run_model(predictor, features, size).values) for size in (18, 1))
    assert abs(together - alone).max() < 1e-5
