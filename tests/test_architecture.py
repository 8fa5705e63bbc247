"""The directions of imports, what the light commands may import, and who may print."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "finetune"
# From the bottom up: a module imports from lower levels, and from its own room
LEVELS = (
    ("errors", "progress", "urls"),
    ("processes",),
    ("registry", "documents", "runtime", "workers", "space"),
    ("recipe",),
    ("artifacts", "gates"),
    ("models",),
    ("data",),
    ("evaluation",),
    ("tasks",),
    ("training",),
    ("quantization", "reports"),
    ("fingerprints", "generation", "preparation"),
    ("inference",),
    ("learners", "resuming"),
    ("planning", "tuning"),
    ("prepare", "plan", "lr_find", "train", "tune", "ensembles", "out_of_fold", "evaluate", "quantize", "predict"),
    ("pipeline", "console"),
    ("repeats",),
    ("cli",),
    ("__main__",),
)
STAGES = next(rooms for rooms in LEVELS if "train" in rooms)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
HEAVY = {
    "optuna",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "sklearn",
    "numpy",
    "pyarrow",
    "matplotlib",
    "evaluate",
    "tensorboard",
    "mlflow",
    "sqlalchemy",
}


def modules() -> dict[str, Path]:
    """Return the package's modules by the name that follows `finetune.`."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """Yield the modules of the package that a file imports anywhere, in functions and for type checking too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("finetune."):
                inner = name.removeprefix("finetune.")
                while inner and inner not in MODULES:
                    inner = inner.rpartition(".")[0]
                if inner:
                    yield inner


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_module_has_its_level() -> None:
    assert {room(module) for module in MODULES} == set(LEVEL_OF)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str) -> None:
    here = LEVEL_OF[room(module)]
    wrong = [
        target
        for target in imports(MODULES[module])
        if room(target) != room(module)
        and not LEVEL_OF[room(target)] < here
        and not (room(module) in STAGES and room(target) in STAGES)
    ]
    assert wrong == []


def test_no_module_imports_itself_over_others() -> None:
    graph = {module: set(imports(path)) - {module} for module, path in MODULES.items()}
    done: set[str] = set()
    while ready := {module for module, targets in graph.items() if module not in done and targets <= done}:
        done |= ready
    assert set(graph) - done == set(), "these import each other in a circle"


COLD = """
import contextlib, io, json, sys
from finetune.cli import app
import typer
names = sorted(typer.main.get_command(app).commands)
loaded = {}
helps = [["--help"], *([name, "--help"] for name in names)]
for arguments in [*helps, ["validate", sys.argv[1], "--show"], ["--version"]]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            app(arguments, prog_name="finetune")
        except SystemExit as end:
            assert not end.code, (arguments, end.code)
    assert out.getvalue(), arguments
    loaded[" ".join(arguments[:1] + arguments[2:])] = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps([names, loaded]))
"""


def test_help_and_validate_import_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: cold\ntask: text-classification\ndata: {source: rows.jsonl, clean: [unicode, html], split: random}\n"
        "model: {id: some/model}\nfreeze: encoder\ntrain: {schedule: cosine, trackers: [tensorboard, mlflow]}\n"
        "metrics: [accuracy]\n"
        "quantize: onnx-int8\ngates: {accuracy: '>= 0.5', quantized.accuracy.drop: '<= 0.1'}\n"
        "tune: {space: {train.batch_size: [8, 16]}}\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-c", COLD, str(recipe)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names, loaded = json.loads(done.stdout)
    assert names == ["eval", "lr-find", "plan", "predict", "prepare", "quantize", "run", "train", "tune", "validate"]
    assert {arguments: HEAVY & set(found) for arguments, found in loaded.items() if HEAVY & set(found)} == {}


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"cli", "console"}))
def test_only_the_command_line_prints_or_exits(module: str) -> None:
    found = []
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Name, ast.Attribute)):
            written = ast.unparse(node)
            if written in {"print", "input", "exit", "quit", "SystemExit", "sys.exit", "os._exit"}:
                found.append(written)
            if written in {"sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"}:
                found.append(written)
    assert found == []


def test_every_module_says_in_a_docstring_what_it_is_for() -> None:
    silent = [
        name for name, path in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []
