"""Augmentation in the whole preparation: train alone grows, each new row says what it was made from and how."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from finetune.data.store import read_stream
from finetune.data.tagging import invalid_positions
from finetune.errors import FinetuneError
from finetune.prepare import preview_augmentation
from tests.conftest import FILLER
from tests.preparation.world import World, columns_of, digests, listing, plain_rows, tagged_rows

WORDS = {"operations": ["swap", "delete", {"name": "keyboard", "rate": 0.3}], "copies": 2}


def original(stored: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the columns of the rows that were there from the start."""
    kept = [place for place, origin in enumerate(stored["origin"]) if origin is None]
    return {name: [values[place] for place in kept] for name, values in stored.items()}


def test_train_alone_has_new_rows_behind_its_own(world: World) -> None:
    plain = world.prepare(plain_rows(60), folder="plain")
    data = world.prepare(plain_rows(60), data={"augment": WORDS})
    stored, before = columns_of(data, "train"), columns_of(plain, "train")
    made = [operation for operation in stored["operation"] if operation]
    assert {name: values for name, values in original(stored).items() if name in before} == before
    assert stored["origin"][: len(before["text"])] == [None] * len(before["text"])
    assert len(before["text"]) < len(made) <= 2 * len(before["text"])
    assert set(made) == {"swap", "delete", "keyboard"}
    for name in ("validation", "test"):
        assert {key: values for key, values in columns_of(data, name).items() if key in before} == columns_of(
            plain, name
        )
        assert not any(columns_of(data, name)["origin"])
    assert data.report["augmented"] == {"rows": len(made), "operations": dict(Counter(made).most_common())}
    assert data.manifest["splits"]["train"] == len(stored["text"])
    assert data.report["rows_kept"] == 60
    assert data.report["tokens"]["splits"]["train"]["total"] == sum(stored["length"])


def test_each_new_row_differs_from_the_row_that_it_names_and_keeps_its_label(world: World) -> None:
    data = world.prepare(plain_rows(60), data={"augment": WORDS})
    stored = columns_of(data, "train")
    rows = dict(zip(stored["line"], zip(stored["text"], stored["label"], strict=True), strict=False))
    rows |= {
        line: (text, label)
        for line, text, label, origin in zip(
            stored["line"], stored["text"], stored["label"], stored["origin"], strict=True
        )
        if origin is None
    }
    for text, label, origin, operation in zip(
        stored["text"], stored["label"], stored["origin"], stored["operation"], strict=True
    ):
        assert (origin is None) == (operation is None)
        if origin is not None:
            assert text != rows[origin][0]
            assert label == rows[origin][1]


def test_the_bytes_of_validation_and_test_are_those_of_another_augmentation(world: World) -> None:
    one = digests(world.prepare(plain_rows(60), data={"augment": WORDS}, folder="one").folder)
    two = digests(world.prepare(plain_rows(60), data={"augment": {"operations": ["case"]}}, folder="two").folder)
    assert [one[f"{name}.arrow"] == two[f"{name}.arrow"] for name in ("train", "validation", "test")] == [
        False,
        True,
        True,
    ]


def test_the_same_seed_makes_the_same_rows_and_another_one_others(world: World) -> None:
    one, two, three = (
        world.prepare(plain_rows(60), data={"augment": WORDS, "split": "hash"}, folder=f"f{n}", seed=seed)
        for n, seed in enumerate([7, 7, 8])
    )
    assert digests(one.folder) == digests(two.folder)
    assert columns_of(one, "test")["text"] == columns_of(three, "test")["text"]
    assert columns_of(one, "train")["text"] != columns_of(three, "train")["text"]


