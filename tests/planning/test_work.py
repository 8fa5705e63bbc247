"""The work that a training is: as many steps, tokens and evaluations as its log has, and as much on the disk."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors import safe_open

from finetune import train as stage
from finetune.artifacts import PreparedData, partial_folder
from finetune.planning import work
from finetune.planning.memory import Estimate
from finetune.planning.work import count_disk, count_work, evenly
from finetune.recipe import Recipe
from finetune.train import train
from finetune.training.batching import Batches
from tests.planning.world import CPU, Plans

CLASSIFYING = "text-classification"


class Planned(NamedTuple):
    recipe: Recipe
    data: PreparedData
    estimate: Estimate

    @property
    def work(self) -> work.Work:
        return count_work(*self)


def planned(plans: Plans, kind: str = CLASSIFYING, **sections: Any) -> Planned:
    recipe = plans.recipe(kind, **sections)
    data = plans.data(recipe)
    return Planned(recipe, data, plans.estimate(kind, **sections))


def padding_of(one: Planned, *parts: str) -> float:
    """Return the share of padding in the first epoch, in each part of a window padded to the longest."""
    given, read = 0, 0
    features = list(one.data.split("train").features)
    for step in Batches.of(one.recipe, one.data.split("train").features, one.estimate.spec, "cpu").epoch(0):
        for micro_batch in step:
            for part in parts:
                lengths = [len(features[window][part]) for window in micro_batch]
                given += len(lengths) * max(lengths)
                read += sum(lengths)
    return 1 - read / given


@pytest.fixture(scope="module")
def classifying(plans: Plans) -> Planned:
    return planned(plans)


def test_steps_epochs_and_tokens_are_those_of_the_prepared_rows(classifying: Planned) -> None:
    found = classifying.work
    tokens = sum(len(window["input_ids"]) for window in classifying.data.split("train").features)
    assert (found.rows, found.windows, found.validation_rows) == (54, 54, 18)
    assert (found.steps_per_epoch, found.steps, found.epochs) == (7, 14, 2)
    assert (found.tokens_per_epoch, found.tokens) == (tokens, 2 * tokens)
    assert (found.evaluations, found.writes) == (2, 0)


@pytest.mark.parametrize("bucketed", [True, False])
def test_padding_is_that_of_all_micro_batches(plans: Plans, bucketed: bool) -> None:
    one = planned(plans, train={"bucket_by_length": bucketed, "batch_size": 4, "gradient_accumulation": 2})
    expected = padding_of(one, "input_ids")
    assert one.work.padding == pytest.approx(expected, abs=1e-4)
    assert (expected < 0.25) == bucketed


def test_a_decoders_targets_have_padding_of_their_own(plans: Plans) -> None:
    one = planned(plans, "seq2seq", train={"bucket_by_length": False})
    assert one.work.padding == pytest.approx(padding_of(one, "input_ids", "label_ids"), abs=1e-4)
    windows = list(one.data.split("train").features)
    tokens = sum(len(window["input_ids"]) + len(window["label_ids"]) for window in windows)
    assert one.work.tokens_per_epoch == tokens


def test_packed_rows_have_less_padding(plans: Plans) -> None:
    mixed = {"bucket_by_length": False}
    apart, packed = (planned(plans, kind, train=mixed) for kind in ("causal-lm", "causal-lm packed"))
    assert packed.work.padding < apart.work.padding
    assert packed.work.tokens == apart.work.tokens


def test_of_many_micro_batches_the_padding_of_some_is_counted(
    classifying: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    real = work.training_batch

    def see(learner: Any, features: Any, micro_batch: list[int], draw: Any) -> Any:
        seen.append(micro_batch)
        return real(learner, features, micro_batch, draw)

    monkeypatch.setattr(work, "training_batch", see)
    monkeypatch.setattr(work, "COUNTED_BATCHES", 3)
    padding = classifying.work.padding
    every = [micro_batch for step in classifying.estimate.batches.epoch(0) for micro_batch in step]
    assert seen == [every[1], every[3], every[5]]
    lengths = classifying.data.split("train").features.lengths
    given = sum(len(batch) * max(lengths[window] for window in batch) for batch in seen)
    assert padding == pytest.approx(1 - sum(lengths[window] for batch in seen for window in batch) / given, abs=1e-4)


def test_things_are_taken_evenly_from_all_over() -> None:
    assert evenly(range(3), 5) == [0, 1, 2]
    assert evenly(range(10), 10) == list(range(10))
    assert evenly(range(100), 4) == [12, 37, 62, 87]
    assert evenly(range(100), 1) == [50]
    assert evenly([], 3) == []


@pytest.mark.parametrize(
    ("settings", "steps", "evaluations"),
    [
        ({}, 14, 2),
        ({"max_steps": 9}, 9, 2),
        ({"eval_every": 5}, 14, 3),
        ({"eval_every": 1000, "epochs": 1}, 7, 1),
        ({"batch_size": 5, "gradient_accumulation": 2}, 12, 2),
        ({"batch_size": 100, "epochs": 1}, 1, 1),
    ],
)
def test_a_training_does_the_work_that_was_planned(
    plans: Plans, tmp_path: Path, settings: dict[str, Any], steps: int, evaluations: int
) -> None:
    one = planned(plans, train=settings)
    found = one.work
    assert (found.steps, found.evaluations) == (steps, evaluations)
    run = train(one.recipe, one.data, tmp_path / "run", runtime=CPU)
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    learned = [line for line in lines if "loss" in line]
    assert len(learned) == steps
    assert len([line for line in lines if "validation" in line]) == evaluations
    tokens = sum(line["tokens"] for line in learned)
    if "max_steps" in settings:  # a part of an epoch is about as long as it is of its steps
        assert found.epochs == round(steps / 7, 3)
        assert found.tokens == pytest.approx(tokens, rel=0.3)
    else:
        assert found.tokens == tokens


@pytest.mark.parametrize(
    ("kind", "wanted", "writes"), [("seq2seq", 100, 18), ("causal-lm answers", 4, 4), ("causal-lm", 4, 0)]
)
def test_what_is_written_at_an_evaluation_is_a_sample_of_the_validation_rows(
    plans: Plans, kind: str, wanted: int, writes: int
) -> None:
    assert planned(plans, kind, generation={"validation_rows": wanted}).work.writes == writes


def test_windows_are_counted_beside_their_rows(plans: Plans) -> None:
    one = planned(plans, model={"max_length": 8, "overflow": "window", "stride": 2})
    found = one.work
    windows = len(one.data.split("train").features)
    assert (found.rows, found.windows) == (54, windows)
    assert windows > 54
    assert found.steps_per_epoch == -(-windows // 8)


# ---------------------------------------------------------------------------------------------------------------------
# The disk
# ---------------------------------------------------------------------------------------------------------------------


def stored(path: Path) -> int:
    """Return the bytes of the tensors in a safetensors file."""
    with safe_open(path, framework="pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 -- it is no mapping
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param({}, id="all"),
        pytest.param({"freeze": "encoder"}, id="frozen encoder"),
        pytest.param({"adapter": "lora"}, id="adapters"),
        pytest.param({"adapter": {"name": "lora", "merge": True}}, id="merged adapters"),
    ],
)
def test_a_training_writes_what_was_planned(
    plans: Plans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    one = planned(plans, train={"epochs": 1}, **sections)
    disk = count_disk(one.recipe, one.estimate, tmp_path / "not" / "there")
    seen: dict[str, int] = {}
    finish = stage._Training.finish

    def look(training: Any, inputs: Any) -> Any:
        for path in (partial_folder(tmp_path / "run") / "checkpoints").rglob("*.safetensors"):
            seen["best" if path.name.startswith("best-") else path.stem] = stored(path)
        return finish(training, inputs)

    monkeypatch.setattr(stage._Training, "finish", look)
    run = train(one.recipe, one.data, tmp_path / "run", runtime=CPU)
    assert sorted(seen) == ["best", "model", "optimizer"]
    expected = 2 * (seen["model"] + seen["optimizer"]) + 2 * seen["best"]
    assert disk.checkpoints == expected
    model = next(run.model_folder.glob("*model.safetensors"))
    assert disk.model == pytest.approx(stored(model), rel=0.12), "merged, there are adapters beside the model"
    if "adapter" not in sections:
        assert disk.model == pytest.approx(stored(model), abs=2 * 64 * 8), "BERT's places are no parameters"


@pytest.mark.parametrize("settings", [{}, {"keep_checkpoints": 2, "average_best": 3, "ema": 0.9}])
def test_many_evaluations_between_two_checkpoints_write_no_more(
    plans: Plans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    one = planned(plans, train={"max_steps": 8, "eval_every": 1, "save_every": 4, **settings})
    disk = count_disk(one.recipe, one.estimate, tmp_path)
    folder = partial_folder(tmp_path / "run") / "checkpoints"
    held: list[int] = []

    def watched(save: Any) -> Any:
        def saved(*arguments: Any, **named: Any) -> None:
            save(*arguments, **named)
            held.append(sum(stored(path) for path in folder.rglob("*.safetensors")))

        return saved

    for name in ("save_best", "save_checkpoint"):
        monkeypatch.setattr(stage, name, watched(getattr(stage, name)))

    def best(_: Any, state: Any, score: float) -> Any:
        return dataclasses.replace(state, best_step=state.step, best_score=score)

    monkeypatch.setattr(stage.Patience, "update", best)
    train(one.recipe, one.data, tmp_path / "run", runtime=CPU)
    assert len(held) == 8 + 2, "every evaluation is the best, and two checkpoints are saved"
    assert max(held) <= disk.checkpoints


def test_free_is_what_the_disk_of_the_nearest_folder_has(
    classifying: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    class Usage(NamedTuple):
        free: int

    def usage(place: Path) -> Usage:
        asked.append(Path(place))
        return Usage(12345)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    disk = count_disk(classifying.recipe, classifying.estimate, tmp_path / "not" / "there")
    assert (disk.free, asked) == (12345, [tmp_path])
