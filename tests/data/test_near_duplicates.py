"""Near-duplicates against all pairs compared by hand: none that is not one, nearly all that are, dropped or grouped."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from finetune.data import near_duplicates
from finetune.data.duplicates import clusters_of, join_clusters, normalize, text_keys
from finetune.data.near_duplicates import NearDuplicates, band_shape, find_near_duplicates, redundant
from finetune.data.shingles import Shingles, shingle

VOCABULARY = [
    "".join(letters) for letters in itertools.product("bdfgklmnprst", "aeiou", ["", "n", "lt"], ["", "ing", "ed"])
]


def find(texts: Sequence[str], chunk: int = 10_000, seed: int = 1, **settings: Any) -> NearDuplicates:
    chunks = [list(texts[start : start + chunk]) for start in range(0, len(texts), chunk)]
    column = pa.chunked_array(chunks, type=pa.string())
    return find_near_duplicates(column, clusters_of(text_keys([texts])), seed=seed, **settings)


def pieces(text: str, shingles: Shingles = "characters", size: int = 5) -> set[Any]:
    text = normalize(text)
    items: Sequence[str] = text if shingles == "characters" else text.split(" ")
    return {tuple(items[start : start + size]) for start in range(max(1, len(items) - size + 1))}


def jaccard(one: set[Any], other: set[Any]) -> float:
    return len(one & other) / len(one | other)


def all_pairs(texts: Sequence[str], threshold: float = 0.8, **how: Any) -> NDArray[np.int64]:
    """Return the similar pairs of different texts, the first row of each text only."""
    exact = clusters_of(text_keys([texts]))
    sets = {row: pieces(texts[row], **how) for row in np.unique(exact).tolist()}
    found = [pair for pair in itertools.combinations(sets, 2) if jaccard(sets[pair[0]], sets[pair[1]]) >= threshold]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def make_texts(rows: int, seed: int, words: int = 24) -> list[str]:
    """Return texts of which a third are others with one to four words changed, some of them changed again."""
    chance = random.Random(seed)
    texts: list[str] = []
    for _ in range(rows):
        if texts and chance.random() < 0.33:
            changed = chance.choice(texts).split(" ")
            for place in chance.sample(range(words), chance.randint(1, 4)):
                changed[place] = chance.choice(VOCABULARY)
            texts.append(" ".join(changed))
        else:
            texts.append(" ".join(chance.choices(VOCABULARY, k=words)))
    return texts


def same(one: NearDuplicates, other: NearDuplicates) -> bool:
    names = ("clusters", "pairs", "similarities")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.mark.parametrize(
    ("shingles", "size", "threshold"),
    [("characters", 5, 0.8), ("characters", 3, 0.9), ("words", 1, 0.8), ("words", 2, 0.7), ("characters", 5, 0.5)],
)
def test_what_is_found_is_what_all_pairs_give(shingles: Shingles, size: int, threshold: float) -> None:
    texts = make_texts(300, seed=5)
    how: dict[str, Any] = {"shingles": shingles, "size": size}
    true = all_pairs(texts, threshold, **how)
    found = find(texts, threshold=threshold, **how)
    assert len(true) > 15
    assert {*map(tuple, found.pairs.tolist())} <= {*map(tuple, true.tolist())}
    assert np.mean(found.clusters[true[:, 0]] == found.clusters[true[:, 1]]) >= 0.95
    expected = [jaccard(pieces(texts[a], **how), pieces(texts[b], **how)) for a, b in found.pairs.tolist()]
    assert found.similarities.tolist() == pytest.approx(expected, abs=1e-6)
    assert found.clusters.tolist() == join_clusters(np.arange(300), *found.pairs.T).tolist()


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_what_is_redundant_is_what_all_pairs_give_in_order_of_the_rows(threshold: float) -> None:
    texts = make_texts(300, seed=6)
    kept: list[set[Any]] = []
    for text in texts:
        here = pieces(text)
        if not any(jaccard(here, earlier) >= threshold for earlier in kept):
            kept.append(here)
    found = find(texts, threshold=threshold)
    dropped = redundant(found, np.arange(300))
    assert abs(int(dropped.sum()) - (300 - len(kept))) <= 1
    assert dropped.sum() > 30


def test_of_forms_filled_in_alike_as_many_are_redundant_as_all_pairs_give() -> None:
    chance = random.Random(4)
    answers = [VOCABULARY[50 + 4 * field : 53 + 4 * field] for field in range(8)]
    texts = [" ".join([*VOCABULARY[:16], *map(chance.choice, answers)]) for _ in range(300)]
    exact = clusters_of(text_keys([texts]))
    true = all_pairs(texts)
    found = find(texts)
    assert np.mean(found.clusters[true[:, 0]] == found.clusters[true[:, 1]]) >= 0.95
    expected = redundant(NearDuplicates(found.clusters, true, np.ones(len(true), dtype=np.float32)), exact)
    assert 200 < expected.sum() < 280
    assert np.mean(redundant(found, exact) == expected) >= 0.97


def test_redundancy_is_settled_within_each_part() -> None:
    words = VOCABULARY[:30]
    texts = [" ".join([*words, *ending]) for ending in (["one"], ["two"], ["three"], ["four"])]
    parts = np.array([0, 2, 2, 0])
    found = find(texts, parts=parts)
    assert found.clusters.tolist() == [0, 0, 0, 0]
    assert {(0, 3), (1, 2)} <= {*map(tuple, found.pairs.tolist())}


def test_a_bucket_gives_pairs_with_its_first_text_and_with_neighbours() -> None:
    band = np.array([7, 5, 7, 7, 5, 7, 9, 7, 7, 7], dtype=np.uint64)
    pairs = np.concatenate([np.stack(pair, axis=1) for pair in near_duplicates._candidates(band)])
    bucket = [0, 2, 3, 5, 7, 8, 9]
    expected = {(1, 4), *((0, row) for row in bucket[1:])}
    expected |= {(a, b) for a, b in itertools.combinations(bucket, 2) if bucket.index(b) - bucket.index(a) <= 4}
    assert {*map(tuple, pairs.tolist())} == expected


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text(st.sampled_from("ab éß日本😀\t"), max_size=15), max_size=12),
    st.sampled_from(["words", "characters"]),
    st.integers(1, 6),
    st.integers(1, 5),
)
def test_no_link_is_false_and_no_pair_of_kept_rows_is_linked(
    texts: list[str], shingles: Shingles, size: int, chunk: int
) -> None:
    exact = clusters_of(text_keys([texts]))
    found = find(texts, chunk=chunk, threshold=0.6, shingles=shingles, size=size)
    dropped = redundant(found, exact)
    assert {*map(tuple, found.pairs.tolist())} <= {*map(tuple, all_pairs(texts, 0.6, shingles=shingles, size=size))}
    assert found.clusters.tolist() == join_clusters(exact, *found.pairs.T).tolist()
    assert not any(dropped[a] == dropped[b] == False for a, b in found.pairs)  # noqa: E712
    for row in np.flatnonzero(dropped & (exact == np.arange(len(texts)))):
        assert any(b == row and not dropped[a] for a, b in found.pairs)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.text(st.sampled_from("abc日😀 "), max_size=12).map(normalize), min_size=1, max_size=5),
    st.sampled_from(["words", "characters"]),
    st.integers(1, 6),
)
def test_shingles_are_told_apart_as_the_pieces_of_the_texts_are(
    texts: list[str], shingles: Shingles, size: int
) -> None:
    hashes, counts = shingle(texts, shingles, size)
    sets = [set(part.tolist()) for part in np.split(hashes, np.cumsum(counts)[:-1])]
    expected = [pieces(text, shingles, size) for text in texts]
    assert [len(one) for one in sets] == [len(one) for one in expected]
    for (one, first), (other, second) in itertools.combinations(zip(sets, expected, strict=True), 2):
        assert len(one & other) == len(first & second)


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_chunks_do_not_count(chunk: int) -> None:
    texts = make_texts(150, seed=3)
    assert same(find(texts, chunk=chunk), find(texts))


def test_how_much_is_read_at_a_time_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = make_texts(150, seed=3)
    expected = find(texts)
    monkeypatch.setattr(near_duplicates, "WINDOW", 13)
    monkeypatch.setattr(near_duplicates, "BATCH", 100)
    assert same(find(texts), expected)


def test_of_equal_texts_the_first_is_compared_and_the_others_follow() -> None:
    text = " ".join(VOCABULARY[:20])
    texts = ["something else", text, text.upper(), text + "s", "something else", text + "s"]
    found = find(texts)
    assert found.clusters.tolist() == [0, 1, 1, 1, 0, 1]
    assert found.pairs.tolist() == [[1, 3]]
    exact = clusters_of(text_keys([texts]))
    assert redundant(found, exact).tolist() == [False, False, False, True, False, True]


def test_equal_texts_that_nobody_put_together_are_wholly_similar() -> None:
    column = pa.chunked_array([["One text here.", "another one", "one  TEXT here."]])
    found = find_near_duplicates(column, np.arange(3), threshold=1.0, seed=1)
    assert (found.pairs.tolist(), found.similarities.tolist()) == ([[0, 2]], [1.0])


@pytest.mark.parametrize(("shingles", "size"), [("characters", 5), ("words", 3)])
def test_texts_shorter_than_a_shingle_are_never_near(shingles: Shingles, size: int) -> None:
    texts = ["", "a", "ab", "b", "a b", "ab ?", "日本", "no", "yes", "yes!", "ok"]
    assert not len(find(texts, shingles=shingles, size=size, threshold=0.3).pairs)


def test_texts_without_blanks_are_compared() -> None:
    texts = ["吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。", "恥の多い生涯を送って来ました。"]
    assert find([*texts, texts[0][:-1] + "!"]).clusters.tolist() == [0, 1, 0]


def test_all_text_roles_count_and_a_missing_text_is_empty() -> None:
    a, b, c = (" ".join(VOCABULARY[start : start + 20]) for start in (0, 100, 200))
    one = pa.chunked_array([[a, a, b, a + "x", a, a + "x"]])
    other = pa.chunked_array([[b, c, c], [], [b, None, ""]])
    found = find_near_duplicates([one, other], np.arange(6), seed=1)
    assert found.clusters.tolist() == [0, 1, 2, 0, 4, 4]


def test_a_chain_is_one_cluster_of_which_every_second_text_is_dropped() -> None:
    words = VOCABULARY[:60]
    chain = [" ".join(words[start : start + 40]) for start in range(0, 20, 4)]
    similar = [[jaccard(pieces(one), pieces(other)) >= 0.8 for other in chain] for one in chain]
    assert similar == [[abs(a - b) <= 1 for a in range(5)] for b in range(5)]
    found = find(chain)
    assert found.clusters.tolist() == [0] * 5
    assert redundant(found, np.arange(5)).tolist() == [False, True, False, True, False]


def test_redundant_follows_links_in_order_of_the_rows() -> None:
    pairs = np.array([[0, 3], [1, 2], [1, 4], [3, 4]])
    found = NearDuplicates(np.zeros(6, dtype=np.int64), pairs, np.ones(4, dtype=np.float32))
    assert redundant(found, np.array([0, 1, 2, 3, 4, 4])).tolist() == [False, False, True, True, True, True]


def test_many_variants_of_few_texts_are_compared_with_few(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    measure = near_duplicates._Search._measure

    def count(self: Any, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.float64]:
        nonlocal compared
        compared += len(first)
        return measure(self, first, second)

    monkeypatch.setattr(near_duplicates._Search, "_measure", count)
    chance = random.Random(0)
    texts = []
    for number in range(1_500):
        words = VOCABULARY[:40] if number % 2 else VOCABULARY[100:140]
        words = [*words]
        words[chance.randrange(40)] = chance.choice(VOCABULARY)
        texts.append(" ".join(words))
    found = find(texts)
    assert len(np.unique(found.clusters)) == 2
    assert compared < 8 * len(texts)


def test_the_seed_decides() -> None:
    texts = make_texts(200, seed=8)
    assert same(find(texts, seed=3), find(texts, seed=3))
    signatures = [
        near_duplicates._sign(
            near_duplicates.Shingler([pa.chunked_array([texts])], np.arange(200), "characters", 5),
            200,
            (21, 6),
            seed,
            near_duplicates.Silent(),
        )
        for seed in (3, 4)
    ]
    assert not np.array_equal(signatures[0].bands, signatures[1].bands)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("permutations", [16, 128, 1024])
def test_bands_find_pairs_at_the_threshold(threshold: float, permutations: int) -> None:
    bands, length = band_shape(threshold, permutations)
    assert bands * length <= permutations
    assert 1 - (1 - threshold**length) ** bands >= 0.99
    assert 1 - (1 - threshold ** (length + 1)) ** (permutations // (length + 1)) < 0.99


def test_no_rows_and_one_row_have_no_near_duplicates() -> None:
    for texts in ([], ["one"]):
        found = find(texts)
        assert found.clusters.tolist() == list(range(len(texts)))
        assert found.pairs.shape == (0, 2)
        assert found.similarities.shape == (0,)
        assert not redundant(found, found.clusters).any()


def test_progress_is_told_of_every_text_and_band() -> None:
    told: dict[str, int] = {}

    class Listener(near_duplicates.Silent):
        def bar(self, title: str, total: int, start: int = 0) -> AbstractContextManager[Any]:
            told[title] = total

            class Bar:
                def advance(self, count: int = 1, text: str = "") -> None:
                    told[title] -= count

            return nullcontext(Bar())

    find(make_texts(50, seed=1), progress=Listener())
    assert told == {"signatures": 0, "near-duplicates": 0}
