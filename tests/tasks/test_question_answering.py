"""Questions about contexts: what enters the loss and the metrics, which span is chosen, and when none is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import finetune.models.loading
import finetune.prepare
import finetune.tasks
from finetune.artifacts import FeatureTable, PreparedData, feature_table
from finetune.data.contexts import read_answers
from finetune.data.rows import Record
from finetune.data.tokenization import Encoder, Limits
from finetune.errors import FinetuneError
from finetune.evaluate import evaluate
from finetune.evaluation.predictions.answers import AnswerPredictions
from finetune.evaluation.statistics import bootstrap
from finetune.inference import open_run
from finetune.models.loading import load_tokenizer
from finetune.pipeline import Job
from finetune.predict import Answering
from finetune.runtime import Runtime
from finetune.tasks import Task, open_task
from finetune.tasks.answer_reports import place_in_given
from finetune.tasks.question_answering import QuestionAnswering, best_span
from tests.preparation.world import World, findings, reasons
from tests.tasks.question_world import pair_model, question_rows

WINDOWS = {"max_length": 24, "overflow": "window", "stride": 6}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pair_model(tmp_path_factory.mktemp("pairs") / "model")


@pytest.fixture
def world(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(finetune.prepare, "draw_preparation", lambda report, folder: {})
    return World(tmp_path, model)


def prepared(world: World, rows: Sequence[Mapping[str, Any]], **model: Any) -> PreparedData:
    return world.prepare(rows, task="question-answering", model=model or WINDOWS)


def readable(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows as they are stored: the answers as texts with their places."""
    return [{**row, "answers": read_answers(row["answers"], row["context"])[0]} for row in rows]


def batches(task: Task, features: FeatureTable, tokenizer: Any, size: int) -> list[Any]:
    return [task.collate(features[start : start + size], tokenizer) for start in range(0, len(features), size)]


# -- what enters the loss and the metrics


@pytest.mark.parametrize("limits", [WINDOWS, {"max_length": 24}])
def test_as_many_questions_and_answers_are_learned_as_there_are_rows(world: World, limits: dict[str, Any]) -> None:
    rows = question_rows(80, longest=50, unanswerable=5)
    data = prepared(world, rows, **limits)
    task, tokenizer = open_task("question-answering", {})[0], load_tokenizer(world.model)
    by_question = {(row["context"], row["question"]): row["answers"] for row in rows}
    questions, answers_seen, answers, windows = 0.0, 0, 0, 0
    for name in data.manifest["splits"]:
        split = data.split(name)
        windows += len(split.features)
        for batch in batches(task, split.features, tokenizer, 7):
            outputs = torch.zeros(*batch.inputs["input_ids"].shape, 2)
            questions += task.loss(outputs, batch, {})[1].item()
        seen = set()
        for number, row_number in enumerate(split.features.row_ids.tolist()):
            row, window = split.rows[row_number], split.features[number]
            wanted = by_question[row["context"], row["question"]]
            first, last = window["answer_span"]
            if first:
                start, end = window["context_starts"][first], window["context_ends"][last]
                assert [row["context"][start:end]] == wanted["text"]
                assert start == wanted["answer_start"][0]
                seen.add(row_number)
            elif wanted["text"]:  # then this window does not see all of it
                shown = {place for place in window["context_starts"] if place >= 0}
                assert wanted["answer_start"][0] not in shown
        answers_seen += len(seen)
        answers += sum(bool(by_question[row["context"], row["question"]]["text"]) for row in split.rows)
    assert questions == pytest.approx(len(rows))
    assert answers == sum(bool(row["answers"]["text"]) for row in rows) == 64
    assert answers_seen + data.report["tokens"]["entities_lost"] == answers
    if limits is WINDOWS:
        assert windows > len(rows) * 1.5
        assert answers_seen == answers
    else:
        assert data.report["tokens"]["entities_lost"] > 5


