"""Regression against plain torch: what is learned, counted, and said in the targets' own units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune.artifacts import FeatureTable, feature_table
from finetune.data.tokenization import Encoder, Limits
from finetune.evaluation.predictions.numbers import NumberPredictions
from finetune.inference import Predictor, run_model
from finetune.models.freezing import apply_freezing
from finetune.models.loading import ModelSettings, load_model, load_tokenizer
from finetune.runtime import Runtime
from finetune.tasks import Batch, open_task
from finetune.training.batching import step_groups
from finetune.training.loop import Learner, Step, optimizer_steps
from finetune.training.optimizers import adamw
from tests.conftest import LABEL_WORDS, make_rows

WORTH = {word: float(number) for number, word in enumerate(word for words in LABEL_WORDS.values() for word in words)}
TWO = ["worth", "words"]
Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scored_rows(count: int) -> Rows:
    """Return sentences with what their telling word is worth, and how many words they have."""
    texts = [row["body"] for row in make_rows(per_label=count)[:count]]
    return [
        {"text": text, "worth": sum(WORTH.get(word, 0.0) for word in text.split()), "words": len(text.split())}
        for text in texts
    ]


def columns_of(rows: Rows) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def features_of(folder: Path, rows: Rows, limits: Limits, targets: Sequence[str] = TWO) -> FeatureTable:
    task, _ = open_task("regression", {"targets": list(targets)})
    encoder = Encoder.of(load_tokenizer(folder), limits)
    return feature_table(task.encode(columns_of(rows), encoder, []).features)


def fitted_on(rows: Rows, targets: Sequence[str] = TWO) -> dict[str, Any]:
    _, spec = open_task("regression", {"targets": list(targets)})
    assert spec.fit_targets is not None
    return spec.fit_targets(rows)


def make_learner(
    folder: Path, rows: Rows, targets: Sequence[str] = TWO, loss: tuple[str, dict[str, Any]] | None = None
) -> Learner:
    torch.manual_seed(3)
    task, _ = open_task("regression", {"targets": list(targets)}, loss)
    loaded = load_model(folder, task.head([]), ModelSettings())
    freezing = apply_freezing(loaded.model, "none", {}, loaded.new_parameters)
    accelerator = Runtime(device="cpu").accelerator()
    model, optimizer = accelerator.prepare(loaded.model, adamw(loaded.model.named_parameters(), 1e-3))
    return Learner(accelerator, model, optimizer, freezing, task, load_tokenizer(folder), fitted_on(rows, targets))


def take_steps(learner: Learner, features: FeatureTable, steps: int, batch: int, accumulation: int = 1) -> list[Step]:
    def groups(epoch: int) -> Any:
        return step_groups(features.lengths, batch_size=batch, accumulation=accumulation, seed=5, epoch=epoch)

    schedule = {"learning_rate": 1e-3, "schedule": lambda step, total: 1.0, "max_gradient_norm": None, "seed": 5}
    return list(optimizer_steps(learner, features, groups, total_steps=steps, **schedule))


def answers(learner: Learner, folder: Path, rows: Rows, limits: Limits, targets: Sequence[str]) -> NumberPredictions:
    """Return what a learner's model says about rows."""
    task, spec = learner.task, open_task("regression", {"targets": list(targets)})[1]
    model = learner.model.eval()
    encoder = Encoder.of(learner.tokenizer, limits)
    device = torch.device("cpu")
    forward = partial(task.forward, model)
    predictor = Predictor(model, forward, learner.tokenizer, task, spec, [], device, encoder, learner.fitted)
    features = features_of(folder, rows, limits, targets)
    found: Any = predictor.predict(rows, features, 8)
    assert run_model(predictor, features, 8).loss is not None
    return found  # type: ignore[no-any-return]


# -- rows, batches, losses


def test_the_scores_of_a_row_become_one_list_of_numbers(tiny_model: Path) -> None:
    rows: Rows = [{"text": "the apple", "worth": 2.5, "words": 2}, {"text": "a saw", "worth": -1.0, "words": 2}]
    features = features_of(tiny_model, rows, Limits(8))
    assert [features[row]["scores"] for row in range(2)] == [[2.5, 2.0], [-1.0, 2.0]]


