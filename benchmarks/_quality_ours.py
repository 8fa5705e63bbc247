"""One run of ours for `quality.py`: a recipe with the package's defaults, and its answers to the test file.

python benchmarks/_quality_ours.py JOB.json RESULT.json FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from _quality_data import Row, read_rows

from finetune.artifacts import Run, feature_table
from finetune.inference import open_run
from finetune.prepare import prepare
from finetune.recipe import load_recipe
from finetune.runtime import Runtime
from finetune.train import train

TARGETS = ("label", "labels", "score", "tags", "answers")


def recipe_of(job: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe: the package's defaults, the rows as they are, and what the benchmark gives both systems."""
    return {
        "name": "quality",
        "task": job["task"],
        "seed": job["seed"],
        "data": {  # the split was made without repeats: not a row more may go
            "source": job["files"], "duplicates": "keep", "near_duplicates": "off", "conflicts": "keep",
            "leaks": "report", "columns": {role: role for role in job["optional"]},
        },
        "model": {"id": job["model"], "max_length": job["max_length"], **job["model_settings"]},
        "train": {
            "epochs": 1000, "max_steps": job["steps"], "batch_size": job["batch_size"],
            "learning_rate": job["learning_rate"], "early_stopping": {"metric": job["score"]},
            "precision": "fp32", "device": "cpu", "threads": 1,
        },
    }  # fmt: skip


def answers(run: Run, rows: list[Row]) -> list[Any]:
    """Return the run's answer to each row, in a form that says nothing of which system it comes from."""
    predictor = open_run(run, Runtime("cpu"))
    asked = [{role: value for role, value in row.items() if role not in TARGETS} for row in rows]
    encoded = predictor.encode({role: [row[role] for row in asked] for role in asked[0]})
    predictions: Any = predictor.predict(asked, feature_table(encoded.features), 64)
    kind = predictor.spec.kind
    if kind == "label":
        return [predictions.labels[index] for index in predictions.predicted]
    if kind == "labels":
        names = predictions.labels
        return [[name for name, said in zip(names, row, strict=True) if said] for row in predictions.predicted]
    if kind == "numbers":
        return [float(value) for value in predictions.values[:, 0]]
    return (
        [list(tags) for tags in predictions.predicted] if kind == "tags" else [str(text) for text in predictions.said]
    )


def main() -> None:
    """Prepare, train, answer the test file, and write the result."""
    import torch

    job, result, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe_of(job)))  # JSON is YAML
    recipe = load_recipe(path)
    data = prepare(recipe, folder / "data")
    for name, file in job["files"].items():
        assert len(data.split(name).rows) == len(read_rows(file)), f"a row of {name} was dropped"
    run = train(recipe, data, folder / "run", runtime=Runtime("cpu"))
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    found = {
        "validation": max(line["validation"][job["score"]] for line in log if "validation" in line),
        "steps": log[-1]["step"],
        "predictions": answers(run, read_rows(job["files"]["test"])),
        "lost": {name: data.report["truncated"][name] for name in ("train", "test")},
    }
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
