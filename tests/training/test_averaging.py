"""Averages of weights: the formulas, and that an average is kept only where validation says that it is better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune import train as stage
from finetune.artifacts import PreparedData
from finetune.prepare import prepare
from finetune.recipe import load_recipe
from finetune.runtime import Runtime
from finetune.train import train
from finetune.training.averaging import MovingAverage, mean_of_files
from finetune.training.log import read_log
from tests.conftest import RecipeMaker

CPU = Runtime("cpu", threads=1)


def test_the_moving_average_is_that_of_the_formula() -> None:
    model = torch.nn.Linear(3, 2).double()
    model.bias.requires_grad_(False)
    average = MovingAverage(model, 0.4)
    expected = model.weight.detach().clone()
    for step in range(1, 9):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3, generator=torch.Generator().manual_seed(step)).double())
        average.update(step)
        decay = min(0.4, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    assert set(average.tensors) == {"weight"}, "what is frozen has no average"
    torch.testing.assert_close(average.tensors["weight"], expected, rtol=1e-12, atol=0)


def test_a_model_has_the_averages_for_a_while_and_then_its_own_weights_again() -> None:
    model = torch.nn.Linear(2, 2)
    average = MovingAverage(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(5.0)
    average.update(1)
    own, averaged = model.weight.detach().clone(), average.tensors["weight"].clone()
    with pytest.raises(KeyboardInterrupt), average.applied():
        assert torch.equal(model.weight, averaged)
        raise KeyboardInterrupt
    assert torch.equal(model.weight, own)
    assert torch.equal(average.tensors["weight"], averaged)


def test_the_mean_of_files_is_that_of_their_tensors(tmp_path: Path) -> None:
    values = [torch.tensor([1.0, 2.0]), torch.tensor([4.0, 8.5]), torch.tensor([-2.0, 0.25])]
    paths = []
    for number, value in enumerate(values):
        paths.append(tmp_path / f"{number}.safetensors")
        save_file({"weight": value, "half": value.bfloat16(), "count": torch.tensor([number])}, paths[-1])
    found = mean_of_files(paths)
    torch.testing.assert_close(found["weight"], torch.stack(values).double().mean(0).float(), rtol=0, atol=0)
    assert found["half"].dtype == torch.bfloat16
    assert found["count"].tolist() == [0]


# ---------------------------------------------------------------------------------------------------------------------
# Whole trainings
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(make_recipe: RecipeMaker, tmp_path: Path) -> PreparedData:
    return prepare(load_recipe(make_recipe()), tmp_path / "data")


def trained(make_recipe: RecipeMaker, data: PreparedData, folder: Path, **settings: Any) -> tuple[Any, list[Any]]:
    settings = {"max_steps": 16, "eval_every": 4, "schedule": "constant", "learning_rate": 2e-2, **settings}
    run = train(load_recipe(make_recipe(train=settings)), data, folder, runtime=CPU)
    return run, read_log(run.folder / "log.jsonl")


def test_the_steps_are_the_same_with_averages_and_without(
    make_recipe: RecipeMaker, data: PreparedData, tmp_path: Path
) -> None:
    _, plain = trained(make_recipe, data, tmp_path / "plain")
    _, averaged = trained(make_recipe, data, tmp_path / "averaged", ema=0.8, average_best=2)
    losses = [
        [(line["loss"], line["gradient_norm"]) for line in lines if "loss" in line] for lines in (plain, averaged)
    ]
    assert losses[0] == losses[1]
    scores = [[line["validation"] for line in lines if "best" in line] for lines in (plain, averaged)]
    assert scores[0] == scores[1], "an evaluation's `validation` is of the weights themselves"


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_better_one_of_weights_and_moving_average_is_kept(
    make_recipe: RecipeMaker, data: PreparedData, tmp_path: Path, decay: float
) -> None:
    run, lines = trained(make_recipe, data, tmp_path / "run", ema=decay)
    evaluated = [line for line in lines if "average" in line]
    assert len(evaluated) == 4
    best = min(min(line[kind]["loss"] for kind in ("validation", "average")) for line in evaluated)
    assert run.manifest["metrics"]["loss"] == best
    step = next(line for line in evaluated if line["step"] == run.manifest["best_step"])
    assert run.manifest.get("moving_average", False) == (step["average"]["loss"] < step["validation"]["loss"])


def test_the_average_of_the_best_models_is_kept_where_it_is_better_than_the_best(
    make_recipe: RecipeMaker, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The models that were averaged are looked at before they go."""
    kept: dict[str, torch.Tensor] = {}

    def seen(paths: list[Path]) -> dict[str, torch.Tensor]:
        kept.update({path.name: load_file(path)["classifier.bias"] for path in paths})
        return mean_of_files(paths)

    monkeypatch.setattr(stage, "mean_of_files", seen)
    outcomes = set()
    for rate in (5e-2, 3e-2):
        kept.clear()
        run, lines = trained(make_recipe, data, tmp_path / f"run-{rate}", average_best=3, learning_rate=rate)
        scores = {line["step"]: line["validation"]["loss"] for line in lines if "best" in line}
        best = sorted(sorted(scores, key=scores.__getitem__)[:3])
        [line] = [line for line in lines if "averaged_steps" in line]
        assert line["averaged_steps"] == best
        assert set(kept) == {f"best-{step:07d}.safetensors" for step in best}
        assert line["kept"] == (line["average"]["loss"] < min(scores.values()))
        outcomes.add(line["kept"])
        weights = load_file(run.model_folder / "model.safetensors")["classifier.bias"]
        if line["kept"]:
            assert run.manifest["averaged_steps"] == best
            assert run.manifest["metrics"] == line["average"]
            torch.testing.assert_close(weights, torch.stack(list(kept.values())).double().mean(0).float())
        else:
            assert "averaged_steps" not in run.manifest
            assert torch.equal(weights, kept[f"best-{run.manifest['best_step']:07d}.safetensors"])
    assert outcomes == {True, False}, "choose other rates: both outcomes are to be seen"


def test_one_evaluation_leaves_nothing_to_be_averaged(
    make_recipe: RecipeMaker, data: PreparedData, tmp_path: Path
) -> None:
    run, lines = trained(make_recipe, data, tmp_path / "run", average_best=2, max_steps=2, eval_every=None)
    assert not any("averaged_steps" in line for line in lines)
    assert run.manifest["best_step"] == 2
