"""How much dropout a model has, by whatever name its family calls it."""

from __future__ import annotations

from typing import Any

from finetune.errors import FinetuneError


def set_dropout(config: Any, rate: float) -> None:
    """Set every rate of dropout that a configuration names; raise FinetuneError if it names none.

    Families call them hidden_dropout_prob, attention_probs_dropout_prob and classifier_dropout (BERT), dropout,
    attention_dropout and seq_classif_dropout (DistilBERT), resid_pdrop, embd_pdrop, attn_pdrop and
    summary_first_dropout (GPT-2), dropout_rate (T5), embedding_dropout and mlp_dropout (ModernBERT), and so on. Whole
    layers that are left out (layerdrop) and switches (token_dropout) are something else.
    """
    found = False
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for key, value in part.to_dict().items():
            number = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
            if number and ("dropout" in key or key.endswith("pdrop")):
                setattr(part, key, rate)
                found = True
    if not found:
        raise FinetuneError(
            f"model.dropout: expected a model that has dropout, found one of the family {config.model_type!r}, whose "
            "configuration names none. Remove the setting"
        )
