"""Causal language models from rows to answers: texts to go on with, prompts to complete, conversations to answer."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from finetune.artifacts import PreparedData, Run
from finetune.data.chat_templates import TEMPLATES
from finetune.evaluate import evaluate
from finetune.inference import open_run
from finetune.pipeline import Job
from finetune.predict import Answering
from finetune.runtime import Runtime
from tests.conftest import FILLER, LABEL_WORDS, write_jsonl
from tests.data.test_chat_templates import byte_tokenizer, say
from tests.preparation.world import World
from tests.tasks.test_causal_conversations import save_decoder
from tests.tasks.test_causal_lm import whole_ids
from tests.tasks.test_masked_lm import texts

SPLIT = {"split": {"name": "random", "train": 0.6, "validation": 0.2, "test": 0.2}}
SMALL = {"architecture": "gpt2", "layers": 1, "hidden_size": 32, "heads": 2, "context": 64, "dropout": 0.0}


def make_run(world: World, rows: Sequence[Any], **sections: Any) -> Run:
    recipe = world.recipe(rows, data=SPLIT, **sections)
    return Job(recipe, world.folder / "out", Runtime(threads=1)).run()


def open_world(folder: Path) -> World:
    return World(folder, save_decoder(folder / "model", byte_tokenizer()))


def data_of(run: Run) -> PreparedData:
    return PreparedData(run.data_folder())


def written_by_hand(run: Run, ids: Sequence[int]) -> tuple[str, bool]:
    """Return what transformers alone makes of the saved folder writes after some ids, and whether it is at an end."""
    model = transformers.AutoModelForCausalLM.from_pretrained(run.model_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.model_folder)
    ends = model.generation_config.eos_token_id
    with torch.no_grad():
        found = model.generate(torch.tensor([list(ids)]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    new = found[0, len(ids) :].tolist()
    finished = new[-1] in (ends if isinstance(ends, list) else [ends])
    return tokenizer.decode(new, skip_special_tokens=True).strip(), finished


def answers(run: Run, lines: Sequence[Any]) -> list[dict[str, Any]]:
    """Return what predict says to lines of text, or of JSON."""
    asking = Answering(run, Runtime(threads=1))
    return list(asking.lines([line if isinstance(line, str) else json.dumps(line) for line in lines]))


# -- texts


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run from random weights over texts in windows."""
    return make_run(
        open_world(tmp_path_factory.mktemp("texts")), [{"text": text} for text in texts(90, longest=14)],
        task={"name": "causal-lm", "pack": True}, generation={"max_new_tokens": 5},
        model={"scratch": SMALL, "max_length": 24, "overflow": "window", "stride": 4},
        train={"epochs": 4, "learning_rate": 1e-2},
    )  # fmt: skip


@pytest.fixture(scope="module")
def text_report(text_run: Run) -> dict[str, Any]:
    return evaluate(text_run)


def test_a_run_over_texts_learns_more_than_the_frequencies_of_tokens(
    text_run: Run, text_report: dict[str, Any]
) -> None:
    perplexity = text_report["metrics"]["perplexity"]["value"]
    assert perplexity < 0.6 * text_report["baselines"]["unigram"]["perplexity"]["value"]
    assert text_report["gains"]["unigram"]["perplexity"]["low"] > 0
    assert text_report["generation"] == {"max_new_tokens": 5, "beams": 1, "sample": False}
    tokenizer = open_run(text_run, Runtime(threads=1)).tokenizer
    test, train = ([row["text"] for row in data_of(text_run).split(name).rows] for name in ("test", "train"))
    learned = [token for text in test for token in whole_ids(tokenizer, text)[1:]]
    assert text_report["tokens"] == len(learned)
    counts = Counter(token for text in train for token in whole_ids(tokenizer, text)[1:])
    total = counts.total() + len(tokenizer)
    losses = [-math.log((counts[token] + 1) / total) for token in learned]
    unigram = text_report["baselines"]["unigram"]
    assert unigram["perplexity"]["value"] == pytest.approx(math.exp(math.fsum(losses) / len(losses)))
    size = len("".join(test).encode())
    assert unigram["bits-per-byte"]["value"] == pytest.approx(math.fsum(losses) / math.log(2) / size)


