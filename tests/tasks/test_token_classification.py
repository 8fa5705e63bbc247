"""Token classification: which tokens decide a word, what is counted, and how entities are read off the model."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.artifacts import FeatureTable, Run, feature_table
from finetune.data.tagging import entities, invalid_positions
from finetune.data.tokenization import NO_TARGET, Encoder, Limits
from finetune.evaluate import evaluate
from finetune.evaluation.predictions.tags import TagPredictions
from finetune.models.loading import load_tokenizer
from finetune.pipeline import Job
from finetune.predict import Answering
from finetune.runtime import Runtime
from finetune.tasks import Batch, open_task
from finetune.tasks.tag_reports import details, sections
from finetune.tasks.token_classification import most_probable, tag_names
from tests.conftest import FILLER, LABEL_WORDS, write_jsonl
from tests.preparation.world import World

TYPES = ["fruit", "tool"]
NAMES = tag_names(TYPES)
ALIGNMENTS = ["first", "all"]


def tagged(count: int, longest: int, *, simple: bool = False) -> list[dict[str, Any]]:
    """Return rows of 3 to `longest` words with entities of one or two words, some behind each other.

    Where they are `simple` entities have one word, so that a model without much memory learns them.
    """
    generator = random.Random(1)
    rows = []
    for number in range(count):
        tokens, tags = [f"n{number}"], ["O"]
        while len(tokens) < 3 + number * (longest - 3) // count:
            kind = generator.choice([None, None, None, *TYPES])
            words = generator.choices(
                LABEL_WORDS[kind] if kind else FILLER[:10], k=1 if simple else generator.choice([1, 2])
            )
            tokens += words
            tags += ["O"] * len(words) if kind is None else [f"B-{kind}", *[f"I-{kind}"] * (len(words) - 1)]
        rows.append({"tokens": tokens, "tags": tags})
    return rows


def pieces_model(folder: Path) -> Path:
    """Save a tiny random model that reads words in pieces of two letters, so that most words have several tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789,."
    pieces = [*letters, *(first + second for first in letters for second in letters)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces, *(f"##{piece}" for piece in pieces)]
    inner = Tokenizer(models.WordPiece({token: number for number, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=64, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(fast), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    BertModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pieces_model(tmp_path_factory.mktemp("pieces") / "model")


def features_of(task: Any, rows: list[dict[str, Any]], folder: Path, limits: Limits) -> FeatureTable:
    encoder = Encoder.of(load_tokenizer(folder, pretokenized=True), limits)
    columns = {role: [row[role] for row in rows] for role in rows[0]}
    return feature_table(task.encode(columns, encoder, TYPES).features)


def certain(task: Any, features: FeatureTable, rows: list[dict[str, Any]]) -> list[Any]:
    """Return logits by which every token that decides a word says its true tag, and every other token is wrong."""
    outputs = []
    for number, row in enumerate(features.row_ids):
        words = features[number]["word_ids"]
        logits = np.zeros((len(words), len(NAMES)), dtype=np.float32)
        for place, word in enumerate(words):
            logits[place, NAMES.index(rows[row]["tags"][word]) if word >= 0 else 1] = 9.0
        outputs.append(logits)
    return outputs


# -- what is counted equals a count made of the raw rows


@pytest.mark.parametrize("align", ALIGNMENTS)
@pytest.mark.parametrize("limits", [Limits(64), Limits(16, "window", 4), Limits(9, "window", 0)], ids=str)
def test_what_enters_loss_and_metric_is_what_the_rows_hold(pieces: Path, align: str, limits: Limits) -> None:
    rows = tagged(30, longest=14)
    task, _ = open_task("token-classification", {"align": align})
    tokenizer = load_tokenizer(pieces, pretokenized=True)
    features = features_of(task, rows, pieces, limits)
    whole = [tokenizer(row["tokens"], is_split_into_words=True).word_ids() for row in rows]
    raw = Counter[str]()
    for row, words in zip(rows, whole, strict=True):
        inside = [word for word in words if word is not None]
        raw.update(row["tags"] if align == "first" else [row["tags"][word] for word in inside])

    batches = [task.collate(features[start : start + 7], tokenizer) for start in range(0, len(features), 7)]
    targets = torch.cat([batch.targets["labels"].flatten() for batch in batches])
    assert Counter(NAMES[tag] for tag in targets[targets != NO_TARGET].tolist()) == raw
    counts = [task.loss(torch.zeros(*batch.targets["labels"].shape, 5), batch, {})[1].item() for batch in batches]
    assert sum(counts) == sum(raw.values())

    predictions = task.decode(certain(task, features, rows), features, rows, TYPES, {})
    assert predictions.right_words.sum(axis=0).tolist() == [sum(len(row["tokens"]) for row in rows)] * 2
    expected = Counter(kind for row in rows for _, _, kind in entities(row["tags"]))
    for counted in predictions.strict_counts[:3]:
        assert dict(zip(TYPES, counted.sum(axis=0), strict=True)) == expected
    assert limits.windows == (len(features) > len(rows))


@pytest.mark.parametrize("align", ALIGNMENTS)
def test_what_truncation_takes_is_o_and_stays_in_the_denominators(pieces: Path, align: str) -> None:
    rows = tagged(30, longest=20)
    task, _ = open_task("token-classification", {"align": align})
    limits = Limits(16)
    features = features_of(task, rows, pieces, limits)
    predictions = task.decode(certain(task, features, rows), features, rows, TYPES, {})
    tokenizer = load_tokenizer(pieces, pretokenized=True)
    words = true = found = lost = touched = 0
    for row in rows:
        kept = {word for word in tokenizer(row["tokens"], is_split_into_words=True).word_ids()[:15] if word is not None}
        spans = [range(first, last) for first, last, _ in entities(row["tags"])]
        words, true = words + len(row["tokens"]), true + len(spans)
        found += sum(kept.issuperset(span) for span in spans)
        touched += sum(not kept.issuperset(span) for span in spans)
        lost += len(row["tokens"]) - len(kept)
    report = details(predictions, 1)
    assert lost > 50
    assert report["unread"] == {"words": lost, "entities": touched}
    assert sum(scores["entities"] for scores in report["per_type"].values()) == true
    assert report["entity_errors"]["found"] == found < true
    assert predictions.right_words[:, 1].sum() == words
    cut = [tag for tags, scores in zip(predictions.predicted, predictions.scores, strict=True)
           for tag, score in zip(tags, scores, strict=True) if np.isnan(score)]  # fmt: skip
    assert cut == ["O"] * lost
    assert f"did not see {lost} words, of {touched} entities" in sections(report)[0].note


def test_rows_without_tags_are_decided_by_the_same_tokens(pieces: Path) -> None:
    rows = tagged(12, longest=14)
    asked = [{"tokens": row["tokens"]} for row in rows]
    limits = Limits(16, "window", 4)
    for align in ALIGNMENTS:
        task, _ = open_task("token-classification", {"align": align})
        known, new = (features_of(task, given, pieces, limits) for given in (rows, asked))
        assert [new[number] for number in range(len(new))] == [
            {name: value for name, value in known[number].items() if name != "label_ids"}
            for number in range(len(known))
        ]
        said = task.decode(certain(task, new, rows), new, asked, TYPES, {})
        assert said.targets == ()
        assert list(said.predicted) == [row["tags"] for row in rows]
        assert not task.collate(new[:2], load_tokenizer(pieces)).targets


# -- a word with several tokens, a word in several windows


def scored(rows: list[list[list[int]]], logits: list[Any], align: str = "all", decoding: str = "argmax") -> Any:
    """Decode windows that are given by the word that each of their tokens decides."""
    import pyarrow as pa

    task, _ = open_task("token-classification", {"align": align, "decoding": decoding})
    nested = pa.array(rows, pa.list_(pa.list_(pa.int32())))
    table = feature_table({"input_ids": nested, "word_ids": nested})
    tokens = [max(word for window in row for word in window) + 1 for row in rows]
    outputs = [np.asarray(values, dtype=np.float32) for values in logits]
    return task.decode(outputs, table, [{"tokens": ["w"] * count} for count in tokens], ["X"], {})


def test_a_words_probabilities_are_the_mean_over_the_tokens_that_decide_it() -> None:
    probabilities = np.array([[0.2, 0.5, 0.3], [0.7, 0.2, 0.1], [0.6, 0.3, 0.1]])
    said = scored([[[-1, 0, 0, 1]]], [[[0.0, 9.0, 0.0], *np.log(probabilities)]])
    assert said.predicted == (["O", "O"],)
    np.testing.assert_allclose(said.scores[0], [0.45, 0.6], rtol=1e-6)


def test_a_word_in_two_windows_is_read_where_it_is_decided() -> None:
    first = np.log([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    second = np.log([[0.1, 0.1, 0.8], [0.3, 0.6, 0.1]])
    said = scored([[[0, -1], [1, 2]]], [first, second])
    assert said.predicted == (["O", "I-X", "B-X"],)
    np.testing.assert_allclose(said.scores[0], [0.8, 0.8, 0.6], rtol=1e-6)


# -- decoding


def test_constrained_decoding_gives_iob2_and_argmax_what_each_word_says() -> None:
    logits = [np.log([[0.5, 0.1, 0.4], [0.1, 0.3, 0.6], [0.2, 0.1, 0.7]])]
    assert scored([[[0, 1, 2]]], logits).predicted == (["O", "I-X", "I-X"],)
    assert scored([[[0, 1, 2]]], logits, decoding="constrained").predicted == (["O", "B-X", "I-X"],)


def is_allowed(tags: tuple[int, ...]) -> bool:
    return not invalid_positions([NAMES[tag] for tag in tags])


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(0, 10_000))
def test_constrained_decoding_is_the_most_probable_of_all_allowed_tags(words: int, seed: int) -> None:
    probabilities = np.random.default_rng(seed).dirichlet(np.full(len(NAMES), 0.4), words)
    allowed = filter(is_allowed, itertools.product(range(len(NAMES)), repeat=words))
    best = max(allowed, key=lambda tags: sum(np.log(probabilities[word, tag]) for word, tag in enumerate(tags)))
    assert most_probable(probabilities, constrained=True).tolist() == list(best)
    assert most_probable(probabilities, constrained=False).tolist() == probabilities.argmax(axis=1).tolist()


def test_types_that_the_model_does_not_know_are_missed() -> None:
    task, _ = open_task("token-classification", {})
    table = feature_table({"input_ids": _lists([[2, 5, 6, 3]]), "word_ids": _lists([[-1, 0, 1, -1]])})
    rows = [{"tokens": ["a", "b"], "tags": ["B-fruit", "B-star"]}]
    logits = np.zeros((4, len(NAMES)), dtype=np.float32)
    logits[1, 1] = logits[2, 3] = 9.0
    predictions = task.decode([logits], table, rows, TYPES, {})
    assert predictions.labels == ("fruit", "tool", "star")
    assert details(predictions, 1)["entity_errors"] == {
        "found": 1, "other type": 1, "other bounds": 0, "other bounds and type": 0, "missed": 0, "invented": 0
    }  # fmt: skip


def _lists(values: list[list[int]]) -> Any:
    import pyarrow as pa

    return pa.array(values, pa.list_(pa.int32()))


# -- batches and loss


def test_targets_are_padded_with_what_the_loss_leaves_out(tiny_model: Path) -> None:
    task, _ = open_task("token-classification", {})
    features = [
        {"input_ids": [2, 5, 3], "word_ids": [-1, 0, -1], "label_ids": [-100, 1, -100]},
        {"input_ids": [2, 5, 6, 3], "word_ids": [-1, 0, 1, -1], "label_ids": [-100, 0, 3, -100]},
    ]
    batch = task.collate(features, load_tokenizer(tiny_model))
    assert batch.targets["labels"].tolist() == [[-100, 1, -100, -100], [-100, 0, 3, -100]]
    assert set(batch.inputs) == {"input_ids", "token_type_ids", "attention_mask"}


def test_the_loss_is_a_sum_over_targets_in_single_precision() -> None:
    task, _ = open_task("token-classification", {})
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1)).bfloat16()
    labels = torch.tensor([[-100, 1, -100, -100], [-100, 0, 3, -100]])
    total, count = task.loss(logits, Batch({}, {"labels": labels}), {})
    kept = labels != NO_TARGET
    expected = torch.nn.functional.cross_entropy(logits.float()[kept], labels[kept], reduction="sum")
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected.item())
    assert count.item() == 3


# -- the whole way


def run_of(folder: Path, pretrained: Path, **changes: Any) -> Run:
    rows = tagged(150, longest=16, simple=True)
    task = changes.pop("task", "token-classification")
    data = {"split": {"name": "stratified", "train": 0.6, "validation": 0.2, "test": 0.2}, **changes.pop("data", {})}
    train = {"epochs": 5, "learning_rate": 1e-2}
    world = World(folder, pretrained)
    recipe = world.recipe(rows, task=task, data=data, train=train, model={"max_length": 32, **changes.pop("model", {})})
    return Job(recipe, folder / "out", Runtime(threads=1)).run()


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory, still_model: Path) -> Run:
    """A run that has learned from rows in windows, and finds most entities."""
    folder = tmp_path_factory.mktemp("windowed")
    return run_of(folder, still_model, model={"max_length": 10, "overflow": "window", "stride": 3})


