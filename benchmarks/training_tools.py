"""Which tools of the trainer help: those against imbalance, and those for few rows, each against the recipe without.

    python benchmarks/training_tools.py DATA MODEL [--only imbalance] [--seeds 1 2 3] [--jobs 2] [--work DIR]

DATA is a folder with `goemotions/train.jsonl` (text, labels) and `banking77/train.jsonl` (text, label), MODEL the
folder of a pretrained encoder. `imbalance`: six emotions, fifty rows of one for each row of another, in training as in
the test. `few-rows`: 77 intents with ten training rows each. All runs of a set have one recipe (rate, steps, the best
of the evaluations by validation) and differ in the tool alone; one thread each. What is finished in --work is not done
again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _measure import ROOT, machine, run_child, table, write_section
from _quality_data import read_rows
from _quality_scores import Scored, differences, score

PLAIN = "without"
SPLITS = ("train", "validation", "test")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class ToolSet:
    """A set of rows and the tools that are tried on it: how many rows of each label are in each split."""

    name: str
    labels: Mapping[str, tuple[int, int, int]] | tuple[int, int, int]
    source: str
    epochs: int
    learning_rate: float
    tools: Mapping[str, Sequence[str]]


RARE = ("gratitude", "amusement", "anger", "curiosity", "sadness")
SETS = (
    ToolSet(
        "imbalance",
        {"neutral": (2000, 1000, 4000), **dict.fromkeys(RARE, (40, 20, 80))},
        "goemotions", 6, 1e-4,
        {
            PLAIN: [],
            "balanced class weights": ["train.loss={name: cross-entropy, class_weights: balanced}"],
            "focal loss": ["train.loss=focal"],
            "focal loss with balanced weights": ["train.loss={name: focal, class_weights: balanced}"],
            "logit adjustment": ["train.loss=logit-adjustment"],
            "balanced sampling": ["train.sampling=balanced"],
            "label smoothing 0.1": ["train.loss={name: cross-entropy, label_smoothing: 0.1}"],
        },
    ),
    ToolSet(
        "few-rows",
        (10, 5, 50),
        "banking77", 20, 3e-4,
        {
            PLAIN: [],
            "layer decay 0.9": ["train.layer_decay=0.9"],
            "layer decay 0.75": ["train.layer_decay=0.75"],
            "gradual unfreezing, an epoch a layer": ["freeze=gradual"],
            "moving average 0.99": ["train.ema=0.99"],
            "average of the best 3": ["train.average_best=3"],
            "L2-SP 0.01": ["train.penalty={l2: 0.01, around: start}"],
            "label smoothing 0.1": ["train.loss={name: cross-entropy, label_smoothing: 0.1}"],
        },
    ),
)  # fmt: skip


def labelled(path: Path) -> dict[str, list[str]]:
    """Return the texts of each label, of rows with one label, each text once."""
    texts: dict[str, list[str]] = defaultdict(list)
    seen: set[str] = set()
    for row in read_rows(str(path)):
        labels = row["labels"] if "labels" in row else [row["label"]]
        key = row["text"].casefold()
        if len(labels) == 1 and key not in seen:
            seen.add(key)
            texts[labels[0]].append(row["text"])
    return texts


def write_splits(tools: ToolSet, data: Path, folder: Path) -> dict[str, str]:
    """Write the splits, drawn with a seed of their own, and return their paths."""
    texts, draw = labelled(data / tools.source / "train.jsonl"), random.Random(0)
    wanted = tools.labels if isinstance(tools.labels, Mapping) else dict.fromkeys(texts, tools.labels)
    parts: dict[str, list[dict[str, str]]] = {name: [] for name in SPLITS}
    for label, sizes in sorted(wanted.items()):
        own = draw.sample(texts[label], len(texts[label]))
        for name, size in zip(SPLITS, sizes, strict=True):
            parts[name] += [{"text": text, "label": label} for text in own[:size]]
            own = own[size:]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        draw.shuffle(rows)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {name: str(folder / f"{name}.jsonl") for name in SPLITS}


def job_of(tools: ToolSet, tool: str, seed: int, files: Mapping[str, str], model: Path) -> dict[str, Any]:
    """Return all that decides a run."""
    return {
        "tool": list(tools.tools[tool]),
        "recipe": {
            "name": "tool", "task": "text-classification", "seed": seed,
            "data": {"source": dict(files), "duplicates": "keep", "near_duplicates": "off", "conflicts": "keep",
                     "leaks": "report"},
            "model": {"id": str(model), "max_length": 64},
            "train": {"epochs": tools.epochs, "batch_size": 32, "learning_rate": tools.learning_rate,
                      "schedule": {"name": "linear", "warmup_ratio": 0.1},
                      "early_stopping": {"metric": "f1-macro"}, "precision": "fp32", "device": "cpu"},
        },
    }  # fmt: skip


def result(job: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """Return what a run came to; a finished one of the same job is taken from its file."""
    finished = folder / f"{name}.json"
    if finished.is_file():
        found = dict(json.loads(finished.read_text()))
        if found["job"] == job:
            return found
    scratch, asked, answer = folder / name, folder / f"{name}.job", folder / f"{name}.answer"
    shutil.rmtree(scratch, ignore_errors=True)
    asked.write_text(json.dumps(job))
    script = str(ROOT / "benchmarks" / "_training_tool.py")
    cost, _ = run_child([sys.executable, script, str(asked), str(answer), str(scratch)], folder, env=ONE_THREAD)
    found = {"job": job, "cpu": cost.cpu, **json.loads(answer.read_text())}
    finished.write_text(json.dumps(found))
    for path in (asked, answer):
        path.unlink()
    shutil.rmtree(scratch)
    print(f"{folder.name} {name}: {cost.cpu:.0f} CPU s, {found['kept']}", file=sys.stderr, flush=True)
    return found


def section(tools: ToolSet, runs: Mapping[str, Sequence[Mapping[str, Any]]], test: Path) -> str:
    """Return the table of a set: macro F1 and accuracy with each tool, and how much better than without."""
    true = [row["label"] for row in read_rows(str(test))]
    scored: dict[str, list[dict[str, Scored]]] = {
        tool: [score("label", true, one["predictions"]) for one in ones] for tool, ones in runs.items()
    }
    rows = []
    for tool, ones in scored.items():
        values = [one["f1-macro"].value for one in ones]
        accuracy = sum(one["accuracy"].value for one in ones) / len(ones)
        gain = ""
        if tool != PLAIN:
            mean, low, high = differences(
                [one["f1-macro"] for one in ones], [one["f1-macro"] for one in scored[PLAIN]], range(len(true))
            )
            gain = f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            gain = f"**{gain}**" if low > 0 or high < 0 else gain
        cpu = sum(one["cpu"] for one in runs[tool]) / len(ones)
        each = ", ".join(f"{value:.3f}" for value in values)
        rows.append([tool, f"{sum(values) / len(values):.3f} ({each})", gain, f"{accuracy:.3f}", f"{cpu:.0f}"])
    header = [tools.name, "macro F1 (each seed)", "points better than without", "accuracy", "CPU s a run"]
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", choices=[one.name for one in SETS], help="one of the two sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="how many runs at a time, one thread each")
    parser.add_argument("--work", type=Path, help="where runs are kept; an interrupted benchmark goes on from there")
    given = parser.parse_args()
    parts = []
    with tempfile.TemporaryDirectory() as temporary:
        work = (given.work or Path(temporary)).resolve()
        for tools in SETS:
            if given.only and tools.name != given.only:
                continue
            folder = work / tools.name
            files = write_splits(tools, given.data, folder)
            names = {tool: tool.replace(" ", "-").replace(",", "") for tool in tools.tools}
            model = given.model.resolve()
            jobs = [
                (tool, f"{name}-seed{seed}", job_of(tools, tool, seed, files, model))
                for seed in given.seeds
                for tool, name in names.items()
            ]
            with ThreadPoolExecutor(given.jobs) as pool:
                found = list(pool.map(lambda one, folder=folder: result(one[2], one[1], folder), jobs))
            runs = {
                tool: [one for (name, _, _), one in zip(jobs, found, strict=True) if name == tool]
                for tool in tools.tools
            }
            parts.append(section(tools, runs, Path(files["test"])))
            print(parts[-1], file=sys.stderr, flush=True)
    head = (
        f"{machine()}. Seeds {', '.join(map(str, given.seeds))}; in brackets paired 95 % bootstrap intervals over test "
        "rows, the seeds averaged; in bold what is beyond chance. `imbalance`: GoEmotions' rows of six labels, "
        "2,000 of neutral and 40 of each of five others in training, 4,000 and 80 in the test. `few-rows`: banking77 "
        "with 10 training rows of each of 77 intents, and what is left of them, 50 at most, in the test. Each run kept "
        "the best of its evaluations by the validation split's macro F1."
    )
    text = "\n\n".join([head, *parts])
    if given.only:
        print(text)
    else:
        write_section("Tools against imbalance and for few rows", text)


if __name__ == "__main__":
    main()
