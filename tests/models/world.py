"""Tiny random checkpoints of several families, with a head or without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = {"vocab_size": 39, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
INNER: dict[str, Any] = {**SIZES, "intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": 0}
CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**INNER),
    "roberta": lambda: transformers.RobertaConfig(**INNER),
    "distilbert": lambda: transformers.DistilBertConfig(vocab_size=39, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=39, n_embd=16, n_layer=2, n_head=2, pad_token_id=0),
    "electra": lambda: transformers.ElectraConfig(**INNER, embedding_size=16),
    "deberta-v2": lambda: transformers.DebertaV2Config(**INNER),
    "modernbert": lambda: transformers.ModernBertConfig(**INNER, cls_token_id=2, sep_token_id=3, eos_token_id=3),
    "t5": lambda: transformers.T5Config(
        vocab_size=39, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0, eos_token_id=3
    ),
    "bart": lambda: transformers.BartConfig(
        vocab_size=39, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, pad_token_id=0,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, bos_token_id=2, eos_token_id=3,
        decoder_start_token_id=3, forced_eos_token_id=3,
    ),
    "vit": lambda: transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2),
    "clip": lambda: transformers.CLIPConfig(
        text_config={**INNER, "projection_dim": 8},
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
        projection_dim=8,
    ),
}  # fmt: skip


def save(
    family: str, folder: Path, labels: Sequence[str] = (), *, kind: str = "SequenceClassification", **settings: Any
) -> Path:
    """Save a random checkpoint; without labels it has no head."""
    config = CONFIGS[family]()
    for name, value in settings.items():
        setattr(config, name, value)
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    torch.manual_seed(0)
    auto_class = getattr(transformers, f"AutoModelFor{kind}" if labels else "AutoModel")
    model = auto_class.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases too: rows have to be told apart
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


def example() -> dict[str, torch.Tensor]:
    """Return two rows of token ids that end with the end-of-text token of all families above."""
    return {
        "input_ids": torch.tensor([[2, 9, 8, 7, 3], [2, 20, 21, 22, 3]]),
        "attention_mask": torch.ones(2, 5, dtype=torch.long),
    }