def test_rows_without_scores_can_be_encoded_and_decoded_to_be_predicted(tiny_model: Path) -> None:
    task, spec = open_task("regression", {"targets": TWO})
    encoded = task.encode({"text": ["rain"]}, Encoder.of(load_tokenizer(tiny_model), Limits(8)), [])
    assert encoded.features.keys() == {"input_ids"}
    features = feature_table(encoded.features)
    assert task.collate(list(features), load_tokenizer(tiny_model)).targets == {}
    fitted = {"mean": {"worth": 10.0, "words": 0.0}, "deviation": {"worth": 2.0, "words": 1e-5}}
    found = task.decode([np.array([1.5, 0.123456789], np.float32)], features, [{"text": "rain"}], [], fitted)
    assert (len(found), found.targets.shape) == (1, (0, 2))
    assert spec.describe(found, 0, {"text": "rain"}) == {"worth": 13.0, "words": 0.000001235}


def test_nothing_fitted_yet_means_scores_as_they_are() -> None:
    task, _ = open_task("regression", {})
    batch = Batch({}, {"scores": torch.tensor([[3.0]]), "rests": torch.tensor([[0.0]])})
    total, count = task.loss(torch.tensor([[1.0]]), batch, {})
    assert (float(total), float(count)) == (4.0, 1.0)


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (None, torch.nn.MSELoss(reduction="sum")),
        (("mae", {}), torch.nn.L1Loss(reduction="sum")),
        (("huber", {}), torch.nn.HuberLoss(reduction="sum")),
        (("huber", {"delta": 0.3}), torch.nn.HuberLoss(reduction="sum", delta=0.3)),
    ],
)
def test_the_loss_is_torchs_on_standardized_scores_in_single_precision(
    still_model: Path, loss: tuple[str, dict[str, Any]] | None, reference: torch.nn.Module
) -> None:
    rows = scored_rows(7)
    learner = make_learner(still_model, rows, loss=loss)
    batch = learner.task.collate(list(features_of(still_model, rows, Limits(32))), learner.tokenizer)
    outputs = learner.task.forward(learner.model, batch.inputs)
    assert outputs.shape == (7, 2)
    outputs = outputs.detach()
    total, count = learner.task.loss(outputs.bfloat16(), batch, learner.fitted)
    scores = torch.tensor([[row[name] for name in TWO] for row in rows], dtype=torch.float64)
    standardized = (scores - scores.mean(0)) / scores.std(0, correction=0)
    assert total.dtype == torch.float32
    assert float(total) == pytest.approx(float(reference(outputs.bfloat16().float(), standardized.float())), rel=1e-5)
    assert float(count) == 14


def test_scores_far_from_zero_keep_the_digits_in_which_they_differ() -> None:
    task, _ = open_task("regression", {})
    scores = [1_700_000_000.25, 1_700_000_000.75]
    fitted = {"mean": {"score": 1_700_000_000.5}, "deviation": {"score": 0.25}}
    whole = torch.tensor([[score] for score in scores], dtype=torch.float64)
    targets = {"scores": whole.float(), "rests": (whole - whole.float().double()).float()}
    for output, score in zip((-1.0, 1.0), (0, 1), strict=True):
        part = {name: values[score : score + 1] for name, values in targets.items()}
        assert float(task.loss(torch.tensor([[output]]), Batch({}, part), fitted)[0]) == 0.0


def test_a_constant_target_is_learned_as_its_value() -> None:
    rows: Rows = [{"text": "a", "score": 0.1}, {"text": "b", "score": 0.1}, {"text": "c", "score": 0.1}]
    fitted = fitted_on(rows, ["score"])
    assert fitted["deviation"] == {"score": 1.0}
    assert fitted["mean"]["score"] == pytest.approx(0.1)


def test_mean_and_deviation_are_those_of_the_rows_they_are_fitted_on() -> None:
    fitted = fitted_on([{"a": 1.0, "b": -2.0}, {"a": 4.0, "b": -2.5}, {"a": 7.0, "b": -3.0}], ["a", "b"])
    assert fitted["mean"] == {"a": 4.0, "b": -2.5}
    assert fitted["deviation"] == pytest.approx({"a": np.std([1, 4, 7]), "b": np.std([2, 2.5, 3])})


# -- windows and counts


