"""Augmentation: what each operation may change, that labels and entities stay, and that the seed decides alone."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.augmentation import Augmentation, plan_copies
from finetune.data.augmentation.characters import look_alikes, neighbouring_keys
from finetune.data.augmentation.choices import is_code, is_negation
from finetune.data.augmentation.synonyms import find_synonyms, read_table
from finetune.data.augmentation.text import join, split
from finetune.data.rows import Column
from finetune.errors import FinetuneError
from finetune.registry import augmenters
from tests.conftest import ROOT

TEXT = {"text": Column("text"), "label": Column("label")}
TOKENS = {"tokens": Column("tokens"), "tags": Column("tags")}
MODELS = {"contextual", "back-translation"}  # they have tests of their own
LIGHT = sorted(set(augmenters.names()) - MODELS)
SENTENCE = "I was very angry because the big bank (again) lost my large purchase; please help me quickly, thanks!"


def build(name: str, columns: Mapping[str, Column] = TEXT, seed: int = 1, **options: Any) -> Augmentation:
    return Augmentation([(name, augmenters.get(name).options(**options).model_dump())], columns, seed=seed)


def run(name: str, text: str, copy: int = 0, **options: Any) -> str:
    """Return the text after the operation, or as it is where the operation finds nothing to change."""
    augmented = build(name, **options).augment({"text": text, "label": "x"}, 0, copy)
    return text if augmented is None else str(augmented.values["text"])


def results(name: str, text: str, count: int = 30, **options: Any) -> set[str]:
    return {run(name, text, copy, **options) for copy in range(count)}


# --- tokens and their tags


@st.composite
def tagged_rows(draw: st.DrawFn) -> dict[str, Any]:
    """Draw tokens with IOB2 tags: runs outside and entities, also side by side and of one type."""
    words = [
        "big",
        "not",
        "problem",
        "Paris",
        "delete",
        "5",
        "IBM",
        ",",
        ".",
        "car",
        "[MASK]",
        "buy",
        "New York",
        "\u4e2d",
    ]
    tokens: list[str] = []
    tags: list[str] = []
    for kind, size in draw(st.lists(st.tuples(st.sampled_from(["", "A", "B"]), st.integers(1, 4)), min_size=1)):
        tokens.extend(draw(st.lists(st.sampled_from(words), min_size=size, max_size=size)))
        tags.extend([f"B-{kind}", *[f"I-{kind}"] * (size - 1)] if kind else ["O"] * size)
    return {"tokens": tokens, "tags": tags, "note": "kept"}


def entities(tokens: list[str], tags: list[str]) -> list[tuple[str, list[str]]]:
    """Return each entity's type and words; fail for tags that are not IOB2."""
    found: list[tuple[str, list[str]]] = []
    previous = "O"
    for token, tag in zip(tokens, tags, strict=True):
        if tag[:2] == "B-":
            found.append((tag[2:], [token]))
        elif tag[:2] == "I-":
            assert previous[2:] == tag[2:], f"{tag} after {previous}"
            found[-1][1].append(token)
        else:
            assert tag == "O"
        previous = tag
    return found


@pytest.mark.parametrize("name", LIGHT)
@given(row=tagged_rows(), seed=st.integers(0, 1000), rate=st.sampled_from([0.1, 0.5, 1.0]))
@settings(deadline=None, max_examples=80)
def test_every_operation_keeps_the_entities_of_a_row(name: str, row: dict[str, Any], seed: int, rate: float) -> None:
    before = json.dumps(row)
    augmented = build(name, TOKENS, seed, rate=rate).augment(row, 3, 1)
    assert json.dumps(row) == before
    if augmented is None:
        return
    assert augmented.operation == name
    assert augmented.values["note"] == "kept"
    assert all(token and token == token.strip() for token in augmented.values["tokens"])
    found = entities(augmented.values["tokens"], augmented.values["tags"])
    given = entities(row["tokens"], row["tags"])
    assert [kind for kind, _ in found] == [kind for kind, _ in given]
    if name in {"swap", "delete"}:  # these have to leave the words of every entity whole, in any order
        assert [sorted(words) for _, words in found] == [sorted(words) for _, words in given]


