"""Writing texts: the same ones whatever their company, as the recipe says and the checkpoint does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from finetune.errors import RecipeError
from finetune.generation import Written, configure, sample_of, write_texts
from finetune.recipe import GenerationSection, load_recipe
from tests.conftest import RecipeMaker
from tests.tasks.written_world import BEGIN, END, PAD, SPECIAL, UNKNOWN, WORDS, bart, gpt2, llama, t5, word_tokenizer

PROMPTS = [[4, 5, 6], [30, 7], [8, 9, 10, 11, 12, 13, 14], [20], [16, 17, 18, 19, 20], [33, 34], [21, 4, 30, 12]]
TOKENIZER = word_tokenizer()
Settings = GenerationSection
deciders = pytest.mark.parametrize("build", [gpt2, llama, t5, bart])


def write(model: Any, prompts: Sequence[Sequence[int]], *, seed: int = 0, **settings: Any) -> list[Written]:
    context = settings.pop("context", None)
    section = Settings(**{"max_new_tokens": 8, **settings})
    return write_texts(model, TOKENIZER, prompts, section, seed=seed, context=context)


def tokens(text: str) -> list[int]:
    return [[*SPECIAL, *WORDS].index(word) for word in text.split()]


def going_on(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """Return the most probable next tokens, one at a time, without transformers' generate or any padding."""
    reads = model.config.is_encoder_decoder
    ids = [model.config.decoder_start_token_id] if reads else list(prompt)
    first = len(ids)
    for _ in range(count):
        given = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([ids])}
        with torch.no_grad():
            logits = model(**given).logits if reads else model(torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] == END:
            break
    return ids[first:]


# --- whatever the company


@deciders
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_each_prompt_is_gone_on_with_as_if_it_were_alone_and_in_its_place(
    build: Callable[[], Any], batch_size: int
) -> None:
    model = build()
    expected = [going_on(model, prompt, 8) for prompt in PROMPTS]
    found = write(model, PROMPTS, batch_size=batch_size)
    assert [one.text for one in found] == [TOKENIZER.decode(ids, skip_special_tokens=True) for ids in expected]
    assert [one.finished for one in found] == [ids[-1] == END for ids in expected]
    assert len({one.text for one in found}) >= len(PROMPTS) - 2, "a model that always writes the same shows nothing"


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_long_prompt_takes_no_room_from_the_others_in_its_batch(batch_size: int) -> None:
    model = gpt2(context=16)
    prompts = [[7, 8], [*range(5, 13)], [9, 10, 11, 12], [4] * 7]
    found = write(model, prompts, max_new_tokens=12, context=16, batch_size=batch_size)
    rooms = [12, 8, 12, 9]  # 16 less the prompt, at most 12
    expected = [going_on(model, prompt, room) for prompt, room in zip(prompts, rooms, strict=True)]
    assert [tokens(one.text) for one in found] == [[token for token in ids if token > END] for ids in expected]
    assert {len(ids) for ids in expected} == set(rooms), "choose other prompts: these come to an end before"


def test_a_prompt_that_leaves_no_room_loses_its_beginning_behind_its_first_token() -> None:
    model = gpt2(context=16)
    long = [BEGIN, *range(5, 25)]
    (found,) = write(model, [long], max_new_tokens=4, context=16)
    kept = [BEGIN, *long[-11:]]
    assert tokens(found.text) == [token for token in going_on(model, kept, 4) if token > END]
    assert (found.finished, found.cut) == (False, 9)
    (half,) = write(model, [long], max_new_tokens=40, context=16)
    assert half.cut == 13, "at least half of the context is left to the prompt"
    assert len(tokens(half.text)) <= 8
    (whole,) = write(model, [[5] * 12], max_new_tokens=4, context=16)
    assert whole.cut == 0


def test_an_encoder_with_a_decoder_writes_as_far_as_its_positions_reach() -> None:
    model = bart()
    model.generation_config.suppress_tokens = [PAD, UNKNOWN, BEGIN, END]
    (found,) = write(model, [[5, 6, 7]], max_new_tokens=100, context=64)
    assert (len(tokens(found.text)), found.finished, found.cut) == (63, False, 0)


