"""A tiny world for the tests: a random 2-layer model, its tokenizer, learnable rows, and recipes over them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="modules-")  # test processes must not share copied modules

ROOT = Path(__file__).parent.parent

LABEL_WORDS = {
    "fruit": ["apple", "pear", "plum", "cherry", "banana"],
    "tool": ["hammer", "saw", "drill", "wrench", "chisel"],
    "weather": ["rain", "snow", "wind", "storm", "fog"],
}
FILLER = [
    *("the", "a", "my", "your", "this", "old", "new", "big", "small", "red"),
    *("we", "they", "saw", "bought", "had", "near", "with", "very", "today", "again"),
]


def build_tiny_model(folder: Path, *, dropout: float = 0.1, layers: int = 2, seed: int = 0) -> Path:
    """Save a random BERT of about 20,000 parameters and a word tokenizer for the words above."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLER, *(w for ws in LABEL_WORDS.values() for w in ws)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(dict.fromkeys(words))}, "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(fast), hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    BertModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def make_rows(per_label: int = 30, seed: int = 1) -> list[dict[str, Any]]:
    """Return different sentences of 3 to 14 words, each with one word that gives its label away."""
    generator = random.Random(seed)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    while len(rows) < per_label * len(LABEL_WORDS):
        label = list(LABEL_WORDS)[len(rows) % len(LABEL_WORDS)]
        words = generator.choices(FILLER, k=generator.randint(2, 13))
        words.insert(generator.randrange(len(words)), generator.choice(LABEL_WORDS[label]))
        text = " ".join(words)
        if text not in seen:
            seen.add(text)
            rows.append({"body": text, "intent": label})
    return rows


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model with its tokenizer; don't write there."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def still_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without dropout."""
    return build_tiny_model(tmp_path_factory.mktemp("still") / "model", dropout=0.0)


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    """90 labelled rows as JSON lines with the columns body and intent."""
    return write_jsonl(tmp_path / "rows.jsonl", make_rows())


RecipeMaker = Callable[..., Path]


@pytest.fixture
def make_recipe(tmp_path: Path, tiny_model: Path, rows_file: Path) -> RecipeMaker:
    """Return a function that writes a recipe over the tiny world; keyword arguments replace whole sections' keys.

    `make_recipe(train={"epochs": 1}, gates={"accuracy": ">= 0.5"}, file="other.yaml")` merges into the base below.
    """

    def make(file: str = "recipe.yaml", **sections: Any) -> Path:
        recipe: dict[str, Any] = {
            "name": "tiny",
            "task": "text-classification",
            "seed": 7,
            "data": {
                "source": str(rows_file),
                "columns": {"text": "body", "label": "intent"},
                "clean": ["whitespace"],
                "near_duplicates": "off",
                "split": {"name": "stratified", "train": 0.6, "validation": 0.2, "test": 0.2},
            },
            "model": {"id": str(tiny_model), "max_length": 32},
            "train": {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, "threads": 1},
        }
        for key, value in sections.items():
            if isinstance(value, dict) and isinstance(recipe.get(key), dict) and key != "gates":
                recipe[key] = {**recipe[key], **value}
            else:
                recipe[key] = value
        path = tmp_path / file
        path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
        return path

    return make


def finetune(
    *arguments: str | Path, cwd: Path, check: int | None = 0, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the real command line in a subprocess; unless `check` is None, its exit code has to be `check`."""
    command = [sys.executable, "-m", "finetune", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, timeout=300, **options)
    if check is not None:
        assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