def tag(pieces: list[tuple[str, int | None]], words: str, tags: str) -> str:
    from finetune.data.augmentation.tags import carry_tags

    tokens, new = carry_tags(pieces, words.split(), tags.split())
    return " ".join(f"{token}/{tag}" for token, tag in zip(tokens, new, strict=True))


@pytest.mark.parametrize(
    ("pieces", "after"),
    [
        ([("we", 0), ("visit", 1), ("New", 2), ("York", 3), ("now", 4)], "we/O visit/O New/B-L York/I-L now/O"),
        ([("we", 0), ("York", 3)], "we/O New/B-L York/I-L"),
        ([("we", 0), ("New", 2), ("visit", 1), ("York", 3), ("now", 4)], "we/O visit/O New/B-L York/I-L now/O"),
        ([("York", 3), ("New", 2), ("visit", 1), ("we", 0)], "visit/O we/O York/B-L New/I-L"),
        (
            [("we", 0), ("visit", 1), ("x", None), ("New", 2), ("y", None), ("York", 3), ("z", None), ("now", 4)],
            "we/O visit/O x/O New/B-L y/I-L York/I-L z/O now/O",
        ),
        ([("drop in on", 1), ("Brand new", 2), ("York", 3)], "drop/O in/O on/O Brand/B-L new/I-L York/I-L"),
        ([("a", 2), ("b", 2), ("York", 3)], "a/B-L b/I-L York/I-L"),
        ([("x", None)], "x/O New/B-L York/I-L"),
        ([], "New/B-L York/I-L"),
    ],
)
def test_tags_follow_their_words(pieces: list[tuple[str, int | None]], after: str) -> None:
    assert tag(pieces, "we visit New York now", "O O B-L I-L O") == after


def test_entities_side_by_side_stay_two() -> None:
    assert tag([("b", 1), ("a", 0)], "a b", "B-X B-X") == "a/B-X b/B-X"
    assert tag([("a", 0), ("new", None), ("b", 1)], "a b", "B-X B-X") == "a/B-X new/O b/B-X"


def test_tokens_without_tags_are_augmented_alone() -> None:
    columns = {"tokens": Column("tokens"), "tags": Column("tags", required=False), "label": Column("label")}
    augmented = build("delete", columns).augment({"tokens": ["a", "b", "c"], "label": "x"}, 0, 0)
    assert augmented is not None
    assert len(augmented.values["tokens"]) == 2
    assert set(augmented.values) == {"tokens", "label"}


# --- texts

STRAY = re.compile(r" (?=[ .,;:!?])")
WORDS = [
    *("the", "big", "Car", "isn't", "not", "5", "IBM", "(again)", "well,", "so.", "what?!", '"now"', "rn", "problem:"),
    *("www.a.org/b", "[URL]"),
]
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