@deciders
def test_the_words_of_a_text_are_told_as_they_come_text_after_text(build: Callable[[], Any]) -> None:
    model = build()
    pieces: list[str] = []
    silent = write(model, PROMPTS)
    told = write_texts(model, TOKENIZER, PROMPTS, Settings(max_new_tokens=8), seed=0, on_piece=pieces.append)
    assert told == silent
    assert [line.strip() for line in "".join(pieces).splitlines()] == [one.text for one in told]
    assert len(pieces) > 2 * len(PROMPTS), "not each text at once"


def test_no_prompts_are_no_texts() -> None:
    assert write(gpt2(), []) == []


# --- sampling


@deciders
def test_sampling_repeats_with_its_seed_alone(build: Callable[[], Any]) -> None:
    model = build()
    torch.manual_seed(1)
    first = write(model, PROMPTS, seed=3, sample=True)
    torch.manual_seed(2)
    assert write(model, PROMPTS, seed=3, sample=True) == first
    assert write(model, PROMPTS, seed=4, sample=True) != first
    assert write(model, PROMPTS) != first


@pytest.mark.parametrize("sample", [True, False])
def test_writing_leaves_the_global_generator_as_it_was(*, sample: bool) -> None:
    model = gpt2()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    write(model, PROMPTS, sample=sample)
    assert torch.equal(torch.get_rng_state(), before)


def test_temperature_and_the_most_probable_tokens_arrive() -> None:
    model, prompts = gpt2(), PROMPTS * 4
    greedy = write(model, prompts)
    assert write(model, prompts, sample=True, temperature=1e-4) == greedy
    assert write(model, prompts, sample=True, top_k=1) == greedy
    assert write(model, prompts, sample=True, top_p=1e-4) == greedy
    assert write(model, prompts, sample=True, top_k=2) != greedy


# --- settings


def test_a_checkpoints_own_search_and_lengths_are_not_used() -> None:
    plain, changed = bart(), bart()
    changed.generation_config = GenerationConfig(
        max_length=3, max_new_tokens=2, min_length=7, num_beams=3, no_repeat_ngram_size=1, do_sample=True, top_k=3,
        temperature=2.0, repetition_penalty=3.0, early_stopping=True, decoder_start_token_id=END, pad_token_id=PAD,
        eos_token_id=END, bos_token_id=BEGIN, num_return_sequences=2,
    )  # fmt: skip
    assert write(changed, PROMPTS) == write(plain, PROMPTS)
    assert write(changed, PROMPTS, beams=2) == write(plain, PROMPTS, beams=2)
    kept = changed.generation_config.to_diff_dict()
    assert not {"max_length", "min_length", "no_repeat_ngram_size", "top_k", "temperature"} & kept.keys()


def test_the_tokens_that_a_checkpoint_begins_with_stay() -> None:
    model = bart()
    word = WORDS.index("storm") + len(SPECIAL)
    model.generation_config.forced_bos_token_id = word
    assert {one.text.split()[0] for one in write(model, PROMPTS)} == {"storm"}
    started = bart()
    started.generation_config.decoder_start_token_id = word
    texts = write(started, PROMPTS)
    assert texts != write(bart(), PROMPTS)
    assert started.generation_config.decoder_start_token_id == word
    other = bart(decoder_start_token_id=word)
    assert [one.text for one in texts] == [
        TOKENIZER.decode(going_on(other, prompt, 8), skip_special_tokens=True) for prompt in PROMPTS
    ]


def test_more_ends_stop_a_text_and_are_no_part_of_it() -> None:
    model = gpt2()
    whole = going_on(model, PROMPTS[0], 8)
    assert END not in whole
    place = next(place for place, token in enumerate(whole) if place > 1 and token not in whole[:place])
    configure(model, TOKENIZER, Settings(), 0, [whole[place]])
    assert model.generation_config.eos_token_id == [END, whole[place]]
    (found,) = write(model, PROMPTS[:1])
    assert (tokens(found.text), found.finished) == (whole[:place], True)
    configure(model, TOKENIZER, Settings(), 0, [END])
    assert model.generation_config.eos_token_id == [END, whole[place]], "no end is named twice, and none is lost"


def test_a_model_that_names_no_end_has_the_tokenizers() -> None:
    model = gpt2()
    model.generation_config.eos_token_id = None
    write(model, PROMPTS[:1])
    assert model.generation_config.eos_token_id == END
    assert model.generation_config.pad_token_id == PAD


