"""Named chat templates: the text that each writes, the tokens that it wants, and the tokenizer's own in their place."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.data.chat_templates import TEMPLATES, end_marker, render, starts_with_bos, template_of, wanted_tokens
from finetune.errors import FinetuneError

SENTENCES = [
    "User: Is the red saw new?\nAssistant: No, the saw is old.\n",
    "system\nYou are kind.\nuser\nWhere is the plum tree?\nassistant\nBehind the house, by the well.\n",
    "<|user|>\nWe saw them again today.\n<|assistant|>\nThen tell them so!\n [INST] model [/INST] yes",
]
# how Llama 3 splits text into words (Qwen's models do alike): line ends stay together, whatever follows
LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_tokenizer(
    *tokens: str,
    bos: bool = False,
    trim: bool = False,
    eos: str | None = "</s>",
    split: str | None = None,
    **options: Any,
) -> Any:
    """Return a byte-level BPE tokenizer with special tokens; `bos`: it has one and puts it before every text.

    `trim`: its offsets leave out the blank before a word. `split`: what a word is, if not as in GPT-2.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    words = [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*words, bytes_only])
    backend.decoder = decoders.ByteLevel()
    special = [*(["<s>"] if bos else []), *([eos] if eos else []), *tokens]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([*SENTENCES * 3, "a\n\n\nb"], trainer)
    steps = [processors.ByteLevel(trim_offsets=trim)]
    if bos:
        steps += [processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])]
    backend.post_processor = processors.Sequence(steps)
    names = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, **names, **options)


def unigram_tokenizer(*tokens: str) -> Any:
    """Return a Unigram tokenizer that marks a blank as part of the word behind it, as SentencePiece does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>", *tokens], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def say(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Return a conversation in which the user and the assistant take turns."""
    turns = [{"role": ("user", "assistant")[number % 2], "content": content} for number, content in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


WRITTEN = {
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
    "<|im_start|>assistant\nOh! <|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "llama-3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nOh!<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<s><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\nOh!<end_of_turn>\n"
    "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    "mistral": "<s> [INST] Be kind.\n\n Hi  [/INST] Oh! </s> [INST] Bye [/INST]",
    "zephyr": "<|system|>\nBe kind.</s>\n<|user|>\n Hi </s>\n<|assistant|>\nOh! </s>\n"
    "<|user|>\nBye</s>\n<|assistant|>\n",
    "plain": "System: Be kind.\nUser:  Hi \nAssistant: Oh! </s>\nUser: Bye\nAssistant:",
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_writes_its_format_to_the_letter(name: str) -> None:
    tokenizer = byte_tokenizer(bos=True)
    text = render(tokenizer, say(" Hi ", "Oh! ", "Bye", system="Be kind."), TEMPLATES[name].text, asking=True)
    assert text == WRITTEN[name]


@pytest.mark.parametrize("name", TEMPLATES)
def test_wanted_tokens_are_in_the_text_and_one_token_each_once_they_are_added(name: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(wanted_tokens(name))})
    assert all(token in WRITTEN[name] for token in wanted_tokens(name))
    tokens = tokenizer.tokenize(WRITTEN[name])
    assert all(tokens.count(token) == WRITTEN[name].count(token) for token in wanted_tokens(name))


def test_every_template_names_its_source() -> None:
    assert list(TEMPLATES) == ["chatml", "llama-3", "gemma", "mistral", "zephyr", "plain"]
    assert all(len(template.source.split()) > 5 for template in TEMPLATES.values())


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_a_format_of_two_speakers_refuses_others_and_says_why(name: str) -> None:
    tokenizer, template = byte_tokenizer(bos=True), TEMPLATES[name].text
    twice = [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Hello?"}]
    for messages in (twice, [*say("Hi", "Oh!"), {"role": "tool", "content": "7"}], [*say("Hi", "Oh!", system="."), *say("a", "b", system=".")]):  # fmt: skip  # noqa: E501
        with pytest.raises(FinetuneError, match=r"must take turns\. Change the messages, or name .*chatml.*plain\.$"):
            render(tokenizer, messages, template)


def test_without_a_name_the_tokenizers_own_template_is_used_as_it_is() -> None:
    tokenizer = byte_tokenizer(bos=True)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    assert template_of(tokenizer, None) == tokenizer.chat_template
    tokenizer.chat_template = {"default": "{{ messages[0].content }}", "tool_use": "{{ tools }}"}
    assert template_of(tokenizer, None) == "{{ messages[0].content }}"


def test_a_missing_template_and_an_unknown_name_are_errors_that_name_those_there_are() -> None:
    with pytest.raises(FinetuneError, match="found one without. Name one of: chatml, llama-3, gemma, mistral, zephyr"):
        template_of(byte_tokenizer(), None)
    with pytest.raises(FinetuneError, match="expected one of chatml, .*found 'llama3'. Did you mean llama-3?"):
        template_of(byte_tokenizer(), "llama3")
    with pytest.raises(FinetuneError, match="expected one of chatml"):
        wanted_tokens("vicuna")


def test_a_template_that_ends_turns_with_the_end_of_text_needs_a_tokenizer_that_has_one() -> None:
    tokenizer = byte_tokenizer(eos=None)
    for name in ("mistral", "zephyr", "plain"):
        with pytest.raises(FinetuneError, match=r"found none\. Choose .* own: chatml, llama-3, gemma\."):
            template_of(tokenizer, name)
    assert template_of(tokenizer, "gemma") == TEMPLATES["gemma"].text


def test_a_tokenizer_that_begins_every_text_with_bos_gets_it_once_from_every_named_template() -> None:
    habitual, other = byte_tokenizer(bos=True), byte_tokenizer()
    assert starts_with_bos(habitual)
    assert not starts_with_bos(other)
    for name in TEMPLATES:
        assert render(habitual, say("Hi", "Oh!"), template_of(habitual, name)).count("<s>") == 1
        assert "<s>" not in render(other, say("Hi", "Oh!"), template_of(other, name))


def test_the_marker_that_ends_an_answer_is_found_in_any_template() -> None:
    tokenizer = byte_tokenizer()
    found = {name: end_marker(tokenizer, template_of(tokenizer, name)) for name in TEMPLATES}
    own = {"chatml": "<|im_end|>", "llama-3": "<|eot_id|>", "gemma": "<end_of_turn>"}
    assert found == {name: own.get(name, "</s>") for name in TEMPLATES}
    lines = "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
    assert end_marker(tokenizer, lines) == "\n"