@pytest.mark.parametrize("name", LIGHT)
@given(text=texts, rate=st.sampled_from([0.1, 0.6, 1.0]), copy=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_no_operation_leaves_stray_blanks(name: str, text: str, rate: float, copy: int) -> None:
    after = run(name, text, copy, rate=rate)
    assert after == after.strip() != ""
    assert not STRAY.search(after)


def test_all_texts_of_a_row_are_augmented_each_by_itself() -> None:
    columns = {"first": Column("text"), "second": Column("text"), "third": Column("text", required=False)}
    row = {"first": SENTENCE, "second": SENTENCE, "third": None, "score": 0.5}
    augmented = build("swap", columns).augment(row, 0, 0)
    assert augmented is not None
    new = augmented.values
    assert len({SENTENCE, new["first"], new["second"]}) == 3
    assert (new["third"], new["score"]) == (None, 0.5)


def test_a_row_that_nothing_can_change_is_not_augmented() -> None:
    for name in ("delete", "swap", "synonyms", "keyboard"):
        assert build(name).augment({"text": "no!", "label": "x"}, 0, 0) is None
    assert build("delete").augment({"text": "", "label": "x"}, 0, 0) is None


def test_another_operation_follows_one_that_changes_nothing() -> None:
    parts = [("case", {"style": "upper", "rate": 1.0}), ("delete", {"rate": 0.1})]
    augmentation = Augmentation(parts, TEXT, seed=1)
    found = [augmentation.augment({"text": "ALL IN CAPITALS", "label": "x"}, key, 0) for key in range(20)]
    assert {augmented.operation for augmented in found if augmented} == {"delete"}
    assert None not in found


def test_operations_are_drawn_evenly() -> None:
    parts = [("swap", {"rate": 0.1}), ("delete", {"rate": 0.1}), ("keyboard", {"rate": 0.1})]
    augmentation = Augmentation(parts, TEXT, seed=1)
    drawn = Counter(
        augmented.operation
        for key in range(900)
        if (augmented := augmentation.augment({"text": SENTENCE, "label": "x"}, key, 0))
    )
    assert sorted(drawn) == ["delete", "keyboard", "swap"]
    assert min(drawn.values()) > 250


# --- one seed, one result

ELSEWHERE = """
import json, sys
from finetune.data.augmentation import Augmentation
from finetune.data.rows import Column
parts, texts = json.load(sys.stdin)
augmentation = Augmentation(parts, {"text": Column("text")}, seed=7)
print(json.dumps([augmentation.augment({"text": text}, key, 2).values for key, text in enumerate(texts)]))
"""


def test_another_process_makes_the_same_rows() -> None:
    parts = [(name, augmenters.get(name).options().model_dump()) for name in LIGHT]
    rows = [f"{SENTENCE} number {number}" for number in range(40)]
    augmentation = Augmentation(parts, TEXT, seed=7)
    here = [augmentation.augment({"text": text}, key, 2) for key, text in enumerate(rows)]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], cwd=ROOT, input=json.dumps([parts, rows]), capture_output=True, text=True,
        check=False, env={"PYTHONHASHSEED": "3"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [augmented and augmented.values for augmented in here] == json.loads(done.stdout)
    assert len({augmented.operation for augmented in here if augmented}) > 5


@pytest.mark.parametrize("name", sorted(set(LIGHT) - {"case"}))
def test_copies_keys_and_seeds_give_other_rows(name: str) -> None:
    row = {"text": SENTENCE, "label": "x"}
    for changed in (
        [build(name).augment(row, 0, copy) for copy in range(12)],
        [build(name).augment(row, key, 0) for key in range(12)],
        [build(name, seed=seed).augment(row, 0, 0) for seed in range(12)],
    ):
        assert len({augmented.values["text"] for augmented in changed if augmented}) >= 4


def test_augmenting_moves_no_global_generator() -> None:
    state = random.getstate()
    for name in LIGHT:
        run(name, SENTENCE)
    assert random.getstate() == state


# --- single operations


def words(text: str) -> list[str]:
    return split(text)[0]


@pytest.mark.parametrize(("rate", "count"), [(0.01, 1), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_the_rate_is_the_share_of_words_touched_and_at_least_one(rate: float, count: int) -> None:
    text = "alpha bravo charlie delta echo foxtrot golf hotel."
    after = {name: words(run(name, text, rate=rate)) for name in ("mask", "keyboard")}
    assert after["mask"].count("[MASK]") == count
    assert sum(a != b for a, b in zip(words(text), after["keyboard"], strict=True)) == count
    assert len(words(run("delete", text, rate=rate))) == 9 - min(count, 7)
    assert len(words(run("insert", text, rate=rate, what="word"))) == 9 + count
    moved = sum(a != b for a, b in zip(words(text), words(run("swap", text, rate=rate)), strict=True))
    assert moved == 2 if count < 2 else moved <= count


@pytest.mark.parametrize("rate", [0, -0.1, 1.01, "0.5"])
@pytest.mark.parametrize("name", LIGHT)
def test_a_rate_out_of_bounds_is_refused(name: str, rate: object) -> None:
    with pytest.raises(ValueError, match="rate"):
        augmenters.get(name).options(rate=rate)


@pytest.mark.parametrize("name", ["delete", "swap", "mask", "synonyms"])
def test_negations_stay_where_they_are(name: str) -> None:
    text = "big not large isn't huge don\u2019t tiny never rapid nor quick cannot"
    kept = [(place, word) for place, word in enumerate(words(text)) if is_negation(word)]
    assert len(kept) == 6
    for copy in range(30):
        after = words(run(name, text, copy, rate=0.9))
        assert [word for word in after if is_negation(word)] == [word for _, word in kept]
        if name in {"swap", "mask"}:  # these change no number of words
            assert [(place, after[place]) for place, _ in kept] == kept


def test_swap_moves_no_word_over_a_mark() -> None:
    assert results("swap", "one two, three four") == {
        "two one, three four", "one two, four three",
    }  # fmt: skip
    assert run("swap", "one, two, three") == "one, two, three"


def test_delete_leaves_a_word() -> None:
    assert results("delete", "one two", rate=1.0) == {"one", "two"}
    assert run("delete", "one.") == "one."


def test_mask_takes_the_token_it_is_given_and_masks_nothing_twice() -> None:
    assert run("mask", "one, two [URL] <mask>", rate=1.0, token="<mask>") == "<mask>, <mask> [URL] <mask>"
    with pytest.raises(ValueError, match="token"):
        augmenters.get("mask").options(token="a b")


@pytest.mark.parametrize(
    ("style", "after"),
    [
        ("lower", "the quick ibm, [URL] https://x.org/A"),
        ("upper", "THE QUICK IBM, [URL] https://x.org/A"),
        ("title", "The Quick Ibm, [URL] https://x.org/A"),
    ],
)
def test_case_writes_words_in_one_style(style: str, after: str) -> None:
    assert run("case", "the Quick IBM, [URL] https://x.org/A", style=style) == after


def test_random_case_changes_nothing_but_the_case_of_letters() -> None:
    found = results("case", "the quick fox", style="random")
    assert {text.lower() for text in found} == {"the quick fox"}
    assert len(found) > 10


CODES = "IBM 12345 4th [URL] https://example.org me@example.org"


@pytest.mark.parametrize("name", ["keyboard", "ocr"])
def test_character_noise_leaves_numbers_addresses_masks_and_codes_alone(name: str) -> None:
    assert all(is_code(word) for word in words(CODES))
    assert run(name, CODES, rate=1.0) == CODES
    assert run(name, CODES, rate=1.0, codes=True) != CODES
    for copy in range(20):
        assert run(name, f"hello {CODES}", copy, rate=1.0).endswith(f" {CODES}")


def test_keyboard_strikes_neighbouring_keys_and_keeps_the_case() -> None:
    keys = neighbouring_keys()
    assert (set(keys["g"]), set(keys["q"]), set(keys["5"])) == (set("ftyhbv"), set("wa"), set("46"))
    assert all(key in keys[other] for key in keys for other in keys[key])
    for after in results("keyboard", "Morning at", rate=1.0):
        changed = [(a, b) for a, b in zip("Morning at", after, strict=True) if a != b]
        assert len(changed) == 1
        old, new = changed[0]
        assert new.lower() in keys[old.lower()]
        assert new.isupper() == old.isupper()
    thrice = results("keyboard", "morning", per_word=3)
    assert len(thrice) > 5
    assert {sum(a != b for a, b in zip("morning", text, strict=True)) for text in thrice} == {3}


def test_ocr_takes_for_each_other_what_looks_alike() -> None:
    assert results("ocr", "mud", 80) == {"rnud", "nnud", "mvd", "mucl"}
    assert "com" in results("ocr", "corn")
    assert all(one in look_alikes()[other] for one, others in look_alikes().items() for other in others)
    assert not any(shape.isspace() or not shape.isalnum() for shape in look_alikes())


# --- synonyms


def test_the_shipped_table_is_sane() -> None:
    table = read_table(ROOT / "finetune/data/augmentation/synonyms.tsv")
    assert len(table) >= 250
    for word, new in table.items():
        assert new
        assert word not in new
        assert not is_negation(word)
        assert re.fullmatch(r"[a-z]+", word)
        for synonym in new:
            assert re.fullmatch(r"[a-z]+([ -][a-z]+)*", synonym)
            assert not any(is_negation(part) for part in synonym.split())


def test_synonyms_keep_the_case_of_the_word_and_match_it_whole() -> None:
    assert run("synonyms", "Purchased it", rate=1.0) == "Bought it"
    assert run("synonyms", "PURCHASED it", rate=1.0) == "BOUGHT it"
    assert run("synonyms", "purchased it.", rate=1.0) == "bought it."
    assert run("synonyms", "pUrchased biggest purchasedly", rate=1.0) == "pUrchased biggest purchasedly"


def test_synonyms_fit_the_article_before_them() -> None:
    assert results("synonyms", "a huge wall") == {"a massive wall", "a gigantic wall"}
    assert results("synonyms", "the huge wall") == {"the massive wall", "the gigantic wall", "the enormous wall"}


def test_a_table_of_ones_own_is_used(tmp_path: Path) -> None:
    table = tmp_path / "table.tsv"
    table.write_text("# German\nAuto\tWagen, Pkw\n\nauto\tKarre\n", encoding="utf-8")
    assert read_table(table) == {"auto": ("Wagen", "Pkw", "Karre")}
    assert results("synonyms", "ein Auto", table=str(table)) == {"ein Wagen", "ein Pkw", "ein Karre"}
    assert run("insert", "ein Auto", table=str(table)) != "ein Auto"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("auto Wagen\n", r"table.tsv:1: expected `word<TAB>synonym, synonym`, found 'auto Wagen'"),
        ("auto\tWagen\nbus\t,\n", "table.tsv:2: expected"),
        ("not\tnever\n", "no synonyms of negations"),
        ("5\tfive\n", "negations and numbers"),
        ("# nothing\n", "found none"),
    ],
)
def test_a_table_with_a_fault_is_refused_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    table = tmp_path / "table.tsv"
    table.write_text(content, encoding="utf-8")
    with pytest.raises(FinetuneError, match=message):
        run("synonyms", SENTENCE, table=str(table))


def test_a_table_that_is_missing_or_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match="expected a table of synonyms"):
        run("synonyms", SENTENCE, table=str(tmp_path / "none.tsv"))
    (tmp_path / "latin.tsv").write_bytes("gr\u00fcn\tgras".encode("latin-1"))
    with pytest.raises(FinetuneError, match="in UTF-8"):
        run("synonyms", SENTENCE, table=str(tmp_path / "latin.tsv"))