@pytest.mark.parametrize(("target", "copies"), [(1.0, 0), (0.5, 0), (1.0, 1)])
def test_rare_labels_are_brought_up_to_the_largest(world: World, target: float, copies: int) -> None:
    rows = plain_rows(100, ["tool", "tool", "tool", "tool", "fruit"])
    rows = [{**row, "body": f"{row['body']} {' '.join(FILLER)}"} for row in rows]  # enough words for as many new texts
    augment = {"operations": ["delete"], "balance": True, "target": target, "copies": copies}
    data = world.prepare(rows, data={"augment": augment})
    counts = Counter(columns_of(data, "train")["label"])
    before = Counter(original(columns_of(data, "train"))["label"])
    assert counts["tool"] == before["tool"] * (1 + copies)
    assert counts["fruit"] == target * counts["tool"] > before["fruit"] * (1 + copies)


def test_the_copies_of_a_row_differ_from_each_other(world: World) -> None:
    rows = [{**row, "body": f"{row['body']} {' '.join(FILLER)}"} for row in plain_rows(60)]
    data = world.prepare(rows, data={"augment": {"operations": ["keyboard", "delete"], "copies": 4}})
    texts = columns_of(data, "train")["text"]
    assert len(texts) == 5 * data.report["splits"]["train"]
    assert len(set(texts)) > 0.95 * len(texts)  # two draws may well meet


def test_balance_needs_one_label_a_row(world: World) -> None:
    augment = {"operations": ["swap"], "balance": True}
    with pytest.raises(FinetuneError, match=r"data\.augment\.balance"):
        world.prepare(tagged_rows(40), task="token-classification", data={"augment": augment})


def test_tags_follow_their_words(world: World) -> None:
    rows = tagged_rows(60)
    data = world.prepare(
        rows, task="token-classification", data={"augment": {**WORDS, "operations": ["swap", "delete"]}}
    )
    stored = columns_of(data, "train")
    for tokens, tags, targets in zip(stored["tokens"], stored["tags"], stored["label_ids"], strict=True):
        assert len(tokens) == len(tags) == sum(target != -100 for target in targets)
    assert len(stored["tokens"]) > 60
    for tokens, tags, origin in zip(stored["tokens"], stored["tags"], stored["origin"], strict=True):
        if origin is not None:  # the words of a row differ, so that each can be found again with its type
            before = types_by_word(rows[origin - 1]["tokens"], rows[origin - 1]["tags"])
            assert types_by_word(tokens, tags).items() <= before.items()
            assert invalid_positions(tags) == []


def types_by_word(tokens: list[str], tags: list[str]) -> dict[str, str]:
    return {token: tag[2:] for token, tag in zip(tokens, tags, strict=True)}


def test_pairs_and_their_targets_are_carried_along(world: World) -> None:
    rows = [
        {"text": row["body"], "text_pair": f"my big answer {n}", "score": n / 3} for n, row in enumerate(plain_rows(60))
    ]
    columns = {"text": "text", "text_pair": "text_pair"}
    data = world.prepare(rows, task="regression", data={"augment": WORDS, "columns": columns})
    stored = columns_of(data, "train")
    scores = {n + 1: n / 3 for n in range(60)}
    for origin, line, score in zip(stored["origin"], stored["line"], stored["score"], strict=True):
        assert score == scores[line] == scores[origin or line]


def test_rows_of_several_files_keep_their_file_when_they_are_copied(world: World) -> None:
    source = [world.write(plain_rows(60)[start : start + 30], f"part{start}.jsonl") for start in (0, 30)]
    stored = columns_of(world.prepare(data={"source": source, "augment": WORDS}), "train")
    originals = {
        (file, line)
        for file, line, origin in zip(stored["file"], stored["line"], stored["origin"], strict=True)
        if origin is None
    }
    assert {
        (file, origin) for file, origin in zip(stored["file"], stored["origin"], strict=True) if origin
    } <= originals