def test_the_end_that_is_learned_ends_a_text_whatever_end_a_checkpoint_names() -> None:
    """Behind every target is the tokenizer's end of text; a model that learned it stops there."""
    model = t5()
    model.generation_config.eos_token_id = 30
    configure(model, TOKENIZER, Settings(), 0)
    found = model.generation_config.eos_token_id
    assert set(found if isinstance(found, list) else [found]) == {30, END}


def test_a_text_that_reaches_the_limit_is_not_finished_even_if_its_checkpoint_forces_an_end_there() -> None:
    model = bart(forced_eos_token_id=END)
    assert going_on(model, PROMPTS[0], 4)[-1] != END
    (found,) = write(model, PROMPTS[:1], max_new_tokens=4)
    assert not found.finished


def test_the_fewest_tokens_are_written_before_an_end_is() -> None:
    model = gpt2()
    first, *_ = going_on(model, PROMPTS[0], 1)
    configure(model, TOKENIZER, Settings(), 0, [first])
    assert write(model, PROMPTS[:1]) == [Written("", finished=True)]
    (longer,) = write(model, PROMPTS[:1], min_new_tokens=5)
    assert len(longer.text.split()) >= 5
    assert first not in tokens(longer.text)[:5]


def test_no_sequence_of_tokens_is_repeated() -> None:
    def repeated(found: list[Written]) -> int:
        bigrams = [list(pairwise(tokens(one.text))) for one in found]
        return sum(len(one) - len(set(one)) for one in bigrams)

    model = llama(max_position_embeddings=64)
    model.generation_config.suppress_tokens = [PAD, UNKNOWN, BEGIN]  # decoding would leave them out, and join the rest
    assert repeated(write(model, PROMPTS, max_new_tokens=40)) > 0
    assert repeated(write(model, PROMPTS, max_new_tokens=40, no_repeat_ngram=2, batch_size=1)) == 0


def test_several_beams_find_a_more_probable_text() -> None:
    def log_probability(prompt: list[int], written: list[int]) -> float:
        ids = torch.tensor([[*prompt, *written]])
        with torch.no_grad():
            scores = torch.log_softmax(model(ids).logits[0, len(prompt) - 1 : -1], dim=-1)
        return float(scores.gather(1, torch.tensor([written]).T).sum())

    model = gpt2()
    found = {beams: write(model, PROMPTS, beams=beams, max_new_tokens=4, min_new_tokens=4) for beams in (1, 4)}
    assert found[1] != found[4]
    sums = {
        beams: sum(
            log_probability(prompt, tokens(one.text))
            for prompt, one in zip(PROMPTS, texts, strict=True)
            if len(tokens(one.text)) == 4
        )
        for beams, texts in found.items()
    }
    assert all(len(tokens(one.text)) == 4 for texts in found.values() for one in texts)
    assert sums[4] > sums[1]


SETTINGS: dict[str, Any] = {
    "max_new_tokens": 9, "min_new_tokens": 2, "beams": 3, "length_penalty": 0.5, "no_repeat_ngram": 2,
    "repetition_penalty": 1.5, "sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9,
}  # fmt: skip


def test_every_setting_stands_in_the_models_own_configuration(tmp_path: Path) -> None:
    model = bart()
    configure(model, TOKENIZER, Settings(**SETTINGS), 11)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    names = {"beams": "num_beams", "no_repeat_ngram": "no_repeat_ngram_size", "sample": "do_sample"}
    assert {names.get(name, name): value for name, value in SETTINGS.items()}.items() <= saved.items()
    own = {"decoder_start_token_id": END, "eos_token_id": END, "bos_token_id": BEGIN, "pad_token_id": PAD}
    assert own.items() <= saved.items()


def test_a_report_names_the_settings_that_decide_a_text() -> None:
    assert Settings(max_new_tokens=5).deciding(3) == {"max_new_tokens": 5, "beams": 1, "sample": False}
    assert Settings(**SETTINGS).deciding(3) == {**SETTINGS, "seed": 3, "batch_size": 32}
    assert Settings(sample=True, seed=8).deciding(3)["seed"] == 8
    assert Settings(batch_size=1).deciding(3) == Settings().deciding(4), "they decide only what is drawn"


