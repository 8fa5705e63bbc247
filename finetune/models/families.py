"""Which families of models can do what a task needs, and how a message names them."""

from __future__ import annotations

from typing import Any, Literal

from finetune.errors import FinetuneError

Kind = Literal["sequence", "tokens", "spans", "none", "masked", "causal", "seq2seq"]
AUTO_CLASSES: dict[Kind, str] = {
    "sequence": "AutoModelForSequenceClassification",
    "tokens": "AutoModelForTokenClassification",
    "spans": "AutoModelForQuestionAnswering",
    "none": "AutoModel",
    "masked": "AutoModelForMaskedLM",
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
NEEDS: dict[Kind, str] = {
    "sequence": "a text model that transformers can put under a head for whole texts",
    "tokens": "a text model that transformers can put under a head for single tokens",
    "spans": "an encoder of text that transformers can put under a head for the two ends of an answer",
    "none": "an encoder of text",
    "masked": "an encoder of text that transformers can put under a head which guesses masked tokens",
    "causal": "a decoder, which writes a text from left to right",
    "seq2seq": "an encoder that reads a text with a decoder that writes another",
}
# Well-known families by transformers' names for them, in the order in which to name them
KNOWN = {
    "bert": "BERT",
    "roberta": "RoBERTa",
    "xlm-roberta": "XLM-RoBERTa",
    "distilbert": "DistilBERT",
    "electra": "ELECTRA",
    "deberta-v2": "DeBERTa v2 and v3",
    "modernbert": "ModernBERT",
    "mpnet": "MPNet",
    "albert": "ALBERT",
    "gpt2": "GPT-2",
    "llama": "Llama",
    "qwen3": "Qwen 3",
    "t5": "T5",
    "bart": "BART",
    "marian": "Marian",
    "pegasus": "Pegasus",
}
TOLD_LANGUAGES = ("mbart", "m2m_100", "nllb-moe", "plbart")
TEXT_FAMILIES = "BERT, RoBERTa, DistilBERT, DeBERTa, ModernBERT, GPT-2"


def check_family(config: Any, kind: Kind, setting: str = "model.id") -> None:
    """Raise FinetuneError when a model of this configuration cannot do what a task needs; it names what would fit.

    `setting` is where the recipe names the model.

    A family fits when transformers has the head for it and it reads token ids. The encoder alone, and the ends of an
    answer, are asked of encoders (or decoders), not of models that have both.
    """
    problem = _problem(config, kind)
    if problem:
        raise FinetuneError(
            f"{setting}: expected {NEEDS[kind]}, found a model of the family {config.model_type!r}, {problem}. "
            f"Families that fit: {', '.join(fitting(kind))}"
        )


def fitting(kind: Kind) -> list[str]:
    """Return the well-known families that can do what a task needs."""
    import transformers

    return [title for family, title in KNOWN.items() if not _problem(transformers.CONFIG_MAPPING[family](), kind)]


def _problem(config: Any, kind: Kind) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

    if config.model_type in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "which needs a picture beside the text"
    if config.is_encoder_decoder and kind in ("spans", "none", "masked", "causal"):
        return "which has an encoder and a decoder"
    if kind == "causal" and not getattr(config, "is_decoder", False) and _class_of(config, AUTO_CLASSES["masked"]):
        return "which reads in both directions"
    model_class = _class_of(config, AUTO_CLASSES[kind])
    if model_class is None:
        return "which has no such head" if kind != "none" else "which transformers cannot open by itself"
    if kind == "seq2seq" and config.model_type in TOLD_LANGUAGES:
        return "which is told by tokens of their own which languages it reads and writes"
    if kind == "seq2seq" and not hasattr(model_class, "prepare_decoder_input_ids_from_labels"):
        return "whose decoder is fed in a way of its own"
    return "" if model_class.main_input_name == "input_ids" else f"which reads {model_class.main_input_name}, not text"


def _class_of(config: Any, auto_class: str) -> Any:
    """Return the class that transformers opens such a model with, or None; a class in the model's folder is trusted."""
    import transformers

    if auto_class in (getattr(config, "auto_map", None) or {}):
        return transformers.PreTrainedModel
    mapping = getattr(transformers, auto_class)._model_mapping
    if type(config) not in mapping:
        return None
    found = mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found
