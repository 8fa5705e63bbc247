"""Answers found in their contexts, before and after cleaning, and contexts cut into windows around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune.data.cleaning import Pipeline
from finetune.data.contexts import encode_contexts, keep_answers, read_answers
from finetune.data.tokenization import Encoder, Limits
from finetune.errors import FinetuneError
from tests.tasks.question_world import pair_tokenizer, question_rows

CONTEXT = "The red saw, then a saw of old."


@pytest.mark.parametrize(
    "value",
    [
        {"text": ["saw"], "answer_start": [20]},
        {"text": "saw", "answer_start": 20},
        [{"text": "saw", "answer_start": 20}],
        [{"text": "saw", "start": 20}],
    ],
)
def test_answers_are_read_in_every_form_with_their_place(value: Any) -> None:
    assert read_answers(value, CONTEXT) == ([{"text": "saw", "start": 20}], "")


@pytest.mark.parametrize("value", ["saw", ["saw"], {"text": ["saw"]}, [{"text": "saw"}]])
def test_an_answer_without_a_place_stands_where_the_context_has_it_first(value: Any) -> None:
    assert read_answers(value, CONTEXT) == ([{"text": "saw", "start": 8}], "")


@pytest.mark.parametrize("value", [None, "", "  ", [], {"text": [], "answer_start": []}])
def test_no_answer_is_an_answer(value: Any) -> None:
    assert read_answers(value, CONTEXT) == ([], "")


def test_all_true_answers_are_kept_in_their_order() -> None:
    value = {"text": ["a saw of old", "saw", "saw"], "answer_start": [18, 20, 20]}
    answers, reason = read_answers(value, CONTEXT)
    assert [(answer["text"], answer["start"]) for answer in answers] == [("a saw of old", 18), ("saw", 20), ("saw", 20)]
    assert not reason


@pytest.mark.parametrize(
    "value",
    [
        "drill",
        {"text": ["saw"], "answer_start": [9]},
        {"text": ["saw", "red"], "answer_start": [8, 5]},
        {"text": ["old."], "answer_start": [-4]},  # no place counts from the end
        {"text": [" "], "answer_start": [3]},
        {"text": ["saw"], "answer_start": [2000]},
    ],
)
def test_an_answer_that_is_not_in_its_context_is_named_so(value: Any) -> None:
    assert read_answers(value, CONTEXT) == ([], "answer_not_in_context")


@pytest.mark.parametrize(
    "value",
    [7, True, {"text": ["saw"], "answer_start": [8, 20]}, {"text": ["saw"], "answer_start": ["8"]}, {"answer": "saw"},
     [{"text": 3, "start": 0}], {"text": ["saw"], "answer_start": 8}, {"text": ["saw"], "answer_start": [True]}],
)  # fmt: skip
def test_a_value_of_another_form_is_named_so(value: Any) -> None:
    assert read_answers(value, CONTEXT) == ([], "wrong_type_of_answers")


def kept(before: str, text: str, start: int, *cleaners: str) -> tuple[str, Any, str]:
    """Return the cleaned context, what stands at the answer's new place, and the reason if it has none."""
    clean = Pipeline([(name, {}) for name in cleaners])
    assert before.startswith(text, start)
    after = clean(before)
    answers, reason = keep_answers([{"text": text, "start": start}], before, after, clean)
    return after, [(answer["start"], answer["text"]) for answer in answers], reason


def test_an_answer_moves_with_its_context() -> None:
    before = "  The  <b>red</b> saw &amp; the\n\nold saw.  "
    for text, new in (("red", "red"), ("saw &amp; the\n\nold", "saw & the old"), ("old", "old")):
        after, found, reason = kept(before, text, before.index(text), "html", "whitespace")
        assert (found, reason) == ([(after.index(new), new)], "")


def test_of_equal_answers_the_same_one_is_found_again() -> None:
    before = "a  saw, a   saw, and a saw"
    places = [3, 12, 23]
    after = "a saw, a saw, and a saw"
    for place, new in zip(places, [2, 9, 20], strict=True):
        assert kept(before, "saw", place, "whitespace") == (after, [(new, "saw")], "")


