"""Trained tokenizers: the same files every time, every family's framing, what is unknown, and what is too small."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune import registry
from finetune.data.tokenizer_training import save_tokenizer, train_tokenizer, unigram_training
from finetune.data.tokenizer_training.unigram_training import expect, prune, segment, train_unigram
from finetune.data.tokenizer_training.word_counts import drop_words, most_frequent_characters, split_words
from finetune.errors import FinetuneError

FAMILIES = ("bpe", "wordpiece", "unigram")
EVERY_FAMILY = pytest.mark.parametrize("name", FAMILIES)
STEMS = ["walk", "talk", "play", "jump", "paint", "open", "clean", "call", "need", "start"]
ENDS = ["", "s", "ed", "ing", "er", "ers", "able"]


def texts(rows: int = 400, seed: int = 0) -> list[str]:
    """Return rows of words with common parts; many words are equally frequent, so that ties matter."""
    draw = random.Random(seed)
    return [
        " ".join(draw.choice(STEMS) + draw.choice(ENDS) for _ in range(6)) + draw.choice([".", "!", "?", " café"])
        for _ in range(rows)
    ]


def train(name: str, rows: list[str] | None = None, batch: int = 100, **options: Any) -> Any:
    rows = texts() if rows is None else rows
    options = registry.tokenizers.get(name).options.model_validate({"vocabulary": 320, **options}).model_dump()
    return train_tokenizer(name, options, (rows[start : start + batch] for start in range(0, len(rows), batch)))


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    return {name: train(name) for name in FAMILIES}


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


TRAIN_ALL = """
import sys
from pathlib import Path
from tests.data.test_tokenizer_training import FAMILIES, save_tokenizer, train
for name in FAMILIES:
    save_tokenizer(train(name), Path(sys.argv[1]) / name)