def test_a_table_and_another_source_exclude_each_other() -> None:
    check = augmenters.get("synonyms").attributes["check"]
    check({"table": "x.tsv", "source": "english"})
    with pytest.raises(ValueError, match="either `table` or `source: wordnet`"):
        check({"table": "x.tsv", "source": "wordnet"})


def test_insert_adds_a_synonym_or_a_word_of_the_row() -> None:
    for after in results("insert", "the huge wall."):
        assert len(set(words(after)) & {"massive", "gigantic", "enormous"}) == 1
        assert after.endswith("wall.")
    for after in results("insert", "not 5 walls", what="word"):
        assert sorted(words(after)) == ["5", "not", "walls", "walls"]


class FakeSynset:
    def __init__(self, *names: str) -> None:
        self.names = names

    def lemma_names(self) -> list[str]:
        return list(self.names)


class FakeWordNet:
    """Two senses of `car`, and `dogs`, which WordNet finds as `dog`."""

    def ensure_loaded(self) -> None:
        pass

    def synsets(self, word: str) -> list[FakeSynset]:
        cars = [FakeSynset("car", "motor_vehicle"), FakeSynset("car", "gondola")]
        return {"car": cars, "dogs": [FakeSynset("dog", "hound")], "can": [FakeSynset("can", "tin")]}.get(word, [])


