from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from finetune.errors import FinetuneError
from finetune.registry import Registry


@pytest.fixture
def fruits() -> Registry:
    """An empty registry whose room registers nothing."""
    return Registry("fruit", room="finetune.errors")


def slice_apple(
    text: "Undefined",  # noqa: F821, UP037 -- positional parameters are never resolved
    *,
    thickness: Annotated[int, Field(ge=1)] = 2,
    kind: Literal["red", "green"] = "red",
    label: str,
) -> str:
    """Slice it."""
    return f"{text}{thickness}{kind}{label}"


def repeated(argument: str, text: str, *, times: int = 1) -> tuple[str, str, int]:
    """Return what it was given."""
    return argument, text, times


class Basket:
    """Holds fruits."""

    def __init__(self, *, size: int = 3) -> None:
        self.size = size


class Named:
    """Made of the rest of its name."""

    def __init__(self, argument: str, *, size: int = 3) -> None:
        self.argument, self.size = argument, size


def test_keyword_only_parameters_are_the_options(fruits: Registry) -> None:
    fruits.register("apple")(slice_apple)
    options = fruits.get("apple").options
    assert list(options.model_fields) == ["thickness", "kind", "label"]
    assert options(label="x").model_dump() == {"thickness": 2, "kind": "red", "label": "x"}


@pytest.mark.parametrize(
    ("given", "at"),
    [
        ({"label": "x", "thikness": 2}, "thikness"),
        ({"label": "x", "thickness": 0}, "thickness"),
        ({"label": "x", "thickness": "2"}, "thickness"),
        ({"label": "x", "kind": "blue"}, "kind"),
        ({}, "label"),
        ({"label": "x", "text": "y"}, "text"),
    ],
)
def test_unknown_wrong_and_missing_options_are_refused(fruits: Registry, given: dict[str, Any], at: str) -> None:
    fruits.register("apple")(slice_apple)
    with pytest.raises(ValidationError) as caught:
        fruits.get("apple").options.model_validate(given)
    assert [error["loc"] for error in caught.value.errors()] == [(at,)]


def test_a_function_is_built_with_its_options_filled_in(fruits: Registry) -> None:
    fruits.register("apple")(slice_apple)
    build = fruits.get("apple").build({"thickness": 5, "label": "x", "kind": "green"})
    assert build("cut") == "cut5greenx"


def test_a_class_is_built_as_its_instance(fruits: Registry) -> None:
    fruits.register("basket")(Basket)
    basket = fruits.get("basket").build({"size": 7})
    assert isinstance(basket, Basket)
    assert basket.size == 7


def test_registering_returns_the_target_and_keeps_its_attributes(fruits: Registry) -> None:
    assert fruits.register("apple", sweet=True)(slice_apple) is slice_apple
    assert dict(fruits.get("apple").attributes) == {"sweet": True}


def test_names_are_sorted(fruits: Registry) -> None:
    fruits.register("pear")(slice_apple)
    fruits.register("apple")(slice_apple)
    assert fruits.names() == ["apple", "pear"]


def test_a_name_can_be_registered_once(fruits: Registry) -> None:
    fruits.register("apple")(slice_apple)
    with pytest.raises(AssertionError, match="the fruit 'apple' is registered twice"):
        fruits.register("apple")(Basket)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aple", "unknown fruit 'aple', did you mean apple?"),
        ("quince", "unknown fruit 'quince' (known: apple, from:, pear)"),
        ("apple:x", "unknown fruit 'apple:x', did you mean apple?"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_or_all(fruits: Registry, name: str, message: str) -> None:
    for known in ("apple", "pear", "from:"):
        fruits.register(known)(slice_apple)
    with pytest.raises(FinetuneError) as caught:
        fruits.get(name)
    assert str(caught.value) == message


def test_a_name_that_lacks_its_argument_is_not_suggested_to_itself(fruits: Registry) -> None:
    fruits.register("from:")(slice_apple)
    with pytest.raises(FinetuneError) as caught:
        fruits.get("from:")
    assert "did you mean from:?" not in str(caught.value)


def test_a_name_that_ends_in_a_colon_takes_the_rest_as_its_argument(fruits: Registry) -> None:
    fruits.register("from:", exotic=True)(repeated)
    entry = fruits.get("from:./a:b/c.py")
    assert entry.name == "from:./a:b/c.py"
    assert dict(entry.attributes) == {"exotic": True}
    assert entry.build({"times": 2})("t") == ("./a:b/c.py", "t", 2)


def test_a_class_under_a_name_that_ends_in_a_colon_is_built_as_its_instance(fruits: Registry) -> None:
    fruits.register("from:")(Named)
    built = fruits.get("from:spain").build({"size": 4})
    assert isinstance(built, Named)
    assert (built.argument, built.size) == ("spain", 4)


def test_options_are_frozen(fruits: Registry) -> None:
    fruits.register("basket")(Basket)
    options = fruits.get("basket").options()
    with pytest.raises(ValidationError, match="frozen"):
        options.size = 4  # type: ignore[attr-defined]
