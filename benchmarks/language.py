"""How good our language models are, against transformers' Trainer and Seq2SeqTrainer with the same budget.

    python benchmarks/language.py DATA MODELS [--only gsm8k ...] [--seeds 1 2 3] [--jobs 2] [--steps N] [--work DIR]

DATA is a folder with `scan/` and `e2e_nlg/` (train or dev, and test; source, target), `gsm8k/train.jsonl` (question,
answer) and `tinystories/*.txt`; MODELS has `stories260k`. Both systems get the same model to start from (random weights
of the same seed, or stories260k), tokenizer, rows, splits, optimizer steps, batches, learning rate and warm-up, in fp32
with one thread; each keeps the best of ten evaluations by its own validation loss. One scorer, neither's, opens both
models. What is finished in --work is not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _language_data import LANGUAGE_SETS, LanguageSet, read_rows, write_splits, write_start
from _measure import ROOT, machine, run_child, table, write_section
from _quality_scores import Scored, differences

SYSTEMS = {"finetune": "_language_ours.py", "Trainer": "_language_trainer.py"}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
EVALUATIONS, WARMUP = 10, 0.05
BAR = -0.01  # a point, or 1 % of the loss


@dataclass(frozen=True)
class Bench:
    """Where the runs are kept, and what holds for all of them."""

    work: Path
    models: Path
    steps: int | None
    seeds: tuple[int, ...]
    jobs: int

    def job(self, data_set: LanguageSet, files: Mapping[str, Path], seed: int) -> dict[str, Any]:
        """Return all that decides a run, as both systems read it."""
        steps = self.steps or data_set.steps
        start = write_start(data_set, dict(files), self.models, seed, self.work / data_set.name / f"start-{seed}")
        return {
            "data": data_set.name, "kind": data_set.kind, "score": data_set.score, "seed": seed, "steps": steps,
            "files": {name: str(path) for name, path in files.items()}, "model": str(start),
            "max_length": data_set.max_length, "max_new_tokens": data_set.max_new_tokens,
            "batch_size": data_set.batch_size, "learning_rate": data_set.learning_rate,
            "warmup_steps": round(WARMUP * steps), "eval_every": max(1, steps // EVALUATIONS),
        }  # fmt: skip

    def result(self, system: str, job: dict[str, Any]) -> dict[str, Any]:
        """Return what a run came to; a finished one of the same job is taken from its file."""
        folder = self.work / job["data"]
        name = f"{system}-seed{job['seed']}"
        finished = folder / f"{name}.json"
        if finished.is_file():
            found = dict(json.loads(finished.read_text()))
            if found["job"] == job:
                return found
        scratch, asked, answer = folder / name, folder / f"{name}.job", folder / f"{name}.answer"
        shutil.rmtree(scratch, ignore_errors=True)
        asked.write_text(json.dumps(job))
        script = str(ROOT / "benchmarks" / SYSTEMS[system])
        cost, _ = run_child([sys.executable, script, str(asked), str(scratch)], self.work, env=ONE_THREAD)
        scorer = str(ROOT / "benchmarks" / "_language_scores.py")
        model = str(scratch / "run" / "model")
        run_child([sys.executable, scorer, str(asked), model, str(answer)], self.work, env=ONE_THREAD)
        found = {"job": job, "cpu": cost.cpu, "memory": cost.memory, **json.loads(answer.read_text())}
        finished.write_text(json.dumps(found))
        shutil.rmtree(scratch)
        print(f"{job['data']} {name}: {value(scored(found)):.4f}, {cost.cpu:.0f} CPU s", file=sys.stderr, flush=True)
        return found


def scored(found: Mapping[str, Any]) -> Scored:
    return Scored(np.array(found["sums"], dtype=float), lambda sums: sums[..., 0] / sums[..., 1])


def value(one: Scored) -> float:
    return float(one.combine(one.per_row.sum(axis=0)))


@dataclass(frozen=True)
class Comparison:
    """What one data set came to: the mean scores, and the mean difference with its interval, better being positive."""

    data_set: LanguageSet
    runs: Mapping[str, Sequence[Mapping[str, Any]]]
    means: Mapping[str, float]
    difference: tuple[float, float, float]


def compare(bench: Bench, data_set: LanguageSet, data: Path) -> Comparison:
    """Train both systems with each seed and compare them over the test rows; losses as shares of the reference's."""
    files = write_splits(data_set, data, bench.work / data_set.name)
    pairs = [(system, bench.job(data_set, files, seed)) for seed in bench.seeds for system in SYSTEMS]
    with ThreadPoolExecutor(bench.jobs) as pool:
        found = list(pool.map(lambda pair: bench.result(*pair), pairs))
    runs = {name: [one for (system, _), one in zip(pairs, found, strict=True) if system == name] for name in SYSTEMS}
    scores = {name: [scored(one) for one in ones] for name, ones in runs.items()}
    means = {name: sum(map(value, ones)) / len(ones) for name, ones in scores.items()}
    mean, low, high = differences(scores["finetune"], scores["Trainer"], runs["Trainer"][0]["units"])
    if data_set.score == "loss":  # less is better
        mean, low, high = (-one / means["Trainer"] for one in (mean, high, low))
    return Comparison(data_set, runs, means, (mean, low, high))


