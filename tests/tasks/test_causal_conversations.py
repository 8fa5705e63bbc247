"""Conversations for causal language models: what is learned of them, their templates, and rows that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from finetune.artifacts import PreparedData
from finetune.data.chat_templates import TEMPLATES, wanted_tokens
from finetune.data.tokenization import Encoder, Limits
from finetune.errors import FinetuneError
from finetune.tasks import Task, end_ids, open_task, prepare_tokenizer
from tests.data.test_chat_templates import LLAMA_3_WORDS, byte_tokenizer, say
from tests.data.test_conversations import CONVERSATIONS, FORGETFUL, expected_mask
from tests.preparation.world import Notes, Rows, World, findings, reasons

NO_TARGET = -100
MESSAGES = {"name": "causal-lm", "rows": "messages"}


def opened(**options: Any) -> tuple[Task, Any]:
    """Return the task for conversations, and a tokenizer that it has prepared."""
    name = options.get("template")
    task, _ = open_task("causal-lm", {"rows": "messages", **options})
    bos = name in ("llama-3", "gemma", "mistral")
    tokenizer = byte_tokenizer(bos=bos, split=LLAMA_3_WORDS if name == "llama-3" else None)
    tokenizer.pad_token = tokenizer.eos_token
    prepare_tokenizer(task, tokenizer)
    return task, tokenizer


def columns_of(task: Task, tokenizer: Any, conversations: list[Any], length: int = 10_000) -> dict[str, list[Any]]:
    found = task.encode({"messages": conversations}, Encoder.of(tokenizer, Limits(length), whole=True), [])
    columns: dict[str, list[Any]] = {name: column.to_pylist() for name, column in found.features.items()}
    return {**columns, "lost": found.tokens_lost.tolist()}


# -- what is learned


@pytest.mark.parametrize("learn", ["assistant", "last", "all", None])
@pytest.mark.parametrize("name", TEMPLATES)
def test_learned_is_what_the_characters_of_the_written_conversation_say(name: str, learn: str | None) -> None:
    task, tokenizer = opened(template=name, learn=learn)
    conversations = list(CONVERSATIONS.values())
    found = columns_of(task, tokenizer, conversations)
    assert set(wanted_tokens(name)) <= set(tokenizer.get_vocab())
    for messages, ids, labels in zip(conversations, found["input_ids"], found["label_ids"], strict=True):
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        mask = expected_mask(name, messages, text, encoding.offsets, learn == "last")
        expected = [0] + [1] * (len(ids) - 1) if learn == "all" else mask
        assert ids == encoding.ids
        assert labels == [token if one else NO_TARGET for token, one in zip(ids, expected, strict=True)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_is_asked_for_by_how_its_row_begins(name: str) -> None:
    task, tokenizer = opened(template=name, learn="last")
    found = columns_of(task, tokenizer, [CONVERSATIONS[key] for key in ("one turn", "several turns", "a system")])
    for ids, labels, asked in zip(found["input_ids"], found["label_ids"], found["prompt_ids"], strict=True):
        first = next(place for place, label in enumerate(labels) if label != NO_TARGET)
        assert asked == ids[:first]
        assert labels[-1 if labels[-1] != NO_TARGET else -2] in end_ids(task, tokenizer), "its end is learned"


def test_a_conversation_that_is_not_answered_is_a_question_and_nothing_to_learn() -> None:
    task, tokenizer = opened(template="chatml")
    messages = CONVERSATIONS["several turns"]
    found = columns_of(task, tokenizer, [messages[:-1], messages])
    assert "label_ids" not in found
    assert found["input_ids"] == columns_of(task, tokenizer, [messages] * 2)["prompt_ids"]


@pytest.mark.parametrize(("name", "begins"), [("chatml", False), ("gemma", True)])
def test_a_question_that_is_too_long_loses_its_beginning_and_never_the_answer(name: str, begins: bool) -> None:
    task, tokenizer = opened(template=name, learn="last")
    conversations = [say("Hi", "Oh", "Where is the plum? " * count, "Behind the old house.") for count in (1, 9, 40)]
    whole = columns_of(task, tokenizer, conversations)
    found = columns_of(task, tokenizer, conversations, length=32)
    answer = [label for label in whole["label_ids"][0] if label != NO_TARGET]
    assert tokenizer.decode(answer).startswith("Behind the old house.")
    assert min(map(len, whole["input_ids"])) > 32 > len(answer) + 4
    for ids, labels, all_of_it, lost in zip(
        found["input_ids"], found["label_ids"], whole["input_ids"], found["lost"], strict=True
    ):
        head = [tokenizer.bos_token_id] if all_of_it[0] == tokenizer.bos_token_id else []
        assert ids == [*head, *all_of_it[-32 + len(head) :]]
        assert bool(head) == begins, "a begin-of-text token stays"
        assert [label for label in labels if label != NO_TARGET] == answer
        assert lost == len(all_of_it) - 32
    assert found["bytes"] == [len(b"Behind the old house.")] * 3


def test_of_several_answers_that_are_too_long_the_last_is_learned_whole() -> None:
    task, tokenizer = opened(template="chatml")
    messages = say(*("Where is the plum?", "Behind the house.") * 5, "And the saw?", "By the well.")
    whole = columns_of(task, tokenizer, [messages])["label_ids"][0]
    (ids,), (labels,) = (
        columns_of(task, tokenizer, [messages], length=40)[name] for name in ("input_ids", "label_ids")
    )
    assert len(ids) == 40 < len(whole)
    texts = [tokenizer.decode([label for label in part if label != NO_TARGET]) for part in (whole, labels)]
    assert texts[0] == "Behind the house.<|im_end|>" * 5 + "By the well.<|im_end|>"
    assert texts[1].endswith(".<|im_end|>By the well.<|im_end|>")
    assert texts[0].endswith(texts[1])


# -- tokenizers and templates


def test_the_templates_tokens_are_added_once_and_the_tokenizers_own_ids_stay() -> None:
    task, tokenizer = opened(template="chatml")
    before = byte_tokenizer().get_vocab()
    after = tokenizer.get_vocab()
    assert {token: after[token] for token in before} == before
    assert set(after) - set(before) == {"<|im_start|>", "<|im_end|>"}
    prepare_tokenizer(task, tokenizer)
    assert tokenizer.get_vocab() == after
    assert [len(tokenizer.encode(token, add_special_tokens=False)) for token in wanted_tokens("chatml")] == [1, 1]


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_ends_with_one_token_which_the_template_writes_behind_it(name: str) -> None:
    task, tokenizer = opened(template=name)
    marker = {"chatml": "<|im_end|>", "llama-3": "<|eot_id|>", "gemma": "<end_of_turn>"}.get(name, "</s>")
    assert end_ids(task, tokenizer) == [tokenizer.convert_tokens_to_ids(marker)]


SPELLED = "{% for message in messages %}{{ message.role + ': ' + message.content + ' ###END' }}{% endfor %}"


def test_an_end_of_several_tokens_is_refused() -> None:
    task, tokenizer = opened(template="chatml")
    tokenizer.chat_template = SPELLED
    count = len(tokenizer.encode("###END", add_special_tokens=False))
    with pytest.raises(FinetuneError, match=rf"'###END', which is {count} tokens here.*task.template"):
        end_ids(task, tokenizer)


def test_the_tokenizers_own_template_is_used_unless_one_is_named() -> None:
    own = TEMPLATES["zephyr"].text
    for name, expected in ((None, own), ("plain", TEMPLATES["plain"].text)):
        task, _ = open_task("causal-lm", {"rows": "messages", "template": name})
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = own
        prepare_tokenizer(task, tokenizer)
        assert tokenizer.chat_template == expected
    with pytest.raises(FinetuneError, match=r"found one without\. Name one of: chatml"):
        opened()


def test_other_rows_need_no_template() -> None:
    task, _ = open_task("causal-lm", {"rows": "completion"})
    tokenizer = byte_tokenizer()
    prepare_tokenizer(task, tokenizer)
    assert tokenizer.chat_template is None


# -- rows that cannot be used, and what prepare says of them


def save_decoder(folder: Path, tokenizer: Any) -> Path:
    """Save a random GPT-2 with its tokenizer."""
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 64}
    end = tokenizer.eos_token_id
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, **sizes)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A folder with a decoder that has never seen a conversation."""
    return World(tmp_path, save_decoder(tmp_path / "model", byte_tokenizer()))


