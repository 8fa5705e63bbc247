"""Tiny random models that write, their tokenizers of whole words, and ways to look at what they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.conftest import FILLER, LABEL_WORDS

PAD, UNKNOWN, BEGIN, END = range(4)
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
WORDS = [*dict.fromkeys([*FILLER, *(word for words in LABEL_WORDS.values() for word in words)])]
VOCABULARY = len(SPECIAL) + len(WORDS)
SIZES: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END}
LARGE = 0.5  # weights so large that a random model writes different texts after different prompts


def word_tokenizer(framing: str = "$A </s>", *, end: bool = True) -> Any:
    """Return a tokenizer with a token for each word; without `end` it names no end of text."""
    vocabulary = {word: place for place, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=framing, special_tokens=[("<s>", BEGIN), ("</s>", END)]
    )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **names, **({"eos_token": "</s>"} if end else {})
    )


def t5(**settings: Any) -> Any:
    """Return a random T5 of 2 layers in eval mode; its own way of drawing weights would make it repeat one token."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": PAD}
    model = _random(transformers.T5Config(**{**SIZES, **sizes, **settings}), "Seq2SeqLM")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def bart(**settings: Any) -> Any:
    """Return a random BART of 1 layer each in eval mode; it forces no token unless the settings say so."""
    both = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
    sizes = {f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in both.items()}
    forced = {"decoder_start_token_id": END, "forced_eos_token_id": None, "init_std": LARGE}
    config = transformers.BartConfig(**SIZES, d_model=16, max_position_embeddings=64, **{**sizes, **forced, **settings})
    return _random(config, "Seq2SeqLM")


def gpt2(context: int = 64, **settings: Any) -> Any:
    """Return a random GPT-2 of 2 layers in eval mode."""
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": context, "initializer_range": LARGE}
    return _random(transformers.GPT2Config(**SIZES, **sizes, **settings), "CausalLM")


def llama(**settings: Any) -> Any:
    """Return a random Llama of 2 layers in eval mode."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return _random(transformers.LlamaConfig(**SIZES, **sizes, initializer_range=LARGE, **settings), "CausalLM")


def _random(config: Any, kind: str) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, f"AutoModelFor{kind}").from_config(config).eval()


def save(folder: Path, model: Any, tokenizer: Any) -> Path:
    """Save a checkpoint and return its folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