def test_wordnet_gives_the_first_sense_of_the_exact_word(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = pytest.importorskip("nltk.corpus")
    monkeypatch.setattr(corpus, "wordnet", FakeWordNet())
    find_synonyms.cache_clear()
    try:
        assert results("synonyms", "dogs can car not", source="wordnet") == {"dogs can motor vehicle not"}
    finally:
        find_synonyms.cache_clear()


def test_a_missing_corpus_of_wordnet_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(FinetuneError, match=r"python -m nltk\.downloader wordnet"):
        run("synonyms", SENTENCE, source="wordnet")


# --- which rows, how many copies, and what a reader sees


def test_rows_without_anything_to_augment_are_refused() -> None:
    with pytest.raises(FinetuneError, match="found neither"):
        build("swap", {"label": Column("label"), "score": Column("number")})


def test_an_operation_that_writes_new_texts_is_refused_for_tokens() -> None:
    with pytest.raises(FinetuneError, match=r"back-translation writes a new text.* case, contextual, delete"):
        build("back-translation", TOKENS, there="a", back="b")


def test_every_row_gets_as_many_copies_as_asked() -> None:
    assert plan_copies(None, rows=3, copies=2, balance=False).tolist() == [2, 2, 2]
    assert plan_copies([], rows=0, copies=2, balance=True).tolist() == []
    with pytest.raises(FinetuneError, match=r"data\.augment\.balance"):
        plan_copies(None, rows=3, copies=1, balance=True)


def test_rare_classes_are_filled_up_evenly_the_first_rows_first() -> None:
    labels = ["a"] * 7 + ["b", "c", "b", "c", "b"]
    assert plan_copies(labels, rows=12, copies=0, balance=True).tolist() == [0] * 7 + [2, 3, 1, 2, 1]
    assert plan_copies(labels, rows=12, copies=0, balance=True, target=0.5).tolist() == [0] * 7 + [1, 1, 0, 1, 0]


@given(
    labels=st.lists(st.sampled_from("abc"), min_size=1, max_size=60),
    copies=st.integers(0, 3),
    target=st.floats(0.05, 1),
)
@settings(deadline=None, max_examples=100)
def test_a_balanced_plan_reaches_the_target_and_no_more(labels: list[str], copies: int, target: float) -> None:
    plan = plan_copies(labels, rows=len(labels), copies=copies, balance=True, target=target)
    assert plan.min() >= copies
    totals: Counter[str] = Counter()
    for label, more in zip(labels, plan.tolist(), strict=True):
        totals[label] += 1 + more
    largest = Counter(labels).most_common(1)[0][1] * (1 + copies)
    assert max(totals.values()) == largest
    for label, count in Counter(labels).items():
        given = [more for of, more in zip(labels, plan.tolist(), strict=True) if of == label]
        assert given == sorted(given, reverse=True)
        assert max(given) - min(given) <= 1
        assert totals[label] >= target * largest - 1e-6
        assert totals[label] == count * (1 + copies) or totals[label] - 1 < target * largest


def test_rows_are_shown_as_a_person_reads_them() -> None:
    assert build("swap").show({"text": "one two", "label": "x"}) == "one two"
    row = {"tokens": ["go", "to", "Rome"], "tags": ["O", "O", "B-L"]}
    made = build("mask", TOKENS, rate=1.0)
    new = made.augment(row, 0, 0)
    assert new is not None
    assert (made.show(row), made.show(new.values)) == ("go to Rome/B-L", "[MASK] [MASK] [MASK]/B-L")


def test_a_join_of_words_in_any_order_has_every_word_once() -> None:
    given, gaps = split(SENTENCE)
    pieces: list[tuple[str, int | None]] = [(word, position) for position, word in enumerate(given)]
    random.Random(5).shuffle(pieces)
    assert Counter(join(pieces, given, gaps).replace(" ", "")) == Counter(SENTENCE.replace(" ", ""))
