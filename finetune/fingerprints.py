"""What each artifact depends on, written out as plain values: if two are equal, nothing has to be redone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.artifacts import MEMBER, Run, describe_member, fingerprint
from finetune.data.sources import open_source
from finetune.models.loading import file_digest, find_model, weights_digest
from finetune.models.scratch import scratch_context
from finetune.recipe import ModelSection, Part, Recipe, is_written

# Settings of `train` that say where and how fast, not what: they change no result beyond rounding
OPERATIONAL = {"device", "threads", "eval_batch_size", "save_every", "save_minutes", "keep_checkpoints", "trackers"}


def rows_inputs(recipe: Recipe) -> dict[str, Any]:
    """Return what decides which rows there are, how they read, and which split they are in."""
    resolved = recipe.resolved()
    data = {key: value for key, value in resolved["data"].items() if key not in {"source", "format", "workers", "seed"}}
    found = {name: open_source(paths, recipe.data.form) for name, paths in recipe.data.sources.items()}
    sources = {name or "all": source.describe() for name, source in found.items()}
    seed = recipe.seed if recipe.data.seed is None else recipe.data.seed
    names = [file.name for source in found.values() for file in source.files]
    described = {**data, "source": sources, **({"files": _digest(names)} if len(names) > 1 else {})}
    if recipe.data.augment:
        described["augment"] = {
            **data["augment"],
            "operations": [_operation(part) for part in data["augment"]["operations"]],
        }
    return {"task": resolved["task"], "seed": seed, "data": described}


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _operation(part: Any) -> Any:
    """Return an augmenter as a recipe writes it, what it reads from files replaced by their hashes."""
    if not isinstance(part, dict):
        return part
    described = dict(part)
    if part.get("table"):
        described["table"] = file_digest(Path(part["table"]))
    for name, revision in (("model", "revision"), ("there", "there_revision"), ("back", "back_revision")):
        if part.get(name):
            described[name] = weights_digest(find_model(ModelSection(id=part[name], revision=part.get(revision))))
    return described


def rows_part(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the rows out of what decides their tokens."""
    return {key: inputs[key] for key in ("task", "seed", "data")}


def tokens_inputs(recipe: Recipe, *, allow_code: bool = False) -> dict[str, Any]:
    """Return what decides the tokens: the rows, the tokenizer's files and the length limit."""
    if recipe.tokenizer:
        tokenizer: Any = recipe.tokenizer.resolved()
    else:
        tokenizer = tokenizer_digest(find_model(recipe.model, allow_code=allow_code))
    scratch = recipe.model.scratch
    return {
        **rows_inputs(recipe),
        "tokenizer": tokenizer,
        "model": {
            "max_length": recipe.model.max_length,
            **({"context": scratch_context(scratch)} if scratch is not None else {}),
            "overflow": recipe.model.overflow,
            "stride": recipe.model.stride if recipe.model.overflow == "window" else None,
        },
    }


def run_inputs(recipe: Recipe, data_fingerprint: str, *, allow_code: bool = False) -> dict[str, Any]:
    """Return what decides the trained weights."""
    resolved = recipe.resolved()
    if recipe.model.scratch is not None:
        weights: dict[str, Any] = {"scratch": resolved["model"]["scratch"], "weights_sha256": None}
    else:
        folder = find_model(recipe.model, allow_code=allow_code)
        weights = {
            "config_sha256": file_digest(folder / "config.json"),
            "weights_sha256": recipe.model.sha256 or weights_digest(folder),
        }
    return {
        "data_fingerprint": data_fingerprint,
        "task": resolved["task"],
        "seed": recipe.seed,
        "model": {
            **weights,
            **{name: resolved["model"].get(name) for name in ("dtype", "attention", "dropout")},
        },
        "freeze": resolved["freeze"],
        **({"adapter": resolved["adapter"]} if resolved.get("adapter") else {}),
        "train": {key: value for key, value in resolved["train"].items() if key not in OPERATIONAL},
        "code": with_code([recipe.train.early_stopping.metric]),
        **_writing(recipe),
    }


def ensemble_inputs(recipe: Recipe, data_fingerprint: str, members: Mapping[str, Run]) -> dict[str, Any]:
    """Return what decides an ensemble: the runs that it is made of, by their names, in their order."""
    described = [
        {"name": name, **dict(zip(MEMBER, describe_member(run), strict=True))} for name, run in members.items()
    ]
    return {
        "data_fingerprint": data_fingerprint,
        "task": recipe.resolved()["task"],
        "seed": recipe.seed,
        "members": described,
        **({"generation": recipe.generation.deciding(recipe.seed)} if recipe.spec.prompt is not None else {}),
    }


def report_inputs(
    run: Run, recipe: Recipe, metrics: Sequence[str], split: str, source: Path | None, *, has_data: bool
) -> dict[str, Any]:
    """Return what decides an evaluation's numbers."""
    return {
        "run_fingerprint": run.fingerprint,
        "metrics": with_code(metrics),
        "seed": recipe.seed,
        "has_data": has_data,  # without the training data there are no baselines
        "split": split,
        "columns": recipe.data.columns if source else None,
        "source": open_source(str(source)).describe() if source else None,
        "format": run.recipe.data.form if source else None,
        **({"generation": recipe.generation.deciding(recipe.seed)} if recipe.spec.prompt is not None else {}),
    }


def _writing(recipe: Recipe) -> dict[str, Any]:
    """Return how texts are written, if by them the best model is chosen."""
    judge = recipe.train.early_stopping.metric
    if not recipe.spec.judged_by_text or judge == "loss" or not is_written(judge):
        return {}
    settings = recipe.generation.deciding(recipe.seed)
    return {"generation": {**settings, "validation_rows": recipe.generation.validation_rows}}


def quantized_inputs(run: Run, backend: Part) -> dict[str, Any]:
    """Return what decides a quantized model."""
    return {"run_fingerprint": run.fingerprint, "quantize": backend.resolved()}


def quantization_report_inputs(
    run: Run, recipe: Recipe, backend: Part, metrics: Sequence[str], split: str
) -> dict[str, Any]:
    """Return what decides the before/after report of a quantized model."""
    return {
        **quantized_inputs(run, backend),
        "metrics": with_code(metrics),
        "seed": recipe.seed,
        "split": split,
    }


def with_code(metrics: Sequence[str]) -> dict[str, str | None]:
    """Return the metrics with the hash of the local module that computes each, if one does."""
    found: dict[str, str | None] = {}
    for name in metrics:
        module = Path(name.removeprefix("evaluate:"))
        found[name] = file_digest(module) if name.startswith("evaluate:") and module.is_file() else None
    return found


def tokenizer_digest(folder: Path) -> str:
    """Return one hash over all small files of a model that may decide how its tokenizer works."""
    suffixes = {".json", ".txt", ".model", ".jinja", ".codes", ".bpe"}
    files = [path for path in sorted(folder.iterdir()) if path.suffix in suffixes and ".index." not in path.name]
    listing = "".join(f"{file_digest(path)}  {path.name}\n" for path in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted paths at which two descriptions differ."""
    found: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        path = f"{prefix}.{key}" if prefix else key
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, path)
        elif before != after:
            found.append(path)
    return found


def matches(manifest: Mapping[str, Any], inputs: Mapping[str, Any]) -> bool:
    """Tell whether an artifact was made from exactly these inputs."""
    return bool(manifest.get("fingerprint") == fingerprint(inputs))