def score_table(comparisons: Sequence[Comparison]) -> str:
    rows = []
    for one in comparisons:
        unit = "% of the loss" if one.data_set.score == "loss" else "points"
        mean, low, high = (100 * number for number in one.difference)
        spread = {name: ", ".join(f"{value(scored(run)):.4f}" for run in runs) for name, runs in one.runs.items()}
        rows.append(
            [one.data_set.name, one.data_set.score, f"{one.means['finetune']:.4f} ({spread['finetune']})",
             f"{one.means['Trainer']:.4f} ({spread['Trainer']})", f"**{mean:+.2f} ({low:+.2f} to {high:+.2f}) {unit}**"]
        )  # fmt: skip
    header = ["data", "score", "finetune: mean (each seed)", "Trainer: mean (each seed)", "how much better"]
    return table(header, rows)


def run_table(comparisons: Sequence[Comparison]) -> str:
    rows = []
    for one in comparisons:
        job = one.runs["finetune"][0]["job"]
        sizes = [len(read_rows(job["files"][name])) for name in ("train", "validation", "test")]
        cost = {name: sum(run["cpu"] for run in runs) / len(runs) for name, runs in one.runs.items()}
        memory = {name: max(run["memory"] for run in runs) / 1e9 for name, runs in one.runs.items()}
        start = one.data_set.start
        start = start if isinstance(start, str) else f"{start['model_type']}, random"
        rows.append(
            [one.data_set.name, " / ".join(map(str, sizes)), start, f"{job['steps']} x {job['batch_size']}",
             job["max_length"], f"{job['learning_rate']:g}", *(f"{cost[name]:.0f}" for name in SYSTEMS),
             *(f"{memory[name]:.1f}" for name in SYSTEMS), one.runs["Trainer"][0]["left_out"]]
        )  # fmt: skip
    header = ["data", "rows: train / validation / test", "start", "steps x batch", "max. length", "learning rate"]
    header += [f"CPU s a run, {name}" for name in SYSTEMS] + [f"GB, {name}" for name in SYSTEMS]
    return table([*header, "test rows too long to score"], rows)


def describe(comparisons: Sequence[Comparison], seeds: Sequence[int]) -> str:
    """Return the section of RESULTS.md."""
    below = [one.data_set.name for one in comparisons if one.difference[1] < BAR]
    verdict = f"NOT met on {', '.join(below)}" if below else "met"
    head = (
        f"{machine()}. Seeds {', '.join(map(str, seeds))}; fp32, one thread a run. Scores of seq2seq are of greedy "
        "texts, means over sources, against all references (chrF from 0 to 1); losses are per token of the test rows' "
        "answers, or of stories of which the first 256 tokens count. In brackets paired 95 % bootstrap intervals over "
        "sources or rows, the seeds averaged. Both systems trained with one learning rate, a warm-up over "
        f"{WARMUP:.0%} of the steps and a linear decay, and kept the best of {EVALUATIONS} evaluations by loss. Where "
        "our defaults are other ones: rows of similar length share a batch, source and target together; a weight decay "
        "of 0.01 instead of 0, which spares biases and norms; stories are rows of their own, packed without attention "
        "from one to another, where run_clm joins them and cuts blocks (as many tokens a step)."
    )
    bar = f"The bar (no lower bound below a point, or 1 % of the loss): {verdict}."
    return "\n\n".join([head, score_table(comparisons), bar, run_table(comparisons)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--only", nargs="+", choices=[one.name for one in LANGUAGE_SETS], help="some of the data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="how many runs at a time, one thread each")
    parser.add_argument("--steps", type=int, help="optimizer steps in place of each data set's own")
    parser.add_argument("--work", type=Path, help="where runs are kept; an interrupted benchmark goes on from there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (given.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        bench = Bench(work, given.models.resolve(), given.steps, tuple(given.seeds), given.jobs)
        chosen = [one for one in LANGUAGE_SETS if not given.only or one.name in given.only]
        comparisons = []
        for data_set in chosen:
            comparisons.append(compare(bench, data_set, given.data))
            print(score_table(comparisons[-1:]), file=sys.stderr, flush=True)
        text = describe(comparisons, given.seeds)
    if given.only or given.steps:  # a trial
        print(text)
    else:
        write_section("Language models, against Trainer", text)


if __name__ == "__main__":
    main()