def test_a_run_learns_from_windows_and_beats_its_baseline(windowed: Run) -> None:
    report = evaluate(windowed)
    assert report["metrics"]["entity-f1"]["value"] > 0.8
    assert report["gains"]["word-tags"]["token-accuracy"]["value"] > -0.05
    assert report["unread"] == {"words": 0, "entities": 0}
    assert report["worst"][0]["true"].count("[") >= 1
    text = (windowed.reports / "test.md").read_text(encoding="utf-8")
    for heading in ("By type of entity", "Kinds of errors", "worst examples"):
        assert heading in text
    assert "seqeval" in text
    assert (
        json.loads((windowed.reports / "test.json").read_text(encoding="utf-8"))["convention"] in report["convention"]
    )


def test_a_run_that_learned_from_spans_is_scored_on_words_with_tags_too(tmp_path: Path, still_model: Path) -> None:
    rows = tagged(90, longest=10, simple=True)
    spans = []
    for row in rows:
        text, ends = " ".join(row["tokens"]), list(itertools.accumulate(len(word) + 1 for word in row["tokens"]))
        starts = [0, *ends[:-1]]
        marked = [
            {"start": starts[first], "end": ends[last - 1] - 1, "label": kind}
            for first, last, kind in entities(row["tags"])
        ]
        spans.append({"text": text, "marks": marked})
    world = World(tmp_path, still_model)
    recipe = world.recipe(spans, task="token-classification", data={"columns": {"spans": "marks"}}, train={"epochs": 1})
    run = Job(recipe, tmp_path / "out", Runtime(threads=1)).run()
    lines = ["".join(f"{word} {tag}\n" for word, tag in zip(row["tokens"], row["tags"], strict=True)) for row in rows]
    (tmp_path / "words.conll").write_text("\n".join(lines))
    by_spans = evaluate(run, source=write_jsonl(tmp_path / "spans.jsonl", spans))
    by_words = evaluate(run, source=tmp_path / "words.conll")
    assert by_words["metrics"] == by_spans["metrics"]
    assert by_words["rows"] == len(rows)


