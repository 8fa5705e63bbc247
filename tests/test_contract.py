"""What every registered part has to keep, old or new: these tests walk the registries."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import pkgutil
import sys
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from finetune import registry
from finetune.registry import Entry, Registry
from finetune.tasks import PreparesRows, Task, TaskSpec, open_task

PREPARING_MEMBERS = {"columns", "encode", "head"}
TASK_MEMBERS = {*PREPARING_MEMBERS, "collate", "forward", "loss", "decode"}
OPTIONAL_MEMBERS = {"save_extras", "prepare_tokenizer", "end_ids", "pack", "packs", "check_model", "max_target_length"}


def entry_of(parts: Registry, name: str) -> Entry:
    argument = parts.get_any(name).attributes.get("example", "argument")
    return parts.get(f"{name}{argument}" if name.endswith(registry.MARKS) else name)


def entries(*registries: Registry) -> list[Any]:
    found = [(parts, name) for parts in registries for name in parts.names()]
    return [pytest.param(entry_of(parts, name), id=f"{parts.kind}-{name}") for parts, name in found]


def rooms() -> list[str]:
    """Return the modules that register parts."""
    names = set()
    for parts in registry.ALL:
        room = importlib.import_module(parts._room)
        inside = pkgutil.iter_modules(getattr(room, "__path__", []))
        names |= {room.__name__, *(f"{room.__name__}.{module.name}" for module in inside)}
    return sorted(names)


def test_no_registry_is_empty() -> None:
    assert [parts.kind for parts in registry.ALL if not parts.names()] == []


def test_every_registry_is_walked() -> None:
    assert set(registry.ALL) == {value for value in vars(registry).values() if isinstance(value, Registry)}


@pytest.mark.parametrize("entry", entries(*registry.ALL))
def test_every_part_has_a_docstring(entry: Entry) -> None:
    target = entry.target.func if isinstance(entry.target, functools.partial) else entry.target
    assert (target.__doc__ or "").strip().split("\n")[0].endswith((".", "!", "?"))


@pytest.mark.parametrize("entry", entries(*registry.ALL))
def test_every_option_has_a_valid_default_or_is_named_as_required(entry: Entry) -> None:
    required = {name for name, field in entry.options.model_fields.items() if field.is_required()}
    if required:
        with pytest.raises(ValidationError) as caught:
            entry.options()
        assert {(error["type"], *error["loc"]) for error in caught.value.errors()} == {("missing", n) for n in required}
    else:
        written = json.loads(json.dumps(entry.options().model_dump()))  # as a recipe would write them
        assert json.loads(json.dumps(entry.options.model_validate(written).model_dump())) == written


@pytest.mark.parametrize("entry", entries(registry.metrics))
def test_metrics_declare_whether_higher_is_better_and_what_they_judge(entry: Entry) -> None:
    assert isinstance(entry.attributes["higher_is_better"], bool)
    assert set(entry.attributes["of"]) <= {spec.kind for _, spec in tasks_and_specs()}


def tasks_and_specs() -> list[tuple[Any, TaskSpec]]:
    """Return every task in every form that an option with a few choices gives it."""
    found = []
    for name in registry.tasks.names():
        defaults = registry.tasks.get(name).options().model_dump()
        forms = [defaults]
        for option, field in registry.tasks.get(name).options.model_fields.items():
            if typing.get_origin(field.annotation) is Literal:
                forms += [{**defaults, option: choice} for choice in typing.get_args(field.annotation)]
        found += [open_task(name, form) for form in forms]
    return found


@pytest.mark.parametrize("entry", entries(registry.tasks))
def test_tasks_have_the_members_of_the_protocol_and_no_other_public_ones(entry: Entry) -> None:
    task = entry.build(entry.options().model_dump())
    assert {name for name in dir(task) if not name.startswith("_")} - OPTIONAL_MEMBERS == TASK_MEMBERS
    for name in TASK_MEMBERS - {"columns"}:
        wanted = list(inspect.signature(getattr(Task, name)).parameters)[1:]
        assert list(inspect.signature(getattr(task, name)).parameters) == wanted, name


def test_the_protocol_of_a_task_has_seven_members_of_which_preparing_rows_takes_two() -> None:
    preparing = {name for name in (*vars(PreparesRows), *PreparesRows.__annotations__) if not name.startswith("_")}
    training = {name for name in vars(Task) if not name.startswith("_")}
    assert (preparing, preparing | training) == (PREPARING_MEMBERS, TASK_MEMBERS)


def test_what_a_task_declares_exists_in_all_of_its_forms() -> None:
    for task, spec in tasks_and_specs():
        assert isinstance(spec, TaskSpec)
        for name in spec.metrics:
            assert spec.kind in registry.metrics.get(name).attributes["of"], name
        for name in spec.baselines:
            assert spec.kind in registry.baselines.get(name).attributes["of"], name
        assert len(spec.metrics) >= 2, "training shows the first two"
        roles = {*spec.text_roles, spec.label_role, spec.unit_role} - {None}
        assert roles <= set(task.columns)
        assert spec.text_roles
        assert (spec.unit == "row") == (spec.unit_role is None)


@pytest.mark.parametrize("entry", entries(registry.backends))
def test_backends_declare_format_loader_and_title(entry: Entry) -> None:
    assert entry.attributes["format"] in {"transformers", "onnx", "openvino", "adapter"}
    assert list(inspect.signature(entry.attributes["load"]).parameters) == ["folder", "threads"]
    assert isinstance(entry.attributes["title"], str)


@pytest.mark.parametrize("entry", entries(registry.baselines))
def test_baselines_declare_a_title_and_what_they_answer(entry: Entry) -> None:
    assert isinstance(entry.attributes["title"], str)
    assert set(entry.attributes["of"]) <= {spec.kind for _, spec in tasks_and_specs()}


def top_level_imports(path: Path) -> set[str]:
    """Return the packages that importing a module imports; what stands under TYPE_CHECKING or in functions does not."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("name", rooms())
def test_registering_modules_import_only_the_standard_library_and_pydantic(name: str) -> None:
    path = Path(str(sys.modules[name].__file__))
    assert top_level_imports(path) - sys.stdlib_module_names - {"pydantic", "finetune"} == set()
