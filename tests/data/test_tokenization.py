"""Tokenization: the tokenizer's own ids, every cut counted, windows that lose nothing."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from finetune.data.tokenization import NO_TARGET, Encoder, Limits
from finetune.errors import FinetuneError
from finetune.models.loading import load_tokenizer
from finetune.tasks.token_classification import TokenClassification, tag_names

TEXTS = ["the old apple", "", "a big red hammer near the old storm today again", "unknown zzz apple"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A WordPiece tokenizer whose words fall into several pieces."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "old", "big", "red", "near", "today", "##ple", *letters]
    backend = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("pieces")
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    return load_tokenizer(Path(folder))


def test_ids_are_those_of_the_tokenizer(tokenizer: Any) -> None:
    encoded = Encoder.of(tokenizer, Limits(100)).texts(TEXTS)
    assert encoded.features["input_ids"].to_pylist() == tokenizer(TEXTS)["input_ids"]
    assert list(encoded.features) == ["input_ids"], "segment ids of single texts are zeros, and left out"
    assert encoded.tokens_lost.tolist() == [0, 0, 0, 0]


def test_pairs_are_encoded_as_pairs_with_their_segments(tokenizer: Any) -> None:
    encoded = Encoder.of(tokenizer, Limits(100)).texts(TEXTS, TEXTS[::-1])
    expected = tokenizer(TEXTS, TEXTS[::-1])
    assert encoded.features["input_ids"].to_pylist() == expected["input_ids"]
    assert encoded.features["token_type_ids"].to_pylist() == expected["token_type_ids"]


@pytest.mark.parametrize("length", [3, 5, 8, 12])
def test_long_texts_are_cut_as_the_tokenizer_cuts_them_and_counted(tokenizer: Any, length: int) -> None:
    encoded = Encoder.of(tokenizer, Limits(length)).texts(TEXTS)
    whole = [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]
    assert (
        encoded.features["input_ids"].to_pylist() == tokenizer(TEXTS, truncation=True, max_length=length)["input_ids"]
    )
    assert encoded.tokens_lost.tolist() == [max(0, size - length) for size in whole]
    assert encoded.tokens_lost.sum() > 0


def test_unknown_tokens_and_words_are_counted(tokenizer: Any) -> None:
    encoded = Encoder.of(tokenizer, Limits(100)).texts(["the ü old", "ü ü"])
    assert (encoded.unknown_tokens, encoded.words) == (3, 5)


@pytest.mark.parametrize("stride", [0, 1, 3])
def test_windows_are_those_of_the_tokenizer_and_lose_nothing(tokenizer: Any, stride: int) -> None:
    encoded = Encoder.of(tokenizer, Limits(8, "window", stride)).texts(TEXTS)
    found = encoded.features["input_ids"].to_pylist()
    expected = tokenizer(TEXTS, truncation=True, max_length=8, stride=stride, return_overflowing_tokens=True)
    rows: list[list[list[int]]] = [[] for _ in TEXTS]
    for row, ids in zip(expected["overflow_to_sample_mapping"], expected["input_ids"], strict=True):
        rows[row].append(ids)
    assert found == rows
    assert encoded.tokens_lost.tolist() == [0] * len(TEXTS)
    for windows, whole in zip(found, tokenizer(TEXTS, add_special_tokens=False)["input_ids"], strict=True):
        seen = [*windows[0][1:-1], *(token for window in windows[1:] for token in window[1:-1][stride:])]
        assert seen == whole


def test_a_stride_that_leaves_no_progress_is_refused(tokenizer: Any) -> None:
    with pytest.raises(FinetuneError, match="model.stride: expected less than 6"):
        Encoder.of(tokenizer, Limits(8, "window", 6))


def test_an_encoder_works_the_same_in_another_process(tokenizer: Any) -> None:
    encoder = Encoder.of(tokenizer, Limits(8))
    encoder.texts(TEXTS)
    again = pickle.loads(pickle.dumps(encoder))
    assert again.texts(TEXTS).features["input_ids"].equals(encoder.texts(TEXTS).features["input_ids"])


words = st.lists(st.sampled_from(["the", "apple", "storm", "x", "hammer", "ü"]), min_size=1, max_size=30)


def test_tags_stand_at_the_first_token_of_their_word(tokenizer: Any) -> None:
    rows = {"tokens": [["the", "apple", "old"]], "tags": [["O", "B-fruit", "I-fruit"]]}
    encoded = TokenClassification().encode(rows, Encoder.of(tokenizer, Limits(50)), ["fruit"])
    names = tag_names(["fruit"])
    targets = encoded.features["label_ids"].to_pylist()[0]
    word_ids = encoded.features["word_ids"].to_pylist()[0]
    assert [names[target] for target in targets if target != NO_TARGET] == rows["tags"][0]
    assert [word_ids.index(word) for word in range(3)] == [i for i, t in enumerate(targets) if t != NO_TARGET]
    assert len(word_ids) > 5, "a word of several tokens"


def test_entities_that_truncation_takes_are_counted(tokenizer: Any) -> None:
    rows = {"tokens": [["the", "old", "red", "apple"]], "tags": [["B-x", "O", "O", "B-fruit"]]}
    cut = TokenClassification().encode(rows, Encoder.of(tokenizer, Limits(5)), ["fruit", "x"])
    whole = TokenClassification().encode(rows, Encoder.of(tokenizer, Limits(50)), ["fruit", "x"])
    windowed = TokenClassification().encode(rows, Encoder.of(tokenizer, Limits(6, "window", 1)), ["fruit", "x"])
    for encoded in (cut, whole, windowed):
        assert encoded.entities_lost is not None
    assert (cut.entities_lost.tolist(), whole.entities_lost.tolist()) == ([1], [0])
    assert windowed.entities_lost.tolist() == [0]