def test_answers_about_words_are_those_of_the_evaluation_wherever_windows_end(windowed: Run) -> None:
    answering = Answering(windowed, Runtime(threads=1))
    rows = [{"tokens": ["the", "n1", "apple", "pear", *["big"] * count, "hammer", ",", "plum"]} for count in range(14)]
    for row, answer in zip(rows, answering.lines(map(json.dumps, rows)), strict=True):
        text = " ".join(row["tokens"])
        assert answer["text"] == text
        assert "truncated_tokens" not in answer
        assert [entity["text"] for entity in answer["entities"]] == [
            text[entity["start"] : entity["end"]] for entity in answer["entities"]
        ]
        found = {word for entity in answer["entities"] for word in entity["text"].split()}
        assert {"apple", "hammer", "plum"} <= found
    (same,) = answering.texts([" ".join(rows[3]["tokens"])])
    (again,) = answering.lines([json.dumps(rows[3])])
    assert same["entities"] == again["entities"]


def test_a_question_may_be_a_text_or_words_and_what_is_neither_is_answered_by_its_reason(windowed: Run) -> None:
    lines = [
        "the  apple, big",
        json.dumps({"text": "a hammer"}),
        json.dumps({"tokens": []}),
        json.dumps({"tokens": 5}),
    ]
    text, under_text, empty, number = Answering(windowed, Runtime(threads=1)).lines(lines)
    (apple,) = text["entities"]
    assert (apple["start"], apple["end"], apple["text"], apple["label"]) == (5, 10, "apple", "fruit")
    assert 0.5 < apple["score"] <= 1
    assert [entity["label"] for entity in under_text["entities"]] == ["tool"]
    assert (empty["error"], number["error"]) == ("missing_tokens", "wrong_type_of_tokens")