def talks(count: int) -> list[dict[str, Any]]:
    """Return different conversations of one or two turns."""
    return [
        {"messages": say(f"Is the saw {number} old?", f"No, {number} is new.", *["And?", "So."] * (number % 2))}
        for number in range(count)
    ]


def prepared(world: World, rows: Rows, notes: Notes | None = None, **options: Any) -> PreparedData:
    """Prepare conversations in splits drawn at random."""
    task = {**MESSAGES, **options}
    return world.prepare(rows, task=task, data={"split": "random"}, model={"max_length": 64}, notes=notes)


def test_a_conversation_that_the_template_refuses_names_its_line(world: World) -> None:
    rows = talks(20)
    rows[6] = {"messages": [{"role": "user", "content": "Hi"}, *say("Hello?", "Oh")]}
    with pytest.raises(FinetuneError, match=r"line 7: the chat template refuses it: .*must take turns"):
        prepared(world, rows, template="gemma")


def test_a_row_of_which_nothing_can_be_learned_is_refused_with_its_line(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>")
    tokenizer.chat_template = FORGETFUL.replace("{% endgeneration %}", "").replace(
        "{% generation %}", "{% generation %}{% endgeneration %}"
    )
    world = World(tmp_path, save_decoder(tmp_path / "model", tokenizer))
    rows = talks(20)
    prepared(world, rows)
    rows[11] = {"messages": say("Hi", "<think>a greeting</think>Oh", "Bye", "So long")}
    with pytest.raises(FinetuneError, match=r"of which something can be learned.*: 1 of \w+ \(lines 12\)"):
        prepared(world, rows)


def test_answers_that_are_learned_after_other_tokens_than_they_are_asked_with_are_a_warning(world: World) -> None:
    rows = talks(20)
    assert findings(prepared(world, rows, template="chatml").report, "prompts") == []
    for place in (3, 8):
        rows[place] = {"messages": say(f"Hi {place}", "\n\nOh")}
    (found,) = findings(prepared(world, rows, template="chatml").report, "prompts")
    assert (found["severity"], found["count"]) == ("warning", 2)
    assert "in 2 rows" in found["message"]


def test_bad_messages_are_dropped_with_their_reason(world: World) -> None:
    user, answer = say("Is it red?", "It is.")
    bad: dict[str, Any] = {
        "unknown_role_in_messages": [user, {"role": "narrator", "content": "Night falls."}, answer],
        "blank_answer_in_messages": [user, {**answer, "content": " \n"}],
        "no_question_first_in_messages": [answer, user, answer],
        "no_answer_in_messages": [user],
        "no_answer_last_in_messages": [user, answer, user],
        "tool_call_in_messages": [user, {**answer, "tool_calls": [{"name": "clock"}]}, answer],
        "wrong_type_of_messages": "Is it red?",
        "missing_messages": [],
    }
    rows = [*talks(4), *({"messages": value} for value in bad.values()), *talks(30)[4:]]
    data = prepared(world, rows, template="chatml")
    assert reasons(data) == list(enumerate(bad, start=5))
    assert sum(data.manifest["splits"].values()) == 30


def test_a_conversation_that_is_there_already_is_dropped_in_whatever_form(world: World) -> None:
    rows = talks(24)
    (first, _), (question, answer, *_) = rows[2]["messages"][:2], rows[3]["messages"]
    shared = {
        "messages": [{"from": "human", "value": question["content"]}, {"from": "gpt", "value": answer["content"]}]
    }
    shared["messages"] += [{"from": "human", "value": "And?"}, {"from": "gpt", "value": "So."}]
    rows[10], rows[15] = shared, {"messages": [dict(message) for message in rows[2]["messages"]]}
    rows[20] = {"messages": [first, {"role": "assistant", "content": "Another answer."}]}
    assert reasons(prepared(world, rows, template="chatml")) == [(11, "duplicate"), (16, "duplicate")]


def test_conversations_of_the_same_words_are_different_where_other_people_say_them(world: World) -> None:
    rows = talks(24)
    rows[5] = {"messages": say("Wait. Is it", "here? No.")}
    rows[9] = {"messages": say("Wait.", "Is it here? No.")}
    rows[17] = {"messages": say("Is it", "here? No.", system="Wait.")}
    assert reasons(prepared(world, rows, template="chatml")) == []


def test_what_is_stored_can_be_read_again(world: World) -> None:
    data = prepared(world, talks(20), template="chatml")
    split = data.split("train")
    for line, row in zip(split.lines, split.rows, strict=True):
        assert row["messages"] == talks(20)[line - 1]["messages"]
    assert json.loads((data.folder / "manifest.json").read_text(encoding="utf-8"))["task"]["template"] == "chatml"
