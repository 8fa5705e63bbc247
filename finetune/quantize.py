"""The fourth stage: from a run to a quantized run of the same shape, scored before and after on the same rows."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune import registry
from finetune.artifacts import (
    FITTED,
    FORMAT_VERSION,
    QUANTIZATION_REPORT,
    FeatureTable,
    PreparedData,
    Run,
    building,
    disk_errors,
    fingerprint,
    publish,
    versions,
    write_json,
    write_text,
)
from finetune.errors import FinetuneError
from finetune.evaluate import as_json, metric_names, own_data, units_of
from finetune.evaluation.metrics import check_code
from finetune.evaluation.statistics import score
from finetune.fingerprints import quantization_report_inputs, quantized_inputs
from finetune.gates import check_gates
from finetune.inference import Predictor, features_of, open_run
from finetune.models.loading import quiet_transformers
from finetune.progress import Progress, Silent
from finetune.recipe import Recipe
from finetune.reports.markdown import quantization_report
from finetune.runtime import Runtime

# Timed calls per model and batch size; before each, the other model had its turn
ROUNDS = 15
WARM_UP_ROUNDS = 3


def quantize(
    run: Run,
    folder: Path,
    *,
    recipe: Recipe | None = None,
    split: str = "test",
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> tuple[Run, dict[str, Any]]:
    """Quantize a run into `folder` by the recipe's backend; return the quantized run and the before/after report."""
    runtime, progress = runtime or Runtime(), progress or Silent()
    recipe = recipe or run.recipe
    require_full_precision(run)
    assert recipe.quantize is not None, "the caller checks that there is a backend"
    check_code(metric_names(recipe, run), allow_code=runtime.allow_code)
    data = require_data(run)
    backend = registry.backends.get(recipe.quantize.name)
    runtime = on_cpu(runtime)
    with building(folder) as partial:
        before = open_run(run, runtime)
        progress.note(f"quantizing with {backend.attributes['title']}")
        _write_model(before, data.split(split).features, partial / "model", backend, recipe.quantize.options)
        write_text(partial / "recipe.yaml", recipe.to_yaml())
        if run.fitted:
            write_json(partial / FITTED, run.fitted)
        manifest = _manifest(run, folder, backend, quantized_inputs(run, recipe.quantize))
        report = score_unpublished(run, before, partial, manifest, recipe, data, split, runtime, progress)
        publish(folder, manifest)
    return Run(folder), report


def score_unpublished(
    run: Run,
    before: Predictor,
    partial: Path,
    manifest: dict[str, Any],
    recipe: Recipe,
    data: PreparedData,
    split: str,
    runtime: Runtime,
    progress: Progress,
) -> dict[str, Any]:
    """Score a quantized run that is about to be published, opened as any user would open it; write the report."""
    quantized = Run(partial)
    quantized.__dict__["manifest"] = manifest  # it is written last, when all the rest is there
    report = _score(run, quantized, before, open_run(quantized, runtime), recipe, data, split, progress)
    write_report(report, partial / "reports")
    return report