def test_the_report_shows_how_the_model_goes_on_from_the_first_texts(
    text_run: Run, text_report: dict[str, Any]
) -> None:
    first = [row["text"] for row in data_of(text_run).split("test").rows[:5]]
    tokenizer = open_run(text_run, Runtime(threads=1)).tokenizer
    assert len(text_report["samples"]) == 5
    for (begun, more), text in zip(text_report["samples"], first, strict=True):
        assert text.startswith(begun)
        assert 0 < len(begun) < len(text)
        assert more == written_by_hand(text_run, whole_ids(tokenizer, begun)[:-1])[0]
    assert "Samples" in (text_run.reports / "test.md").read_text(encoding="utf-8")


def test_predict_goes_on_with_texts_in_their_order(text_run: Run) -> None:
    asked = ["the plum near", "a", {"prompt": "my old hammer"}, "the plum near"]
    tokenizer = open_run(text_run, Runtime(threads=1)).tokenizer
    found = answers(text_run, [asked[0], asked[1], "  ", *asked[2:]])
    assert [answer["row"] for answer in found] == [1, 2, 3, 4, 5]
    assert "error" in found.pop(2)
    for answer, text in zip(found, asked, strict=True):
        given = text["prompt"] if isinstance(text, dict) else str(text)
        more, finished = written_by_hand(text_run, whole_ids(tokenizer, given)[:-1])
        assert (answer["text"], answer.get("unfinished", False)) == (more, not finished)


def test_a_file_of_texts_is_scored_as_a_split_is(text_run: Run, text_report: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"text": row["text"]} for row in data_of(text_run).split("test").rows]
    again = evaluate(text_run, source=write_jsonl(tmp_path / "more.jsonl", [*rows, {"text": " "}]), folder=tmp_path)
    for name, found in text_report["metrics"].items():
        assert again["metrics"][name]["value"] == pytest.approx(found["value"], rel=1e-5)
    assert again["rows"] == len(rows)
    assert sum(again["dropped"].values()) == 1


# -- prompts and completions


def sums(count: int) -> list[dict[str, str]]:
    """Return prompts that end with a fruit or a tool, and completions that end with the number of its kind."""
    generator = random.Random(4)
    found: dict[str, str] = {}
    while len(found) < count:
        kind = generator.choice(["fruit", "tool"])
        words = [*generator.choices(FILLER[:10], k=2), generator.choice(LABEL_WORDS[kind])]
        number = {"fruit": "1", "tool": "2"}[kind]
        found[" ".join(words)] = f"\n#### {number}"
    return [{"question": prompt, "answer": completion} for prompt, completion in found.items()]


@pytest.fixture(scope="module")
def completion_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that has learned to answer with a number behind a mark."""
    world = open_world(tmp_path_factory.mktemp("completions"))
    data = {**SPLIT, "columns": {"prompt": "question", "completion": "answer"}}
    recipe = world.recipe(
        sums(160), task={"name": "causal-lm", "rows": "completion", "pattern": r"#### (\d+)"}, data=data,
        model={"scratch": {**SMALL, "architecture": "llama"}, "max_length": 40},
        train={"epochs": 14, "learning_rate": 5e-3, "schedule": "cosine", "eval_every": 56},
        generation={"max_new_tokens": 12, "validation_rows": 6},
    )  # fmt: skip
    return Job(recipe, world.folder / "out", Runtime(threads=1)).run()


def test_answers_are_judged_by_what_the_pattern_finds_in_them(completion_run: Run) -> None:
    report = evaluate(completion_run)
    split = data_of(completion_run).split("test")
    said = answers(completion_run, [{"question": row["prompt"]} for row in split.rows])
    assert not any(answer.get("unfinished") for answer in said), "it has learned where an answer ends"
    right = [
        answer["text"].rpartition("#### ")[2] == row["completion"].rpartition("#### ")[2]
        for answer, row in zip(said, split.rows, strict=True)
    ]
    assert report["metrics"]["answer-match"]["value"] == pytest.approx(sum(right) / len(right))
    assert sum(right) > 0.8 * len(right)
    assert report["baselines"]["copy-source"]["answer-match"]["value"] == 0
    assert report["without_answer"] == report["unfinished"] == 0
    assert report["metrics"]["perplexity"]["value"] < 1.5
    assert {"answer-match", "exact-match"} <= set(completion_run.manifest["metrics"])


def test_a_prompt_and_a_file_of_prompts_are_answered_as_they_were_learned(completion_run: Run, tmp_path: Path) -> None:
    tokenizer = open_run(completion_run, Runtime(threads=1)).tokenizer
    rows = sums(160)[:9]
    expected = [written_by_hand(completion_run, tokenizer.encode(row["question"]))[0] for row in rows]
    texts_alone = answers(completion_run, [row["question"] for row in rows])
    asking = Answering(completion_run, Runtime(threads=1))
    by_file = list(asking.file(write_jsonl(tmp_path / "asked.jsonl", rows)))
    for found in (texts_alone, by_file):
        assert [answer["text"] for answer in found] == expected
    again = evaluate(completion_run, source=write_jsonl(tmp_path / "rows.jsonl", rows), folder=tmp_path)
    assert again["rows"] == 9
    assert [sample["written"] for sample in again["samples"]] == expected
    assert [sample["wanted"] for sample in again["samples"]] == [row["answer"] for row in rows]


# -- conversations


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run from a decoder whose tokenizer has neither the template nor its tokens."""
    rows = [{"messages": say(row["question"], f"It is{row['answer'][-2:]}.")} for row in sums(60)]
    return make_run(
        open_world(tmp_path_factory.mktemp("chat")), rows, model={"max_length": 64}, train={"learning_rate": 1e-2},
        task={"name": "causal-lm", "rows": "messages", "template": "chatml", "pack": True},
        generation={"max_new_tokens": 4, "validation_rows": 3},
    )  # fmt: skip


