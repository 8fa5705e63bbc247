"""Templates: the special tokens of each family of models, and how they frame a text and a pair of texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

TemplateName = Literal["bert", "roberta", "t5", "gpt2"]


@dataclass(frozen=True)
class Template:
    """The special tokens of one family, by their roles in transformers and in the order of their ids.

    `single` and `pair` frame texts, as `tokenizers.processors.TemplateProcessing` reads them (`$B:1`: in segment 1).
    """

    roles: Mapping[str, str]
    single: str
    pair: str
    segments: bool = False

    def names(self, *, unknown: bool) -> list[str]:
        """Return the special tokens; that for what is not in the vocabulary only if there is such a thing."""
        return list(dict.fromkeys(token for role, token in self.roles.items() if unknown or role != "unk_token"))


TEMPLATES: Mapping[str, Template] = {
    "bert": Template(
        {
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        },
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        segments=True,
    ),
    "roberta": Template(
        {
            "bos_token": "<s>",
            "cls_token": "<s>",
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "unk_token": "<unk>",
            "mask_token": "<mask>",
        },
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
    ),
    "t5": Template(
        {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
        single="$A </s>",
        pair="$A </s> $B </s>",
    ),
    "gpt2": Template(
        {
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|pad|>",  # GPT-2 has none; padding with the end of text would hide the true ends
            "unk_token": "<|unknown|>",
        },
        single="$A",
        pair="$A $B",
    ),
}


def assemble(
    backend: Any,
    template: Template,
    extra: Iterable[str],
    *,
    max_length: int | None,
    unknown: bool = True,
    mask_takes_blank: bool = True,
    before: Any = None,
) -> Any:
    """Return a trained `tokenizers.Tokenizer` with its special tokens and its template as a transformers tokenizer.

    `before` is the post-processor that comes before the template. `mask_takes_blank`: the mask stands for a word with
    the blank before it, where blanks are part of the words.
    """
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    roles = {role: token for role, token in template.roles.items() if unknown or role != "unk_token"}
    mask = roles.get("mask_token")
    extra = list(extra)
    backend.add_special_tokens([
        AddedToken(token, lstrip=mask_takes_blank and token == mask, normalized=False)
        for token in [*template.names(unknown=unknown), *extra]
    ])  # fmt: skip
    framing = processors.TemplateProcessing(
        single=template.single,
        pair=template.pair,
        special_tokens=[(token, backend.token_to_id(token)) for token in template.names(unknown=unknown)],
    )
    backend.post_processor = processors.Sequence([before, framing]) if before else framing
    segments = ["token_type_ids"] if template.segments else []
    limit = {} if max_length is None else {"model_max_length": max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", *segments, "attention_mask"],
        extra_special_tokens=extra,
        clean_up_tokenization_spaces=False,
        **roles,
        **limit,
    )
