"""Tiny random models of five families to put adapters on, and a few steps of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

from finetune.models.adapters import AdapterSettings, AppliedAdapter, apply_adapter

RANK = 4
LAYERS = 2
LABELS = 3
INNER: dict[str, Any] = {"vocab_size": 39, "hidden_size": 16, "num_hidden_layers": LAYERS, "pad_token_id": 0}
BERT = {**INNER, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 64}
CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**BERT),
    "roberta": lambda: transformers.RobertaConfig(**BERT),
    "distilbert": lambda: transformers.DistilBertConfig(vocab_size=39, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=39, n_embd=16, n_layer=2, n_head=2, pad_token_id=0),
    "llama": lambda: transformers.LlamaConfig(**BERT, num_key_value_heads=1),
}
FAMILIES = list(CONFIGS)
BATCH = {
    "input_ids": torch.tensor([[2, 9, 8, 7, 3, 0], [2, 20, 21, 22, 23, 3]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]),
}
SETTINGS = AdapterSettings(rank=RANK, alpha=16, dropout=0.0)


def build(family: str, kind: str = "SequenceClassification", *, labels: int = LABELS, **changes: Any) -> Any:
    """Return a random model whose parameters, the biases too, all differ from zero."""
    config = CONFIGS[family]()
    for name, value in {"num_labels": labels, **changes}.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    auto_class = getattr(transformers, f"AutoModelFor{kind}" if kind else "AutoModel")
    model = auto_class.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def adapted(family: str, settings: AdapterSettings = SETTINGS) -> AppliedAdapter:
    torch.manual_seed(1)
    return apply_adapter(build(family), settings, (), "sequence")


def learn(model: Any, steps: int = 3) -> None:
    """Take steps of AdamW on what is trainable, towards two labels or, of a language model, its own inputs."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.03)
    model.train()
    for _ in range(steps):
        logits = model(**BATCH).logits
        targets = torch.tensor([0, 2]) if logits.ndim == 2 else BATCH["input_ids"]
        torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**BATCH).logits


def trainable_names(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def query(model: Any) -> Any:
    return model.get_base_model().bert.encoder.layer[0].attention.self.query
