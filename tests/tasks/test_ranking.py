"""Ranking: pairs and lists encoded, losses that add up, answers by query, and the whole way from rows to a report."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.artifacts import FeatureTable, PreparedData, Run, feature_table
from finetune.data.rows import Record
from finetune.data.tokenization import Encoded, Encoder, Limits
from finetune.errors import FinetuneError
from finetune.evaluate import evaluate
from finetune.evaluation.predictions.rankings import RankingPredictions
from finetune.inference import Predictor, run_model
from finetune.models.freezing import apply_freezing
from finetune.models.loading import ModelSettings, load_model, load_tokenizer
from finetune.predict import Answering
from finetune.prepare import check, prepare
from finetune.progress import Silent
from finetune.recipe import load_recipe
from finetune.runtime import Runtime
from finetune.tasks import Batch, open_task
from finetune.tasks.ranking import fit_targets, listwise
from finetune.tasks.ranking_reports import details, difficulty, example, sections
from finetune.train import train
from finetune.training.batching import Together, step_groups
from finetune.training.loop import Learner, Step, optimizer_steps
from finetune.training.optimizers import adamw
from tests.conftest import FILLER, LABEL_WORDS

GRADED: dict[str, Any] = {"rows": "graded"}
POSITIVES: dict[str, Any] = {"rows": "positives"}
LOSSES = ["pointwise", "listwise"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def questions(count: int = 40, seed: int = 3) -> list[dict[str, Any]]:
    """Return queries with their texts, which are relevant if they name a fruit, more so if they name two."""
    generator = random.Random(seed)
    found = []
    for number in range(count):
        texts = []
        for fruits in (2, 1, 0, 0, 0)[: generator.randint(3, 5)]:
            words = generator.choices(FILLER, k=generator.randint(2, 8))
            others = generator.choices(LABEL_WORDS["tool"], k=2 - fruits)
            words += [*generator.choices(LABEL_WORDS["fruit"], k=fruits), *others]
            texts.append((" ".join(words), float(fruits)))
        found.append({"query": f"{' '.join(generator.choices(FILLER, k=3))} {number}", "texts": texts})
    return found


def graded(count: int = 40) -> list[dict[str, Any]]:
    """Return one row a pair, those of a query not side by side."""
    rows = [
        {"query": found["query"], "text": text, "relevance": relevance}
        for found in questions(count)
        for text, relevance in found["texts"]
    ]
    random.Random(1).shuffle(rows)
    return rows


def lists(count: int = 40) -> list[dict[str, Any]]:
    """Return one row a query."""
    return [
        {
            "query": found["query"],
            "positive": found["texts"][0][0],
            "negatives": [text for text, _ in found["texts"][2:]],
        }
        for found in questions(count)
    ]


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def encode(rows: Sequence[Mapping[str, Any]], folder: Path, *, max_length: int = 32) -> Encoded:
    task, _ = open_task("ranking", {})
    return task.encode(columns(rows), Encoder.of(load_tokenizer(folder), Limits(max_length)), [])


def make_learner(folder: Path, options: dict[str, Any]) -> Learner:
    torch.manual_seed(3)
    task, _ = open_task("ranking", options)
    loaded = load_model(folder, task.head([]), ModelSettings())
    freezing = apply_freezing(loaded.model, "none", {}, loaded.new_parameters)
    accelerator = Runtime(device="cpu").accelerator()
    model, optimizer = accelerator.prepare(loaded.model, adamw(loaded.model.named_parameters(), 1e-3))
    return Learner(accelerator, model, optimizer, freezing, task, load_tokenizer(folder))


def take_steps(
    folder: Path, options: dict[str, Any], table: FeatureTable, batch_size: int, accumulation: int
) -> list[Step]:
    _, spec = open_task("ranking", options)
    together = Together(table.lengths, table.keys(spec.together))

    def groups(epoch: int) -> list[list[list[int]]]:
        plan = step_groups(together.lengths, batch_size=batch_size, accumulation=accumulation, seed=5, epoch=epoch)
        return [[together.windows(micro) for micro in group] for group in plan]

    return list(
        optimizer_steps(
            make_learner(folder, options),
            table,
            groups,
            learning_rate=1e-3,
            schedule=lambda step, total: 1 - step / total,
            total_steps=4,
            max_gradient_norm=None,
            seed=5,
        )
    )


def test_a_row_a_pair_is_read_as_a_pair_with_its_query_and_relevance(tiny_model: Path) -> None:
    rows = graded(4)
    encoded = encode(rows, tiny_model)
    tokenizer = load_tokenizer(tiny_model)
    wanted = [tokenizer(row["query"], row["text"])["input_ids"] for row in rows]
    assert encoded.features["input_ids"].to_pylist() == wanted
    assert encoded.features["relevance"].to_pylist() == [row["relevance"] for row in rows]
    keys = dict(zip((row["query"] for row in rows), encoded.features["query_key"].to_pylist(), strict=True))
    assert len(set(keys.values())) == 4
    assert [keys[row["query"]] for row in rows] == encoded.features["query_key"].to_pylist()


def test_a_row_a_query_has_its_candidates_as_parts_and_the_relevant_one_first(tiny_model: Path) -> None:
    rows = [*lists(3), {"query": "the old saw", "positive": "pear", "negatives": []}]
    encoded = encode(rows, tiny_model)
    tokenizer = load_tokenizer(tiny_model)
    wanted = [
        [tokenizer(row["query"], text)["input_ids"] for text in (row["positive"], *row["negatives"])] for row in rows
    ]
    assert encoded.features["input_ids"].to_pylist() == wanted
    assert encoded.features["relevance"].to_pylist() == [[[1], *[[0]] * len(row["negatives"])] for row in rows]
    assert encoded.whole_lengths.tolist() == [max(map(len, parts)) for parts in wanted], "of the longest pair"
    table = feature_table(encoded.features)
    assert table.row_ids.tolist() == [number for number, parts in enumerate(wanted) for _ in parts]


def test_what_is_cut_off_is_counted_for_each_row(tiny_model: Path) -> None:
    long: dict[str, Any] = {
        "query": "my red apple",
        "positive": "pear " * 10,
        "negatives": ["saw " * 12, "plum"],
    }
    encoded = encode([long], tiny_model, max_length=10)
    parts = encoded.features["input_ids"].to_pylist()[0]
    assert max(map(len, parts)) == 10
    tokenizer = load_tokenizer(tiny_model)
    texts = [long["positive"], *long["negatives"]]
    whole = sum(len(tokenizer(long["query"], text)["input_ids"]) for text in texts)
    assert encoded.tokens_lost.tolist() == [whole - sum(map(len, parts))]
    pair = {"query": "my red apple", "text": "pear " * 10, "relevance": 1.0}
    assert encode([pair], tiny_model, max_length=10).tokens_lost.tolist() == [
        len(tokenizer(pair["query"], pair["text"])["input_ids"]) - 10
    ]


def test_a_batch_numbers_its_queries(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    rows = [{"query": query, "text": "a pear", "relevance": grade} for query, grade in (("b", 1), ("a", 0), ("b", 2))]
    for options, made in ((GRADED, rows), (POSITIVES, lists(2))):
        task, _ = open_task("ranking", options)
        table = feature_table(encode(made, tiny_model).features)
        batch = task.collate(list(table), tokenizer)
        if options is GRADED:
            assert batch.targets["queries"].tolist() == [0, 1, 0]
            assert batch.targets["relevance"].tolist() == [1.0, 0.0, 2.0]
        else:
            assert batch.targets["queries"].tolist() == table.row_ids.tolist()
            assert batch.targets["relevance"].sum() == 2


def test_the_pointwise_loss_is_cross_entropy_with_shares_of_the_greatest_relevance() -> None:
    task, _ = open_task("ranking", {"loss": "pointwise"})
    scores = torch.tensor([[0.3], [-1.0], [2.0]])
    batch = Batch({}, {"relevance": torch.tensor([4.0, 0.0, 1.0]), "queries": torch.tensor([0, 0, 0])})
    found, count = task.loss(scores, batch, fit_targets([{"relevance": 1.0}, {"relevance": 4.0}]))
    wanted = torch.nn.functional.binary_cross_entropy(scores[:, 0].sigmoid(), torch.tensor([1.0, 0.0, 0.25]))
    assert float(found) == pytest.approx(3 * float(wanted), rel=1e-6)
    assert int(count) == 3


def test_the_listwise_loss_is_cross_entropy_over_each_query_by_itself() -> None:
    scores, relevance = torch.tensor([0.5, 1.0, -0.5, 2.0, 0.0, 9.0]), torch.tensor([2.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    queries = torch.tensor([0, 1, 0, 1, 0, 2])
    found, count = listwise(scores, relevance, queries)
    first = -(torch.tensor([2 / 3, 1 / 3, 0.0]) * scores[[0, 2, 4]].log_softmax(0)).sum()
    second = -scores[[3, 1]].log_softmax(0)[0]
    assert float(found) == pytest.approx(float(first + second), rel=1e-6)
    assert int(count) == 2, "the third query has no relevant text"


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("form", ["graded", "positives"])
def test_micro_batches_of_any_size_give_the_same_gradients(still_model: Path, form: str, loss: str) -> None:
    """13 queries leave a group of 5: in micro-batches of 8, of 2 and of 1 query it has to be the same step."""
    options = {"rows": form, "loss": loss}
    table = feature_table(encode(graded(13) if form == "graded" else lists(13), still_model).features)
    runs = [take_steps(still_model, options, table, *sizes) for sizes in ((8, 1), (2, 4), (1, 8))]
    reference = runs[0]
    assert sum(step.rows for step in reference[:2]) == len(table)
    for steps in runs[1:]:
        for name in ("loss", "gradient_norm"):
            ours, theirs = ([getattr(step, name) for step in each] for each in (steps, reference))
            assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("form", ["graded", "positives"])
def test_every_pair_and_query_enters_loss_and_metric_once(tiny_model: Path, form: str, loss: str) -> None:
    """Counted from the raw rows: pairs, queries, and relevant pairs; one query has nothing relevant."""
    if form == "graded":
        rows = [{**row, "relevance": 0.0 if row["query"].endswith(" 4") else row["relevance"]} for row in graded(9)]
        grades = [row["relevance"] for row in rows]
    else:
        rows = lists(9)
        grades = [grade for row in rows for grade in (1.0, *(0.0 for _ in row["negatives"]))]
    task, spec = open_task("ranking", {"rows": form, "loss": loss})
    table = feature_table(encode(rows, tiny_model).features)
    together = Together(table.lengths, table.keys(spec.together))
    assert (len(table), len(together)) == (len(grades), 9)
    count = 0
    for micro in ([0, 1, 2, 3], [4, 5], [6, 7, 8]):
        batch = task.collate([table[window] for window in together.windows(micro)], load_tokenizer(tiny_model))
        count += int(task.loss(torch.zeros(len(batch.inputs["input_ids"]), 1), batch, {})[1])
    judged = 8 if form == "graded" else 9
    assert count == (len(grades) if loss == "pointwise" else judged)
    predictions = decoded(task, table, rows, range(len(grades)))
    counted = details(predictions, 0)
    assert (counted["pairs"], counted["queries"]) == (len(grades), 9)
    assert (counted["queries_without_positive"], sum(counted["first_relevant_at_rank"])) == (9 - judged, judged)
    assert sorted(predictions.relevance) == sorted(grades)


def test_a_model_is_never_given_more_than_a_batch_at_a_time_however_many_candidates_a_query_has(
    tiny_model: Path,
) -> None:
    """Lists of five and three candidates in batches of four: the list of five is read in two parts, for one loss."""
    rows = lists(2)
    rows = [{**rows[0], "negatives": [f"wrong {n}" for n in range(4)]}, {**rows[1], "negatives": ["no", "neither"]}]
    task, spec = open_task("ranking", {"rows": "positives", "loss": "listwise"})
    table = feature_table(encode(rows, tiny_model).features)
    learner = make_learner(tiny_model, {"rows": "positives", "loss": "listwise"})
    model, tokenizer = learner.model.eval(), load_tokenizer(tiny_model)
    sizes: list[int] = []

    def forward(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        sizes.append(len(inputs["input_ids"]))
        return task.forward(model, inputs)

    encoder = Encoder.of(tokenizer, Limits(32))
    predictor = Predictor(model, forward, tokenizer, task, spec, [], torch.device("cpu"), encoder)
    in_parts = run_model(predictor, table, 4)
    assert sorted(sizes) == [1, 3, 4]
    whole = run_model(predictor, table, 100)
    assert sizes[3:] == [8]
    assert np.concatenate(in_parts.values) == pytest.approx(np.concatenate(whole.values), abs=1e-6)
    assert in_parts.loss == pytest.approx(whole.loss, abs=1e-6)


def decoded(task: Any, table: FeatureTable, rows: Sequence[Any], scores: Any) -> RankingPredictions:
    outputs = [np.array([score], dtype=np.float32) for score in scores]
    said = task.decode(outputs, table, rows, [], {})
    assert isinstance(said, RankingPredictions)
    return said


def test_answers_are_queries_wherever_their_rows_stand(tiny_model: Path) -> None:
    rows = [
        {"query": "pear", "text": "old pear", "relevance": 0.0},
        {"query": "saw", "text": "new saw", "relevance": 2.0},
        {"query": "pear", "text": "red pear", "relevance": 1.0},
    ]
    task, _ = open_task("ranking", GRADED)
    said = decoded(task, feature_table(encode(rows, tiny_model).features), rows, [0.1, 0.2, 0.3])
    assert said.queries.tolist() == ["pear", "saw"]
    assert said.texts.tolist() == ["old pear", "red pear", "new saw"]
    assert said.relevance.tolist() == [0.0, 1.0, 2.0]
    assert said.scores.tolist() == pytest.approx([0.1, 0.3, 0.2])
    assert said.rows.tolist() == [0, 1]
    assert example(said, 0, rows[0]) == {"query": "pear", "ranking": "1. [1] red pear 2. [0] old pear", "ndcg": 1.0}


def test_pairs_that_nobody_has_judged_are_an_answer_each(tiny_model: Path) -> None:
    rows = [{"query": "pear", "text": text} for text in ("old", "new", "old")]
    task, spec = open_task("ranking", GRADED)
    said = decoded(task, feature_table(encode(rows, tiny_model).features), rows, [0.0, 3.0, -3.0])
    assert (len(said), len(said.relevance)) == (3, 0)
    answers = [spec.describe(said, number, row) for number, row in enumerate(rows)]
    assert answers == [{"score": 0.5}, {"score": 0.952574}, {"score": 0.047426}]


def test_a_score_learned_from_lists_has_no_limits(tiny_model: Path) -> None:
    rows = [{"query": "pear", "text": "old"}]
    task, spec = open_task("ranking", {"loss": "listwise"})
    said = decoded(task, feature_table(encode(rows, tiny_model).features), rows, [3.0])
    assert spec.describe(said, 0, rows[0]) == {"score": 3.0}


def test_the_worst_queries_are_those_with_the_lowest_gain_and_unjudged_ones_the_last() -> None:
    said = RankingPredictions.grouped(
        queries=["a", "a", "b", "b", "c"],
        texts=["1", "2", "3", "4", "5"],
        scores=np.array([1.0, 2.0, 2.0, 1.0, 0.0]),
        relevance=np.array([1.0, 0.0, 1.0, 0.0, 0.0]),
        rows=np.arange(5),
        groups=np.array([0, 0, 1, 1, 2]),
    )
    assert np.argsort(-difficulty(said)).tolist() == [0, 1, 2]
    assert example(said, 2, {"query": "c"})["ndcg"] is None
    table = sections(details(said, 0))[0]
    assert table.rows == [["1", 1.0, 0.5], ["2", 1.0, 1.0]]  # type: ignore[union-attr]
    assert "1 queries without" in table.note


def test_relevance_is_measured_by_the_greatest_in_training() -> None:
    assert fit_targets([{"relevance": 1.0}, {"relevance": 3.0}]) == {"greatest_relevance": 3.0}
    assert fit_targets([{"positive": "a", "negatives": []}]) == {"greatest_relevance": 1.0}
    with pytest.raises(FinetuneError, match="expected training rows with a relevance above 0"):
        fit_targets([{"relevance": 0.0}])


# ---------------------------------------------------------------------------------------------------------------------
# The whole way
# ---------------------------------------------------------------------------------------------------------------------


def write_recipe(folder: Path, base: Path, rows: Sequence[Mapping[str, Any]], **sections: Any) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "name": "tiny",
        "task": {"name": "ranking", **sections.pop("task", {})},
        "seed": 7,
        "data": {
            "source": "rows.jsonl",
            "near_duplicates": "off",
            "split": {"name": "random", "train": 0.6, "validation": 0.2, "test": 0.2},
        },
        "model": {"id": str(base), "max_length": 32, **sections.pop("model", {})},
        "train": {"epochs": 4, "batch_size": 4, "learning_rate": 5e-3, "threads": 1},
        **sections,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def trained(folder: Path, recipe_file: Path) -> tuple[PreparedData, Run]:
    recipe = load_recipe(recipe_file)
    data = prepare(recipe, folder / "data")
    return data, train(recipe, data, folder / "run", runtime=Runtime(device="cpu", threads=1), progress=Silent())


@pytest.mark.parametrize(("form", "loss"), [("graded", "listwise"), ("positives", "pointwise")])
def test_a_model_learns_what_answers_and_tells(tmp_path: Path, tiny_model: Path, form: str, loss: str) -> None:
    rows = graded(60) if form == "graded" else lists(60)
    path = write_recipe(tmp_path, tiny_model, rows, task={"rows": form, "loss": loss})
    data, run = trained(tmp_path, path)
    splits = [{row["query"] for row in data.split(name).rows} for name in ("train", "validation", "test")]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 60, "no query is in two splits"
    report = evaluate(run, runtime=Runtime(device="cpu", threads=1))
    assert report["intervals"]["units"] == report["queries"] == len(splits[2])
    assert report["metrics"]["ndcg@10"]["value"] > 0.9
    assert report["gains"]["bm25"]["ndcg@10"]["low"] > 0
    assert set(report["baselines"]) == {"bm25", "tfidf-ranking"}
    answering = Answering(run, Runtime(device="cpu", threads=1))
    lines = (
        ['{"query": "my old", "text": "red pear plum"}', '{"query": "my old", "text": "saw drill"}']
        if form == "graded"
        else ['{"query": "my old", "texts": ["saw drill", "red pear plum", "drill saw"]}']
    )
    answers = list(answering.lines(lines))
    if form == "graded":
        assert answers[0]["score"] > answers[1]["score"]
    else:
        assert answers[0]["ranking"][0]["text"] == "red pear plum"
        assert [item["text"] for item in answers[0]["ranking"]][1:] != []


def test_a_query_without_a_relevant_text_is_an_error_with_its_line(tmp_path: Path, tiny_model: Path) -> None:
    rows = [row for row in graded(20) if row["query"] != graded(20)[0]["query"]]
    rows += [{"query": "who knows", "text": text, "relevance": 0} for text in ("a saw", "a drill")]
    path = write_recipe(tmp_path, tiny_model, rows)
    with pytest.raises(FinetuneError, match=rf"1 query has no text with a relevance above 0.*line {len(rows) - 1}\)"):
        prepare(load_recipe(path), tmp_path / "data")


def checked(folder: Path, base: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    report = check(load_recipe(write_recipe(folder, base, rows, task={"rows": "positives"})))
    findings = {finding["check"]: finding for finding in report["warnings"]}
    return {**report, "findings": findings}


def test_rows_of_which_none_has_a_negative_are_an_error(tmp_path: Path, tiny_model: Path) -> None:
    found = checked(tmp_path, tiny_model, [{**row, "negatives": []} for row in lists(20)])["findings"]
    assert (found["rows-without-negative"]["severity"], found["rows-without-negative"]["count"]) == ("error", 20)
    assert "no row has a negative (line 1, 2, 3 and 17 more)" in found["rows-without-negative"]["message"]


def test_single_rows_without_a_negative_are_counted_with_their_lines(tmp_path: Path, tiny_model: Path) -> None:
    rows = lists(20)
    rows[4]["negatives"] = []
    rows[7]["negatives"] = [rows[7]["positive"].upper()]
    found = checked(tmp_path, tiny_model, rows)["findings"]
    without, equal = found["rows-without-negative"], found["negatives-equal-positive"]
    assert (without["severity"], without["count"]) == (equal["severity"], 2) == ("warning", 2)
    assert "(line 5, 8)" in without["message"]
    assert (equal["count"], equal["examples"][0]["line"]) == (1, 8)


def test_lists_in_order_are_not_spoken_of(tmp_path: Path, tiny_model: Path) -> None:
    found = checked(tmp_path, tiny_model, lists(20))["findings"]
    assert {"rows-without-negative", "negatives-equal-positive"} & found.keys() == set()


def test_triplets_whose_negative_is_their_positive_are_found(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"anchor": row["query"], "positive": row["positive"], "negative": row["negatives"][0]} for row in lists(20)]
    rows[2]["negative"] = rows[2]["positive"]
    path = write_recipe(tmp_path, tiny_model, rows)
    recipe = json.loads(path.read_text())
    path.write_text(json.dumps({**recipe, "task": {"name": "embedding", "rows": "triplets"}}))
    findings = {finding["check"]: finding for finding in check(load_recipe(path))["warnings"]}
    assert "1 row has its positive among the negatives (line 3)" in findings["negatives-equal-positive"]["message"]
    assert "rows-without-negative" not in findings


def test_other_negatives_make_another_row_and_their_order_does_not(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{**row, "negatives": ["a saw", "two drills"]} for row in lists(20)]
    more = [{**row, "negatives": ["two drills", "a hammer"]} for row in rows]
    again = [{**row, "negatives": ["two  Drills", "a saw"]} for row in rows[:3]]
    report = checked(tmp_path, tiny_model, [*rows, *more, *again])
    assert (report["rows_kept"], report["dropped"]) == (40, {"duplicate": 3})


def test_a_question_about_no_text_is_told_so_and_leaves_the_others_theirs(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{**row, "negatives": row["negatives"] if number else []} for number, row in enumerate(lists(30))]
    path = write_recipe(tmp_path, tiny_model, rows, task={"rows": "positives"})
    _, run = trained(tmp_path, path)
    asked = [["red pear"], [], ["old saw", "new plum"], []]
    answering = Answering(run, Runtime(device="cpu", threads=1))
    answers = list(answering.records(Record(1, {"query": "my old", "texts": texts}) for texts in asked))
    assert [answer.get("error") for answer in answers] == [None, "missing_texts", None, "missing_texts"]
    assert {item["text"] for item in answers[0]["ranking"]} == {"red pear"}
    assert {item["text"] for item in answers[2]["ranking"]} == {"old saw", "new plum"}


def test_a_negative_relevance_is_an_error_with_its_line(tmp_path: Path, tiny_model: Path) -> None:
    rows = graded(20)
    rows[6]["relevance"] = -1
    path = write_recipe(tmp_path, tiny_model, rows)
    with pytest.raises(FinetuneError, match=r"line 7.*out_of_range_relevance"):
        prepare(load_recipe(path), tmp_path / "data")


def test_windows_are_refused_before_anything_is_read(tmp_path: Path, tiny_model: Path) -> None:
    path = write_recipe(tmp_path, tiny_model, graded(5), model={"overflow": "window"})
    with pytest.raises(FinetuneError, match="overflow"):
        load_recipe(path)
