"""Tokenization: ids without padding, and a count of what was cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune.data.tokenization import tokenize

THE, A, MY, YOUR = 5, 6, 7, 8  # the first words of the tiny tokenizer's vocabulary
UNKNOWN, START, END = 1, 2, 3


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def test_ids_have_no_padding_and_zero_segments_and_masks_are_left_out(tokenizer: Any) -> None:
    features, lost = tokenize(tokenizer, ["the a", "my", "zebra the"], 8)
    assert features == {"input_ids": [[START, THE, A, END], [START, MY, END], [START, UNKNOWN, THE, END]]}
    assert lost == [0, 0, 0]


def test_a_long_text_is_cut_and_its_lost_tokens_are_counted(tokenizer: Any) -> None:
    features, lost = tokenize(tokenizer, ["the a my your", "my", "the a", "your your your"], 4)
    assert features["input_ids"] == [
        [START, THE, A, END],
        [START, MY, END],
        [START, THE, A, END],
        [START, YOUR, YOUR, END],
    ]
    assert lost == [2, 0, 0, 1]


def test_the_length_limit_holds_for_texts_beyond_the_tokenizer_own_limit(tokenizer: Any) -> None:
    features, lost = tokenize(tokenizer, ["the " * 100], 64)
    assert (len(features["input_ids"][0]), lost) == (64, [38])


def test_segments_that_say_something_are_kept_and_cut_like_the_ids(tiny_model: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS]:0 $A:1 [SEP]:1", special_tokens=[("[CLS]", START), ("[SEP]", END)]
    )
    features, lost = tokenize(tokenizer, ["the a my", "the"], 4)
    assert features == {
        "input_ids": [[START, THE, A, END], [START, THE, END]],
        "token_type_ids": [[0, 1, 1, 1], [0, 1, 1]],
    }
    assert lost == [1, 0]


def test_no_texts_have_no_tokens(tokenizer: Any) -> None:
    assert tokenize(tokenizer, [], 8) == ({"input_ids": []}, [])