def test_as_many_questions_are_judged_as_the_split_has_rows(world: World) -> None:
    rows = question_rows(60, longest=50, unanswerable=4)
    recipe = world.recipe(
        rows, task="question-answering", model=WINDOWS, train={"epochs": 1, "learning_rate": 5e-3},
        metrics=["exact-match", "answer-f1", "no-answer-accuracy"],
    )  # fmt: skip
    job = Job(recipe, world.folder / "out", Runtime(threads=1))
    run = job.run()
    report = evaluate(run)
    raw = {(row["context"], row["question"]): row["answers"]["text"] for row in rows}
    judged = [raw[row["context"], row["question"]] for row in job.data().split("test").rows]
    by_word, by_length = report["by_question_word"], report["by_answer_length"]
    assert report["rows"] == len(judged) == sum(group["rows"] for group in by_word.values())
    assert by_length["no answer"]["rows"] == sum(not texts for texts in judged) > 0
    assert by_length["1 word"]["rows"] == sum(bool(texts) for texts in judged)
    assert report["no_answer_threshold"] == json.loads((run.folder / "fitted.json").read_text())["null_threshold"]
    assert set(report["baselines"]) == {"nearest-words"}

    asked = [
        Record(1, {"context": row["context"], "question": row["question"]}) for row in job.data().split("test").rows
    ]
    answers = list(Answering(run, Runtime(threads=1)).records(asked))
    for row, answer in zip(job.data().split("test").rows, answers, strict=True):
        found = answer.get("best_span") or answer
        assert row["context"][found["start"] : found["end"]] == found["answer"]
        assert 0 <= found["probability"] <= 1
    exact = [(answer["answer"] or "") in (texts or [""]) for answer, texts in zip(answers, judged, strict=True)]
    assert report["metrics"]["exact-match"]["value"] == pytest.approx(np.mean(exact))

    split = job.data().split("test")
    predictions = open_run(run, Runtime(threads=1)).predict(split.rows, split.features, 64)
    contexts = [row["context"] for row in split.rows]
    _, first, context = np.unique(contexts, return_index=True, return_inverse=True)
    by_context = np.argsort(np.argsort(first))[context]  # contexts are numbered as they come
    names = ["exact-match", "answer-f1", "no-answer-accuracy"]
    drawn = bootstrap(names, predictions, recipe.seed, by_context)
    assert report["metrics"] == {name: interval.as_json() for name, interval in drawn.items()}
    assert report["intervals"]["units"] == by_context.max() + 1 < len(split)


def test_rows_that_cannot_be_right_are_named_by_their_line(world: World) -> None:
    rows = question_rows(60)
    rows[6] = {**rows[6], "answers": {"text": ["plum"], "answer_start": [1]}}
    with pytest.raises(FinetuneError, match=r"1 row has an answer that does not stand in its context.*line 7"):
        prepared(world, rows)
    lowered = world.prepare(
        rows, task="question-answering", data={"checks": {"faulty-targets": {"severity": "warning"}}}
    )
    assert lowered.report["dropped"] == {"answer_not_in_context": 1}
    (dropped,) = (json.loads(line) for line in (lowered.folder / "dropped.jsonl").read_text().splitlines())
    assert (dropped["line"], dropped["reason"]) == (7, "answer_not_in_context")


def test_questions_about_one_context_stay_in_one_split(world: World) -> None:
    data = prepared(world, question_rows(80))
    contexts = [{row["context"] for row in data.split(name).rows} for name in ("train", "validation", "test")]
    assert sum(map(len, contexts)) == len(set().union(*contexts)) == 40


