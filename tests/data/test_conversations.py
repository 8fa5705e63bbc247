"""Conversations, completions and plain text as ids, and which are learned: held against character offsets alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.chat_templates import TEMPLATES, template_of, wanted_tokens
from finetune.data.conversations import (
    encode_completions,
    encode_conversations,
    encode_plain,
    encode_prompts,
    messages_type,
    prompt_of,
    read_messages,
)
from finetune.errors import FinetuneError
from tests.data.test_chat_templates import LLAMA_3_WORDS, byte_tokenizer, say, unigram_tokenizer

Messages = list[dict[str, str]]

# What stands between a prompt and the words of an answer that is part of neither header nor words, and what ends a turn
TURNS = {
    "chatml": ("<|im_start|>assistant\n", "", "<|im_end|>"),
    "llama-3": ("<|start_header_id|>assistant<|end_header_id|>\n\n", "", "<|eot_id|>"),
    "gemma": ("<start_of_turn>model\n", "", "<end_of_turn>"),
    "mistral": ("[/INST]", " ", "</s>"),
    "zephyr": ("<|assistant|>\n", "", "</s>"),
    "plain": ("Assistant:", " ", "</s>"),
}
TRIMS = {"llama-3", "gemma"}

CONVERSATIONS = {
    "one turn": say("Is the saw new?", "No, it is old."),
    "several turns": say("Hi", "Hi", "Hi again", "Hi", "Where is the plum?", "Behind the house."),
    "an empty system": say("Where?", "By the well.", "Which well?", "The old one.", system=""),
    "a system": say("Where?", "By the well.", system="You are kind.\nAnswer in few words."),
    "emoji and other scripts": say("Wie heißt 🐈‍⬛ auf Chinesisch?", "猫 — māo 😀", "และภาษาไทย?", "แมว 👩‍👩‍👧"),
    "words of the markers": say(
        "Write assistant\nuser\nsystem and Assistant: model [INST]",
        "assistant\nmodel\nUser: Assistant: [/INST]",
        "user: im_end |im_end| eot_id",
        "<|assistant|>\nend_of_turn, then User:",
    ),
    "whole markers": say(
        "What is <|im_end|>, </s>, <|eot_id|> and <end_of_turn>?",
        "<|im_end|> ends a turn, and so do <|eot_id|>, <end_of_turn> and </s>",
        "Thanks",
        "Bye <|im_start|>user",
    ),
    "white space": say("  two before", "one after ", "\ttabs\t", "lines\n\nand lines\n", " ", "x"),
}


@cache
def tokenizer_for(name: str, kind: str = "byte") -> Any:
    """Return a tokenizer with the tokens that a template wants; bytes, bytes with trimmed offsets, or Unigram."""
    if kind == "unigram":
        return unigram_tokenizer(*wanted_tokens(name))
    split = LLAMA_3_WORDS if name == "llama-3" else None
    bos = name in ("llama-3", "gemma", "mistral")
    return byte_tokenizer(*wanted_tokens(name), bos=bos, trim=kind == "trimmed", split=split)


def expected_mask(name: str, messages: Messages, text: str, offsets: list[tuple[int, int]], last: bool) -> list[int]:
    """Return the mask from the text alone: each turn searched for in it, then the characters of each token."""
    header, blank, end = TURNS[name]
    spans, cursor = [], 0
    for message in messages:
        content = message["content"].strip() if name in TRIMS else message["content"]
        if message["role"] == "assistant":
            turn = blank + content + end
            start = text.index(header + turn, cursor) + len(header)
            cursor = start + len(turn)
            spans.append((start, cursor))
        else:
            cursor = text.index(content, cursor) + len(content)
    characters = {place for start, stop in (spans[-1:] if last else spans) for place in range(start, stop)}
    return [int(any(place in characters for place in range(start, stop))) for start, stop in offsets]


def check_masks(name: str, messages: Messages, kind: str) -> None:
    """Hold both masks of a conversation against the reference, and its ids against the text."""
    tokenizer = tokenizer_for(name, kind)
    template = template_of(tokenizer, name)
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    # the reference reads offsets that are not trimmed
    backend = tokenizer_for(name, "byte" if kind == "trimmed" else kind).backend_tokenizer
    encoding = backend.encode(text, add_special_tokens=False)
    for learn in ("assistant", "last"):
        encoded = encode_conversations(tokenizer, [messages], template, learn)
        assert encoded.ids == [encoding.ids]
        assert encoded.learned == [expected_mask(name, messages, text, encoding.offsets, learn == "last")]
        assert encoded.without_target == []


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=list(CONVERSATIONS))
@pytest.mark.parametrize("kind", ["byte", "trimmed", "unigram"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_learned_is_what_character_offsets_say(name: str, kind: str, messages: Messages) -> None:
    check_masks(name, messages, kind)


pieces = st.sampled_from([*"abU:|[]/ \n\t.é猫😀\u200d", "user", "assistant", "model", "INST", "<|", "|>", "im_end"])
words = st.lists(pieces, min_size=1, max_size=9).map("".join)
turns = st.lists(st.tuples(words, words.filter(str.strip)), min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(TEMPLATES)), st.sampled_from(["byte", "trimmed"]), turns, st.none() | st.just("") | words)
def test_learned_is_what_character_offsets_say_of_any_conversation(
    name: str, kind: str, pairs: list[tuple[str, str]], system: str | None
) -> None:
    check_masks(name, say(*(content for pair in pairs for content in pair), system=system), kind)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(TEMPLATES)), turns)
def test_asking_is_what_training_was_or_the_row_is_named(name: str, pairs: list[tuple[str, str]]) -> None:
    messages = say(*(content for pair in pairs for content in pair))
    tokenizer = tokenizer_for(name)
    template = template_of(tokenizer, name)
    encoded = encode_conversations(tokenizer, [messages], template, "last")
    ids, prompt = encoded.ids[0], prompt_of(tokenizer, messages, template)
    assert bool(encoded.asked_otherwise) == (ids[: len(prompt)] != prompt)
    if not encoded.asked_otherwise:
        assert encoded.learned[0].index(1) == len(prompt)
    if not pairs[-1][1][0].isspace() or name in ("mistral", "plain", *TRIMS):
        assert not encoded.asked_otherwise


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_what_apply_chat_template_asks_with(name: str) -> None:
    tokenizer, messages = tokenizer_for(name), CONVERSATIONS["several turns"]
    template = template_of(tokenizer, name)
    expected = tokenizer.apply_chat_template(
        messages[:-1], chat_template=template, add_generation_prompt=True, return_dict=False
    )
    assert prompt_of(tokenizer, messages, template) == expected
    assert prompt_of(tokenizer, messages[:-1], template) == expected  # an unanswered conversation is asked as it is


def test_an_answer_that_joins_the_end_of_its_prompt_is_named_and_learned() -> None:
    tokenizer = tokenizer_for("chatml")
    conversations = [say("Hi", "Oh"), say("Hi", "\n\nOh"), say("Hi", "Oh", "Hi", "Oh")]
    encoded = encode_conversations(tokenizer, conversations, template_of(tokenizer, "chatml"), "assistant")
    assert encoded.asked_otherwise == (1,)
    joined = encoded.ids[1][encoded.learned[1].index(1)]
    assert tokenizer.decode([joined]) == "\n\n"  # one of the header's, one of the answer's


def test_rows_are_named_where_a_tokenizer_reads_the_end_of_every_prompt_in_another_way() -> None:
    """Words in the manner of GPT-2 split line ends before a word, and join them at the end of a text."""
    conversations = [say("Hi", "Oh"), say("Hi", "Oh", "Hi", "So")]
    for split, named in ((None, (0, 1)), (LLAMA_3_WORDS, ())):
        tokenizer = byte_tokenizer(*wanted_tokens("llama-3"), split=split)
        encoded = encode_conversations(tokenizer, conversations, template_of(tokenizer, "llama-3"), "last")
        assert encoded.asked_otherwise == named


def test_rows_keep_their_order_and_are_not_cut() -> None:
    tokenizer = byte_tokenizer(*wanted_tokens("chatml"), model_max_length=8)
    conversations = [say("Hi", "word " * size) for size in (300, 1, 50)]
    encoded = encode_conversations(tokenizer, conversations, template_of(tokenizer, "chatml"), "assistant")
    for messages, ids in zip(conversations, encoded.ids, strict=True):
        assert messages[1]["content"] in tokenizer.decode(ids)
    assert encode_conversations(tokenizer, [], template_of(tokenizer, "chatml"), "last").ids == []


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_begin_of_text_is_there_once_and_never_learned(name: str) -> None:
    tokenizer = byte_tokenizer(*wanted_tokens(name), bos=True)
    template, messages = template_of(tokenizer, name), CONVERSATIONS["a system"]
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id  # it would be doubled
    encoded = encode_conversations(tokenizer, [messages], template, "all")
    assert encoded.ids[0] == tokenizer.apply_chat_template(messages, chat_template=template, return_dict=False)
    assert encoded.ids[0].count(tokenizer.bos_token_id) == 1
    assert encoded.ids[0][0] == prompt_of(tokenizer, messages, template)[0] == tokenizer.bos_token_id
    assert encoded.learned[0] == [0] + [1] * (len(encoded.ids[0]) - 1)


def test_bytes_are_those_of_the_learned_words_as_the_template_writes_them() -> None:
    messages = say(" wer? ", "猫 ", "ja?", " né", system="é")
    for name, last, answers, everything in (("chatml", 4, 4 + 4, 8 + 6 + 3 + 2), ("gemma", 3, 3 + 3, 6 + 4 + 3 + 2)):
        tokenizer = tokenizer_for(name)
        sizes = [
            encode_conversations(tokenizer, [messages], template_of(tokenizer, name), learn).bytes[0]
            for learn in ("last", "assistant", "all")
        ]
        assert sizes == [last, answers, everything]


# -- templates of other kinds

# leaves out of earlier answers what was thought, as some reasoning models' templates do
FORGETFUL = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' %}{% generation %}"
    "{{ message.content if loop.last else message.content.split('</think>')[-1] }}{{ '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
UNMARKED = FORGETFUL.replace("{% generation %}", "").replace("{% endgeneration %}", "")
THOUGHTFUL = say("Hi", "<think>a greeting</think>Oh!", "Bye", "<think>the end</think>So long!")


def learned_texts(tokenizer: Any, ids: list[int], learned: list[int]) -> list[str]:
    """Return the texts of the runs of tokens that are learned."""
    runs: list[list[int]] = [[]]
    for token, mark in zip(ids, learned, strict=True):
        if mark:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


def test_where_earlier_turns_are_rewritten_the_templates_own_marks_are_used() -> None:
    tokenizer = tokenizer_for("chatml")
    for learn, expected in (
        ("assistant", ["Oh!<|im_end|>", "<think>the end</think>So long!<|im_end|>"]),
        ("last", ["<think>the end</think>So long!<|im_end|>"]),
    ):
        encoded = encode_conversations(tokenizer, [THOUGHTFUL], FORGETFUL, learn)
        assert learned_texts(tokenizer, encoded.ids[0], encoded.learned[0]) == expected
        assert encoded.asked_otherwise == ()


def test_where_earlier_turns_are_rewritten_without_marks_it_is_said_what_differs() -> None:
    tokenizer = tokenizer_for("chatml")
    with pytest.raises(FinetuneError, match=r".*expected '.*<think>a gree.*', found '.*Oh!.*last turn"):
        encode_conversations(tokenizer, [say("Hi", "Oh!"), THOUGHTFUL], UNMARKED, "assistant")
    encoded = encode_conversations(tokenizer, [THOUGHTFUL], UNMARKED, "last")
    assert learned_texts(tokenizer, encoded.ids[0], encoded.learned[0]) == ["<think>the end</think>So long!<|im_end|>"]


def test_a_prompt_that_asks_for_more_than_the_answer_has_is_told_or_left_to_the_marks() -> None:
    """Some templates ask for a thought, and leave it out of a conversation whose answer has none."""
    tokenizer, messages = tokenizer_for("chatml"), say("Hi", "Oh!", "Bye", "So long!")
    asking = "{{ '<|im_start|>assistant\n' }}{% endif %}"
    thinking, unmarked = (text.replace(asking, asking.replace("\n", "\n<think>")) for text in (FORGETFUL, UNMARKED))
    assert thinking != FORGETFUL
    for learn, expected in (("assistant", ["Oh!<|im_end|>", "So long!<|im_end|>"]), ("last", ["So long!<|im_end|>"])):
        encoded = encode_conversations(tokenizer, [messages], thinking, learn)
        assert learned_texts(tokenizer, encoded.ids[0], encoded.learned[0]) == expected
        assert encoded.asked_otherwise == (0,)
        with pytest.raises(FinetuneError, match=".*expected '.*<think>', found '.*!"):
            encode_conversations(tokenizer, [messages], unmarked, learn)


def test_rows_without_a_learned_token_are_counted() -> None:
    tokenizer = tokenizer_for("chatml")
    silent = FORGETFUL.replace("{% endgeneration %}", "").replace(
        "{% generation %}", "{% generation %}{% endgeneration %}"
    )
    for learn in ("assistant", "last"):
        encoded = encode_conversations(tokenizer, [say("Hi", "Oh!"), THOUGHTFUL, THOUGHTFUL], silent, learn)
        # the first is found by its prefixes, and the others neither so nor by marks
        assert encoded.without_target == ([1, 2] if learn == "assistant" else [])


def test_a_conversation_that_the_template_refuses_is_named() -> None:
    tokenizer = tokenizer_for("gemma")
    twice = [{"role": "user", "content": "Hi"}, *say("Hello?", "Oh!")]
    with pytest.raises(FinetuneError, match="the chat template refuses it: .*must take turns"):
        encode_conversations(tokenizer, [say("Hi", "Oh!"), twice], template_of(tokenizer, "gemma"), "assistant")


@pytest.mark.parametrize("trim", [False, True])
def test_blanks_behind_a_marker_are_not_learned_and_blanks_before_it_are(trim: bool) -> None:
    tokenizer = byte_tokenizer(trim=trim)
    wide = "{% for message in messages %}{{ message.role + ':  ' + message.content + '</s>  ' }}{% endfor %}"
    wide += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    encoded = encode_conversations(tokenizer, [say("Hi", "Oh  ", "Hi", "Oh")], wide, "assistant")
    assert learned_texts(tokenizer, encoded.ids[0], encoded.learned[0]) == ["  Oh  </s>", "  Oh</s>"]


def test_an_answer_ends_with_white_space_if_that_is_its_marker_and_has_to_end_with_something() -> None:
    tokenizer = tokenizer_for("chatml")
    lines = "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}"
    encoded = encode_conversations(tokenizer, [say("Hi", "Oh!")], lines, "assistant")
    assert learned_texts(tokenizer, encoded.ids[0], encoded.learned[0]) == ["assistant: Oh!\n"]
    with pytest.raises(FinetuneError, match=".*nothing after .*would not learn to stop"):
        encode_conversations(tokenizer, [say("Hi", "Oh!")], lines.replace(" + '\n'", ""), "assistant")


def test_a_tokenizer_that_does_not_say_where_tokens_stand_is_refused() -> None:
    class Slow:
        is_fast = False

    for encode in (
        lambda: encode_conversations(Slow(), [say("Hi", "Oh!")], "", "all"),
        lambda: encode_completions(Slow(), ["a"], ["b"], "all"),
        lambda: encode_plain(Slow(), ["a"]),
    ):
        with pytest.raises(FinetuneError, match="needs a fast tokenizer"):
            encode()


# -- completions and plain text


@settings(max_examples=40, deadline=None)
@given(st.booleans(), st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), max_size=4))
def test_a_completion_is_asked_for_by_the_ids_before_it(bos: bool, rows: list[tuple[str, str]]) -> None:
    tokenizer = tokenizer_for("mistral" if bos else "chatml")
    prompts, completions = [list(part) for part in zip(*rows, strict=True)] or ([], [])
    encoded = encode_completions(tokenizer, prompts, completions, "completion")
    asked = encode_prompts(tokenizer, prompts)
    assert asked == [tokenizer(prompt)["input_ids"] for prompt in prompts]  # with the habit of this tokenizer
    for (prompt, completion), start, ids, learned in zip(rows, asked, encoded.ids, encoded.learned, strict=True):
        assert ids[: len(start)] == start
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[len(start) : -1]) == completion
        assert tokenizer.decode(ids[:-1]) == ("<s>" if bos else "") + prompt + completion
        assert learned == [0] * (len(start) or 1) + [1] * (len(ids) - (len(start) or 1))
    if bos:
        assert encoded.bytes == [len(completion.encode()) for completion in completions]
        assert encoded.without_target == []


def test_all_of_a_completion_is_its_prompt_too() -> None:
    for name, head, size in (("mistral", 1, 12), ("chatml", 0, 11)):  # what is first and unlearned is <s>, or the q
        tokenizer = tokenizer_for(name)
        encoded = encode_completions(tokenizer, ["q: é", ""], [" ab猫", "q"], "all")
        assert encoded.learned == [[0] + [1] * (len(ids) - 1) for ids in encoded.ids]
        assert encoded.bytes == [size - 1, head]
        assert encoded.ids[1] == [tokenizer.bos_token_id] * head + tokenizer.encode("q</s>", add_special_tokens=False)


def test_a_first_token_that_nothing_stands_before_is_not_learned() -> None:
    encoded = encode_completions(tokenizer_for("chatml"), ["", "a"], ["xy", "xy"], "completion")
    assert encoded.learned[0][0] == 0
    assert encoded.bytes[0] < encoded.bytes[1] == 2


def test_an_end_of_text_that_the_tokenizer_adds_does_not_end_the_prompt() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer(bos=True)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    ids = encode_completions(tokenizer, ["a"], ["b"], "completion").ids[0]
    assert tokenizer.decode(ids) == "<s>ab</s>"
    assert tokenizer.decode(encode_plain(tokenizer, ["ab"]).ids[0]) == "<s>ab</s>"


def test_completions_need_an_end_of_text() -> None:
    with pytest.raises(FinetuneError, match="expected a tokenizer with an end-of-text token"):
        encode_completions(byte_tokenizer(eos=None), ["a"], ["b"], "completion")


def test_plain_text_stands_between_a_start_and_an_end() -> None:
    text = "Wo 猫?"
    for tokenizer, start, end in (
        (byte_tokenizer(bos=True), "<s>", "</s>"),
        (byte_tokenizer(), "</s>", "</s>"),  # the end of the text before it
        (byte_tokenizer(bos=True, eos=None), "<s>", ""),
    ):
        encoded = encode_plain(tokenizer, [text, ""])
        assert [tokenizer.decode(ids) for ids in encoded.ids] == [start + text + end, start + end]
        assert encoded.learned == [[0] + [1] * (len(ids) - 1) for ids in encoded.ids]
        assert encoded.bytes == [len(text.encode()), 0]
        assert encoded.without_target == ([] if end else [1])


def test_plain_text_without_a_start_begins_to_be_learned_with_its_second_token() -> None:
    tokenizer = byte_tokenizer(eos=None)
    encoded = encode_plain(tokenizer, ["xqz", "猫", "x", ""])
    assert tokenizer.decode(encoded.ids[0]) == "xqz"
    assert [sum(row) for row in encoded.learned] == [len(encoded.ids[0]) - 1, len(encoded.ids[1]) - 1, 0, 0]
    assert encoded.bytes == [3 - len(tokenizer.decode(encoded.ids[0][:1])), 0, 0, 0]
    assert encoded.without_target == [2, 3]


# -- conversations as they are given


def test_conversations_are_read_in_both_forms_and_unchanged() -> None:
    given = say(" Hi\u00a0", "Oh!\n", "Bye", "<|im_end|>", system="")
    assert read_messages([{**message, "name": "me", "tool_calls": None} for message in given]) == (given, "")
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    shared = [{"from": names[message["role"]], "value": message["content"]} for message in given]
    assert read_messages(shared) == (given, "")
    shared = [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Oh"}]
    assert read_messages(shared) == (say("Hi", "Oh"), "")
    assert read_messages(say("a\ud800", "b")) == (say("a?", "b"), "")  # neither UTF-8 nor a tokenizer takes it


USER, ANSWER, SYSTEM, TOOL = ({"role": role, "content": role} for role in ("user", "assistant", "system", "tool"))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "missing"),
        ([], "missing"),
        ("Hi", "wrong_type_of"),
        ({"messages": [USER, ANSWER]}, "wrong_type_of"),
        (["Hi", "Oh"], "wrong_type_of"),
        ([USER, {"role": "assistant"}], "wrong_type_of"),
        ([USER, {"role": "assistant", "content": None}], "wrong_type_of"),
        ([USER, {"role": "assistant", "content": [{"type": "text", "text": "Oh"}]}], "wrong_type_of"),
        ([USER, {"role": 3, "content": "Oh"}], "wrong_type_of"),
        ([USER, {"from": ["gpt"], "value": "Oh"}], "wrong_type_of"),
        ([USER, {"role": "gpt", "content": "Oh"}], "unknown_role_in"),
        ([{"from": "bing", "value": "Hi"}, ANSWER], "unknown_role_in"),
        ([USER, {"role": "assistant", "content": " \n"}], "blank_answer_in"),
        ([USER, {"role": "assistant", "tool_calls": [{"name": "clock"}]}, TOOL, ANSWER], "tool_call_in"),
        ([USER, {**ANSWER, "function_call": {"name": "clock"}}, TOOL, ANSWER], "tool_call_in"),
        ([SYSTEM], "no_question_first_in"),
        ([SYSTEM, ANSWER, USER, ANSWER], "no_question_first_in"),
        ([TOOL, ANSWER], "no_question_first_in"),
        ([USER, USER], "no_answer_in"),
        ([USER, ANSWER, USER], "no_answer_last_in"),
        ([USER, ANSWER, SYSTEM], "no_answer_last_in"),
    ],
)  # fmt: skip
def test_a_conversation_that_cannot_be_used_says_why(value: Any, reason: str) -> None:
    assert read_messages(value) == ([], reason)


@pytest.mark.parametrize(
    "value",
    [
        [USER, ANSWER],
        [SYSTEM, SYSTEM, USER, ANSWER],
        [USER, ANSWER, TOOL, ANSWER],
        [USER, USER, ANSWER, ANSWER],
        [{"role": "user", "content": ""}, ANSWER],
    ],
)
def test_what_a_template_can_write_is_no_fault(value: Any) -> None:
    assert read_messages(value) == (value, "")


def test_a_conversation_to_be_answered_may_end_with_anyone_but_has_to_ask() -> None:
    for value in ([USER], [USER, ANSWER, USER], [USER, ANSWER], [USER, ANSWER, TOOL]):
        assert read_messages(value, answered=False) == (value, "")
    assert read_messages([SYSTEM], answered=False) == ([], "no_question_first_in")


def test_conversations_keep_their_form_in_arrow() -> None:
    import pyarrow as pa

    messages = say("Hi", "猫", system="")
    assert pa.array([messages], messages_type()).to_pylist() == [messages]
