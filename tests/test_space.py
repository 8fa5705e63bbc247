"""What a recipe may say of a search, and what is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune.errors import RecipeError
from finetune.recipe import Recipe, load_recipe
from finetune.space import Range, TuneSection, label
from tests.conftest import RecipeMaker


def section(**settings: Any) -> TuneSection:
    return TuneSection.model_validate({"space": {"train.epochs": [1, 2]}, **settings})


def problems_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    return [f"{problem.path}: {problem.message}" for problem in error.value.problems]


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({"train.learning_rte": [1e-4]}, "train.learning_rte[0]: unknown setting, did you mean learning_rate?"),
        ({"train.batch_size": [8, "16"]}, "train.batch_size[1]: expected a valid integer, found '16'"),
        ({"train.epochs": {"low": 0, "high": 4}}, "train.epochs.low: expected greater than or equal to 1, found 0"),
        ({"train.learning_rate": {"low": 1, "high": 20}}, "train.learning_rate.high: expected less than 10, found 20"),
        ({"train.schedule": ["linear", "lineer"]}, "train.schedule[1]: unknown schedule 'lineer', did you mean"),
        ({"train.optimizer.momentum": [0.9]}, "train.optimizer.momentum[0]: unknown setting"),
        ({"trian.epochs": [3]}, "trian.epochs: expected a setting of adapter, data.augment"),
        ({"seed": [1, 2]}, "seed: the best of several seeds is luck"),
        ({"data.clean": [["html"], []]}, "data.clean: it decides which rows are scored"),
        ({"data.split.test": [0.1, 0.2]}, "data.split.test: it decides which rows are scored"),
        ({"train.early_stopping.metric": ["loss"]}, "train.early_stopping.metric: scores by different yardsticks"),
        ({"train.device": ["cpu"]}, "train.device: a search runs as a whole on one device"),
        ({"train": [{"epochs": 3}]}, "train: expected a setting of it"),
        ({"train.loss": ["focal"]}, "train.loss: trials are judged by the loss, and scores by different yardsticks"),
        ({"train.epochs": []}, "train.epochs: expected a list of values, or a range"),
        ({"train.epochs": [1, 1.0]}, "train.epochs: expected different values, found 1.0 twice"),
        ({"train.epochs": {"low": 5, "hgh": 3}}, "train.epochs: unknown setting hgh of a range, did you mean high?"),
        ({"train.epochs": {"low": 5}}, "train.epochs: expected a number as high, found nothing"),
        ({"train.epochs": {"low": 5, "high": 3}}, "train.epochs: expected low below high, found 5 and 3"),
        ({"train.epochs": {"low": 1, "high": 4, "step": 2}}, "train.epochs: expected a high that steps of 2 from 1"),
        ({"train.epochs": {"low": 1, "high": 4, "step": 0.5}}, "train.epochs: expected a step above 0, a whole number"),
        ({"train.learning_rate": {"low": 0, "high": 1e-3, "log": True}}, "train.learning_rate: expected a low above 0"),
        (
            {"train.optimizer": ["adamw", "sgd"], "train.optimizer.weight_decay": [0.1]},
            "train.optimizer.weight_decay: train.optimizer is searched too",
        ),
    ],
)  # fmt: skip
def test_a_space_that_no_trial_could_use_is_refused_with_its_place(
    make_recipe: RecipeMaker, space: dict[str, Any], expected: str
) -> None:
    found = problems_of(make_recipe(tune={"space": space}))
    assert len(found) == 1
    assert found[0].startswith(f"tune.space.{expected}")


def test_all_problems_of_a_space_come_at_once_with_their_lines(tmp_path: Path, make_recipe: RecipeMaker) -> None:
    make_recipe()
    path = tmp_path / "tuned.yaml"
    path.write_text(
        "extends: recipe.yaml\ntune:\n  space:\n    train.epochs: [0, 2, 2.5]\n    freeze:\n      - encoder\n"
        "      - encodr\n",
        encoding="utf-8",
    )
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert [str(problem).removeprefix(f"{path}:")[:60] for problem in error.value.problems] == [
        "4: tune.space.train.epochs[0]: expected greater than or equal to 1, f"[:60],
        "4: tune.space.train.epochs[2]: expected a valid integer, found 2.5"[:60],
        "7: tune.space.freeze[1]: unknown freezing strategy 'encodr', did you"[:60],
    ]


@pytest.mark.parametrize(
    ("tune", "expected"),
    [
        ({"metric": "f1-marco"}, "tune.metric: unknown metric 'f1-marco', did you mean f1-macro?"),
        ({"metric": "rmse"}, "tune.metric: rmse does not judge what text-classification predicts"),
        ({"search": "gird"}, "tune.search: expected 'tpe', 'random' or 'grid', found 'gird'"),
        ({"pruning": {"name": "none", "frist": 1}}, "tune.pruning.frist: unknown setting, did you mean first?"),
        ({"search": "grid", "trials": 9}, "tune.trials: a grid has a trial for each combination, which are 2"),
        ({"space": {}}, "tune.space: "),
    ],
)
def test_a_search_is_checked_beside_its_space(make_recipe: RecipeMaker, tune: dict[str, Any], expected: str) -> None:
    found = problems_of(make_recipe(tune={"space": {"train.epochs": [1, 2]}, **tune}))
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_a_grid_is_finite_small_and_legal_in_all_its_combinations(make_recipe: RecipeMaker) -> None:
    endless = {"train.learning_rate": {"low": 1e-5, "high": 1e-3}}
    assert "a grid has single values" in problems_of(make_recipe(tune={"search": "grid", "space": endless}))[0]
    large = {"train.epochs": {"low": 1, "high": 100}, "train.batch_size": {"low": 1, "high": 11}}
    assert "at most 1000 combinations" in problems_of(make_recipe(tune={"search": "grid", "space": large}))[0]
    apart = {"adapter": [None, "lora"], "train.layer_decay": [0.9, 1.0]}  # each is legal without the other
    found = problems_of(make_recipe(tune={"search": "grid", "space": apart}))
    assert len(found) == 1
    assert "train.layer_decay: with `adapter` the layers are frozen" in found[0]
    assert "(with adapter lora, train.layer_decay 0.9)" in found[0]


def test_a_grid_has_all_combinations_in_the_order_of_the_recipe() -> None:
    space = {
        "train.epochs": {"low": 2, "high": 4},
        "train.optimizer.weight_decay": {"low": 0.1, "high": 0.3, "step": 0.1},
    }
    made = section(search="grid", space=space)
    assert made.planned == made.combinations == 9
    assert [tuple(values.values()) for values in made.grid()][:4] == [(2, 0.1), (2, 0.2), (2, 0.3), (3, 0.1)]


def test_numbers_are_whole_only_if_both_ends_are() -> None:
    assert Range(low=2, high=6).values() == (2, 3, 4, 5, 6)
    assert Range(low=2.0, high=6).values() is None
    assert Range(low=0.0, high=0.3, step=0.1).values() == (0.0, 0.1, 0.2, 0.3)


def test_twenty_trials_are_planned_unless_the_recipe_says_otherwise() -> None:
    assert (section().planned, section(trials=7).planned) == (20, 7)


def test_mappings_and_lists_are_kept_as_text_and_all_else_as_it_is() -> None:
    values = ["linear", 1, 0.5, None, True, {"name": "cosine", "warmup_ratio": 0.1}, [1, 2]]
    assert [label(value) for value in values] == [*values[:5], '{"name": "cosine", "warmup_ratio": 0.1}', "[1, 2]"]


def test_a_trials_recipe_has_the_values_and_no_search(make_recipe: RecipeMaker) -> None:
    space = {"train.schedule": ["linear", {"name": "cosine", "warmup_ratio": 0.1}], "freeze": ["none", "encoder"]}
    recipe = load_recipe(make_recipe(tune={"space": space, "metric": "accuracy"}))
    made = recipe.trial({"train.schedule": space["train.schedule"][1], "train.optimizer.weight_decay": 0.5})
    assert made.train.schedule.resolved() == {"name": "cosine", "warmup_steps": 0, "warmup_ratio": 0.1}
    assert made.train.optimizer.options["weight_decay"] == 0.5
    assert made.train.optimizer.options["betas"] == recipe.train.optimizer.options["betas"]
    assert made.train.early_stopping.metric == "accuracy"
    assert (made.tune, made.train.epochs) == (None, recipe.train.epochs)
    assert recipe.train.early_stopping.metric == "loss"


def test_a_trial_keeps_the_secrets_of_its_source(make_recipe: RecipeMaker) -> None:
    source = "https://user:word@example.com/rows.jsonl"
    recipe = load_recipe(make_recipe(data={"source": source}, tune={"space": {"train.epochs": [1, 2]}}))
    assert recipe.trial({"train.epochs": 1}).data.source == source
    assert "word" not in recipe.trial({"train.epochs": 1}).to_yaml()


def test_a_resolved_recipe_with_a_search_is_read_back_as_it_was(make_recipe: RecipeMaker) -> None:
    space = {
        "train.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "train.epochs": {"low": 2, "high": 6, "step": 2},
        "adapter": [None, {"name": "lora", "rank": 4}],
    }
    recipe = load_recipe(make_recipe(tune={"space": space, "pruning": "none", "seed": 3}))
    assert Recipe.model_validate(recipe.resolved()) == recipe


def test_paths_among_the_values_resolve_against_the_file_that_wrote_them(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    recipe = load_recipe(make_recipe(tune={"space": {"model.id": ["./a", "org/model"]}, "metric": "evaluate:./m.py"}))
    assert recipe.tune is not None
    assert recipe.tune.space["model.id"] == (str(tmp_path / "a"), "org/model")
    assert recipe.tune.metric == f"evaluate:{tmp_path / 'm.py'}"
    recipe = load_recipe(make_recipe(tune={"space": {"model": [{"id": "./b", "max_length": 9}]}}))
    assert recipe.tune is not None
    assert recipe.tune.space["model"] == ({"id": str(tmp_path / "b"), "max_length": 9},)


def test_a_missing_model_among_the_values_is_found_at_validate_time(make_recipe: RecipeMaker) -> None:
    path = make_recipe(tune={"space": {"model.id": ["./nowhere"]}})
    with pytest.raises(RecipeError, match=r"tune\.space\.model\.id\[0\]: expected a model's folder, found nothing"):
        load_recipe(path, check_inputs=True)


def test_a_space_can_be_set_on_the_command_line(make_recipe: RecipeMaker) -> None:
    path = make_recipe(tune={"space": {"train.epochs": [1, 2]}})
    recipe = load_recipe(path, ["tune.space.train.epochs=[3, 4]", "tune.space.train.layer_decay={low: 0.5, high: 1}"])
    assert recipe.tune is not None
    assert recipe.tune.space == {"train.epochs": (3, 4), "train.layer_decay": Range(low=0.5, high=1)}


def test_a_loss_that_compares_the_rows_of_a_batch_judges_no_batch_sizes(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    path = make_recipe(
        task="embedding", data={"columns": {}, "split": "random"}, tune={"space": {"train.batch_size": [8, 16]}}
    )
    assert "the loss compares the rows of a batch" in problems_of(path)[0]


def test_other_tokens_are_not_judged_by_what_is_by_token(make_recipe: RecipeMaker) -> None:
    settings: dict[str, Any] = {"task": "causal-lm", "data": {"columns": {}, "split": "random"}}
    tune = {"space": {"model.id": ["some/model", "other/model"]}}
    assert "loss is by token" in problems_of(make_recipe(**settings, tune=tune))[0]
    assert "perplexity is by token" in problems_of(make_recipe(**settings, tune={**tune, "metric": "perplexity"}))[0]
    assert load_recipe(make_recipe(**settings, tune={**tune, "metric": "bits-per-byte"})).tune is not None