def score_again(
    run: Run,
    folder: Path,
    *,
    recipe: Recipe,
    split: str = "test",
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> tuple[Run, dict[str, Any]]:
    """Make the before/after report of a quantized run anew, with other metrics or another seed; quantize nothing."""
    runtime, progress = on_cpu(runtime or Runtime()), progress or Silent()
    before, after = open_run(run, runtime), open_run(Run(folder), runtime)
    report = _score(run, Run(folder), before, after, recipe, require_data(run), split, progress)
    write_report(report, folder / "reports")
    return Run(folder), report


def on_cpu(runtime: Runtime) -> Runtime:
    """Every backend so far is one for CPUs, so both models are scored there."""
    return Runtime("cpu", runtime.threads, "fp32", runtime.allow_code)


def require_full_precision(run: Run) -> None:
    """Raise FinetuneError for a run that cannot be quantized, or is quantized already."""
    if run.format != "transformers":
        raise FinetuneError(f"{run.folder}: expected a run in full precision, found one of the format {run.format!r}")


def require_data(run: Run) -> PreparedData:
    """Return the data that a run was trained on; raise FinetuneError if it is not there."""
    data = own_data(run)
    if data is None:
        raise FinetuneError(
            f"{run.data_folder()}: expected the data that {run.folder} was trained on: a quantized model is not given "
            "out without being scored again. Prepare and train again."
        )
    return data


def _score(
    run: Run,
    quantized: Run,
    before: Predictor,
    after: Predictor,
    recipe: Recipe,
    data: PreparedData,
    split: str,
    progress: Progress,
) -> dict[str, Any]:
    assert recipe.quantize is not None
    names = metric_names(recipe, run)
    report = _compare(before, after, data.split(split), names, recipe, split, progress)
    sizes = {"before": _size(run), "after": _size(quantized)}
    report |= {
        "recipe": recipe.name,
        "backend": recipe.quantize.name,
        "size_bytes": sizes,
        "size_ratio": sizes["after"] / sizes["before"],
        "fingerprint": fingerprint(quantization_report_inputs(run, recipe, recipe.quantize, names, split)),
    }
    return with_gates(report, recipe)


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write the before/after report for people and for machines."""
    write_text(folder / f"{QUANTIZATION_REPORT}.md", quantization_report(report))
    write_json(folder / f"{QUANTIZATION_REPORT}.json", report)


def with_gates(report: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return a before/after report with the recipe's gates held against it."""
    values: dict[str, Any] = {name: {**value, "drop": report["drop"][name]} for name, value in report["after"].items()}
    values |= {"agreement": report["agreement"], "size_ratio": report["size_ratio"]}
    return {**report, "gates": check_gates([gate for gate in recipe.gates if gate.quantized], values)}


def _write_model(
    before: Predictor,
    features: FeatureTable,
    folder: Path,
    backend: registry.Entry,
    options: dict[str, Any],
) -> None:
    folder.mkdir(parents=True)
    lengths = features.lengths
    longest = sorted(range(len(features)), key=lambda row: -lengths[row])[:2]
    inputs = before.task.collate(features_of(before.spec, features, longest), before.tokenizer).inputs
    backend.build(options)(before.model, before.task.forward, inputs, folder)
    with quiet_transformers(), disk_errors(folder):
        before.model.config.save_pretrained(folder)
        before.tokenizer.save_pretrained(folder)


def _manifest(run: Run, folder: Path, backend: registry.Entry, inputs: dict[str, Any]) -> dict[str, Any]:
    kept = ("task", "labels", "limits", "parameters", "data_fingerprint", "pretrained_sha256")
    return {
        **{key: run.manifest[key] for key in kept},
        "kind": "run",
        "format": backend.attributes["format"],
        "backend": backend.name,
        "quantized_from": run.fingerprint,
        "data_folder": os.path.relpath(run.data_folder(), folder.resolve()),
        "fingerprint": fingerprint(inputs),
        "inputs": inputs,
        "versions": versions("onnx", "onnxruntime", "onnxscript"),
    }


def _compare(
    before: Predictor,
    after: Predictor,
    scored: Any,
    names: Sequence[str],
    recipe: Recipe,
    split: str,
    progress: Progress,
) -> dict[str, Any]:
    size = recipe.train.eval_batch_size
    said_before = before.predict(scored.rows, scored.features, size, progress)
    said_after = after.predict(scored.rows, scored.features, size, progress)
    units = units_of(said_before, scored.rows, before.spec)
    scores_before, scores_after = (score(names, said, recipe.seed, units) for said in (said_before, said_after))
    return {
        "format_version": FORMAT_VERSION,
        "task": recipe.task.name,
        "split": split,
        "rows": len(scored),
        "before": as_json(scores_before.intervals()),
        "after": as_json(scores_after.intervals()),
        "drop": as_json(scores_before.lead(scores_after)),
        "agreement": float(said_before.agrees(said_after).mean()),
        "agreement_means": said_before.same,
        "speed": measure_speed(before, after, scored.features),
    }


def _size(run: Run) -> int:
    """Return the bytes of a run's weights; of an ensemble those of all members."""
    return sum(weights_size(member.model_folder) for member in run.members or [run])


def weights_size(folder: Path) -> int:
    """Return the bytes of the weight files in a model's folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in {".safetensors", ".onnx", ".data"})


def measure_speed(before: Predictor, after: Predictor, features: FeatureTable) -> dict[str, Any]:
    """Time both models in turns, in one thread: latency at batch 1 (ms) and throughput at batch 32 (rows/s).

    One thread, since with several a busy neighbour makes every barrier wait and the ratio means nothing.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one_thread = after.in_threads(1)
        lengths = features.lengths
        by_length = sorted(range(len(features)), key=lambda row: lengths[row])
        middle = len(by_length) // 2
        speed: dict[str, Any] = {"threads": 1, "tokens": lengths[by_length[middle]]}
        for size in (1, 32):
            around = by_length[max(0, middle - size // 2) :][:size]
            rows = features_of(before.spec, features, [around[i % len(around)] for i in range(size)])
            speed[f"batch_{size}"] = _race([before, one_thread], rows)
    finally:
        torch.set_num_threads(threads)
    return speed


def _race(predictors: Sequence[Predictor], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    import numpy as np
    import torch

    seconds: list[list[float]] = [[] for _ in predictors]
    inputs = predictors[0].task.collate(rows, predictors[0].tokenizer).inputs
    with torch.inference_mode():
        for turn in range(WARM_UP_ROUNDS + ROUNDS):
            for index, predictor in enumerate(predictors):
                started = time.perf_counter()
                predictor.forward(inputs)
                if turn >= WARM_UP_ROUNDS:
                    seconds[index].append(time.perf_counter() - started)
    before, after = (np.array(times) for times in seconds)

    def summary(times: Any) -> dict[str, float]:
        if len(rows) == 1:
            return {"median": float(np.median(times)) * 1000, "p95": float(np.percentile(times, 95)) * 1000}
        rates = len(rows) / times  # the p95 of a throughput is its slow end
        return {"median": float(np.median(rates)), "p95": float(np.percentile(rates, 5))}

    return {"before": summary(before), "after": summary(after), "speedup": float(np.median(before / after))}