def test_the_embeddings_grow_by_the_tokens_of_the_template(chat_run: Run) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(chat_run.model_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(chat_run.model_folder)
    known = len(byte_tokenizer())
    assert len(tokenizer) == known + 2
    assert model.config.vocab_size == known + 2
    assert model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == known + 2
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [known, known + 1]


def test_template_and_end_of_turn_are_saved_with_the_run(chat_run: Run) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(chat_run.model_folder)
    assert tokenizer.chat_template == TEMPLATES["chatml"].text
    saved = json.loads((chat_run.model_folder / "generation_config.json").read_text(encoding="utf-8"))
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert set(saved["eos_token_id"]) == ends
    assert saved["max_new_tokens"] == 4


def test_conversations_and_texts_are_answered_in_their_order(chat_run: Run) -> None:
    question, answer = say("my old plum", "It is 1.")
    bad = {"messages": [question, {"role": "narrator", "content": "Night falls."}]}
    longer = {"messages": say("my old plum", "It is 1.", "a big saw")}
    found = answers(
        chat_run,
        ["my old plum", {"messages": [question]}, bad, {"messages": [question, answer]}, longer, {"messages": []}],
    )
    assert [one["row"] for one in found] == [1, 2, 3, 4, 5, 6]
    assert [found[place].get("error") for place in (2, 5)] == ["unknown_role_in_messages", "missing_messages"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(chat_run.model_folder)
    for places, messages in (((0, 1, 3), [question]), ((4,), longer["messages"])):
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        text, finished = written_by_hand(chat_run, ids)
        for place in places:
            assert found[place]["text"] == text
            assert found[place].get("unfinished", False) == (not finished)


def test_a_conversation_with_two_answers_at_its_end_is_answered_alike_alone_and_in_company(chat_run: Run) -> None:
    twice = {"messages": [*say("my old plum", "It is 1."), {"role": "assistant", "content": "Or 2."}]}
    (alone,) = answers(chat_run, [twice])
    (beside, _) = answers(chat_run, [twice, "a big saw"])
    assert alone == beside


def test_a_question_that_fills_the_whole_context_is_answered_and_leaves_its_neighbours_as_they_are(
    chat_run: Run,
) -> None:
    long = "the big red saw near my old plum " * 20
    (alone,) = answers(chat_run, ["a big saw"])
    beside, cut = answers(chat_run, ["a big saw", long])
    assert beside == alone
    assert cut["text"]
    assert cut["truncated_tokens"] > 100


def test_a_file_of_conversations_is_scored_without_those_that_cannot_be_read(chat_run: Run, tmp_path: Path) -> None:
    report = evaluate(chat_run)
    rows: list[dict[str, Any]] = [{"messages": row["messages"]} for row in data_of(chat_run).split("test").rows]
    rows.insert(1, {"messages": say("Where?", " ")})
    rows.append({"messages": [{"role": "narrator", "content": "Night falls."}]})
    again = evaluate(chat_run, source=write_jsonl(tmp_path / "chats.jsonl", rows), folder=tmp_path)
    assert again["dropped_lines"] == {"blank_answer_in_messages": [2], "unknown_role_in_messages": [len(rows)]}
    for name, found in report["metrics"].items():
        assert again["metrics"][name]["value"] == pytest.approx(found["value"], rel=1e-5)
