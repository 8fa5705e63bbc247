"""Each word, or each token, of a row that is read in windows is decided once, where it has most context."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.ownership import deciding_words
from finetune.data.tokenization import Encoder, Limits, WordWindow

WORDS = st.lists(st.sampled_from(["the", "apple", "storm", "x", "hammers", "ü"]), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer that makes several tokens of most words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "app", "##le", "st", "##or", "##m", "ham", "##mer", "##s"]
    inner = Tokenizer(models.WordPiece({token: number for number, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder: Path = tmp_path_factory.mktemp("wordpiece")
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    return fast


def windows_of(tokenizer: Any, rows: list[list[str]], limits: Limits) -> list[list[WordWindow]]:
    return Encoder.of(tokenizer, limits).words(rows)[0]


@settings(deadline=None, max_examples=80)
@given(rows=st.lists(WORDS, min_size=1, max_size=4), length=st.integers(6, 14), stride=st.integers(0, 3))
def test_each_word_is_decided_by_exactly_one_token(tokenizer: Any, rows: Any, length: int, stride: int) -> None:
    for row, windows in zip(rows, windows_of(tokenizer, rows, Limits(length, "window", stride)), strict=True):
        decided = Counter(
            word for window in deciding_words(windows, stride, every_token=False) for word in window if word >= 0
        )
        assert decided == Counter(range(len(row)))


@settings(deadline=None, max_examples=80)
@given(rows=st.lists(WORDS, min_size=1, max_size=4), length=st.integers(6, 14), stride=st.integers(0, 3))
def test_each_token_decides_its_word_exactly_once(tokenizer: Any, rows: Any, length: int, stride: int) -> None:
    for row, windows in zip(rows, windows_of(tokenizer, rows, Limits(length, "window", stride)), strict=True):
        whole = tokenizer(row, is_split_into_words=True)
        decided = Counter(
            word for window in deciding_words(windows, stride, every_token=True) for word in window if word >= 0
        )
        assert decided == Counter(word for word in whole.word_ids() if word is not None)


@pytest.mark.parametrize("every_token", [False, True])
def test_a_token_decides_where_it_has_most_context(tokenizer: Any, every_token: bool) -> None:
    (windows,) = windows_of(tokenizer, [["the"] * 12], Limits(8, "window", 3))
    assert len(windows) > 2
    for number, window in enumerate(deciding_words(windows, 3, every_token=every_token)):
        for word in filter(lambda found: found >= 0, window):
            context = {
                other: min(seen.words.index(word), len(seen.words) - 1 - seen.words.index(word))
                for other, seen in enumerate(windows)
                if word in seen.words
            }
            assert context[number] == max(context.values())


def test_special_tokens_and_by_default_the_later_tokens_of_a_word_decide_nothing(tokenizer: Any) -> None:
    (windows,) = windows_of(tokenizer, [["the", "hammers"]], Limits(10))
    assert windows[0].words == [-1, 0, 1, 1, 1, -1]
    assert deciding_words(windows, 0, every_token=False) == [[-1, 0, 1, -1, -1, -1]]
    assert deciding_words(windows, 0, every_token=True) == [[-1, 0, 1, 1, 1, -1]]


def test_a_word_whose_beginning_truncation_took_is_decided_by_its_rest_only_when_every_token_decides(
    tokenizer: Any,
) -> None:
    tokenizer.truncation_side = "left"
    try:
        (windows,) = windows_of(tokenizer, [["hammers", "the"]], Limits(5))
    finally:
        tokenizer.truncation_side = "right"
    assert windows[0].words == [-1, 0, 0, 1, -1]
    assert deciding_words(windows, 0, every_token=False) == [[-1, -1, -1, 1, -1]]
    assert deciding_words(windows, 0, every_token=True) == [[-1, 0, 0, 1, -1]]
