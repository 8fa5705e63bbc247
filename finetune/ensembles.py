"""Several runs of one recipe as one run: an ensemble, which has no model but its members'."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.artifacts import (
    ENSEMBLE,
    MEMBER,
    PreparedData,
    Run,
    building,
    describe_member,
    fingerprint,
    publish,
    versions,
    write_text,
)
from finetune.fingerprints import ensemble_inputs
from finetune.out_of_fold import write_out_of_fold
from finetune.progress import Progress, Silent
from finetune.recipe import Recipe
from finetune.runtime import Runtime


def make_ensemble(
    recipe: Recipe,
    data: PreparedData,
    folder: Path,
    members: Mapping[str, Run],
    *,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> Run:
    """Make the ensemble of some runs, by their names, in `folder`; return it.

    `data` is what the members were trained on, or what their folds were taken from: its test split none of them saw.
    What the models of folds say of the rows that they hold out is written beside the manifest.
    """
    runtime, progress = runtime or Runtime(), progress or Silent()
    assert all(run.labels == data.labels and run.limits == data.limits for run in members.values()), "members are alike"
    inputs = ensemble_inputs(recipe, data.fingerprint, members)
    with building(folder) as partial:
        write_text(partial / "recipe.yaml", recipe.to_yaml())
        manifest = _manifest(data, folder, members, inputs)
        if recipe.folds:
            manifest["out_of_fold"] = write_out_of_fold(list(members.values()), data, partial, runtime, progress)
        publish(folder, manifest)
    return Run(folder)


def _manifest(
    data: PreparedData, folder: Path, members: Mapping[str, Run], inputs: Mapping[str, Any]
) -> dict[str, Any]:
    first, *_ = members.values()
    return {
        "kind": "run",
        "format": ENSEMBLE,
        "task": first.manifest["task"],
        "labels": data.labels,
        "limits": data.limits,
        "members": describe_members(folder, members),
        "parameters": _parameters(members),
        "data_fingerprint": data.fingerprint,
        "pretrained_sha256": first.manifest["pretrained_sha256"],
        "fingerprint": fingerprint(inputs),
        "inputs": inputs,
        "versions": versions(),
    }


def describe_members(folder: Path, members: Mapping[str, Run]) -> list[dict[str, str]]:
    """Return the members as the manifest of the ensemble in `folder` names them."""
    return [
        {
            "name": name,
            "folder": os.path.relpath(run.folder.resolve(), folder.resolve()),
            **dict(zip(MEMBER, describe_member(run), strict=True)),
        }
        for name, run in members.items()
    ]


def _parameters(members: Mapping[str, Run]) -> dict[str, int]:
    """Return how many parameters all members have together, and how many of them were trained."""
    counts = [run.manifest["parameters"] for run in members.values()]
    return {key: sum(count[key] for count in counts) for key in ("total", "trainable")}
