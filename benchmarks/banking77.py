"""The quickstart's recipe on banking77: accuracy against TF-IDF and against Trainer with equal budget, and int8's drop.

    python benchmarks/banking77.py DATA [--seeds 42 43 44] [--threads 2] [--work DIR]

DATA is a folder with banking77's train.jsonl. The file is split 60/20/20 by each seed; Trainer gets the same rows,
tokens, weights, frozen layers, optimizer, schedule, epochs and seeds, evaluates as often and keeps its best model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from _measure import ROOT, machine, run_child, table, trainer_arguments, trainer_rows, write_section

from finetune.artifacts import PreparedData, Run
from finetune.evaluation.predictions.labels import LabelPredictions
from finetune.evaluation.statistics import paired_bootstrap
from finetune.inference import open_run
from finetune.models.freezing import apply_freezing
from finetune.models.heads import Head
from finetune.models.loading import ModelSettings, find_model, load_model
from finetune.runtime import Runtime

HEADER = ["seed", "finetune", "TF-IDF", "Trainer", "finetune - Trainer", "int8's drop", "int8 agrees", "int8 size"]


def train_with_trainer(run: Run, data: PreparedData, folder: Path, seed: int) -> LabelPredictions:
    """Train the same model on the same rows with transformers' Trainer; return its predictions for the test split."""
    import numpy as np
    import torch
    from transformers import Trainer

    recipe = run.recipe
    torch.manual_seed(seed)
    loaded = load_model(find_model(recipe.model), Head("sequence", tuple(data.labels)), ModelSettings())
    apply_freezing(loaded.model, recipe.freeze.name, recipe.freeze.options, loaded.new_parameters)
    settings = recipe.train
    arguments = trainer_arguments(
        folder,
        seed=seed,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.eval_batch_size,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,  # below 1 it is a ratio
        weight_decay=0.01,
        max_grad_norm=1.0,
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
    )
    tokenizer = open_run(run, Runtime("cpu")).tokenizer

    def accuracy(output: Any) -> dict[str, float]:
        return {"accuracy": float((output.predictions.argmax(-1) == output.label_ids).mean())}

    trainer = Trainer(
        loaded.model, arguments, train_dataset=trainer_rows(data.split("train")),  # type: ignore[arg-type]
        eval_dataset=trainer_rows(data.split("validation")), processing_class=tokenizer,
        compute_metrics=accuracy,  # type: ignore[arg-type]
    )  # fmt: skip
    trainer.train()
    trainer.args.train_sampling_strategy = "random"  # grouping would reorder the predictions too, and undo the pairing
    output = trainer.predict(trainer_rows(data.split("test")))  # type: ignore[arg-type]
    logits = output.predictions.astype(np.float64)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return LabelPredictions(tuple(data.labels), output.label_ids, exponentials / exponentials.sum(-1, keepdims=True))


def measure(source: Path, work: Path, seed: int, threads: int) -> dict[str, Any]:
    """Return the figures of one seed; those of a benchmark that was interrupted are taken from its folder."""
    import torch

    output = work / f"seed-{seed}"
    finished = output / "figures.json"
    if finished.is_file():
        return dict(json.loads(finished.read_text()))
    command = [
        sys.executable, "-m", "finetune", "run", str(ROOT / "benchmarks/banking77.yaml"), "--json",
        "--set", f"data.source={source}", "--set", f"seed={seed}", "--output", str(output), "--threads", str(threads),
    ]  # fmt: skip
    cost, text = run_child(command, work)
    result = json.loads(text)
    torch.set_num_threads(threads)
    run, data = Run(output / "run"), PreparedData(output / "data")
    test = data.split("test")
    ours = open_run(run, Runtime("cpu")).predict(test.rows, test.features, 64)
    theirs = train_with_trainer(run, data, output / "trainer", seed)
    assert (theirs.targets == ours.targets).all(), "both have to answer the same rows in the same order"
    lead = paired_bootstrap(["accuracy"], ours, theirs, seed)["accuracy"]  # how much worse Trainer's model is
    figures = {
        "seed": seed,
        "rows": len(test),
        "ours": result["report"]["metrics"]["accuracy"],
        "tfidf": result["report"]["baselines"]["tfidf-logreg"]["accuracy"],
        "trainer": float((theirs.predicted == theirs.targets).mean()),
        "gain": (lead.value, lead.low, lead.high),
        "drop": result["quantized"]["drop"]["accuracy"],
        "agreement": result["quantized"]["agreement"],
        "size_ratio": result["quantized"]["size_ratio"],
        "cpu": cost.cpu,
    }
    finished.write_text(json.dumps(figures))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with banking77's train.jsonl")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where to work; an interrupted benchmark goes on from there")
    arguments = parser.parse_args()
    source = (arguments.data / "train.jsonl").resolve()
    if not source.is_file():
        sys.exit(f"expected banking77's rows at {source}, found nothing")
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        found = [measure(source, work, seed, arguments.threads) for seed in arguments.seeds]
    rows = [
        [
            one["seed"],
            f"{one['ours']['value']:.4f} ({one['ours']['low']:.4f} to {one['ours']['high']:.4f})",
            f"{one['tfidf']['value']:.4f}",
            f"{one['trainer']:.4f}",
            f"{one['gain'][0]:+.4f} ({one['gain'][1]:+.4f} to {one['gain'][2]:+.4f})",
            f"{one['drop']['value']:+.4f} ({one['drop']['low']:+.4f} to {one['drop']['high']:+.4f})",
            f"{one['agreement']:.4f}",
            f"{one['size_ratio']:.3f}",
        ]
        for one in found
    ]
    mean = {key: sum(one[key]["value"] for one in found) / len(found) for key in ("ours", "tfidf", "drop")}
    trainer = sum(one["trainer"] for one in found) / len(found)
    text = [
        f"{machine()}. {found[0]['rows']} test rows a seed; accuracy, in brackets 95 % bootstrap intervals, paired "
        "where two models are compared. Trainer has the same rows, frozen layers, schedule and budget, grouped "
        "batches, and keeps its best epoch.",
        table(HEADER, rows),
        f"Means: finetune {mean['ours']:.4f}, Trainer {trainer:.4f}, TF-IDF {mean['tfidf']:.4f}; "
        f"int8's drop {mean['drop']:+.4f}.",
    ]
    write_section("banking77", "\n\n".join(text))


if __name__ == "__main__":
    main()