# --- the sample of validation rows


def test_the_rows_written_during_training_are_always_the_same_and_in_order() -> None:
    chosen = sample_of(1000, 20, seed=3)
    assert chosen == sample_of(1000, 20, seed=3) == sorted(set(chosen))
    assert len(chosen) == 20
    assert max(chosen) > 500, "not just the first rows"
    assert chosen != sample_of(1000, 20, seed=4)
    assert sample_of(5, 20, seed=3) == sample_of(5, 5, seed=3) == [0, 1, 2, 3, 4]


# --- the recipe


SEQ2SEQ: dict[str, Any] = {"task": "seq2seq", "data": {"columns": {"source": "body", "target": "intent"}}}
TEXT = {"name": "random", "train": 0.6, "validation": 0.2, "test": 0.2}


@pytest.mark.parametrize(
    ("sections", "place", "message"),
    [
        ({"generation": {"temperature": 0.5}}, "generation.temperature", "for sampling alone; add `sample: true`"),
        ({"generation": {"top_k": 5}}, "generation.top_k", "for sampling alone"),
        ({"generation": {"top_p": 0.5}}, "generation.top_p", "for sampling alone"),
        ({"generation": {"seed": 5}}, "generation.seed", "for sampling alone"),
        ({"generation": {"length_penalty": 2.0}}, "generation.length_penalty", "for several beams alone; set `beams`"),
        (
            {"generation": {"min_new_tokens": 9, "max_new_tokens": 8}},
            "generation.min_new_tokens",
            r"expected at most max_new_tokens \(8\)",
        ),
        ({"generation": {"beam": 5}}, "generation.beam", "unknown setting, did you mean beams"),
        ({"generation": {"top_p": 1.5, "sample": True}}, "generation.top_p", "less than or equal to 1"),
        (
            {"generation": {"beams": 4}, "task": "text-classification", "data": {}},
            "generation",
            "text-classification writes no texts; remove it",
        ),
        ({"quantize": "onnx-int8"}, "quantize", "can quantize what seq2seq trains, a model that writes texts"),
        (
            {"generation": {"validation_rows": 0}, "train": {"early_stopping": {"metric": "rougeL"}}},
            "generation.validation_rows",
            "expected 1 or more, since train.early_stopping judges by rougeL",
        ),
        ({"metrics": ["accuracy"]}, "metrics", "accuracy does not judge what seq2seq predicts"),
        ({"model": {"overflow": "window"}}, "model.overflow", "seq2seq reads no text in windows"),
    ],
)
def test_settings_without_an_effect_are_refused_where_they_stand(
    make_recipe: RecipeMaker, sections: dict[str, Any], place: str, message: str
) -> None:
    path = make_recipe(**{**SEQ2SEQ, **sections, "data": {"split": TEXT, **sections.get("data", SEQ2SEQ["data"])}})
    with pytest.raises(RecipeError, match=message) as raised:
        load_recipe(path)
    assert place in str(raised.value)


def test_several_problems_of_writing_are_told_at_once(make_recipe: RecipeMaker) -> None:
    path = make_recipe(
        task="seq2seq",
        data={"columns": {"source": "body", "target": "intent"}, "split": TEXT},
        generation={"temperature": 0.5, "length_penalty": 2.0, "min_new_tokens": 200},
    )
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    for name in ("temperature", "length_penalty", "min_new_tokens"):
        assert f"generation.{name}" in str(raised.value)


@pytest.mark.parametrize(
    "sections",
    [
        {"generation": {"validation_rows": 0}},
        {"generation": {"validation_rows": 0}, "train": {"early_stopping": {"metric": "perplexity"}}},
        {"generation": {"sample": True, "temperature": 0.5, "seed": 2}},
        {"generation": {"beams": 4, "length_penalty": 2.0}},
    ],
)
def test_settings_with_an_effect_are_accepted(make_recipe: RecipeMaker, sections: dict[str, Any]) -> None:
    data = {"columns": {"source": "body", "target": "intent"}, "split": TEXT}
    recipe = load_recipe(make_recipe(task="seq2seq", data=data, **sections))
    assert recipe.generation == Settings(**sections["generation"])
    assert load_recipe(make_recipe(file="again.yaml", **recipe.resolved())) == recipe