def test_what_rows_belong_together_by_and_answers_stand_in_is_left_as_it_is(world: World) -> None:
    rows = [
        {
            "context": f"{row['body']} and more of it",
            "question": f"what do you say of the {row['body']}",
            "answers": {"text": ["more of it"], "answer_start": [len(row["body"]) + 5]},
        }
        for row in plain_rows(60)
    ]
    words = {"operations": ["swap", "delete"], "copies": 2}
    stored = columns_of(world.prepare(rows, task="question-answering", data={"augment": words}), "train")
    made = [place for place, origin in enumerate(stored["origin"]) if origin is not None]
    assert len(made) > 60
    contexts = {row["context"] for row in rows}
    for place in made:
        context = stored["context"][place]
        assert context in contexts
        assert stored["question"][place] not in {row["question"] for row in rows}
        assert [context[answer["start"] :] for answer in stored["answers"][place]] == ["more of it"]


def test_without_augmentation_there_are_no_columns_for_it(world: World) -> None:
    names = read_stream(world.prepare(plain_rows(40)).folder / "train.arrow").column_names
    assert not {"origin", "operation"} & set(names)


def test_the_preview_shows_rows_that_will_be_made_and_writes_nothing(world: World) -> None:
    recipe = world.recipe(plain_rows(60), data={"augment": WORDS})
    before = listing(world.folder)
    shown = preview_augmentation(recipe, 12)
    assert listing(world.folder) == before
    assert len(shown) == 12
    stored = columns_of(world.prepare(plain_rows(60), data={"augment": WORDS}), "train")
    texts = dict(zip(reversed(stored["line"]), reversed(stored["text"]), strict=True))
    made = {
        (operation, texts[origin], text)
        for operation, origin, text in zip(stored["operation"], stored["origin"], stored["text"], strict=True)
        if origin is not None
    }
    assert set(shown) <= made


def test_a_preview_needs_an_augmentation(world: World) -> None:
    with pytest.raises(FinetuneError, match=r"data\.augment"):
        preview_augmentation(world.recipe(plain_rows(40)), 3)


def test_no_new_row_repeats_a_row_of_any_split_or_another_new_one(world: World) -> None:
    files = {
        "train": [{"body": "where is my new card", "intent": "a"}, {"body": "hello there", "intent": "b"}],
        "validation": [{"body": "where is my card", "intent": "a"}, {"body": "oh", "intent": "b"}],
        "test": [{"body": "where my new card", "intent": "a"}, {"body": "ah", "intent": "b"}],
    }
    source = {name: world.write(rows, f"{name}.jsonl") for name, rows in files.items()}
    augment = {"operations": ["delete"], "copies": 10}
    off = {"rare-labels": "off", "too-few-rows": "off"}
    data = world.prepare(data={"source": source, "augment": augment, "leaks": "report", "checks": off})
    texts = columns_of(data, "train")["text"]
    assert len(texts) == len(set(texts))
    assert {"where is my card", "where my new card"}.isdisjoint(texts)
    made = data.report["augmented"]
    assert made["rows"] == len(texts) - 2 > 0
    assert made["rows"] + made["not_made"] == 20


def test_what_could_not_be_made_is_said_again_when_only_tokens_are_made_anew(world: World) -> None:
    rows = [*plain_rows(40), *({"body": word, "intent": "fruit"} for word in ("no", "not", "never"))]
    settings: dict[str, Any] = {"augment": {"operations": ["delete"], "copies": 3}}
    first = world.prepare(rows, data=settings).report["augmented"]
    again = world.prepare(rows, data=settings, model={"max_length": 6}).report["augmented"]
    assert first["not_made"] > 0
    assert again == first


def test_an_augmentation_that_makes_little_is_a_finding(world: World) -> None:
    rows = [{"body": f"nein{number}", "intent": "ab"[number % 2]} for number in range(60)]
    augment = {"operations": ["synonyms"], "copies": 2}
    data = world.prepare(rows, data={"augment": augment})
    (found,) = [finding for finding in data.report["warnings"] if finding["check"] == "augmentation"]
    assert found["count"] == 2 * data.report["splits"]["train"]
    assert columns_of(data, "train")["operation"] == [None] * data.report["splits"]["train"]
