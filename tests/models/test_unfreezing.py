"""Gradual unfreezing: what learns when, in a model and in a training that is interrupted."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.artifacts import PreparedData
from finetune.errors import FinetuneError, RecipeError
from finetune.learners import describe_stages
from finetune.models.freezing import apply_freezing, enter_stage, layout_of, set_training_mode
from finetune.models.loading import weights_digest
from finetune.prepare import prepare
from finetune.recipe import load_recipe
from finetune.runtime import Runtime
from finetune.train import train
from finetune.training import loop
from finetune.training.log import read_log
from tests.conftest import RecipeMaker
from tests.models.test_freezing import FAMILIES
from tests.tasks.written_world import llama, t5
from tests.training.test_loop import make_features, make_learner, parameters_of, take_steps

CPU = Runtime("cpu", threads=1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [1, 2, 9])
def test_the_head_learns_first_then_layers_from_the_top_and_the_embeddings_last(family: str, layers: int) -> None:
    model = FAMILIES[family]()
    freezing = apply_freezing(model, "gradual", {"layers": layers})
    layout = layout_of(model)
    learning = [set(layout.parameters) - stage.frozen for stage in freezing.stages]
    assert learning[0] == set(layout.head)
    assert learning[-1] == set(layout.parameters) - freezing.frozen
    assert all(before < after for before, after in pairwise(learning))
    opened = [[set(layer) <= names for layer in layout.layers] for names in learning]
    if layers == 1:
        expected = [[False] * 3, [False, False, True], [False, True, True], [True] * 3]
    elif layers == 2:
        expected = [[False] * 3, [False, True, True], [True] * 3]
    else:
        expected = [[False] * 3, [True] * 3]
    assert opened == [*expected, [True] * 3], "the embeddings come with the last stage alone"
    assert [bool(set(layout.embeddings) & names) for names in learning] == [False] * len(expected) + [True]


def test_a_stage_lets_its_parameters_learn_and_puts_the_frozen_blocks_in_eval_mode() -> None:
    model = FAMILIES["bert"]()
    freezing = apply_freezing(model, "gradual", {})
    assert all(parameter.requires_grad for parameter in model.parameters()), "the optimizer has to know them all"
    for stage in freezing.stages:
        enter_stage(model, stage)
        assert {name for name, p in model.named_parameters() if not p.requires_grad} == stage.frozen
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == stage.trainable
        set_training_mode(model, stage)
        for number, layer in enumerate(model.bert.encoder.layer):
            assert layer.training == (f"bert.encoder.layer.{number}.output.dense.weight" not in stage.frozen)


@pytest.mark.parametrize(("every", "unit", "steps"), [(1, "epochs", 7), (2, "epochs", 14), (3, "steps", 3)])
def test_stages_follow_each_other_by_epochs_or_steps(every: int, unit: str, steps: int) -> None:
    freezing = apply_freezing(FAMILIES["bert"](), "gradual", {"every": every, "unit": unit})
    numbers = [freezing.stages.index(freezing.stage(step, 7)) for step in range(10 * steps)]  # type: ignore[arg-type]
    assert numbers == [min(step // steps, 4) for step in range(10 * steps)]


def test_other_strategies_have_no_stages() -> None:
    freezing = apply_freezing(FAMILIES["bert"](), "first-layers", {"count": 1})
    assert freezing.stage(5, 3) is None
    assert describe_stages(freezing, 10, 3) == ""


def test_in_the_loop_nothing_frozen_moves_and_all_else_does(tiny_model: Path) -> None:
    learner = make_learner(tiny_model, freeze="gradual", options={"every": 2, "unit": "steps"})
    stages = learner.freezing.stages
    features, before = make_features(tiny_model, 24), parameters_of(learner)
    for step in range(2 * len(stages)):
        take_steps(learner, features, steps=step + 1, done=step)
        now = parameters_of(learner)
        moved = {name for name in now if not torch.equal(now[name], before[name])}
        frozen = stages[step // 2].frozen
        assert not moved & frozen
        # positions and words that no row has keep their embeddings, but the tables move
        assert set(now) - frozen == moved
        before = now


@pytest.fixture
def data(make_recipe: RecipeMaker, tmp_path: Path) -> PreparedData:
    return prepare(load_recipe(make_recipe()), tmp_path / "data")


def test_a_training_that_is_interrupted_between_stages_goes_on_exactly(
    make_recipe: RecipeMaker, tmp_path: Path, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_steps": 10, "eval_every": 5, "save_every": 1}
    recipe = load_recipe(make_recipe(train=settings, freeze={"name": "gradual", "every": 3, "unit": "steps"}))
    whole = train(recipe, data, tmp_path / "whole", runtime=CPU)
    true = loop.training_batch
    for count in (3, 4, 2):
        calls = [0]

        def stop(*arguments: Any, calls: list[int] = calls, count: int = count) -> Any:
            calls[0] += 1
            if calls[0] > count:
                raise KeyboardInterrupt
            return true(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(loop, "training_batch", stop)
            with pytest.raises(KeyboardInterrupt):
                train(recipe, data, tmp_path / "run", runtime=CPU)
    run = train(recipe, data, tmp_path / "run", runtime=CPU)
    assert weights_digest(run.model_folder) == weights_digest(whole.model_folder)
    losses = [[line["loss"] for line in read_log(one.folder / "log.jsonl") if "loss" in line] for one in (run, whole)]
    assert losses[0] == losses[1]


def test_the_log_says_when_how_much_learns_and_what_training_never_reaches(tiny_model: Path) -> None:
    freezing = make_learner(tiny_model, freeze="gradual").freezing
    sizes = [f"{stage.trainable:,}" for stage in freezing.stages]
    assert describe_stages(freezing, 40, 10) == (
        f"gradual unfreezing, parameters that learn: {sizes[0]} from step 1, {sizes[1]} from step 11, {sizes[2]} from "
        f"step 21, {sizes[3]} from step 31"
    )
    assert describe_stages(freezing, 20, 10).endswith("; training ends with step 20, before the last 2 of these")


def test_it_is_not_for_models_from_scratch_or_with_adapters(make_recipe: RecipeMaker) -> None:
    with pytest.raises(RecipeError, match="with `adapter` the model is frozen already"):
        load_recipe(make_recipe(freeze="gradual", adapter="lora"))
    with pytest.raises(RecipeError, match="freeze.layers: expected"):
        load_recipe(make_recipe(freeze={"name": "gradual", "layers": 0}))


def test_a_model_with_two_stacks_is_refused() -> None:
    with pytest.raises(FinetuneError, match="one stack of layers; found an encoder with a decoder"):
        apply_freezing(t5(), "gradual", {})


def test_a_language_model_without_a_head_of_its_own_begins_with_its_top_layer() -> None:
    model = llama(tie_word_embeddings=True)
    freezing = apply_freezing(model, "gradual", {})
    assert len(freezing.stages) == len(model.model.layers) + 1
    assert 0 < freezing.stages[0].trainable < freezing.trainable