def test_a_cleaner_that_reads_the_whole_text_is_followed_by_counting() -> None:
    before = "the saw, the saw"

    def clean(text: str) -> str:  # what becomes of the beginning depends on how the text ends
        return text.replace(",", " and") if text == before else text.upper()

    def place(start: int, after: str) -> tuple[Any, str]:
        return keep_answers([{"text": "saw", "start": start}], before, after, lambda text: clean(text).lower())

    assert place(4, "old the saw and the saw") == ([{"text": "saw", "start": 8}], "")
    assert place(13, "old the saw and the saw") == ([{"text": "saw", "start": 20}], "")
    assert place(13, "old the saw and the saw saw") == ([], "answer_lost_in_cleaning")  # which one would be a guess


def test_an_answer_is_found_by_what_stands_before_it_when_cleaning_makes_more_of_the_same() -> None:
    after, found, reason = kept("a saw beside a s<b>aw</b>", "saw", 2, "html")
    assert (after, found, reason) == ("a saw beside a saw", [(2, "saw")], "")


def test_an_answer_that_cleaning_takes_is_lost_and_named_so() -> None:
    before = "Write to <i>old@saw.com</i> today"
    assert kept(before, "<i>", 9, "html")[1:] == ([], "answer_lost_in_cleaning")


def test_windows_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = pair_tokenizer(tmp_path)
    rows = question_rows(40, longest=60)
    questions, contexts = [row["question"] for row in rows], [row["context"] for row in rows]
    for limits in (Limits(24, "window", 5), Limits(24, "window", 0), Limits(40, "window", 16), Limits(24)):
        encoded = encode_contexts(Encoder.of(tokenizer, limits), questions, contexts, None, max_question_length=64)
        cutting = {"stride": limits.stride, "return_overflowing_tokens": True} if limits.windows else {}
        expected = tokenizer(questions, contexts, truncation="only_second", max_length=limits.max_length, **cutting)
        for name in ("input_ids", "token_type_ids"):
            found = encoded.features[name].to_pylist()
            flat = [window for row in found for window in row] if limits.windows else found
            assert flat == expected[name]
        whole = [len(ids) for ids in tokenizer(questions, contexts)["input_ids"]]
        assert encoded.whole_lengths.tolist() == whole
        over = [0 if limits.windows else max(0, length - limits.max_length) for length in whole]
        assert encoded.tokens_lost.tolist() == over
        assert encoded.text_tokens == sum(whole) - 3 * len(rows)


def test_a_context_is_cut_on_the_side_on_which_the_tokenizer_cuts(tmp_path: Path) -> None:
    tokenizer = pair_tokenizer(tmp_path)
    tokenizer.truncation_side = "left"
    encoder, context = Encoder.of(tokenizer, Limits(10)), "the old saw and a new saw today"
    encoded = encode_contexts(encoder, ["my plum"], [context], None, max_question_length=64)
    expected = tokenizer("my plum", context, truncation="only_second", max_length=10)
    assert encoded.features["input_ids"].to_pylist() == [expected["input_ids"]]
    places = zip(*(encoded.features[f"context_{name}"].to_pylist()[0] for name in ("starts", "ends")), strict=True)
    assert " ".join(context[start:end] for start, end in places if start >= 0) == "and a new saw today"


def test_each_token_knows_its_characters_of_the_context(tmp_path: Path) -> None:
    rows = question_rows(20, longest=50)
    encoder = Encoder.of(pair_tokenizer(tmp_path), Limits(24, "window", 5))
    encoded = encode_contexts(
        encoder, [row["question"] for row in rows], [row["context"] for row in rows], None, max_question_length=64
    )
    starts, ends = (encoded.features[f"context_{name}"].to_pylist() for name in ("starts", "ends"))
    for row, row_starts, row_ends in zip(rows, starts, ends, strict=True):
        places = {
            (start, end)
            for window_starts, window_ends in zip(row_starts, row_ends, strict=True)
            for start, end in zip(window_starts, window_ends, strict=True)
            if start >= 0
        }
        assert [row["context"][start:end] for start, end in sorted(places)] == row["context"].split()


