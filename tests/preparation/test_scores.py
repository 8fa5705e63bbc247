"""Scores in preparation: their range, their roles, and options that do not fit, each with one clear message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from finetune.errors import FinetuneError, RecipeError
from finetune.models.loading import load_tokenizer
from finetune.prepare import prepare
from finetune.recipe import load_recipe
from tests.conftest import make_rows
from tests.preparation.world import World, dropped

Rows = list[dict[str, Any]]
TWO = ["worth", "words"]


def scored_rows(count: int) -> Rows:
    """Return sentences with two numbers each."""
    texts = [row["body"] for row in make_rows(per_label=count)[:count]]
    return [{"text": text, "worth": number / 4, "words": len(text.split())} for number, text in enumerate(texts)]


def task_with(**options: Any) -> dict[str, Any]:
    return {"name": "regression", **options}


RANGE = {"minimum": 0, "maximum": 10}


def with_scores(count: int, wrong: Mapping[int, Any]) -> Rows:
    rows = scored_rows(count)
    scores = {number: number % 10 for number in range(count)} | dict(wrong)
    return [{"text": row["text"], "score": scores[number]} for number, row in enumerate(rows)]


def test_a_score_outside_the_declared_range_is_refused_with_its_line_and_the_range(world: World) -> None:
    recipe = world.recipe(with_scores(40, {4: 11, 20: -0.5}), task=task_with(**RANGE))
    with pytest.raises(FinetuneError) as caught:
        prepare(recipe, world.folder / "data")
    message = str(caught.value)
    assert "2 rows have a score outside of the range that the task declares (0 to 10)" in message
    assert "line 5, line 21" in message


def test_a_score_outside_the_declared_range_is_dropped_where_the_recipe_takes_it(world: World) -> None:
    rows = with_scores(40, {4: 11, 20: -0.5, 7: 10, 8: 0})
    data = world.prepare(rows, task=task_with(**RANGE), data={"checks": {"faulty-targets": "warning"}})
    assert [(row["line"], row["reason"]) for row in dropped(data)] == [
        (5, "out_of_range_score"),
        (21, "out_of_range_score"),
    ]
    assert sum(data.manifest["splits"].values()) == 38


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"minimum": 5, "maximum": 5}, "minimum: expected less than the maximum"),
        ({"targets": []}, "targets: expected one or more different names"),
        ({"targets": ["a", "a"]}, "targets: expected one or more different names"),
        ({"targets": ["a", "text"]}, "'text', which is taken"),
        ({"targets": ["length"]}, "'length', which is taken"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_read(
    world: World, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        world.recipe(with_scores(10, {}), task=task_with(**options))
    assert complaint in str(caught.value)


def test_each_target_is_a_role_of_its_own_that_can_be_mapped_to_a_column(world: World) -> None:
    rows = [{"text": row["text"], "a": row["worth"], "b": row["words"]} for row in scored_rows(40)]
    columns = {"worth": "a", "words": "b"}
    data = world.prepare(rows, task=task_with(targets=TWO), data={"columns": columns})
    split = data.split("train")
    given = {row["text"]: (row["a"], row["b"]) for row in rows}
    for number, row in enumerate(split.rows):
        assert (row["worth"], row["words"]) == given[row["text"]]
        assert split.features[number]["scores"] == [row["worth"], row["words"]]
    with pytest.raises(RecipeError, match="expected a role|unknown role"):
        load_recipe(world.recipe_file(rows, task=task_with(targets=TWO), data={"columns": {"score": "a"}}))


def test_pairs_are_read_as_pairs(world: World) -> None:
    rows = [{"text": row["text"], "text_pair": "the old saw", "score": row["worth"]} for row in scored_rows(40)]
    data = world.prepare(rows, task="regression", data={"columns": {"text_pair": "text_pair"}})
    tokenizer = load_tokenizer(world.model)
    for row, features in zip(data.split("test").rows, data.split("test").features, strict=True):
        assert features["input_ids"] == tokenizer(row["text"], row["text_pair"])["input_ids"]
