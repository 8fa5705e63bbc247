"""Out-of-fold predictions: what the models of all folds say of the rows that they were not trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.artifacts import PreparedData, Run, Split
from finetune.data.rows import Column
from finetune.errors import FinetuneError
from finetune.evaluate import as_json, own_data, units_of
from finetune.evaluation.metrics import check_code
from finetune.evaluation.predictions import Predictions
from finetune.evaluation.predictions.joining import join
from finetune.evaluation.statistics import score
from finetune.inference import open_run
from finetune.predict import Answering
from finetune.progress import Progress
from finetune.recipe import Recipe
from finetune.runtime import Runtime
from finetune.tasks import open_task

OUT_OF_FOLD = "out_of_fold"


def write_out_of_fold(
    members: Sequence[Run], data: PreparedData, folder: Path, runtime: Runtime, progress: Progress
) -> dict[str, Any]:
    """Write what each model says of the rows of its own fold, as JSON lines in `folder`; return what was written.

    A line has the row's line (and file, if there are several), its fold, what is true, and what `predict` says. `data`
    is what the folds were taken from. Tasks that are asked other things than they learn from have nothing to write.
    """
    path = folder / f"{OUT_OF_FOLD}.jsonl"
    places: list[tuple[str, int]] = []
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for fold, run in enumerate(members):
            answering, split = Answering(run, runtime, cleaned=True), held_out(run)
            if absent := [role for role in answering.roles if role not in split.rows[0]]:
                stream.close()
                path.unlink()
                return {"missing": f"the task asks for {', '.join(absent)}, which rows to learn from do not have"}
            with progress.bar(f"fold {fold}", len(split)) as bar:
                for row, described in enumerate(_described(answering, run, split)):
                    places.append(_place(split, row))
                    stream.write(json.dumps({**_where(split, row), "fold": fold, **described}, ensure_ascii=False))
                    stream.write("\n")
                    bar.advance()
    learned = [data.split(name) for name in ("train", "validation")]
    expected = {_place(split, row) for split in learned for row in range(len(split))}
    assert len(places) == len(set(places)), "no row is in two folds"
    assert set(places) == expected, "every row that is not for test is in a fold"
    return {"file": path.name, "rows": len(places)}


def score_out_of_fold(
    run: Run, recipe: Recipe, names: Sequence[str], runtime: Runtime, progress: Progress
) -> dict[str, Any]:
    """Return the metrics of all held-out rows together, with their intervals, each row as the model of its fold has it.

    Where predictions of that kind cannot be put together, the reason why there are none.
    """
    check_code(names, allow_code=runtime.allow_code)
    parts: list[tuple[Predictions, int]] = []
    rows: list[dict[str, Any]] = []
    for member in run.members:
        predictor, split = open_run(member, runtime), held_out(member)
        parts.append((predictor.predict(split.rows, split.features, recipe.train.eval_batch_size, progress), len(rows)))
        rows += list(split.rows)
    together = join(*zip(*parts, strict=True))
    if together is None:
        return {"missing": f"what the models of folds say in the task {recipe.task.name} is scored fold by fold"}
    units = units_of(together, rows, recipe.spec)
    return {"rows": len(rows), "metrics": as_json(score(names, together, recipe.seed, units).intervals())}


def held_out(run: Run) -> Split:
    """Return the rows that a fold's model has not seen: the test split of its own data."""
    data = own_data(run)
    if data is None:
        raise FinetuneError(
            f"{run.data_folder()}: expected the data of the fold that {run.folder} was trained on; it was moved, or "
            "prepared again differently. Train again."
        )
    return data.split("test")


def _described(answering: Answering, run: Run, split: Split) -> Iterator[dict[str, Any]]:
    """Yield for each row what is true and what is said."""
    task, _ = open_task(run.recipe.task.name, run.recipe.task.options)
    columns: Mapping[str, Column] = task.columns
    for row, answer in zip(split.rows, answering.rows(split.rows), strict=True):
        true = {role: value for role, value in row.items() if role in columns and role not in answering.roles}
        said = {name: value for name, value in answer.items() if name != "row"}
        yield {"true": true, "said": said}


def _where(split: Split, row: int) -> dict[str, Any]:
    return {**({"file": split.files[row]} if split.files else {}), "line": split.lines[row]}


def _place(split: Split, row: int) -> tuple[str, int]:
    return (split.files[row] if split.files else "", split.lines[row])