@pytest.mark.parametrize(("answer", "place"), [("saw", 5), ("(saw)", 4), ("s", 5), ("aw) n", 6), (")", 8)])
def test_the_answers_tokens_are_those_that_share_a_character_with_it(tmp_path: Path, answer: str, place: int) -> None:
    """Signs that touch an answer are not part of it, and a token that it cuts is."""
    context = "the (saw) new"
    assert context.startswith(answer, place)
    encoder = Encoder.of(pair_tokenizer(tmp_path), Limits(21))
    answers = [[{"text": answer, "start": place}]]
    encoded = encode_contexts(encoder, ["old"], [context], answers, max_question_length=64)
    starts, ends, span = (
        encoded.features[name].to_pylist()[0] for name in ("context_starts", "context_ends", "answer_span")
    )
    assert [context[start:end] for start, end in zip(starts, ends, strict=True) if end > 0] == [
        "the", "(", "saw", ")", "new",
    ]  # fmt: skip
    sharing = [
        token
        for token, (start, end) in enumerate(zip(starts, ends, strict=True))
        if start < place + len(answer) and end > place
    ]
    assert span == [sharing[0], sharing[-1]]


def test_an_answer_that_no_window_sees_whole_is_counted_as_lost(tmp_path: Path) -> None:
    tokenizer = pair_tokenizer(tmp_path)
    context = " ".join(["the"] * 30 + ["apple"])
    answers = [[{"text": "apple", "start": context.index("apple")}], [{"text": "the", "start": 0}], [], [{"text": context, "start": 0}]]  # fmt: skip  # noqa: E501
    for limits, lost in ((Limits(20), [1, 0, 0, 1]), (Limits(20, "window", 4), [0, 0, 0, 1]), (Limits(60), [0] * 4)):
        encoded = encode_contexts(
            Encoder.of(tokenizer, limits), ["my saw"] * 4, [context] * 4, answers, max_question_length=64
        )
        assert encoded.entities_lost is not None
        assert encoded.entities_lost.tolist() == lost


def test_a_long_question_is_cut_to_its_room_and_the_loss_is_counted(tmp_path: Path) -> None:
    tokenizer = pair_tokenizer(tmp_path)
    encoder = Encoder.of(tokenizer, Limits(21, "window", 2))
    for most, room in ((64, 9), (4, 4)):  # half of the 18 tokens beside the special ones, or the most
        encoded = encode_contexts(encoder, ["red saw " * 8], ["old " * 30], None, max_question_length=most)
        assert encoded.tokens_lost.tolist() == [16 - room]
        assert encoded.whole_lengths.tolist() == [16 + 30 + 3]
        windows = encoded.features["input_ids"].to_pylist()[0]
        question = tokenizer("red saw " * 8, add_special_tokens=False)["input_ids"][:room]
        assert all(window[1 : room + 1] == question and len(window) <= 21 for window in windows)
        assert sum(len(window) - room - 3 for window in windows) == 30 + 2 * (len(windows) - 1)


def test_a_length_without_room_for_question_and_context_is_refused(tmp_path: Path) -> None:
    tokenizer = pair_tokenizer(tmp_path)
    with pytest.raises(FinetuneError, match=r"model\.max_length.*3 special tokens.*found 4"):
        encode_contexts(Encoder.of(tokenizer, Limits(4)), ["saw"], ["old"], None, max_question_length=64)
    with pytest.raises(FinetuneError, match=r"model\.stride: expected less than 9 .*found 9"):
        encode_contexts(Encoder.of(tokenizer, Limits(21, "window", 9)), ["saw"], ["old"], None, max_question_length=64)


def test_a_tokenizer_without_places_is_refused(tmp_path: Path) -> None:
    encoder = Encoder.of(pair_tokenizer(tmp_path), Limits(21))
    slow = Encoder(encoder.limits, encoder.unknown_id, encoder.wants_types, "right", _slow=object())
    with pytest.raises(FinetuneError, match="fast tokenizer"):
        encode_contexts(slow, ["saw"], ["old"], None, max_question_length=64)


def test_a_context_without_any_token_is_one_window(tmp_path: Path) -> None:
    encoder = Encoder.of(pair_tokenizer(tmp_path), Limits(21, "window", 2))
    encoded = encode_contexts(encoder, ["saw", "saw"], ["", "old"], [[], []], max_question_length=64)
    assert encoded.features["context_starts"].to_pylist() == [[[-1] * 4], [[-1, -1, -1, 0, -1]]]
    assert encoded.features["answer_span"].to_pylist() == [[[0, 0]], [[0, 0]]]