def test_the_scores_in_loss_and_metric_are_those_of_the_raw_rows_windows_included(still_model: Path) -> None:
    """Every row counts once for each target, whether it was read in one window or in several."""
    rows = scored_rows(24)
    in_raw_rows = sum(name in row for row in rows for name in TWO)
    limits = Limits(6, "window", 1)
    features = features_of(still_model, rows, limits)
    windows = np.bincount(features.row_ids)
    assert (len(windows), windows.min(), windows.max() > 2) == (24, 1, True)
    learner = make_learner(still_model, rows)
    counts = []
    for start in range(0, len(features), 5):
        batch = learner.task.collate(features[start : start + 5], learner.tokenizer)
        outputs = learner.task.forward(learner.model, batch.inputs)
        counts.append(float(learner.task.loss(outputs.detach(), batch, learner.fitted)[1]))
    assert sum(counts) == pytest.approx(in_raw_rows, abs=1e-4)
    predictions = answers(learner, still_model, rows, limits, TWO)
    assert (predictions.targets.size, predictions.values.size) == (in_raw_rows, in_raw_rows)
    assert predictions.targets.sum() == sum(row[name] for row in rows for name in TWO)


def test_a_row_in_windows_has_the_mean_of_their_outputs_in_the_targets_units(still_model: Path) -> None:
    task, _ = open_task("regression", {})
    rows: Rows = [{"text": "the apple", "score": 1.0}, {"text": "a big saw with my old hammer near", "score": 2.0}]
    features = features_of(still_model, rows, Limits(6, "window", 0), ["score"])
    assert features.row_ids.tolist() == [0, 1, 1]
    outputs = [np.array([value], np.float32) for value in (0.5, -1.0, 3.0)]
    found = task.decode(outputs, features, rows, [], {"mean": {"score": 100.0}, "deviation": {"score": 10.0}})
    assert found.values.tolist() == [[105.0], [110.0]]
    assert (found.targets.tolist(), found.deviations.tolist()) == ([[1.0], [2.0]], [10.0])


def test_predictions_keep_to_a_declared_range_and_only_then(still_model: Path) -> None:
    rows: Rows = [{"text": "the apple", "score": 1.0}]
    features = features_of(still_model, rows, Limits(8), ["score"])
    fitted = {"mean": {"score": 5.0}, "deviation": {"score": 3.0}}
    for options, wanted in (({}, 35.0), ({"maximum": 10.0}, 10.0), ({"minimum": 40.0}, 40.0)):
        task, _ = open_task("regression", options)
        assert task.decode([np.array([10.0], np.float32)], features, rows, [], fitted).values.tolist() == [[wanted]]


# -- training


@pytest.mark.parametrize("limits", [Limits(32), Limits(6, "window", 1)], ids=["whole rows", "windows"])
def test_micro_batches_of_any_size_give_the_same_gradients(still_model: Path, limits: Limits) -> None:
    """The 13 rows leave a short last group, and the windows of one row may fall into different micro-batches."""
    rows = scored_rows(13)
    features = features_of(still_model, rows, limits)
    runs = {
        (size, accumulation): take_steps(make_learner(still_model, rows), features, 4, size, accumulation)
        for size, accumulation in ((8, 1), (2, 4), (1, 8))
    }
    reference = runs[8, 1]
    for steps in runs.values():
        assert [step.gradient_norm for step in steps] == pytest.approx([s.gradient_norm for s in reference], rel=1e-4)
        assert [step.loss for step in steps] == pytest.approx([s.loss for s in reference], rel=1e-4)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_training_on_other_units_says_the_same_in_those_units(still_model: Path, loss: str) -> None:
    """A score and 1000 × score + 7 are the same thing to learn: standardization takes the difference out again."""
    rows = scored_rows(16)
    moved: Rows = [{**row, "worth": 1000 * row["worth"] + 7} for row in rows]
    said = []
    for given in (rows, moved):
        learner = make_learner(still_model, given, ["worth"], (loss, {}))
        take_steps(learner, features_of(still_model, given, Limits(32), ["worth"]), 6, 8)
        said.append(answers(learner, still_model, given, Limits(32), ["worth"]).values)
    assert np.ptp(said[0]) > 0
    np.testing.assert_allclose(said[1], 1000 * said[0] + 7, rtol=1e-4)


def test_a_small_model_learns_what_words_are_worth(still_model: Path) -> None:
    rows = scored_rows(48)
    learner = make_learner(still_model, rows, ["worth"])
    steps = take_steps(learner, features_of(still_model, rows, Limits(32), ["worth"]), 180, 8)
    assert np.mean([step.loss for step in steps[-6:]]) < 0.5 * np.mean([step.loss for step in steps[:6]])
