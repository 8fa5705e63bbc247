"""How fast the quickstart is: start-up, the stages, training against Trainer, int8 against fp32.

    python benchmarks/quickstart.py [--repeats 3]

Run it with nothing else running. Times are the machine's; the ratios, measured in turns in one run, are what
to compare.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _measure import ROOT, machine, median, run_child, table, trainer_arguments, trainer_rows, write_section

RECIPE = ROOT / "recipes" / "quickstart.yaml"


def start_up(repeats: int) -> str:
    """CPU seconds of commands that import nothing heavy, against bare Python."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "finetune --help": [sys.executable, "-m", "finetune", "--help"],
        "finetune validate recipes/quickstart.yaml": [sys.executable, "-m", "finetune", "validate", str(RECIPE)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(max(5, repeats)):
        for name, command in commands.items():
            seconds[name].append(run_child(command, ROOT)[0].cpu)
    return table(["command", "CPU s"], [[f"`{name}`", f"{median(found):.2f}"] for name, found in seconds.items()])


def stages(work: Path) -> str:
    """The whole job once, and once more with nothing changed."""
    command = [sys.executable, "-m", "finetune", "run", str(RECIPE), "--json", "--output", str(work / "quickstart")]
    first, text = run_child(command, ROOT)
    second, _ = run_child(command, ROOT)
    rows: list[list[str]] = [[s["name"], f"{s['seconds']:.1f}", "", ""] for s in json.loads(text)["stages"]]
    for name, cost in (("all, first time", first), ("all, nothing changed", second)):
        rows.append([name, f"{cost.wall:.1f}", f"{cost.cpu:.1f}", f"{cost.memory / 1e9:.2f}"])
    return table(["stage", "s", "CPU s", "peak private memory, GB"], rows)


def training_speed(work: Path, repeats: int) -> str:
    """One epoch of the quickstart's training rows with nothing frozen, on one thread: ours and Trainer's, in turns."""
    import torch

    from finetune.artifacts import PreparedData
    from finetune.models.freezing import apply_freezing
    from finetune.models.heads import Head
    from finetune.models.loading import ModelSettings, find_model, load_model, load_tokenizer
    from finetune.recipe import load_recipe
    from finetune.runtime import Runtime
    from finetune.tasks import open_task
    from finetune.training.batching import step_groups, total_steps
    from finetune.training.loop import Learner, optimizer_steps
    from finetune.training.optimizers import adamw
    from finetune.training.schedules import constant

    recipe = load_recipe(RECIPE)
    folder, data = find_model(recipe.model), PreparedData(work / "quickstart" / "data")
    split, size = data.split("train"), recipe.train.batch_size
    tokenizer = load_tokenizer(folder)
    torch.set_num_threads(1)

    def ours() -> None:
        loaded = load_model(folder, Head("sequence", tuple(data.labels)), ModelSettings())
        freezing = apply_freezing(loaded.model, "none", {})
        accelerator = Runtime("cpu").accelerator()
        model, optimizer = accelerator.prepare(loaded.model, adamw(loaded.model.named_parameters(), 1e-5))
        learner = Learner(accelerator, model, optimizer, freezing, open_task("text-classification", {})[0], tokenizer)
        steps = total_steps(len(split), batch_size=size, accumulation=1, epochs=1, max_steps=None)
        lengths = split.features.lengths
        yield_ready = optimizer_steps(
            learner, split.features,
            lambda epoch: step_groups(lengths, batch_size=size, accumulation=1, seed=1, epoch=epoch),
            learning_rate=1e-5, schedule=constant, total_steps=steps, max_gradient_norm=1.0, seed=1,
        )  # fmt: skip
        timed(lambda: list(yield_ready), "finetune")

    def trainer(name: str, strategy: str) -> None:
        from transformers import Trainer

        loaded = load_model(folder, Head("sequence", tuple(data.labels)), ModelSettings())
        arguments = trainer_arguments(
            work / "trainer", per_device_train_batch_size=size, num_train_epochs=1, learning_rate=1e-5,
            train_sampling_strategy=strategy,
        )  # fmt: skip
        made = Trainer(loaded.model, arguments, train_dataset=trainer_rows(split), processing_class=tokenizer)  # type: ignore[arg-type]
        timed(made.train, name)

    cpu: dict[str, list[float]] = {}

    def timed(work_on_rows: Callable[[], Any], name: str) -> None:
        started = time.process_time()
        work_on_rows()
        cpu.setdefault(name, []).append(len(split) / (time.process_time() - started))

    for _ in range(repeats):
        ours()
        trainer("Trainer, grouped batches", "group_by_length")
        trainer("Trainer, its default", "random")
    reference = cpu["finetune"]
    rows = [
        [name, f"{median(found):.1f}", f"{median([a / b for a, b in zip(reference, found, strict=True)]):.2f}"]
        for name, found in cpu.items()
    ]
    return table(["training, one thread", "rows per CPU s", "finetune is times faster"], rows)


def int8_speed(work: Path, repeats: int) -> str:
    """Eager fp32 against int8 on ONNX Runtime over shapes, in one thread's CPU time, in turns."""
    import torch

    from finetune.artifacts import Run
    from finetune.inference import open_run
    from finetune.runtime import Runtime

    torch.set_num_threads(1)
    models = {name: open_run(Run(work / "quickstart" / name), Runtime("cpu", 1)) for name in ("run", "run-onnx-int8")}
    rows, all_ratios = [], []
    for batch, length in ((1, 16), (1, 64), (8, 32), (32, 16), (32, 64)):
        ids = torch.randint(1000, 20000, (batch, length))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        ratios, milliseconds = [], []
        for turn in range(2 + 5 * repeats):
            spent = {}
            for name, predictor in models.items():
                with torch.inference_mode():
                    started = time.process_time()
                    predictor.model(**inputs)
                    spent[name] = time.process_time() - started
            if turn >= 2:
                ratios.append(spent["run"] / spent["run-onnx-int8"])
                milliseconds.append(spent["run-onnx-int8"] * 1000)
        all_ratios.append(median(ratios))
        rows.append([f"{batch} x {length}", f"{median(milliseconds):.1f}", f"{median(ratios):.2f}"])
    mean = float(torch.tensor(all_ratios).log().mean().exp())
    rows.append(["geometric mean", "", f"{mean:.2f}"])
    return table(["rows x tokens", "int8, CPU ms", "times faster than fp32"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        parts = [
            f"{machine()}; medians of {arguments.repeats} repeats.",
            start_up(arguments.repeats),
            stages(work),
            training_speed(work, arguments.repeats),
            int8_speed(work, arguments.repeats),
        ]
    write_section("quickstart", "\n\n".join(parts))


if __name__ == "__main__":
    main()
