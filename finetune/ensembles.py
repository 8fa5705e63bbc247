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
    damages,
    describe_member,
    fingerprint,
    has_manifest,
    publish,
    versions,
    write_text,
)
from finetune.fingerprints import ensemble_inputs, matches, quantized_inputs
from finetune.inference import open_run
from finetune.out_of_fold import write_out_of_fold
from finetune.progress import Progress, Silent
from finetune.quantize import on_cpu, quantize, require_data, require_full_precision, score_unpublished
from finetune.recipe import Part, Recipe
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


def quantize_ensemble(
    run: Run,
    folder: Path,
    *,
    recipe: Recipe,
    split: str = "test",
    runtime: Runtime | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[Run, dict[str, Any]]:
    """Quantize each member beside itself; return the ensemble of these, in `folder`, and its before/after report.

    A member that was quantized before and has not changed is taken as it is, unless `force` says otherwise.
    """
    runtime, progress = on_cpu(runtime or Runtime()), progress or Silent()
    assert recipe.quantize is not None, "the caller checks that there is a backend"
    data, backend = require_data(run), recipe.quantize
    for member in run.members:  # before any of the work
        require_full_precision(member)
        require_data(member)
    names = [described["name"] for described in run.manifest["members"]]
    members = {}
    for name, member in zip(names, run.members, strict=True):
        progress.note(name)
        members[name] = _quantized_member(member, backend, split, runtime, progress, force=force)
    inputs = quantized_inputs(run, backend)
    with building(folder) as partial:
        write_text(partial / "recipe.yaml", recipe.to_yaml())
        manifest = {
            **_manifest(data, folder, members, inputs),
            "backend": backend.name,
            "quantized_from": run.fingerprint,
            "data_folder": os.path.relpath(run.data_folder(), folder.resolve()),
        }
        before = open_run(run, runtime)
        report = score_unpublished(run, before, partial, manifest, recipe, data, split, runtime, progress)
        publish(folder, manifest)
    return Run(folder), report


def _quantized_member(
    member: Run, backend: Part, split: str, runtime: Runtime, progress: Progress, *, force: bool
) -> Run:
    folder = member.folder.with_name(f"{member.folder.name}-{backend.name}")
    quantized = Run(folder)
    if not force and has_manifest(folder) and matches(quantized.manifest, quantized_inputs(member, backend)):
        if not damages(folder, quantized.manifest, thorough=True):
            return quantized
        progress.note(f"{folder}: damaged, made again")
    recipe = member.recipe.model_copy(update={"quantize": backend})
    return quantize(member, folder, recipe=recipe, split=split, runtime=runtime, progress=progress)[0]