def test_rows_of_a_file_that_cannot_be_judged_are_dropped_with_their_reasons(windowed: Run, tmp_path: Path) -> None:
    rows = [
        {"tokens": ["an", "apple"], "tags": ["O", "B-fruit"]},
        {"tokens": ["an", "apple"], "tags": ["O"]},
        {"tokens": ["rain"], "tags": ["B-weather"]},
        {"tokens": ["rain"]},
    ]
    source = tmp_path / "new.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = evaluate(windowed, source=source)
    assert report["rows"] == 1
    assert report["dropped"] == {"tokens_and_tags_differ_in_number": 1, "unknown_label": 1, "missing_tags": 1}


def test_the_other_options_train_too(tmp_path: Path, pieces: Path) -> None:
    options = {"align": "all", "decoding": "argmax"}
    run = run_of(tmp_path, pieces, task={"name": "token-classification", **options}, model={"max_length": 64})
    report = evaluate(run)
    assert report["task_options"].items() >= options.items()
    assert report["metrics"]["entity-f1-lenient"]["value"] >= report["metrics"]["entity-f1"]["value"] > 0.3


def test_the_baseline_says_of_each_word_what_it_mostly_was(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from finetune.evaluation.baselines.tags import word_tags

    train = [
        {"tokens": ["Red", "plum", "plum"], "tags": ["B-fruit", "I-fruit", "O"]},
        {"tokens": ["a", "plum", "Saw"], "tags": ["O", "I-fruit", "B-tool"]},
    ]
    rows = [{"tokens": ["PLUM", "red", "plum", "new", "plum"]}]
    nothing = TagPredictions(("fruit", "tool"), (["O"] * 5,), (["O"] * 5,), (np.ones(5),))
    given: Any = SimpleNamespace(train=train, rows=rows, labels=("fruit", "tool"), like=nothing)
    said = word_tags(given)
    assert said.predicted == (["B-fruit", "B-fruit", "I-fruit", "O", "B-fruit"],)
    assert said.targets == (["O"] * 5,)


def test_the_baseline_says_nothing_of_a_type_that_the_run_does_not_know() -> None:
    from types import SimpleNamespace

    from finetune.evaluation.baselines.tags import word_tags

    train = [{"tokens": ["plum", "oslo", "Oslo", "saw"], "tags": ["B-fruit", "B-place", "I-place", "B-tool"]}]
    rows = [{"tokens": ["oslo", "plum", "OSLO"]}]
    nothing = TagPredictions(("fruit", "tool"), (["O"] * 3,), (["O"] * 3,), (np.ones(3),))
    given: Any = SimpleNamespace(train=train, rows=rows, labels=("fruit", "tool"), like=nothing)
    said = word_tags(given)
    assert said.predicted == (["O", "B-fruit", "O"],)
    assert said.strict_counts.predicted.tolist() == [[1.0, 0.0]]


def test_rows_without_the_types_that_a_recipe_leaves_out_can_be_judged(tmp_path: Path, still_model: Path) -> None:
    world = World(tmp_path, still_model)
    data = {"labels": ["fruit"], "checks": {"unknown-labels": "warning"}}
    recipe = world.recipe(tagged(60, longest=9, simple=True), task="token-classification", data=data)
    run = Job(recipe, tmp_path / "out", Runtime(threads=1)).run()
    tool = LABEL_WORDS["tool"]
    rows = [{"tokens": [tool[0], "and", LABEL_WORDS["fruit"][0]], "tags": ["O", "O", "B-fruit"]}] * 3
    report = evaluate(run, source=Path(world.write(rows, "new.jsonl")))
    assert report["baselines"]["word-tags"]["entity-f1"]["value"] == 1.0
