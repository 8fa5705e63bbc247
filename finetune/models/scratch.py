"""Models from scratch: a family's architecture in the size that a recipe says, with random weights.

The names of the recipe are the same for every family; `config` passes any other setting under the family's own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune.errors import FinetuneError, nearest
from finetune.models.dropout import set_dropout
from finetune.models.families import AUTO_CLASSES, Kind, check_family
from finetune.models.heads import HeadPlan, apply_plan
from finetune.models.loading import (
    OFFSET_FAMILIES,
    LoadedModel,
    ModelSettings,
    first_line,
    quiet_transformers,
    without_pooler,
)

if TYPE_CHECKING:
    from finetune.models.heads import Head
    from finetune.recipe import Scratch

# How families call the width of the layers between two attentions; elsewhere it is intermediate_size
FEED_FORWARD = {
    "distilbert": ("hidden_dim",),
    "gpt2": ("n_inner",),
    "t5": ("d_ff",),
    "mt5": ("d_ff",),
    **dict.fromkeys(("bart", "mbart", "marian", "pegasus"), ("encoder_ffn_dim", "decoder_ffn_dim")),
}
# What encoder-decoders have beside the names that transformers gives to all families
LAYERS = {
    "t5": ("num_layers", "num_decoder_layers"),
    "mt5": ("num_layers", "num_decoder_layers"),
    **dict.fromkeys(("bart", "mbart", "marian", "pegasus"), ("encoder_layers", "decoder_layers")),
}
HEADS = dict.fromkeys(("bart", "mbart", "marian", "pegasus"), ("encoder_attention_heads", "decoder_attention_heads"))
CONTEXT = "max_position_embeddings"
OF_THE_TOKENIZER = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
ALWAYS_TIED = ("t5", "mt5")
FORCED = ("forced_bos_token_id", "forced_eos_token_id")  # ids of the family's own vocabulary
# The positions of the families that people choose by them; others have what their configuration says
POSITIONS = {
    "bert": ("learned",),
    "distilbert": ("learned", "sinusoidal"),
    "gpt2": ("learned",),
    "roberta": ("learned",),
    "llama": ("rotary",),
    "t5": ("relative",),
    "marian": ("sinusoidal",),
    "pegasus": ("sinusoidal",),
    "bart": ("learned",),
}


def scratch_config(scratch: Scratch, tokenizer: Any | None, kind: Kind) -> Any:
    """Return the configuration of a new model for a tokenizer; raise FinetuneError where the family cannot be so.

    Without a tokenizer it is good for checks alone: its vocabulary is the family's own.
    """
    with quiet_transformers():
        from huggingface_hub.errors import StrictDataclassError

        family = scratch.architecture
        blank = _blank(family)
        check_family(blank, kind, "model.scratch.architecture")
        settings = {**_tokens(blank, tokenizer), **_settings(scratch, blank)}
        try:
            config = type(blank)(**settings)
        except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
            raise FinetuneError(f"model.scratch: {family} cannot be made so: {first_line(error)}") from error
        if family in OFFSET_FAMILIES:
            config.max_position_embeddings += config.pad_token_id + 1
        if scratch.dropout is not None:
            set_dropout(config, scratch.dropout)
    return config


def _blank(family: str) -> Any:
    """Return a family's configuration as it is by default; raise FinetuneError if transformers knows none."""
    from transformers import CONFIG_MAPPING

    if family not in CONFIG_MAPPING:
        raise FinetuneError(
            "model.scratch.architecture: expected a family that transformers knows, such as bert, distilbert, gpt2, "
            f"llama or t5; found {family!r}. {nearest(family, list(CONFIG_MAPPING))}".rstrip()
        )
    return CONFIG_MAPPING[family]()


def scratch_context(scratch: Scratch) -> int | None:
    """Return how many tokens a new model can read; None where its positions have no end."""
    blank = _blank(scratch.architecture)
    own = blank.attribute_map.get(CONTEXT, CONTEXT)
    return scratch.context if hasattr(blank, own) else None


def new_model(scratch: Scratch, tokenizer: Any, head: Head, settings: ModelSettings) -> LoadedModel:
    """Return a model with random weights, drawn from torch's global generator as the family draws them: seed it."""
    import torch
    import transformers

    config = scratch_config(scratch, tokenizer, head.kind)
    if head.labels:
        config.id2label = dict(enumerate(head.labels))
        config.label2id = {label: index for index, label in enumerate(head.labels)}
    elif head.outputs:
        config.num_labels = head.outputs
    config.problem_type = head.problem
    if settings.dropout is not None:
        set_dropout(config, settings.dropout)
    with quiet_transformers(), torch.device("meta" if settings.empty else "cpu"):
        try:
            model = getattr(transformers, AUTO_CLASSES[head.kind]).from_config(
                config, attn_implementation=settings.attention, dtype=getattr(torch, settings.dtype)
            )
        except (ValueError, TypeError, LookupError, RuntimeError, AssertionError, ImportError) as error:
            raise FinetuneError(f"model.scratch: transformers cannot make this model: {first_line(error)}") from error
    everything = frozenset(name for name, _ in model.named_parameters())
    if head.kind == "none":
        without_pooler(model, frozenset(), [])
    apply_plan(model, head, HeadPlan(len(head.labels)), everything, frozenset())
    size = sum(parameter.numel() for parameter in model.parameters())
    # nothing of it is new beside something pretrained: no head that a way of freezing would spare
    return LoadedModel(model, frozenset(), [f"from scratch: {scratch.architecture} with {size:,} random parameters"])