def test_answers_are_learned_where_cleaning_has_put_them(world: World) -> None:
    rows = question_rows(60)
    dirty = [{**row, "context": "  " + row["context"].replace(" ", "   ")} for row in rows]
    for row in dirty:
        place = row["context"].split().index(row["answers"]["text"][0])
        start = 2 + sum(len(word) + 3 for word in row["context"].split()[:place])
        row["answers"] = {**row["answers"], "answer_start": [start]}
    clean, again = (
        world.prepare(each, task="question-answering", data={"clean": ["whitespace"]}, folder=name)
        for each, name in ((rows, "clean"), (dirty, "dirty"))
    )
    for name in ("train", "validation", "test"):
        assert list(clean.split(name).rows) == list(again.split(name).rows)
        assert [window["answer_span"] for window in clean.split(name).features] == [
            window["answer_span"] for window in again.split(name).features
        ]


def test_a_question_with_several_answers_in_several_rows_is_a_conflict_and_no_repeat(world: World) -> None:
    rows = question_rows(60)
    words = rows[3]["context"].split()
    other = {**rows[3], "answers": words[0]}
    given = [*rows, other, rows[5]]
    dropped_ones = world.prepare(given, task="question-answering", folder="drop")
    assert reasons(dropped_ones) == [(4, "conflicting_labels"), (61, "conflicting_labels"), (62, "duplicate")]
    (finding,) = findings(dropped_ones.report, "conflicting-answers")
    assert (finding["severity"], finding["count"]) == ("warning", 2)
    assert "(line 4, 61)" in finding["message"]
    kept = world.prepare(given, task="question-answering", folder="keep", data={"conflicts": "keep"})
    assert reasons(kept) == [(62, "duplicate")]
    with pytest.raises(FinetuneError, match=r"1 text stands under different answers: lines 4 and 61"):
        world.prepare(given, task="question-answering", folder="error", data={"conflicts": "error"})


def test_training_rows_without_a_single_answer_are_an_error(world: World) -> None:
    rows = [{**row, "answers": None} for row in question_rows(40)]
    with pytest.raises(FinetuneError, match=r"nothing-to-answer: None of \d+ training rows has an answer"):
        world.prepare(rows, task="question-answering")
    one_in_six = world.prepare(question_rows(60, unanswerable=2), task="question-answering", folder="some")
    assert not findings(one_in_six.report, "nothing-to-answer")


def test_answers_are_given_with_their_places_in_the_context_that_was_asked_about(world: World) -> None:
    recipe = world.recipe(question_rows(40), task="question-answering", data={"clean": ["whitespace"]})
    run = Job(recipe, world.folder / "out", Runtime(threads=1)).run()
    context = "  the   apple saw \t and   the old   hammer  "
    asked = {"question": "my saw", "context": context}
    plain = {**asked, "context": " ".join(context.split())}
    dirty, clean = Answering(run, Runtime(threads=1)).records([Record(1, asked), Record(2, plain)])
    found, same = (answer.get("best_span") or answer for answer in (dirty, clean))
    assert context[found["start"] : found["end"]] == found["answer"] != ""
    assert plain["context"][same["start"] : same["end"]] == same["answer"] == " ".join(found["answer"].split())


@pytest.mark.parametrize(
    ("cleaned", "span", "given", "expected"),
    [
        ("an old saw", "old saw", "an  old   saw", "old   saw"),
        ("the saw, the saw", "saw", "The  SAW , the  saw", "SAW"),
        ("in the house", "ous", "in  the house", "ous"),
        ("write to EMAIL now", "EMAIL", "write to a.b@c.org now", "a.b@c.org"),
        ("costs 5 euro today", "5 euro", "costs <b>\uff15</b> euro today", "\uff15</b> euro"),
        ("fi ne", "fi", "ﬁ ne", "ﬁ"),
        ("begin EXTRA end", "EXTRA", "begin end", ""),
        ("EXTRA end", "EXTRA", "end", ""),
        ("end EXTRA", "EXTRA", "end", ""),
    ],
)
def test_a_span_of_the_cleaned_context_is_found_in_the_one_given(
    cleaned: str, span: str, given: str, expected: str
) -> None:
    start = cleaned.index(span)
    first, last = place_in_given(start, start + len(span), cleaned, given)
    assert given[first:last] == expected


