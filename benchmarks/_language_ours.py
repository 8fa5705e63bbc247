"""One run of ours for `language.py`: a recipe with the package's defaults; the model is left in FOLDER/run/model.

python benchmarks/_language_ours.py JOB.json FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from _language_data import read_rows

from finetune.prepare import prepare
from finetune.recipe import load_recipe
from finetune.runtime import Runtime
from finetune.train import train


def recipe_of(job: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """Return the recipe: the package's defaults, the rows as they are, and what the benchmark gives both systems."""
    tasks: dict[str, Any] = {
        "seq2seq": {"name": "seq2seq", "max_target_length": job["max_length"]},
        "completion": {"name": "causal-lm", "rows": "completion"},
        "text": {"name": "causal-lm", "rows": "text", "pack": True},
    }
    windows = {"overflow": "window", "stride": 0} if job["kind"] == "text" else {}
    return {
        "name": "language",
        "task": tasks[job["kind"]],
        "seed": job["seed"],
        "data": {  # the split was made by the benchmark: not a row more may go
            "source": {name: job["files"][name] for name in ("train", "validation")}, "duplicates": "keep",
            "near_duplicates": "off", "conflicts": "keep", "leaks": "report",
        },
        "model": {"id": job["model"], "max_length": job["max_length"], **windows},
        "train": {
            "epochs": 1000, "max_steps": job["steps"], "batch_size": batch_size, "learning_rate": job["learning_rate"],
            "schedule": {"name": "linear", "warmup_steps": job["warmup_steps"]}, "eval_every": job["eval_every"],
            "early_stopping": {"metric": "loss"}, "precision": "fp32", "device": "cpu", "threads": 1,
        },
        "generation": {"validation_rows": 0},
    }  # fmt: skip


def main() -> None:
    """Prepare and train."""
    import torch

    job, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe_of(job, job["batch_size"])))  # JSON is YAML
    data = prepare(load_recipe(path), folder / "data")
    rows = data.split("train").rows
    assert len(rows) == len(read_rows(job["files"]["train"])), "a training row was dropped"
    if job["kind"] == "text":  # stories are shorter than the reference's blocks: as many tokens a step
        lengths = data.split("train").features.lengths
        batch_size = round(job["batch_size"] * job["max_length"] * len(lengths) / sum(lengths))
        path.write_text(json.dumps(recipe_of(job, batch_size)))
    train(load_recipe(path), data, folder / "run", runtime=Runtime("cpu"))


if __name__ == "__main__":
    main()
