"""What the documentation says is true: its commands parse, its files exist, its recipes load."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import pytest
import typer

from finetune import registry
from finetune.cli import app
from finetune.documents import parse_value
from finetune.evaluation.metrics.labels import AVERAGES
from finetune.recipe import DataSection, Recipe, load_recipe
from finetune.space import SEARCHED, Pruning, Range, TuneSection
from finetune.tasks import open_task
from finetune.training.diagnosis import Name, Thresholds
from tests.conftest import ROOT

DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/data-preparation.md",
    "docs/tasks.md",
    "docs/tuning.md",
    "data/README.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").glob("*.yaml")),
    "benchmarks/banking77.yaml",
]


def commands_in(path: Path) -> list[str]:
    """Return the lines of a document that start, behind comment signs and such, with our command."""
    lines = [re.sub(r"^(\s|#|- run: )*", "", line) for line in path.read_text().splitlines()]
    found = [line.removeprefix(".venv/bin/") for line in lines]
    return [re.split(r" > |  +", line)[0] for line in found if re.match(r"finetune [a-z]+ [^|]*$", line)]


COMMANDS = [
    (document, command)
    for document in DOCUMENTS
    for command in commands_in(ROOT / document)
    if "finetune --" not in command
]


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_every_documented_command_parses(document: str, command: str) -> None:
    _, name, *arguments = shlex.split(command)
    group = typer.main.get_command(app)
    subcommand = group.commands[name]  # type: ignore[attr-defined]
    subcommand.make_context(name, arguments)
    for argument in arguments:
        if (
            argument.startswith(("recipes/", "data/"))
            and "tickets.yaml" not in argument
            and "this-week" not in argument
        ):
            assert (ROOT / argument).exists(), f"{document}: {argument}"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_that_is_named_exists(document: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / document).read_text())) - {"demo creates"}
    assert named <= targets
    assert {"demo", "test", "venv", "check", "format", "help"} <= targets


def test_every_link_in_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def test_every_file_of_the_file_tree_exists_and_none_is_missing() -> None:
    tree = (ROOT / "README.md").read_text().split("## Where things are")[1].split("```")[1]
    named = set(re.findall(r"\b([a-z_]+\.py)\b", tree))
    there = {path.name for path in (ROOT / "finetune").glob("*.py") if not path.name.startswith("__")}
    assert named | {"errors.py", "progress.py"} == there | {"errors.py", "progress.py"}
    rooms = {path.parent.name for path in (ROOT / "finetune").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"^  ([a-z]+)/ ", tree, re.MULTILINE))


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("recipes/*.yaml"), *ROOT.glob("benchmarks/*.yaml")]), ids=lambda p: p.name
)
def test_every_recipe_loads(path: Path) -> None:
    recipe = load_recipe(path)
    public = all(source.startswith("hub:") for source in recipe.data.paths)
    assert public or all(Path(source).is_absolute() for source in recipe.data.paths)
    if path.parent.name == "recipes":
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert head[0] == f"# finetune run recipes/{path.name}"
        assert any(("published: " if public else "expected: ") in line for line in head)
        assert not public or any("https://" in line or "arXiv" in line for line in head), "where the score is published"
        assert recipe.name == path.stem
        if "/outputs/" in recipe.model.id:  # what another recipe makes
            maker = Path(recipe.model.id).parent.parent.name
            assert any(f"finetune run recipes/{maker}.yaml" in line for line in head)
            assert (ROOT / "recipes" / f"{maker}.yaml").is_file()
        else:
            load_recipe(path, check_inputs=True)


def test_the_recipes_in_the_readme_are_valid() -> None:
    readme = (ROOT / "README.md").read_text()
    recipe = Recipe.model_validate(
        parse_value(readme.split("## A recipe")[1].split("```yaml\n")[1].split("```")[0], "README")
    )
    mine = parse_value(readme.split("## Your own data")[1].split("```yaml\n")[1].split("```")[0], "README")
    assert Recipe.model_validate(mine).data.columns == {"text": "Review", "label": "Stars"}
    assert [gate.path for gate in recipe.gates] == ["accuracy", "quantized.accuracy.drop.high"]
    assert recipe.quantize is not None


def test_constraints_pin_every_dependency_and_no_file_names_an_index() -> None:
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    project = (ROOT / "pyproject.toml").read_text()
    declared = re.findall(r'"([A-Za-z0-9.-]+)>=', project)
    assert {name.lower().replace("-", "_") for name in declared} - {"setuptools"} <= {
        p.replace("-", "_") for p in pinned
    }
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text()
    for name in ("constraints.txt", "requirements-demo.txt", "Makefile", "pyproject.toml", "README.md"):
        assert not re.search(r"index-url|find-links|pypi\.org|download\.pytorch", (ROOT / name).read_text()), name


PREPARATION = ROOT / "docs" / "data-preparation.md"
DATA_PARTS = (
    registry.sources,
    registry.cleaners,
    registry.checks,
    registry.splitters,
    registry.augmenters,
    registry.tokenizers,
)


@pytest.mark.parametrize("parts", DATA_PARTS, ids=lambda parts: parts.kind)
def test_every_part_and_option_of_the_preparation_is_documented(parts: registry.Registry) -> None:
    text = PREPARATION.read_text()
    for name in parts.names():
        assert f"`{name}`" in text, name
        for option in set(parts.get(name).options.model_fields) - {"train", "validation", "test"}:
            assert re.search(rf"`{option}`", text), f"{name}: {option}"


def test_every_setting_of_the_data_is_documented() -> None:
    text = PREPARATION.read_text()
    assert [name for name in DataSection.model_fields if not re.search(rf"\b{name}\b", text)] == []


TASKS = ROOT / "docs" / "tasks.md"


@pytest.mark.parametrize("name", registry.tasks.names())
def test_every_task_with_its_options_columns_and_baselines_is_documented(name: str) -> None:
    text = TASKS.read_text()
    assert f"## {name}\n" in text
    options = registry.tasks.get(name).options
    for option in options.model_fields:
        assert re.search(rf"`{option}\b", text), option
    task, spec = open_task(name, options().model_dump())
    for role in (*task.columns, *spec.baselines):
        assert f"`{role}`" in text, role


def test_every_metric_is_documented_under_its_kind() -> None:
    text = TASKS.read_text()
    averages = {f"{kind}-{average}" for kind in ("f1", "precision", "recall") for average in AVERAGES}
    lenient = {f"entity-{kind}-lenient" for kind in ("f1", "precision", "recall")}
    for name in set(registry.metrics.names()) - averages - lenient:
        assert re.search(rf"`{re.escape(name)}[A-Z]*`", text), name
    for word in (*AVERAGES, "f1-", "-lenient"):
        assert f"`{word}`" in text


def test_every_task_has_a_recipe_to_try_and_one_for_public_data() -> None:
    recipes = [load_recipe(path) for path in (ROOT / "recipes").glob("*.yaml")]
    public = [recipe for recipe in recipes if all(source.startswith("hub:") for source in recipe.data.paths)]
    small = [recipe for recipe in recipes if recipe not in public]
    for found in (small, public):
        assert {recipe.task.name for recipe in found} == set(registry.tasks.names())
    named = set(re.findall(r"`([a-z0-9-]+)`", TASKS.read_text()))
    assert {recipe.name for recipe in recipes} <= named


@pytest.mark.parametrize(
    "parts",
    [registry.freezers, registry.optimizers, registry.schedules, registry.losses, registry.trackers],
    ids=lambda parts: parts.kind,
)
def test_the_document_of_training_names_every_part_and_its_options(parts: registry.Registry) -> None:
    rows = re.findall(r"^\| `([a-z0-9_-]+)`[^|]*\|([^|]*)\|", (ROOT / "docs" / "training.md").read_text(), re.MULTILINE)
    named = dict(rows)
    assert set(parts.names()) <= set(named)
    for name in parts.names():
        own = set(parts.get(name).options.model_fields) - {"warmup_steps", "warmup_ratio"}
        assert own == set(re.findall(r"`([a-z0-9_]+)`", named[name])), name


def test_the_rules_of_the_learning_curves_have_the_documented_names_and_thresholds() -> None:
    section = (ROOT / "docs" / "training.md").read_text().split("## Learning curves\n")[1]
    rows = re.findall(r"^\| `([a-z_]+)` \| ([0-9.]+) \|$", section, re.MULTILINE)
    assert {name: float(value) for name, value in rows} == asdict(Thresholds())
    rules = section.split("| threshold |")[0]
    assert [name for name in asdict(Thresholds()) if f"`{name}`" not in rules] == []
    assert set(re.findall(r"^\| `([a-z-]+)`(?: from step n)? \|", rules, re.MULTILINE)) == set(get_args(Name))


def test_the_document_of_searches_names_every_setting_and_what_can_be_searched() -> None:
    text = (ROOT / "docs" / "tuning.md").read_text()
    example = parse_value(text.split("```yaml\n")[1].split("```")[0], "docs/tuning.md")
    assert set(example["tune"]) == set(TuneSection.model_fields)
    for name in (*Range.model_fields, *set(Pruning.model_fields) - {"name"}, *SEARCHED):
        assert re.search(rf"`{re.escape(name)}\b", text), name
    for kind in ("tpe", "random", "grid"):
        assert f"| `{kind}`" in text
    recipe = parse_value(
        (ROOT / "README.md").read_text().split("## A recipe")[1].split("```yaml\n")[1].split("```")[0], ""
    )
    assert Recipe.model_validate({**recipe, **example}).tune is not None