# -- the loss


def test_the_loss_is_the_mean_cross_entropy_of_both_ends_over_the_places_of_an_answer() -> None:
    task, _ = open_task("question-answering", {})
    tokenizer_inputs = torch.ones(2, 5, dtype=torch.long)
    places = torch.tensor([[True, False, True, True, False], [True, False, True, True, True]])
    spans = torch.tensor([[2, 3], [0, 0]])
    outputs = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(1))
    batch = finetune.tasks.Batch({"input_ids": tokenizer_inputs}, {"spans": spans, "places": places})
    total, count = task.loss(outputs.bfloat16(), batch, {})
    expected = 0.0
    for row in range(2):
        for end in range(2):
            allowed = outputs.bfloat16().float()[row, places[row], end]
            target = int(places[row, : spans[row, end]].sum())
            expected += -float(allowed.log_softmax(0)[target]) / 2
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert count.item() == 2


def test_padding_and_company_do_not_change_the_loss(world: World) -> None:
    data = prepared(world, question_rows(60, longest=50, unanswerable=5))
    task, tokenizer = open_task("question-answering", {})[0], load_tokenizer(world.model)
    model = finetune.models.loading.load_model(
        world.model, task.head([]), finetune.models.loading.ModelSettings()
    ).model.eval()
    features = data.split("train").features
    sums = []
    for size in (1, 3, len(features)):
        with torch.no_grad():
            parts = [
                task.loss(task.forward(model, batch.inputs), batch, {})
                for batch in batches(task, features, tokenizer, size)
            ]
        sums.append([float(sum(part[number] for part in parts)) for number in range(2)])
    assert sums[1] == pytest.approx(sums[0], rel=1e-5)
    assert sums[2] == pytest.approx(sums[0], rel=1e-5)
    assert sums[0][1] == pytest.approx(len(data.split("train")))


# -- which span is chosen


def window_of(places: Sequence[int]) -> dict[str, Any]:
    """Return a window with 4 characters for each token of the context; -1 stands for another token."""
    return {"context_starts": list(places), "context_ends": [place + 4 if place >= 0 else -1 for place in places]}


@pytest.mark.parametrize("longest", [1, 3, 30])
def test_the_best_span_is_the_best_of_all_there_are(longest: int) -> None:
    generator = np.random.default_rng(longest)
    window = window_of([-1, -1, *range(0, 60, 5), -1])
    inside = range(2, 14)
    for _ in range(50):
        scores = generator.normal(size=(15, 2)).astype(np.float32)
        spans = [(first, last) for first in inside for last in inside if first <= last < first + longest]
        first, last = max(spans, key=lambda span: scores[span[0], 0] + scores[span[1], 1])
        found = best_span(scores, window, longest)
        assert (found.start, found.end) == (window["context_starts"][first], window["context_ends"][last])
        assert found.score == pytest.approx(float(scores[first, 0] + scores[last, 1]), abs=1e-6)
        shares = torch.tensor(scores[[0, *inside]]).double().softmax(dim=0)
        assert found.probability == pytest.approx(float(shares[first - 1, 0] * shares[last - 1, 1]))


def encoded(rows: Sequence[Mapping[str, Any]], tokenizer: Any, limits: Limits) -> FeatureTable:
    columns = {role: [row[role] for row in rows] for role in rows[0]}
    return feature_table(QuestionAnswering().encode(columns, Encoder.of(tokenizer, limits), []).features)


def outputs_for(features: FeatureTable, silence: float = 0.0) -> list[Any]:
    """Return what a model would say that knows the answers; windows without one say nothing, as loud as `silence`."""
    outputs = []
    for window in features:
        scores = np.zeros((len(window["input_ids"]), 2), dtype=np.float32)
        first, last = window["answer_span"]
        scores[first, 0] = scores[last, 1] = 5.0 if first else silence
        outputs.append(scores)
    return outputs


