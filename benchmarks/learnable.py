"""Whether small models learn what such models are known to be able to learn, in the time that it should take.

    python benchmarks/learnable.py DATA MODELS [--seeds 1 2 3] [--work DIR]

DATA is a folder with `scan/train.jsonl`, `scan/test.jsonl` (the simple split) and `tinyshakespeare/input.txt`; MODELS
has `stories260k`, a Hugging Face folder. The recipes are scan.yaml and tinyshakespeare.yaml beside this file. SCAN has
no validation rows: 400 of its training rows are taken out for it. About 15 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from _measure import ROOT, Cost, machine, run_child, table, write_section

SCAN_VALIDATION, SPLIT_SEED = 400, 0
SCAN_BAR, SCAN_CPU_SECONDS, LOSS_BAR = 0.98, 30 * 60, 2.95


def run(verb: str, name: str, output: Path, settings: dict[str, Any]) -> Cost:
    """Run a recipe in one thread; return what it cost."""
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    command = [sys.executable, "-m", "finetune", verb, str(ROOT / "benchmarks" / f"{name}.yaml"), *given]
    one_thread = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    cost, _ = run_child([*command, "--output", str(output), "--threads", "1", "--quiet"], output.parent, env=one_thread)
    return cost


def scan(data: Path, work: Path) -> str:
    """Learn SCAN from scratch and answer its test rows."""
    lines = (data / "scan" / "train.jsonl").read_text("utf-8").splitlines(keepends=True)
    random.Random(SPLIT_SEED).shuffle(lines)
    files = {name: work / f"scan-{name}.jsonl" for name in ("train", "validation")}
    files["validation"].write_text("".join(lines[:SCAN_VALIDATION]), "utf-8")
    files["train"].write_text("".join(lines[SCAN_VALIDATION:]), "utf-8")
    sources = {**files, "test": data / "scan" / "test.jsonl"}
    settings = {f"data.source.{name}": str(path.resolve()) for name, path in sources.items()}
    cost = run("run", "scan", work / "scan", settings)
    found = json.loads((work / "scan" / "run" / "reports" / "test.json").read_text())["metrics"]["exact-match"]
    met = found["value"] >= SCAN_BAR and cost.cpu <= SCAN_CPU_SECONDS
    return (
        f"SCAN, simple split, from scratch: exact match {found['value']:.4f} ({found['low']:.4f} to "
        f"{found['high']:.4f}) on its 4,182 test rows after {cost.cpu / 60:.1f} CPU-minutes for everything, data and "
        f"evaluation among it. The bar ({SCAN_BAR:g} within {SCAN_CPU_SECONDS // 60} CPU-minutes) is "
        f"{'met' if met else 'NOT met'}."
    )


def tinyshakespeare(data: Path, models: Path, work: Path, seeds: list[int]) -> str:
    """Fine-tune stories260k, and train a model of its shape from random weights beside it."""
    text = (data / "tinyshakespeare" / "input.txt").read_text("utf-8")
    last = len(text) * 9 // 10
    files = {"train": work / "shakespeare-train.txt", "validation": work / "shakespeare-validation.txt"}
    files["train"].write_text(text[:last], "utf-8")
    files["validation"].write_text(text[last:], "utf-8")
    settings: dict[str, Any] = {f"data.source.{name}": str(path.resolve()) for name, path in files.items()}
    settings["model.id"] = str((models / "stories260k").resolve())
    rows, losses = [], []
    for seed in seeds:
        output = work / f"shakespeare-{seed}"
        cost = run("train", "tinyshakespeare", output, {**settings, "seed": seed})
        metrics = json.loads((output / "run" / "manifest.json").read_text())["metrics"]
        losses.append(metrics["loss"])
        numbers = (f"{metrics['loss']:.3f}", f"{metrics['perplexity']:.2f}", f"{metrics['bits-per-byte']:.3f}")
        rows.append([seed, *numbers, f"{cost.cpu:.0f}"])
    mean = sum(losses) / len(losses)
    return (
        f"stories260k on tinyshakespeare, 150 steps of 16 x 128 tokens, loss on the last tenth: {mean:.3f} on average. "
        f"The bar ({LOSS_BAR:g} at most) is {'met' if mean <= LOSS_BAR else 'NOT met'}.\n\n"
        + table(["seed", "loss", "perplexity", "bits a byte", "CPU s"], rows)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--work", type=Path, help="where the runs are kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (given.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        parts = [tinyshakespeare(given.data, given.models, work, given.seeds), scan(given.data, work)]
    write_section("Learnable from scratch, and from a small model", "\n\n".join([f"{machine()}. One thread.", *parts]))


if __name__ == "__main__":
    main()
