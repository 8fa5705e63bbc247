"""Multi-label classification: what enters the loss and the metric, thresholds that stay with the run, bad input."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.artifacts import PreparedData, Run, feature_table
from finetune.data.sources import Record
from finetune.data.tokenization import Encoder, Limits
from finetune.errors import FinetuneError, RecipeError
from finetune.evaluate import evaluate
from finetune.evaluation.predictions.label_sets import LabelSetPredictions, fit_thresholds
from finetune.evaluation.sections import Matrix, Table
from finetune.models.loading import ModelSettings, load_model, load_tokenizer
from finetune.pipeline import Job
from finetune.predict import Answering
from finetune.prepare import prepare
from finetune.recipe import load_recipe
from finetune.runtime import Runtime
from finetune.tasks import Batch, open_task
from tests.conftest import FILLER, LABEL_WORDS, write_jsonl

LABELS = ["fruit", "tool", "weather"]
SETS: list[list[str]] = [
    ["fruit"],
    ["tool", "fruit"],
    [],
    ["weather"],
    ["weather", "tool"],
    ["fruit", "tool", "weather"],
]
CPU = Runtime(device="cpu", threads=1)


def rows_of(count: int, words: int = 5) -> list[dict[str, Any]]:
    """Different texts; each has a word of every one of its labels, the sixth part has no label."""
    rows = []
    for number in range(count):
        own = SETS[number % len(SETS)]
        hints = [LABEL_WORDS[label][(number + place) % 5] for place, label in enumerate(own)]
        filler = [FILLER[(number * 3 + place * 7 + number // 20) % len(FILLER)] for place in range(words)]
        rows.append({"text": " ".join([*filler, *hints, f"n{number}"]), "labels": own})
    return rows


def recipe_of(folder: Path, model_folder: Path, rows: Sequence[Mapping[str, Any]], **sections: Any) -> Path:
    recipe = {
        "name": "sets",
        "task": sections.pop("task", "multi-label"),
        "seed": 5,
        "data": {
            "source": str(write_jsonl(folder / "rows.jsonl", rows)),
            "near_duplicates": "off",
            "split": {"name": "stratified", "train": 0.6, "validation": 0.2, "test": 0.2},
            **sections.pop("data", {}),
        },
        "model": {"id": str(model_folder), "max_length": 32, **sections.pop("model", {})},
        "train": {"epochs": 3, "batch_size": 8, "learning_rate": 5e-3, "threads": 1},
        **sections,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def prepared(folder: Path, model_folder: Path, rows: Sequence[Mapping[str, Any]], **sections: Any) -> PreparedData:
    return prepare(load_recipe(recipe_of(folder, model_folder, rows, **sections)), folder / "data")


def batch_of(targets: object, weights: Sequence[float] = ()) -> Batch:
    values = {"labels": torch.tensor(targets, dtype=torch.float32)}
    return Batch({}, {**values, **({"weights": torch.tensor(weights)} if weights else {})})


# -- rows and batches


def test_rows_become_ids_and_a_0_or_1_for_each_label_in_order(tiny_model: Path) -> None:
    task, _ = open_task("multi-label", {})
    encoder = Encoder.of(load_tokenizer(tiny_model), Limits(8))
    encoded = task.encode({"text": ["the apple", "rain"], "labels": [["weather", "fruit"], []]}, encoder, LABELS)
    assert encoded.features["label_ids"].to_pylist() == [[1, 0, 1], [0, 0, 0]]
    assert task.encode({"text": ["rain"]}, encoder, LABELS).features.keys() == {"input_ids"}
    with pytest.raises(FinetuneError, match="row 2: expected labels that the model knows.*'snow'"):
        task.encode({"text": ["a", "b"], "labels": [[], ["snow"]]}, encoder, LABELS)


def test_batches_have_targets_where_the_rows_have_labels(tiny_model: Path) -> None:
    task, _ = open_task("multi-label", {})
    tokenizer = load_tokenizer(tiny_model)
    rows = [{"input_ids": [2, 5, 3], "label_ids": [0, 1, 1]}, {"input_ids": [2, 5, 6, 3], "label_ids": [0, 0, 0]}]
    batch = task.collate(rows, tokenizer)
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.targets["labels"].tolist() == [[0, 1, 1], [0, 0, 0]]
    assert batch.targets["labels"].dtype == torch.float32
    assert task.collate([{"input_ids": [2, 3]}], tokenizer).targets == {}


# -- model and loss


def test_a_new_head_begins_with_rare_labels_and_a_trained_one_stays_as_it_is(tiny_model: Path, tmp_path: Path) -> None:
    task, _ = open_task("multi-label", {})
    loaded = load_model(tiny_model, task.head(LABELS), ModelSettings())
    assert loaded.model.classifier.bias.sigmoid().tolist() == pytest.approx([0.1] * 3)
    assert loaded.model.config.problem_type == "multi_label_classification"
    torch.nn.init.constant_(loaded.model.classifier.bias, 0.7)
    loaded.model.save_pretrained(tmp_path)
    load_tokenizer(tiny_model).save_pretrained(tmp_path)
    again = load_model(tmp_path, task.head(LABELS), ModelSettings())
    assert again.model.classifier.bias.tolist() == pytest.approx([0.7] * 3)


def test_labels_that_a_checkpoint_knows_keep_their_biases_among_new_ones(tiny_model: Path, tmp_path: Path) -> None:
    task, _ = open_task("multi-label", {})
    trained = load_model(tiny_model, task.head(LABELS[:2]), ModelSettings())
    with torch.no_grad():
        trained.model.classifier.bias.copy_(torch.tensor([1.0, 2.0]))
    trained.model.save_pretrained(tmp_path)
    load_tokenizer(tiny_model).save_pretrained(tmp_path)
    again = load_model(tmp_path, task.head([LABELS[2], *LABELS[:2]]), ModelSettings())
    assert again.model.classifier.bias.tolist() == pytest.approx([-2.1972246, 1.0, 2.0])


def test_the_loss_is_that_of_transformers_in_single_precision() -> None:
    task, _ = open_task("multi-label", {})
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).bfloat16()
    targets = [[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]]
    total, count = task.loss(logits, batch_of(targets), {})
    expected = torch.nn.BCEWithLogitsLoss()(logits.float(), torch.tensor(targets, dtype=torch.float32))
    assert total.dtype == torch.float32
    assert (total / count).item() == pytest.approx(expected.item())
    assert count.item() == 15  # decisions: rows × labels


def test_the_windows_of_a_row_weigh_as_much_as_one_row() -> None:
    task, _ = open_task("multi-label", {})
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(2))
    targets = [[1, 0], [1, 0], [0, 1]]
    total, count = task.loss(logits, batch_of(targets, [0.5, 0.5, 1.0]), {})
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.tensor(targets).float(), reduction="none"
    )
    assert total.item() == pytest.approx((losses[:2].mean(dim=0) + losses[2]).sum().item())
    assert count.item() == 4


@pytest.mark.parametrize("overflow", ["truncate", "window"])
def test_gradients_do_not_depend_on_the_micro_batches(still_model: Path, overflow: Any) -> None:
    """8 x 1, 2 x 4 and 1 x 8 windows, gradients of summed losses added up and divided once by the summed counts."""
    task, _ = open_task("multi-label", {})
    tokenizer = load_tokenizer(still_model)
    texts = [" ".join(FILLER[:length]) for length in (3, 9, 12, 2, 5, 16)]
    encoder = Encoder.of(tokenizer, Limits(8, overflow, 2 if overflow == "window" else 0))
    features = feature_table(task.encode({"text": texts, "labels": SETS}, encoder, LABELS).features)
    windows = [features[index] for index in range(len(features))][:8]
    torch.manual_seed(0)
    model = load_model(still_model, task.head(LABELS), ModelSettings()).model.train()

    def gradients(size: int) -> torch.Tensor:
        model.zero_grad()
        count = 0.0
        for start in range(0, len(windows), size):
            batch = task.collate(windows[start : start + size], tokenizer)
            total, targets = task.loss(task.forward(model, batch.inputs), batch, {})
            total.backward()
            count += float(targets)
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]) / count

    whole = gradients(8)
    assert whole.norm() > 1e-3
    for size in (1, 3, 4):
        torch.testing.assert_close(gradients(size), whole, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("overflow", ["truncate", "window"])
def test_every_label_of_the_raw_rows_enters_loss_and_metric_once(
    tmp_path: Path, tiny_model: Path, overflow: str
) -> None:
    rows = rows_of(60, words=24)
    rows[7]["labels"] = ["fruit", "tool", "fruit"]  # said twice, meant once
    raw = Counter(label for row in rows for label in set(row["labels"]))
    data = prepared(tmp_path, tiny_model, rows, model={"max_length": 12, "overflow": overflow, "stride": 2})
    task, _ = open_task("multi-label", {})
    tokenizer = load_tokenizer(tiny_model)
    in_loss, in_metric, decisions = np.zeros(3), np.zeros(3, dtype=int), 0.0
    for name in data.manifest["splits"]:
        split = data.split(name)
        assert (len(split.features) > len(split)) == (overflow == "window")
        batch = task.collate([split.features[index] for index in range(len(split.features))], tokenizer)
        weights = batch.targets.get("weights", torch.ones(len(split.features)))
        in_loss += (batch.targets["labels"] * weights[:, None]).sum(dim=0).numpy()
        outputs = [np.zeros(3, dtype=np.float32)] * len(split.features)
        decisions += float(task.loss(torch.zeros(len(split.features), 3), batch, {})[1])
        predictions = task.decode(outputs, split.features, split.rows, LABELS, {})
        assert isinstance(predictions, LabelSetPredictions)
        in_metric += predictions.targets.sum(axis=0)
    expected = [raw[label] for label in LABELS]
    assert in_metric.tolist() == expected
    assert in_loss == pytest.approx(expected, abs=1e-4)
    assert decisions == pytest.approx(60 * 3, abs=1e-3)


# -- answers


def decoded(logits: object, fitted: Mapping[str, Any], threshold: Any = "per-label") -> LabelSetPredictions:
    task, _ = open_task("multi-label", {"threshold": threshold})
    outputs = [np.array(values, dtype=np.float32) for values in logits]  # type: ignore[attr-defined]
    rows = [{"text": "", "labels": ["tool"]} for _ in outputs]
    import pyarrow as pa

    features = feature_table({"input_ids": pa.array([[2, 3]] * len(outputs))})
    found = task.decode(outputs, features, rows, LABELS, fitted)
    assert isinstance(found, LabelSetPredictions)
    return found


def test_probabilities_are_sigmoids_and_do_not_overflow() -> None:
    found = decoded([[1e4, 0.0, -1e4], [0.5, -0.25, 2.0]], {})
    assert found.probabilities[0].tolist() == [1.0, 0.5, 0.0]
    np.testing.assert_allclose(found.probabilities[1], torch.tensor([0.5, -0.25, 2.0]).double().sigmoid(), rtol=1e-7)
    assert found.targets.tolist() == [[0, 1, 0], [0, 1, 0]]


def test_a_row_in_windows_has_the_mean_of_their_probabilities(tiny_model: Path) -> None:
    task, _ = open_task("multi-label", {})
    encoder = Encoder.of(load_tokenizer(tiny_model), Limits(6, "window", 0))
    encoded = task.encode({"text": ["apple", " ".join(FILLER[:8])]}, encoder, LABELS)
    chances = np.array([[0.5, 0.25, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])
    logits = list(np.log(chances / (1 - chances)))
    found = task.decode(logits, feature_table(encoded.features), [{"text": "a"}, {"text": "b"}], LABELS, {})
    assert isinstance(found, LabelSetPredictions)
    np.testing.assert_allclose(found.probabilities, [[0.5, 0.25, 0.1], [0.2, 0.7, 0.1]])
    assert found.targets.shape == (0, 3)


def test_the_fitted_thresholds_decide_by_name_and_a_half_until_there_are_any() -> None:
    logits = [[0.1, -0.1, 1.0]]
    assert decoded(logits, {}).predicted.tolist() == [[1, 0, 1]]
    fitted = {"thresholds": {"weather": 0.9, "fruit": 0.6, "tool": 0.4}}
    assert decoded(logits, fitted).thresholds.tolist() == [0.6, 0.4, 0.9]
    assert decoded(logits, fitted).predicted.tolist() == [[0, 1, 0]]
    assert decoded(logits, {}, threshold=0.45).predicted.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("rule", ["per-label", "global", 0.35])
def test_what_is_fitted_is_what_the_option_says(rule: Any) -> None:
    _, spec = open_task("multi-label", {"threshold": rule})
    generator = np.random.default_rng(0)
    targets, said = (generator.random((20, 3)) < 0.4).astype(int), generator.random((20, 3))
    assert spec.fit_decisions is not None
    fitted = spec.fit_decisions(LabelSetPredictions(tuple(LABELS), targets, said, np.full(3, 0.5), rule))
    assert json.loads(json.dumps(fitted)) == fitted
    assert list(fitted["thresholds"].values()) == fit_thresholds(targets, said, rule).tolist()


SAID = LabelSetPredictions(
    tuple(LABELS),
    np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]]),
    np.array([[0.9, 0.65, 0.2], [0.1, 0.05, 0.3], [0.4, 0.8, 0.1]]),
    np.array([0.5, 0.5, 0.6]),
)
ROWS: list[dict[str, Any]] = [
    {"text": "rain on the apple", "labels": ["fruit", "weather"]},
    {"text": "my day", "labels": []},
    {"text": "a saw", "labels": ["tool"]},
]


def test_an_answer_lists_its_labels_by_probability_and_the_probability_of_each() -> None:
    _, spec = open_task("multi-label", {})
    assert spec.describe(SAID, 0, ROWS[0]) == {
        "labels": [{"label": "fruit", "probability": 0.9}, {"label": "tool", "probability": 0.65}],
        "probabilities": {"fruit": 0.9, "tool": 0.65, "weather": 0.2},
    }
    assert spec.describe(SAID, 1, ROWS[1])["labels"] == []


def test_a_worst_example_tells_what_is_missing_and_what_is_too_much() -> None:
    _, spec = open_task("multi-label", {})
    assert spec.example(SAID, 0, ROWS[0]) == {
        "text": "rain on the apple",
        "labels": "fruit, weather",
        "predicted": "fruit, tool",
        "missing": "weather 0.20",
        "too many": "tool 0.65",
    }
    assert spec.example(SAID, 1, ROWS[1])["labels"] == spec.example(SAID, 1, ROWS[1])["predicted"] == "(none)"


def test_the_hardest_row_is_the_one_whose_answer_is_the_least_probable() -> None:
    _, spec = open_task("multi-label", {})
    chance_of_truth = [0.9 * 0.35 * 0.2, 0.9 * 0.95 * 0.7, 0.6 * 0.8 * 0.9]
    assert np.exp(-spec.difficulty(SAID)) == pytest.approx(chance_of_truth)
    certain = LabelSetPredictions(("a",), np.array([[1]]), np.array([[0.0]]), np.array([0.5]))
    assert np.isfinite(spec.difficulty(certain)).all()


def test_the_report_tells_prevalence_thresholds_scores_and_mix_ups_in_the_labels_order() -> None:
    _, spec = open_task("multi-label", {})
    report = spec.details(SAID, 3)
    assert list(report["per_label"]) == LABELS
    tool = report["per_label"]["tool"]
    assert (tool["threshold"], tool["rows"]) == (0.5, 1)
    assert (tool["share"], tool["predicted_share"]) == pytest.approx((1 / 3, 2 / 3))
    assert (tool["precision"]["value"], tool["recall"]["value"]) == (0.5, 1.0)
    assert report["labels_per_row"] == [
        {"labels": 0, "rows": 1, "predicted": 1, "exact": 1},
        {"labels": 1, "rows": 1, "predicted": 1, "exact": 1},
        {"labels": 2, "rows": 1, "predicted": 1, "exact": 0},
    ]
    by_label, by_number, mixed_up = spec.sections(json.loads(json.dumps(report)))
    assert isinstance(by_label, Table)
    assert isinstance(by_number, Table)
    assert isinstance(mixed_up, Matrix)
    assert [row[0] for row in by_label.rows] == LABELS
    assert all(len(row) == len(by_label.header) for row in by_label.rows)
    assert mixed_up.labels == [*LABELS, "(none)"]
    assert np.shape(mixed_up.counts) == (4, 4)
    assert mixed_up.counts[2][1] == 1  # weather was missed, tool said in its place


# -- a whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Run:
    folder = tmp_path_factory.mktemp("sets")
    recipe = recipe_of(folder, tiny_model, rows_of(90), train={"epochs": 4, "learning_rate": 1e-2, "threads": 1})
    Job(load_recipe(recipe), folder / "out", runtime=CPU).run()
    return Run(folder / "out" / "run")


def test_the_thresholds_are_those_that_are_best_on_validation_and_everyone_uses_them(run: Run) -> None:
    kept = json.loads((run.folder / "fitted.json").read_text())["thresholds"]
    assert list(kept) == run.labels == LABELS
    report = evaluate(run, split="validation", runtime=CPU)
    assert {label: scores["threshold"] for label, scores in report["per_label"].items()} == kept
    answers = list(Answering(run, CPU).texts(row["text"] for row in rows_of(30)))
    assert any(answer["labels"] for answer in answers)
    for answer in answers:
        said = {label for label, chance in answer["probabilities"].items() if chance >= round(kept[label], 6)}
        assert {item["label"] for item in answer["labels"]} == said
    assert json.loads((run.folder / "log.jsonl").read_text().splitlines()[-1]) is not None


def test_the_report_has_baselines_with_thresholds_and_gains(run: Run) -> None:
    report = evaluate(run, runtime=CPU)
    assert set(report["baselines"]) == set(report["gains"]) == {"prevalence", "tfidf-one-vs-rest"}
    assert report["baselines"]["prevalence"]["recall-micro"]["value"] == 1
    assert report["metrics"]["f1-micro"]["value"] > 0.5
    text = (run.reports / "test.md").read_text()
    assert "| label | rows | share of rows |" in text


def test_new_rows_with_an_unknown_label_are_counted_and_named(run: Run, tmp_path: Path) -> None:
    good = rows_of(12)
    odd: list[dict[str, Any]] = [{"text": "the old saw again", "labels": ["tol"]}, {"text": "x", "labels": 5}]
    report = evaluate(run, source=write_jsonl(tmp_path / "new.jsonl", [*good, *odd]), folder=tmp_path, runtime=CPU)
    assert report["rows"] == 12
    assert report["dropped"] == {"unknown_label": 1, "wrong_type_of_labels": 1}
    with pytest.raises(FinetuneError, match=r"unknown_label 1; 'tol' in line 1.*fruit, tool, weather"):
        evaluate(run, source=write_jsonl(tmp_path / "odd.jsonl", odd[:1]), folder=tmp_path, runtime=CPU)


def test_a_question_needs_a_text_and_no_labels(run: Run) -> None:
    first, second = Answering(run, CPU).records([Record(1, {"text": "the saw"}), Record(2, {"labels": ["tool"]})])
    assert list(first) == ["row", "labels", "probabilities"]
    assert second == {"row": 2, "error": "missing_text"}


# -- bad input


def test_a_label_that_is_not_declared_is_an_error_with_its_line(tmp_path: Path, tiny_model: Path) -> None:
    rows = rows_of(40)
    rows[10]["labels"] = ["fruit", "tol"]
    with pytest.raises(FinetuneError, match=r"unknown-labels: 1 row.*'tol' \(line 11\)"):
        prepared(tmp_path, tiny_model, rows, data={"labels": LABELS})


def test_declared_labels_give_the_order_of_the_outputs(tmp_path: Path, tiny_model: Path) -> None:
    data = prepared(tmp_path, tiny_model, rows_of(40), data={"labels": ["weather", "tool", "fruit"]})
    assert data.labels == ["weather", "tool", "fruit"]
    split = data.split("train")
    for index, row in enumerate(split.rows):
        assert split.features[index]["label_ids"] == [int(label in row["labels"]) for label in data.labels]


def test_rows_whose_labels_are_no_list_are_dropped_with_line_and_reason(tmp_path: Path, tiny_model: Path) -> None:
    rows = rows_of(40)
    for line, value in ((5, 3), (8, {"fruit": 1}), (9, None), (12, [["fruit"]])):
        rows[line - 1]["labels"] = value
    data = prepared(tmp_path, tiny_model, rows)
    found = [json.loads(line) for line in (data.folder / "dropped.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in found] == [
        (5, "wrong_type_of_labels"),
        (8, "wrong_type_of_labels"),
        (9, "missing_labels"),
        (12, "wrong_type_of_labels"),
    ]


@pytest.mark.parametrize("threshold", [0, 1.5, "best", True])
def test_a_threshold_is_a_rule_or_a_number_between_0_and_1(tmp_path: Path, tiny_model: Path, threshold: Any) -> None:
    path = recipe_of(tmp_path, tiny_model, rows_of(6), task={"name": "multi-label", "threshold": threshold})
    with pytest.raises(RecipeError, match="task"):
        load_recipe(path)