def decoded(
    rows: Sequence[Mapping[str, Any]],
    features: FeatureTable,
    outputs: Sequence[Any],
    fitted: Mapping[str, Any],
    **options: Any,
) -> AnswerPredictions:
    predictions = open_task("question-answering", options)[0].decode(outputs, features, rows, [], fitted)
    assert isinstance(predictions, AnswerPredictions)
    return predictions


def test_a_model_that_knows_the_answers_gets_every_point_in_windows_too(world: World) -> None:
    rows = readable(question_rows(40, longest=60, unanswerable=4))
    features = encoded(rows, load_tokenizer(world.model), Limits(24, "window", 6))
    assert len(features) > 60
    predictions = decoded(rows, features, outputs_for(features, silence=9.0), {"unanswerable": True})
    # a window without the answer may be as sure as it likes: the row has an answer if one window has it
    assert predictions.scores.min() == 1.0
    assert predictions.answered.sum() == 30
    assert [row["context"][start:end] for row, start, end in zip(rows, predictions.starts, predictions.ends, strict=True)] == predictions.texts.tolist()  # fmt: skip  # noqa: E501


def test_no_answer_is_said_where_training_had_such_rows_or_as_the_recipe_says(world: World) -> None:
    rows = readable(question_rows(8, unanswerable=2))
    features = encoded(rows, load_tokenizer(world.model), Limits(60))
    outputs = outputs_for(features, silence=2.0)  # 4 more than any span
    fitted = {"unanswerable": True}
    assert decoded(rows, features, outputs, fitted).answered.tolist() == [False, True] * 4
    assert decoded(rows, features, outputs, {**fitted, "null_threshold": 4.5}).answered.all()
    assert decoded(rows, features, outputs, {"unanswerable": False}).threshold is None
    assert decoded(rows, features, outputs, {}, no_answer="always").answered.tolist() == [False, True] * 4
    assert decoded(rows, features, outputs, fitted, no_answer="never").answered.all()
    spec = open_task("question-answering", {})[1]
    assert spec.fit_targets is not None
    assert spec.fit_decisions is not None
    assert spec.fit_targets(rows) == fitted
    assert spec.fit_targets(rows[1::2]) == {"unanswerable": False}
    threshold = spec.fit_decisions(decoded(rows, features, outputs, fitted))["null_threshold"]
    assert decoded(rows, features, outputs, {**fitted, "null_threshold": threshold}).scores.min() == 1.0
    assert spec.fit_decisions(decoded(rows, features, outputs, {})) == {}


def test_an_answer_is_no_longer_than_the_recipe_says(world: World) -> None:
    rows = readable([{"context": "old red big new saw", "question": "my saw", "answers": "old red big new saw"}])
    features = encoded(rows, load_tokenizer(world.model), Limits(60))
    assert decoded(rows, features, outputs_for(features), {}).texts.tolist() == ["old red big new saw"]
    (scores,) = outputs_for(features)
    scores[features[0]["answer_span"][0] + 1, 1] = 1.0
    shorter = decoded(rows, features, [scores], {}, max_answer_length=2)
    assert shorter.texts.tolist() == ["old red"]


def test_rows_that_are_asked_have_no_targets_and_one_without_tokens_no_answer(world: World) -> None:
    rows = [{"context": "the old saw", "question": "my saw"}, {"context": "", "question": "my saw"}]
    columns = {role: [row[role] for row in rows] for role in ("context", "question")}
    task = QuestionAnswering()
    encoder = Encoder.of(load_tokenizer(world.model), Limits(24, "window", 6))
    features = feature_table(task.encode(columns, encoder, []).features)
    assert task.collate(features[:2], load_tokenizer(world.model)).targets == {}
    outputs = [np.zeros((len(window["input_ids"]), 2), dtype=np.float32) for window in features]
    predictions = decoded(rows, features, outputs, {})
    assert len(predictions.targets) == 0
    assert predictions.answered.tolist() == [True, False]
    spec = open_task("question-answering", {})[1]
    assert spec.describe(predictions, 1, rows[1])["answer"] is None