"""


def test_the_files_are_equal_with_any_number_of_threads_and_any_hash_seed(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    for name in FAMILIES:
        save_tokenizer(trained[name], tmp_path / "0" / name)
    for threads in ("1", "2"):
        environment = {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        subprocess.run(
            [sys.executable, "-c", TRAIN_ALL, str(tmp_path / threads)],
            check=True,
            cwd=Path(__file__).parents[2],
            env={**environment, "PYTHONHASHSEED": threads, "HF_HUB_OFFLINE": "1"},
        )
    expected = {f"{name}/{file}" for name in FAMILIES for file in ("tokenizer.json", "tokenizer_config.json")}
    assert set(files(tmp_path / "0")) == expected
    assert files(tmp_path / "0") == files(tmp_path / "1") == files(tmp_path / "2")


@EVERY_FAMILY
def test_training_again_in_other_batches_and_another_order_changes_nothing(trained: dict[str, Any], name: str) -> None:
    shuffled = random.Random(1).sample(texts(), 400)
    first, *others = (tokenizer.backend_tokenizer.to_str() for tokenizer in (trained[name], train(name, shuffled, 7)))
    assert others == [first]
    assert train(name, texts(seed=1)).backend_tokenizer.to_str() != first


@EVERY_FAMILY
def test_the_folder_opens_as_an_ordinary_fast_tokenizer(trained: dict[str, Any], name: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    tokenizer = train(name, max_length=64, special_tokens=["<user>"])
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    library = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert loaded.is_fast
    assert loaded.model_max_length == 64
    assert "model_max_length" not in trained[name].init_kwargs
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert loaded.model_input_names == tokenizer.model_input_names
    for row in [*texts(20, seed=2), "<user> naïve \U0001f642", ""]:
        ids = tokenizer(row)["input_ids"]
        assert loaded(row)["input_ids"] == library.encode(row).ids == ids
    assert "<user>" not in loaded.decode(loaded("<user> walks")["input_ids"], skip_special_tokens=True)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "t5", "gpt2", "albert", "distilbert", "llama"])
@EVERY_FAMILY
def test_a_model_beside_it_does_not_change_how_it_opens(
    trained: dict[str, Any], name: str, model_type: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(trained[name], tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("walking café", "talks")["input_ids"] == trained[name]("walking café", "talks")["input_ids"]


@pytest.mark.parametrize(
    ("template", "single", "pair", "segments"),
    [
        ("bert", "[CLS] A [SEP]", "[CLS] A [SEP] B [SEP]", [0, 0, 0, 1, 1]),
        ("roberta", "<s> A </s>", "<s> A </s> </s> B </s>", None),
        ("t5", "A </s>", "A </s> B </s>", None),
        ("gpt2", "A", "A B", None),
    ],
)
@EVERY_FAMILY
def test_texts_and_pairs_are_framed_as_the_template_does(
    name: str, template: str, single: str, pair: str, segments: list[int] | None
) -> None:
    tokenizer = train(name, ["walk talk"] * 20, template=template)
    (first,), (second,) = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("walk", "talk"))
    names = {"A": first, "B": second}

    def ids(frame: str) -> list[int]:
        return [names.get(token) or tokenizer.convert_tokens_to_ids(token) for token in frame.split()]

    assert tokenizer("walk")["input_ids"] == ids(single)
    encoded = tokenizer("walk", "talk")
    assert encoded["input_ids"] == ids(pair)
    assert encoded.get("token_type_ids") == segments


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("bpe", {"bos_token": 0, "cls_token": 0, "pad_token": 1, "eos_token": 2, "sep_token": 2, "mask_token": 3}),
        ("wordpiece", {"pad_token": 0, "unk_token": 1, "cls_token": 2, "sep_token": 3, "mask_token": 4}),
        ("unigram", {"pad_token": 0, "eos_token": 1, "unk_token": 2}),
    ],
)
def test_special_tokens_have_the_first_ids_and_their_family_s_roles(
    trained: dict[str, Any], name: str, roles: dict[str, int]
) -> None:
    tokenizer = trained[name]
    assert {role: tokenizer.convert_tokens_to_ids(token) for role, token in tokenizer.special_tokens_map.items()} == (
        roles
    )
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert tokenizer.pad(tokenizer(["walk", "walk talk play"]), return_tensors="np")["input_ids"].shape[0] == 2


@pytest.mark.parametrize(("name", "size"), [("bpe", 290), ("wordpiece", 110), ("unigram", 110)])
def test_the_vocabulary_has_the_size_asked_for_or_what_the_texts_support(name: str, size: int) -> None:
    assert len(train(name, special_tokens=["<user>"], vocabulary=size)) == size
    small = train(name, ["walk talk"] * 20, vocabulary=5000)
    assert len(small) < 300
    assert len(small.tokenize("walk")) == 1


@pytest.mark.parametrize(
    ("name", "rows", "least"),
    [
        ("bpe", ["abc"], 256 + 4),
        ("wordpiece", ["".join(map(chr, range(0x3B1, 0x3B1 + 60)))], 60 + 59 + 5),
        ("unigram", [" ".join(map(chr, range(0x4E00, 0x4E00 + 200)))], 200 + 1 + 3),
    ],
)
def test_a_vocabulary_too_small_for_the_alphabet_is_an_error_that_says_the_least(
    name: str, rows: list[str], least: int
) -> None:
    with pytest.raises(FinetuneError, match=rf"tokenizer\.vocabulary: expected at least {least}, .*found 64"):
        train(name, rows, vocabulary=64)
    with pytest.raises(FinetuneError, match="expected at least"):
        train(name, rows, vocabulary=least - 1)
    assert len(train(name, rows, vocabulary=least)) == least


@pytest.mark.parametrize(
    ("name", "rows"),
    [("bpe", []), ("bpe", [""]), ("wordpiece", []), ("wordpiece", ["", " \n"]), ("unigram", []), ("unigram", [" "])],
)
def test_texts_without_words_are_an_error(name: str, rows: list[str]) -> None:
    with pytest.raises(FinetuneError, match="expected texts with words to train on, found none"):
        train(name, rows)


def test_only_what_was_never_seen_is_unknown(trained: dict[str, Any]) -> None:
    held_out = texts(50, seed=3)
    for name in FAMILIES:
        tokenizer = trained[name]
        assert all(tokenizer.unk_token_id not in ids for ids in tokenizer(held_out)["input_ids"])
    strange = "walk ж\U0001f642 talk"
    assert [trained[name].tokenize(strange).count(trained[name].unk_token or "-") for name in FAMILIES[:2]] == [0, 1]
    ids = trained["unigram"](strange)["input_ids"]
    assert ids.count(trained["unigram"].unk_token_id) == 1


@pytest.mark.parametrize("name", ["wordpiece", "unigram"])
def test_rare_characters_can_be_left_out(name: str) -> None:
    rows = [*texts(100), "".join(map(chr, range(0x4E00, 0x4E00 + 400)))]
    with pytest.raises(FinetuneError, match=r"or set `tokenizer\.characters`"):
        train(name, rows)
    tokenizer = train(name, rows, characters=20)
    assert tokenizer.unk_token_id in tokenizer(rows[-1])["input_ids"]
    assert tokenizer.unk_token_id not in tokenizer("walking talkers")["input_ids"]


def test_characters_are_chosen_by_frequency_and_then_by_code_point() -> None:
    counts = [("ab", 2), ("ac", 1), ("d", 1)]
    assert most_frequent_characters(counts, None) == set("abcd")
    assert most_frequent_characters(counts, 3) == set("abc")
    assert drop_words(counts, set("abd")) == [("ab", 2), ("d", 1)]
    assert split_words([("abxab", 2), ("xx", 1), ("axb", 1)], set("ab")) == [("a", 1), ("ab", 4), ("b", 1)]


@EVERY_FAMILY
def test_normalizers_lowercase_strip_accents_and_bring_to_one_form(name: str) -> None:
    rows = [*texts(100), "\ud55c\uad6d \ufb01t x\u0301"]
    plain = train(name, rows, vocabulary=400, normalizer="none")
    assert plain("Walk")["input_ids"] != plain("walk")["input_ids"]
    both = train(name, rows, vocabulary=400, lowercase=True, strip_accents=True, normalizer="nfkc")
    assert both("WÁLK \ufb01t x")["input_ids"] == both("walk fit x\u0301")["input_ids"]
    assert both.backend_tokenizer.normalizer.normalize_str("\ud55cÉ") in ("\ud55ce", " \ud55c e")
    composed = train(name, rows, vocabulary=400, normalizer="nfc")
    assert composed("cafe\u0301")["input_ids"] == composed("caf\u00e9")["input_ids"]
    assert composed("\ufb01t")["input_ids"] != composed("fit")["input_ids"]


@EVERY_FAMILY
def test_words_given_one_by_one_are_encoded_as_in_their_text(name: str) -> None:
    tokenizer = train(name, prefix_space=True) if name == "bpe" else train(name)
    words = ["walking", "talkers", "café"]
    encoded = tokenizer(words, is_split_into_words=True)
    assert encoded["input_ids"] == tokenizer(" ".join(words))["input_ids"]
    assert [index for index in dict.fromkeys(encoded.word_ids()) if index is not None] == [0, 1, 2]


def test_offsets_of_bytes_leave_the_blank_before_a_word_out(trained: dict[str, Any]) -> None:
    encoded = trained["bpe"]("walk talk", return_offsets_mapping=True)
    spans = [("walk talk"[start:end]) for start, end in encoded["offset_mapping"]]
    assert "".join(spans) == "walktalk"


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["<user>", "<user>"], "found '<user>' a second time"),
        (["[MASK]"], r"template bert brings \[PAD\]"),
        ([" "], "found an empty one"),
    ],
)
def test_special_tokens_that_are_there_already_are_refused(tokens: list[str], message: str) -> None:
    entry = registry.tokenizers.get("wordpiece")
    options = entry.options.model_validate({}).model_dump()
    entry.attributes["check"](options)
    with pytest.raises(ValueError, match=message):
        entry.attributes["check"]({**options, "special_tokens": tokens})


@settings(deadline=None, max_examples=150)
@given(text=st.text(), pair=st.none() | st.text())
def test_any_text_is_encoded_and_bytes_come_back_unchanged(
    trained: dict[str, Any], text: str, pair: str | None
) -> None:
    for name in FAMILIES:
        assert len(trained[name](text, pair)["input_ids"]) >= 1
    ids = trained["bpe"](text, add_special_tokens=False)["input_ids"]
    assert trained["bpe"].decode(ids) == text


def test_wordpiece_drops_control_characters_and_sets_chinese_ones_apart() -> None:
    tokenizer = train("wordpiece", [*texts(100), "\u4e2d\u6587"])
    assert tokenizer.tokenize("wa\x00lk\u4e2d\u6587") == [*tokenizer.tokenize("walk"), "\u4e2d", "\u6587"]


@pytest.mark.parametrize(
    ("name", "start"), [("bpe", 5), ("wordpiece", 5), ("unigram", 4)]
)  # those of bytes are trimmed
def test_a_mask_stands_for_a_word_with_its_blank_where_blanks_are_part_of_words(name: str, start: int) -> None:
    tokenizer = train(name, template="roberta")
    masked, word = (tokenizer(text, return_offsets_mapping=True) for text in ("walk <mask>", "walk"))
    assert masked["input_ids"] == [*word["input_ids"][:-1], tokenizer.mask_token_id, tokenizer.eos_token_id]
    assert masked["offset_mapping"][-2] == (start, len("walk <mask>"))


def test_words_come_back_from_wordpiece_and_unigram(trained: dict[str, Any]) -> None:
    for name in ("wordpiece", "unigram"):
        ids = trained[name]("walking talkers café", add_special_tokens=False)["input_ids"]
        assert trained[name].decode(ids) == "walking talkers café"


# The unigram trainer against what it computes, done in the plainest way

WORDS = st.lists(st.text("abc", min_size=1, max_size=7), min_size=1, max_size=8, unique=True)


def first_pieces(words: list[str]) -> tuple[Any, list[str], Any, Any, Any]:
    """Return the laid out words, their pieces, and of each the log probability, place and length."""
    laid_out, text = unigram_training._lay_out([(word, 1 + index) for index, word in enumerate(words)])
    places, lengths, frequencies = unigram_training._seed(laid_out, text, 1, 1000)
    scores = np.log(frequencies / frequencies.sum())
    pieces = ["".join(map(chr, text[place : place + length])) for place, length in zip(places, lengths, strict=True)]
    return laid_out, pieces, scores, places, lengths


def segmentations(word: str, pieces: dict[str, float]) -> list[list[str]]:
    if not word:
        return [[]]
    return [
        [word[:end], *rest]
        for end in range(1, len(word) + 1)
        if word[:end] in pieces
        for rest in segmentations(word[end:], pieces)
    ]


@settings(deadline=None, max_examples=60)
@given(words=WORDS)
def test_expected_counts_are_those_over_all_segmentations(words: list[str]) -> None:
    laid_out, pieces, scores, _, _ = first_pieces(words)
    known = dict(zip(pieces, scores, strict=True))
    assert set(pieces) == {word[i:j] for word in words for i in range(len(word)) for j in range(i + 1, len(word) + 1)}
    expected: Counter[str] = Counter()
    for count, word in enumerate(words, start=1):
        ways = segmentations(word, known)
        shares = [math.exp(sum(known[piece] for piece in way)) for way in ways]
        for way, share in zip(ways, shares, strict=True):
            for piece in way:
                expected[piece] += count * share / sum(shares)
    assert expect(laid_out, scores) == pytest.approx([expected[piece] for piece in pieces])


@settings(deadline=None, max_examples=60)
@given(words=WORDS)
def test_the_best_segmentation_is_the_library_s(words: list[str]) -> None:
    from tokenizers import models

    laid_out, pieces, scores, _, _ = first_pieces(words)
    library = models.Unigram([("?", 0.0), *zip(pieces, scores, strict=True)], 0, False)
    found = np.zeros(len(words))
    word, piece = segment(laid_out, scores)
    np.add.at(found, word, scores[piece])
    by_length = sorted(words, key=len, reverse=True)
    assert found == pytest.approx([sum(scores[token.id - 1] for token in library.tokenize(word)) for word in by_length])


def best_way(word: str, known: dict[str, float], without: str = "") -> list[str]:
    ways = [way for way in segmentations(word, known) if without not in way]
    return max(ways, key=lambda way: sum(known[piece] for piece in way))


@pytest.mark.parametrize("seed", range(10))
def test_pruning_keeps_characters_and_the_pieces_whose_loss_is_greatest(seed: int) -> None:
    words = ["abc", "abcabc", "bca", "c", "cabb", "bacab"]
    laid_out, pieces, _, places, lengths = first_pieces(words)
    draw = np.random.default_rng(seed)
    scores = np.log(draw.dirichlet(np.ones(len(pieces)))) + lengths  # longer pieces have to win now and then
    known = dict(zip(pieces, scores, strict=True))
    used: Counter[str] = Counter()
    for count, word in enumerate(words, start=1):
        for piece in best_way(word, known):
            used[piece] += count
    total = used.total()
    loss = {}
    for piece in filter(lambda piece: used[piece] and len(piece) > 1, pieces):
        instead = best_way(piece, known, without=piece)
        new_total = total + used[piece] * (len(instead) - 1)
        alternative = sum(math.log((used[part] + used[piece]) / new_total) for part in instead)
        loss[piece] = used[piece] * (math.log(used[piece] / total) - alternative)
    for wanted in range(3, 3 + len(loss)):
        kept = {pieces[index] for index in prune(laid_out, scores, places, lengths, wanted)}
        assert kept == {"a", "b", "c", *sorted(loss, key=lambda piece: -loss[piece])[: wanted - 3]}


def test_characters_stay_pieces_however_rare_and_long_words_are_trained_on_in_parts() -> None:
    pieces = dict(train_unigram([("ab" * 300 + "z", 5), ("\u00e9", 1), ("ababx", 9)], 12, 2))
    assert {"a", "b", "x", "z", "\u00e9"} <= set(pieces)
    assert len(pieces) <= 12
    assert max(map(len, pieces)) <= 16


def library_trained(like: Any, model: Any, trainer: Any) -> Any:
    from tokenizers import Tokenizer

    backend = Tokenizer(model)
    backend.pre_tokenizer = like.backend_tokenizer.pre_tokenizer
    backend.train_from_iterator(texts(), trainer=trainer)
    return backend


def token_counts(backend: Any) -> Counter[int]:
    encoded = backend.encode_batch(texts(), add_special_tokens=False)
    return Counter(index for encoding in encoded for index in encoding.ids)


def test_wordpiece_makes_as_few_tokens_as_the_library_s_trainer(trained: dict[str, Any]) -> None:
    from tokenizers import models, trainers

    trainer = trainers.WordPieceTrainer(vocab_size=96, min_frequency=2, special_tokens=["[UNK]"], show_progress=False)
    library = library_trained(trained["wordpiece"], models.WordPiece(unk_token="[UNK]"), trainer)
    ours = train("wordpiece", vocabulary=100)
    assert (len(ours), library.get_vocab_size()) == (100, 96)
    assert token_counts(ours.backend_tokenizer).total() == pytest.approx(token_counts(library).total(), rel=0.02)


def test_texts_are_at_least_as_probable_as_under_the_library_s_unigram_model(trained: dict[str, Any]) -> None:
    from tokenizers import models, trainers

    trainer = trainers.UnigramTrainer(vocab_size=100, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    library = library_trained(trained["unigram"], models.Unigram(), trainer)
    ours = train("unigram", vocabulary=102)
    assert (len(ours), library.get_vocab_size()) == (102, 100)

    def log_likelihood(counts: Counter[int]) -> float:
        return sum(count * math.log(count / counts.total()) for count in counts.values())

    assert log_likelihood(token_counts(ours.backend_tokenizer)) >= 1.02 * log_likelihood(token_counts(library))
