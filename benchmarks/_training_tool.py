"""One run for `training_tools.py`: a recipe with a tool, and its answers to the test file.

python benchmarks/_training_tool.py JOB.json RESULT.json FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from _quality_data import read_rows
from _quality_ours import answers

from finetune.prepare import prepare
from finetune.recipe import load_recipe
from finetune.runtime import Runtime
from finetune.train import train


def main() -> None:
    """Prepare, train, answer the test file, and write the result."""
    job, result, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(job["recipe"]))  # JSON is YAML
    recipe = load_recipe(path, job["tool"])
    data = prepare(recipe, folder / "data")
    run = train(recipe, data, folder / "run", runtime=Runtime("cpu", threads=1))
    found = {
        "predictions": answers(run, read_rows(recipe.data.sources["test"])),
        "kept": {key: run.manifest.get(key) for key in ("best_step", "last_step", "moving_average", "averaged_steps")},
    }
    result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