def _settings(scratch: Scratch, blank: Any) -> dict[str, Any]:
    """Return the recipe's settings under the family's names."""
    sizes = _sizes(scratch, blank)
    _check_own_names(scratch, blank, sizes)
    per_head = scratch.hidden_size // scratch.heads
    derived = {"num_key_value_heads": scratch.heads, "d_kv": per_head, "head_dim": per_head}
    found = {**sizes, **{name: value for name, value in derived.items() if hasattr(blank, name)}, **_positions(scratch)}
    if scratch.initializer_range is not None:
        own = "initializer_range" if hasattr(blank, "initializer_range") else "init_std"
        if not hasattr(blank, own):
            raise FinetuneError(
                f"model.scratch.initializer_range: the family {scratch.architecture!r} has none; look for its own "
                "setting, and give it under model.scratch.config"
            )
        found[own] = scratch.initializer_range
    if scratch.tie_embeddings is not None:
        if not scratch.tie_embeddings and scratch.architecture in ALWAYS_TIED:
            raise FinetuneError(
                f"model.scratch.tie_embeddings: {scratch.architecture} always ties them in transformers 5; remove it"
            )
        found["tie_word_embeddings"] = scratch.tie_embeddings
    return {**found, **scratch.config}


def _sizes(scratch: Scratch, blank: Any) -> dict[str, Any]:
    """Return how large the model is to be, under the family's names."""
    family = scratch.architecture
    if scratch.hidden_size % scratch.heads:
        raise FinetuneError(
            f"model.scratch: expected a hidden_size that its heads divide evenly, found {scratch.hidden_size} and "
            f"{scratch.heads} heads"
        )
    if blank.is_encoder_decoder and family not in LAYERS:
        raise FinetuneError(
            f"model.scratch.architecture: of models with an encoder and a decoder {', '.join(LAYERS)} can be made; "
            f"found {family}"
        )
    width = scratch.feed_forward_size or 4 * scratch.hidden_size
    names: dict[str, tuple[tuple[str, ...], Any]] = {
        "layers": (LAYERS.get(family, ("num_hidden_layers",)), scratch.layers),
        "heads": (HEADS.get(family, ("num_attention_heads",)), scratch.heads),
        "hidden_size": (("hidden_size",), scratch.hidden_size),
        "feed_forward_size": (FEED_FORWARD.get(family, ("intermediate_size",)), width),
        "context": ((CONTEXT,), scratch.context),
    }
    found = {}
    for setting, (keys, value) in names.items():
        for key in keys:
            own = blank.attribute_map.get(key, key)
            if hasattr(blank, own):
                found[own] = value
            elif setting == "feed_forward_size" and scratch.feed_forward_size is not None:
                raise FinetuneError(
                    f"model.scratch.feed_forward_size: the family {family!r} calls it otherwise than {own}; leave it "
                    "out, and give it under the family's own name in model.scratch.config"
                )
            elif setting not in ("context", "feed_forward_size"):  # relative positions have no end
                raise FinetuneError(f"model.scratch.{setting}: the family {family!r} has none; take another family")
    return found


def _check_own_names(scratch: Scratch, blank: Any, sizes: Mapping[str, Any]) -> None:
    """Raise FinetuneError for a setting of the family that is said elsewhere, or that it does not have."""
    for name in scratch.config:
        if blank.attribute_map.get(name, name) in sizes:
            raise FinetuneError(
                f"model.scratch.config: {name} is said already by the settings of model.scratch; change it there"
            )
        if name in OF_THE_TOKENIZER:
            raise FinetuneError(f"model.scratch.config: {name} follows from the tokenizer; remove it")
        if not hasattr(blank, name):
            raise FinetuneError(
                f"model.scratch.config: the configuration of {scratch.architecture!r} has no {name!r}. "
                f"{nearest(name, list(blank.to_dict()))}".rstrip()
            )


def _positions(scratch: Scratch) -> dict[str, Any]:
    wanted, known = scratch.positions, POSITIONS.get(scratch.architecture, ())
    if wanted is None:
        return {}
    if wanted not in known:
        fitting = ", ".join(family for family, kinds in POSITIONS.items() if wanted in kinds)
        has = f"{scratch.architecture} has {' or '.join(known)}" if known else f"{scratch.architecture} has its own"
        raise FinetuneError(
            f"model.scratch.positions: expected positions of the family ({has}), found {wanted}. Leave it out, or take "
            f"an architecture with {wanted} positions ({fitting})"
        )
    return {"sinusoidal_pos_embds": wanted == "sinusoidal"} if scratch.architecture == "distilbert" else {}


def _tokens(blank: Any, tokenizer: Any | None) -> dict[str, Any]:
    """Return the vocabulary's size and the ids of its special tokens."""
    if tokenizer is None:
        return {}
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    found = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": end}
    found |= {"bos_token_id": start, **{name: None for name in FORCED if hasattr(blank, name)}}
    if blank.is_encoder_decoder:
        # T5 begins with the padding token, BART with the end of text; from scratch one is as good as the other
        found["decoder_start_token_id"] = tokenizer.pad_token_id
    return found