def test_blanks_before_a_word_that_a_tokenizer_counts_to_it_are_no_part_of_an_answer() -> None:
    features = feature_table(
        {
            "input_ids": pa.array([[2, 9, 3, 5, 6, 3]]),
            "context_starts": pa.array([[-1, -1, -1, 0, 3, -1]]),
            "context_ends": pa.array([[-1, -1, -1, 3, 7, -1]]),
        }
    )
    scores = np.zeros((6, 2), dtype=np.float32)
    scores[4] = 5
    predictions = decoded([{"context": "the saw", "question": "what"}], features, [scores], {})
    assert (predictions.texts[0], predictions.starts[0], predictions.ends[0]) == ("saw", 4, 7)


# -- how people read it


def test_an_example_shows_the_true_answer_and_the_one_given_where_they_stand() -> None:
    context = (
        "The mill burned in 1920. It was built by Martha Kern, who owned two others and a boat, long before the war. "
        * 2
    )
    row = {
        "context": context,
        "question": "Who?",
        "answers": [{"text": "Martha Kern", "start": context.index("Martha")}],
    }
    start = context.rindex("a boat")
    features = feature_table(
        {
            name: pa.array([[value]])
            for name, value in (("input_ids", 5), ("context_starts", start), ("context_ends", start + 6))
        }
    )
    predictions = decoded([row], features, [np.zeros((1, 2), dtype=np.float32)], {})
    spec = open_task("question-answering", {})[1]
    shown = spec.example(predictions, 0, row)
    assert (shown["answer"], shown["predicted"]) == ("Martha Kern", "a boat")
    assert "built by [Martha Kern], who" in shown["context"]
    assert "others and [a boat], long" in shown["context"]
    assert spec.describe(predictions, 0, row) == {"answer": "a boat", "start": start, "end": start + 6, "probability": shown["probability"]}  # fmt: skip  # noqa: E501


def test_the_worst_is_the_wrong_answer_that_the_model_was_sure_of() -> None:
    spec = open_task("question-answering", {})[1]
    objects = [
        np.array([*values, None], dtype=object)[:-1] for values in (["q"] * 3, [("saw",)] * 3, ["saw", "old", "old"])
    ]
    numbers = np.zeros(3)
    predictions = AnswerPredictions(
        objects[0], np.arange(3), objects[1], objects[2], numbers, numbers, np.array([0.1, 0.2, 0.9]), numbers
    )
    assert np.argsort(-spec.difficulty(predictions)).tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("question", "word"),
    [("Who came?", "who"), ("To whom was it sold?", "who"), ("In what year?", "what"), ("Name the town.", "other"),
     ("How many are there?", "how many or much"), ("The mill stands where?", "where"), ("What's that?", "what"),
     ("And how was it?", "how")],
)  # fmt: skip
def test_questions_are_told_apart_by_the_word_that_asks(question: str, word: str) -> None:
    from finetune.tasks.answer_reports import question_word

    assert question_word(question) == word


def test_the_best_model_can_be_chosen_by_exact_match_which_texts_that_are_written_have_too(tmp_path: Path) -> None:
    world = World(tmp_path, pair_model(tmp_path / "model"))
    recipe = world.recipe(
        question_rows(60), task="question-answering", data={"split": "random"}, model={"max_length": 64},
        train={"epochs": 2, "learning_rate": 1e-2, "early_stopping": {"metric": "exact-match"}},
    )  # fmt: skip
    run = Job(recipe, tmp_path / "out", Runtime(threads=1)).run()
    assert 0 <= run.manifest["metrics"]["exact-match"] <= 1
    assert "generation" not in run.manifest["inputs"]
