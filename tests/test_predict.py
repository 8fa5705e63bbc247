"""Asking a run: one answer for each text, in order, with errors in their places."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune import predict
from finetune.artifacts import Run
from finetune.data.sources import Record, read
from finetune.inference import open_run
from finetune.predict import Answering
from finetune.runtime import Runtime
from tests.conftest import make_rows, write_jsonl
from tests.test_evaluate import train_tiny_run

CPU = Runtime(device="cpu", threads=1)
LABELS = ["fruit", "tool", "weather"]
TEXTS = [row["body"] for row in make_rows(8, seed=4)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Run:
    return train_tiny_run(tmp_path_factory.mktemp("asked"), tiny_model)


@pytest.fixture(scope="module")
def answering(run: Run) -> Answering:
    return Answering(run, CPU)


def records(*bodies: Any) -> list[Record]:
    return [Record(10 * number, {"body": body}) for number, body in enumerate(bodies, start=1)]


def test_an_answer_has_a_label_its_probability_and_all_probabilities(answering: Answering) -> None:
    (answer,) = answering.texts(["the old apple"])
    assert list(answer) == ["row", "label", "probability", "probabilities"]
    assert answer["row"] == 1
    assert list(answer["probabilities"]) == LABELS
    assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert answer["probability"] == answer["probabilities"][answer["label"]]


def test_probabilities_add_up_to_1(answering: Answering) -> None:
    for answer in answering.texts(TEXTS):
        assert all(0 <= value <= 1 for value in answer["probabilities"].values())
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=2e-6)


def test_answers_come_in_the_order_of_the_texts(answering: Answering) -> None:
    forward = list(answering.texts(TEXTS))
    backward = list(answering.texts(TEXTS[::-1]))
    assert [answer["row"] for answer in forward] == list(range(1, len(TEXTS) + 1))
    for one, other in zip(forward, backward[::-1], strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    assert len({json.dumps(answer["probabilities"]) for answer in forward}) == len(TEXTS)  # no two are mixed up


def test_a_text_gets_the_same_answer_alone_and_among_others(answering: Answering) -> None:
    together = list(answering.texts(TEXTS))
    for text, expected in zip(TEXTS, together, strict=True):
        (alone,) = answering.texts([text])
        assert alone["label"] == expected["label"]
        assert alone["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


def test_the_answers_are_the_models_own(run: Run, answering: Answering) -> None:
    import torch

    predictor = open_run(run, CPU)
    for text, answer in zip(TEXTS[:3], answering.texts(TEXTS[:3]), strict=True):
        with torch.inference_mode():
            logits = predictor.model(**predictor.tokenizer(text, return_tensors="pt")).logits[0]
        assert list(answer["probabilities"].values()) == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)


def test_a_record_without_usable_text_gives_an_error_in_its_place(answering: Answering) -> None:
    asked = [
        *records("the apple", "", " \t\n", None, 7, ["a", "list"], True, "<p></p>", "a saw"),
        Record(1, {"other": "the apple"}),
        Record(2, {}, "not_json"),
        *records("rain"),
    ]
    answers = list(answering.records(asked))
    assert [answer["row"] for answer in answers] == list(range(1, 13))
    assert [answer.get("error", answer.get("label")) for answer in answers] == [
        answers[0]["label"],
        "blank_text",
        "blank_text",
        "missing_text",
        "wrong_type_of_text",
        "wrong_type_of_text",
        "wrong_type_of_text",
        "nothing_left_after_cleaning_text",
        answers[8]["label"],
        "missing_text",
        "not_json",
        answers[11]["label"],
    ]
    assert answers[1] == {"row": 2, "error": "blank_text"}
    assert {answers[n]["label"] for n in (0, 8, 11)} <= set(LABELS)


def test_an_error_does_not_move_the_answers_after_it(answering: Answering) -> None:
    plain = list(answering.texts(TEXTS[:4]))
    mixed = list(answering.texts(["", TEXTS[0], " ", TEXTS[1], TEXTS[2], "", TEXTS[3]]))
    for expected, place in zip(plain, (1, 3, 4, 6), strict=True):
        assert mixed[place]["row"] == place + 1
        assert mixed[place]["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


def test_nothing_but_errors_and_nothing_at_all_are_answered_too(answering: Answering) -> None:
    assert list(answering.texts(["", " "])) == [{"row": 1, "error": "blank_text"}, {"row": 2, "error": "blank_text"}]
    assert list(answering.texts([])) == []


def test_texts_are_cleaned_as_the_runs_own_rows_were(answering: Answering) -> None:
    dirty, clean = answering.texts(["<p>the&nbsp;old <b>apple</b></p>", "the old apple"])
    assert dirty["probabilities"] == pytest.approx(clean["probabilities"], abs=1e-6)


def test_lines_may_be_json_or_plain_text(answering: Answering) -> None:
    lines = [
        '{"body": "the old apple", "id": 3}\n',
        "the old apple\r\n",
        '  {"body": "the old apple"}',
        "\n",
        '{"body": null}',
        '{"body": 4}',
        '{"other": "the old apple"}',
        "{not json",
        '["the old apple"]',
        "the old apple",
    ]
    answers = list(answering.lines(lines))
    assert [answer["row"] for answer in answers] == list(range(1, 11))
    assert {n + 1: answer["error"] for n, answer in enumerate(answers) if "error" in answer} == {
        4: "blank_text",
        5: "missing_text",
        6: "wrong_type_of_text",
        7: "missing_text",
    }
    for place in (1, 2, 9):
        assert answers[place]["probabilities"] == pytest.approx(answers[0]["probabilities"], abs=1e-5)
    literal = list(answering.texts(["{not json", '["the old apple"]']))
    for expected, found in zip(literal, answers[7:9], strict=True):  # a line that is no record is a text as it stands
        assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


def test_a_file_of_rows_is_read_by_the_runs_own_columns(answering: Answering, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "new.jsonl", [{"body": TEXTS[0], "intent": "?"}, {"intent": "fruit"}])
    with path.open("a", encoding="utf-8") as stream:
        stream.write("oops\n")
    answers = list(answering.records(read(path)))
    assert answers[0]["label"] in LABELS
    assert answers[1:] == [{"row": 2, "error": "missing_text"}, {"row": 3, "error": "not_json"}]


def test_a_text_that_is_cut_says_how_many_tokens_it_lost(answering: Answering) -> None:
    fits, cut, far = answering.texts(["the " * 14, "the " * 15, "the " * 60])  # 16 tokens, 2 of them special
    assert "truncated_tokens" not in fits
    assert (cut["truncated_tokens"], far["truncated_tokens"]) == (1, 46)
    assert far["probabilities"] == pytest.approx(fits["probabilities"], abs=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_the_size_of_the_chunks_changes_no_answer(
    answering: Answering, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    texts = [*TEXTS[:3], "", *TEXTS[3:6]]
    expected = list(answering.texts(texts))
    monkeypatch.setattr(predict, "CHUNK_ROWS", rows)
    found = list(answering.texts(texts))
    assert [answer["row"] for answer in found] == [answer["row"] for answer in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.get("error") == other.get("error")
        assert one.get("probabilities", {}) == pytest.approx(other.get("probabilities", {}), abs=1e-5)


def test_answers_are_given_chunk_by_chunk_while_texts_still_come(
    answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "CHUNK_ROWS", 2)
    taken: list[int] = []

    def endless() -> Iterator[str]:
        while True:
            taken.append(1)
            yield "the apple"

    answers = answering.texts(endless())
    assert [next(answers)["row"] for _ in range(3)] == [1, 2, 3]
    assert len(taken) == 4


def test_odd_unicode_is_answered(answering: Answering) -> None:
    answers = list(answering.texts(["half \ud83d a pair", "\u202eapple", "a\x00b", "你好 👋", "\ufeff"]))
    assert all(answer["label"] in LABELS for answer in answers)
    assert json.dumps(answers, ensure_ascii=False).encode("utf-8")


def test_asking_changes_no_file_and_no_random_number(run: Run, answering: Answering) -> None:
    import torch

    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    torch.manual_seed(1)
    expected = torch.rand(3).tolist()
    torch.manual_seed(1)
    list(answering.texts(TEXTS[:2]))
    assert torch.rand(3).tolist() == expected
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before
