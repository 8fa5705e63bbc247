"""Settings of training that do not go together are refused: by the recipe, or before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune.errors import FinetuneError, RecipeError
from finetune.prepare import prepare
from finetune.recipe import TrainSection, load_recipe
from finetune.runtime import Runtime
from finetune.train import train
from finetune.training.log import read_log
from tests.conftest import RecipeMaker


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"max_steps": 20, "schedule": {"name": "linear", "warmup_steps": 20}},
            r"train.schedule.warmup_steps: expected fewer steps than train.max_steps \(20\), found 20",
        ),
        ({"precision": "tf32", "device": "cpu"}, "train.precision: tf32 is of NVIDIA GPUs, and `device` is cpu"),
        ({"precision": "fp16"}, "train.precision: expected 'auto', 'fp32', 'tf32' or 'bf16', found 'fp16'"),
        ({"average_best": 1}, "train.average_best: expected greater than or equal to 2"),
        ({"average_best": 3, "eval_every": 9, "max_steps": 12}, "train.average_best: one evaluation leaves nothing"),
        ({"ema": 1.0}, "train.ema: expected less than 1"),
        ({"save_minutes": 0}, "train.save_minutes: expected greater than 0"),
        ({"keep_checkpoints": 0}, "train.keep_checkpoints: expected greater than or equal to 1"),
        ({"loss": {"name": "focal", "gamma": -1}}, "train.loss.gamma: expected greater than or equal to 0"),
        ({"loss": {"name": "cross-entropy", "class_weights": {"fruit": 0}}}, "train.loss.class_weights"),
        ({"sampling": "balance"}, "train.sampling: expected 'all' or 'balanced', found 'balance'"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(
    make_recipe: RecipeMaker, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(make_recipe(train=settings))


def test_a_warm_up_that_outlasts_the_epochs_is_refused_before_the_first_step(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    recipe = load_recipe(make_recipe(train={"epochs": 1, "schedule": {"name": "cosine", "warmup_steps": 7}}))
    data = prepare(recipe, tmp_path / "data")
    with pytest.raises(FinetuneError, match=r"warmup_steps: expected fewer steps than training takes \(7\), found 7"):
        train(recipe, data, tmp_path / "run", runtime=Runtime("cpu", threads=1))
    assert not (tmp_path / "run").exists()


def test_tf32_is_refused_where_there_is_no_such_gpu() -> None:
    with pytest.raises(FinetuneError, match="tf32 is of NVIDIA GPUs, and this is cpu; use fp32 or bf16"):
        Runtime("cpu", precision="tf32").accelerator()


def test_the_learning_rate_is_scaled_by_the_rows_of_a_step(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    settings = {"learning_rate": 1e-3, "batch_size": 4, "gradient_accumulation": 2, "learning_rate_of": 16}
    assert TrainSection.model_validate(settings).peak_learning_rate == pytest.approx(5e-4)
    assert TrainSection(learning_rate=1e-3, batch_size=4).peak_learning_rate == 1e-3
    recipe = load_recipe(make_recipe(train={**settings, "max_steps": 2, "schedule": "constant"}))
    run = train(recipe, prepare(recipe, tmp_path / "data"), tmp_path / "run", runtime=Runtime("cpu", threads=1))
    rates = [line["learning_rate"] for line in read_log(run.folder / "log.jsonl") if "loss" in line]
    assert rates == pytest.approx([5e-4, 5e-4])
