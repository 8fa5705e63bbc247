"""Checkpoints: exact, complete or absent, and free of code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune import registry
from finetune.errors import FinetuneError
from finetune.training import checkpoints
from finetune.training.checkpoints import (
    TrainingState,
    latest_checkpoint,
    load_checkpoint,
    restore_best,
    save_best,
    save_checkpoint,
)
from finetune.training.loop import Learner
from tests.training.test_loop import make_features, make_learner, parameters_of, take_steps


@pytest.mark.parametrize(("freeze", "options"), [("none", {}), ("first-layers", {"count": 1})])
def test_a_fresh_process_that_loads_a_checkpoint_takes_exactly_the_same_steps(
    tiny_model: Path, tmp_path: Path, freeze: str, options: dict[str, int]
) -> None:
    torch.set_num_threads(1)
    features = make_features(tiny_model, 30)
    whole = make_learner(tiny_model, freeze=freeze, options=options)
    expected = take_steps(whole, features, steps=4) + take_steps(whole, features, steps=9, done=4)
    first = make_learner(tiny_model, freeze=freeze, options=options)
    take_steps(first, features, steps=4)
    save_best(first, TrainingState(step=2, best_step=2), tmp_path)
    save_checkpoint(first, TrainingState(step=4, best_step=2, best_score=0.5), tmp_path)

    second = make_learner(tiny_model, freeze=freeze, options=options)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert load_checkpoint(second, checkpoint) == TrainingState(step=4, best_step=2, best_score=0.5)
    rest = take_steps(second, features, steps=9, done=4)
    assert [(s.loss, s.gradient_norm) for s in rest] == [(s.loss, s.gradient_norm) for s in expected[4:]]
    for name, tensor in parameters_of(whole).items():
        assert torch.equal(tensor, parameters_of(second)[name]), name


@pytest.mark.parametrize("name", registry.optimizers.names())
def test_training_goes_on_exactly_with_every_optimizer(tiny_model: Path, tmp_path: Path, name: str) -> None:
    torch.set_num_threads(1)
    features = make_features(tiny_model, 30)

    def learner() -> Learner:
        found = make_learner(tiny_model)
        make = registry.optimizers.get(name).build({})
        found.optimizer = found.accelerator.prepare(make(found.model.named_parameters(), 1e-3))
        return found

    whole, first, second = learner(), learner(), learner()
    for one in (whole, first):
        take_steps(one, features, steps=4)
    take_steps(whole, features, steps=9, done=4)
    save_checkpoint(first, TrainingState(step=4), tmp_path)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    load_checkpoint(second, checkpoint)
    take_steps(second, features, steps=9, done=4)
    start = parameters_of(make_learner(tiny_model))
    moved = {key for key, tensor in parameters_of(whole).items() if not torch.equal(tensor, start[key])}
    assert moved
    for key, tensor in parameters_of(whole).items():
        assert torch.equal(tensor, parameters_of(second)[key]), key


def test_only_the_newest_checkpoint_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    learner = make_learner(tiny_model)
    for step in (1, 2, 12):
        save_checkpoint(learner, TrainingState(step=step), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000012"]


def test_a_checkpoint_that_could_not_be_finished_does_not_count(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner(tiny_model)
    save_checkpoint(learner, TrainingState(step=1), tmp_path)

    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_json", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(learner, TrainingState(step=2), tmp_path)
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    assert latest.name == "step-0000001"


def test_checkpoints_hold_tensors_and_json_and_nothing_that_runs(tiny_model: Path, tmp_path: Path) -> None:
    learner = make_learner(tiny_model)
    take_steps(learner, make_features(tiny_model, 8), steps=1)
    save_checkpoint(learner, TrainingState(step=1), tmp_path)
    assert sorted(path.name for path in (tmp_path / "step-0000001").iterdir()) == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_one_message_that_says_what_helps(tiny_model: Path, tmp_path: Path, name: str) -> None:
    learner = make_learner(tiny_model)
    take_steps(learner, make_features(tiny_model, 8), steps=1)
    save_checkpoint(learner, TrainingState(step=1), tmp_path)
    path = tmp_path / "step-0000001" / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FinetuneError, match=f"{name}: damaged.*--force"):
        load_checkpoint(learner, tmp_path / "step-0000001")


def test_each_best_model_has_a_file_of_its_own_until_a_checkpoint_names_it(tiny_model: Path, tmp_path: Path) -> None:
    learner = make_learner(tiny_model)
    save_best(learner, TrainingState(step=2, best_step=2), tmp_path)
    before = parameters_of(learner)
    save_checkpoint(learner, TrainingState(step=2, best_step=2), tmp_path)
    take_steps(learner, make_features(tiny_model, 8), steps=1)
    save_best(
        learner, TrainingState(step=4, best_step=4), tmp_path
    )  # and then it is killed, before the next checkpoint
    assert sorted(path.name for path in tmp_path.glob("best-*")) == [
        "best-0000002.safetensors",
        "best-0000004.safetensors",
    ]
    restore_best(learner, 2, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in parameters_of(learner).items())
    save_checkpoint(learner, TrainingState(step=6, best_step=4), tmp_path)
    assert [path.name for path in tmp_path.glob("best-*")] == ["best-0000004.safetensors"]
