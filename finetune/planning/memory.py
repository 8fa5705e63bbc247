"""The memory that a training needs, found by doing its first steps on shapes alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.generation import without_adapter
from finetune.inference import Predictor, evaluation_windows, score_batch
from finetune.learners import open_learner, predictor_of
from finetune.models.freezing import Freezing
from finetune.progress import Silent
from finetune.runtime import Runtime
from finetune.training.batching import Batches, StepGroup
from finetune.training.loop import Learner, optimizer_steps, training_batch

if TYPE_CHECKING:
    from finetune.artifacts import FeatureTable, PreparedData
    from finetune.progress import Progress
    from finetune.recipe import Recipe
    from finetune.tasks import TaskSpec
    from finetune.training.shapes import Shapes

# What a processor's allocator holds beside what is in use: in every step blocks of many sizes come and go, and the
# gaps between them are not given back (measured by benchmarks/plan_memory.py)
GAPS = 1.35


@dataclass(frozen=True)
class Memory:
    """Bytes that training needs on its device, each part at its largest; they do not all lie there at once.

    `activations` is what the forward pass of the largest micro-batch (`rows` windows, `tokens` ids with padding) keeps
    for the backward pass, `scoring` what the largest batch of an evaluation needs, `caches` what writing keeps of the
    tokens before. `tensors` is the most that is alive at one time; `peak` is that with what lies around it: on a
    processor the program itself (`process`) and the gaps of its allocator.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    scoring: int
    caches: int
    tensors: int
    process: int
    peak: int
    rows: int
    tokens: int

    def as_json(self) -> dict[str, int]:
        """Return it as a report has it."""
        return asdict(self)


@dataclass(frozen=True)
class Estimate:
    """What a training needs, what it trains, and how it goes through its windows."""

    memory: Memory
    freezing: Freezing
    spec: TaskSpec
    batches: Batches
    learner: Learner


def estimate_memory(
    recipe: Recipe,
    data: PreparedData,
    runtime: Runtime,
    progress: Progress | None = None,
    *,
    longest: int | None = None,
    process: int | None = None,
) -> Estimate:
    """Return what training a recipe on its prepared data needs, without the memory to hold any of it.

    Two optimizer steps of the largest micro-batch are done on shapes (the optimizer has its state from the second on),
    then the largest batch of an evaluation is scored, and the cache of writing made. All of it is computed as on a
    processor, which keeps dropout's noise in full where a GPU keeps a byte of it. With `longest` it is as if no window
    had more ids. `process` is the program's own memory; without it, it is measured. Raises FinetuneError as training
    would, but for what only the weights can tell.
    """
    import torch

    from finetune.training.shapes import Shapes

    on_gpu = runtime.torch_device().type == "cuda"
    precision = _precision(runtime)
    shapes = Shapes()
    with torch.random.fork_rng(), _accelerator_of_its_own():
        plain = Runtime("cpu", runtime.threads, precision, runtime.allow_code)
        learner, spec = open_learner(recipe, data, plain, progress or Silent(), shapes)
        learner.freezing = replace(learner.freezing, stages=())  # in the end all of it learns
        features = data.split("train").features
        batches = Batches.of(recipe, features, spec, runtime.torch_device().type)
        step = largest_step(batches, features.lengths_of(spec.sized_by), longest)
        parts = _parts(recipe, data, learner, spec, step, shapes)
        ids = training_batch(learner, features, step[0], (recipe.seed, 0) if spec.draws else None).inputs
    around = 0 if on_gpu else process or process_bytes()
    tensors, weights = parts["tensors"], parts["weights"]
    memory = Memory(
        **parts,
        process=around,
        peak=tensors if on_gpu else around + weights + int((tensors - weights) * GAPS),
        rows=len(step[0]),
        tokens=sum(ids[name].numel() for name in ("input_ids", "labels") if name in ids),
    )
    return Estimate(memory, learner.freezing, spec, batches, learner)


def _parts(
    recipe: Recipe, data: PreparedData, learner: Learner, spec: TaskSpec, step: StepGroup, shapes: Shapes
) -> dict[str, int]:
    """Return the bytes of each part of the memory, and of all tensors at the worst time."""
    features = data.split("train").features
    weights = shapes.live_bytes
    activations = _activations(learner, features, step[0], (recipe.seed, 0) if spec.draws else None, shapes)
    training = _two_steps(learner, features, step, recipe, shapes)
    kept = shapes.live_bytes
    predictor = predictor_of(learner, spec, recipe, data)
    predictor.model.eval()
    scoring = _scoring(predictor, data, recipe, shapes)
    caches = _caches(predictor, data, shapes) if spec.judged_by_text else 0  # others write once training is over
    trainable = [parameter for parameter in learner.model.parameters() if parameter.requires_grad]
    return {
        "weights": weights,
        "gradients": sum(parameter.numel() * parameter.element_size() for parameter in trainable),
        "optimizer": kept - weights,
        "activations": activations,
        "scoring": scoring,
        "caches": caches,
        "tensors": max(training, kept + scoring, kept + caches, kept + _merging(recipe, weights)),
    }


def _merging(recipe: Recipe, weights: int) -> int:
    """Return what the check of a merged model needs, which is made of a copy at the end of training."""
    return weights if recipe.adapter is not None and not recipe.adapter.bits else 0


def largest_step(batches: Batches, sizes: Sequence[int], longest: int | None = None) -> StepGroup:
    """Return the micro-batch of the first epoch with most ids, twice if a step has several; `sizes` are of windows.

    With `longest` those are left out that have a longer window, as long as there are others.
    """
    steps = batches.epoch(0)
    micro_batches = [micro_batch for step in steps for micro_batch in step]
    if longest is not None:
        short = [windows for windows in micro_batches if max(sizes[window] for window in windows) <= longest]
        micro_batches = short or micro_batches
    largest = max(micro_batches, key=lambda windows: padded_ids([windows], sizes))
    return [largest] * min(2, max(map(len, steps)))


def padded_ids(step: StepGroup, sizes: Sequence[int]) -> int:
    """Return how many ids the micro-batches of a step have, each window padded to the longest of its micro-batch."""
    return sum(len(windows) * max(sizes[window] for window in windows) for windows in step)


def _activations(
    learner: Learner, features: FeatureTable, windows: Sequence[int], draw: tuple[int, int] | None, shapes: Shapes
) -> int:
    """Return what the forward pass and the loss of a micro-batch keep for the backward pass."""
    from finetune.models.freezing import set_training_mode

    set_training_mode(learner.model, learner.freezing)
    with shapes.watch():
        before = shapes.live_bytes
        batch = training_batch(learner, features, windows, draw)
        with learner.accelerator.autocast():
            outputs = learner.task.forward(learner.model, batch.inputs)
        loss = learner.task.loss(outputs, batch, learner.fitted)
        del outputs
        kept = shapes.live_bytes - before
        del loss, batch
    return kept


def _two_steps(learner: Learner, features: FeatureTable, step: StepGroup, recipe: Recipe, shapes: Shapes) -> int:
    """Return the most bytes that are alive during the second of two steps of training's own loop."""
    settings = recipe.train
    steps = optimizer_steps(
        learner,
        features,
        lambda _: [step],
        learning_rate=settings.peak_learning_rate,
        schedule=lambda *_: 1.0,
        total_steps=2,
        max_gradient_norm=settings.max_gradient_norm,
        seed=recipe.seed,
    )
    for _ in range(2):
        with shapes.watch():
            next(steps)
    return shapes.peak_bytes


def _scoring(predictor: Predictor, data: PreparedData, recipe: Recipe, shapes: Shapes) -> int:
    """Return what the largest batch of an evaluation needs beside what is there already."""
    import torch

    features, settings = data.split("validation").features, recipe.train
    batches = evaluation_windows(predictor, features, settings.eval_batch_size, settings.batch_size)
    sizes = features.lengths_of(predictor.spec.sized_by)
    largest = max(batches, key=lambda windows: padded_ids([windows], sizes))
    with torch.no_grad(), shapes.watch():
        before = shapes.live_bytes
        score_batch(predictor, features, largest, settings.eval_batch_size)
        return shapes.peak_bytes - before


def _caches(predictor: Predictor, data: PreparedData, shapes: Shapes) -> int:
    """Return what a model keeps of the tokens before while it writes the longest of the validation rows."""
    import torch

    settings, model = predictor.generation, without_adapter(predictor.model)
    rows = min(settings.batch_size, settings.validation_rows, len(data.split("validation").rows)) * settings.beams
    if not rows:
        return 0
    read, written = predictor.longest_writing(data.split("validation").features)
    ids = torch.zeros((rows, read), dtype=torch.long)
    after = torch.zeros((rows, written), dtype=torch.long)
    with torch.no_grad(), shapes.watch():
        if model.config.is_encoder_decoder:
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": after}
        else:
            together = torch.cat([ids, after], dim=1)
            inputs = {"input_ids": together, "attention_mask": torch.ones_like(together)}
        before = shapes.live_bytes
        cache = getattr(model(**inputs, use_cache=True), "past_key_values", None)  # not every family has one
        return shapes.live_bytes - before if cache is not None else 0


def _precision(runtime: Runtime) -> str:
    """Return the precision that training computes in on its own device."""
    with _accelerator_of_its_own():
        mixed = runtime.accelerator().mixed_precision
    return "fp32" if mixed == "no" else str(mixed)


@contextmanager
def _accelerator_of_its_own() -> Iterator[None]:
    """Let an Accelerator be made for another device or precision; what was there before comes back behind it.

    Accelerate holds one state for the whole process.
    """
    from accelerate.state import AcceleratorState, PartialState

    states = (AcceleratorState, PartialState)
    before = [dict(state._shared_state) for state in states]
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield
    finally:
        for state, values in zip(states, before, strict=True):
            state._shared_state.clear()
            state._shared_state.update(values)


def process_bytes() -> int:
    """Return the memory that this program holds now, with the libraries that training needs on its way."""
    import matplotlib.figure  # noqa: F401 -- pictures and metrics are made at the end of training
    import psutil
    import sklearn.metrics  # noqa: F401

    return int(psutil.Process().memory_info().rss)


def forget_peak() -> None:
    """Let the most that this program has held be what it holds now, where the system can do that (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_process_bytes() -> int:
    """Return the most memory that this program has held so far."""
    import psutil

    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most) if sys.platform == "darwin" else int(most) * 1024


def available_bytes(runtime: Runtime) -> int:
    """Return how much memory there is for a training: a GPU's, or the machine's within the limits of its container."""
    import psutil
    import torch

    if runtime.torch_device().type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return min([int(psutil.virtual_memory().available) + process_bytes(), *_container_limit()])


def _container_limit() -> list[int]:
    """Return what a control group of Linux allows, if there is one that does not allow everything."""
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with suppress(OSError):
            text = path.read_text(encoding="ascii").strip()
            return [int(text)] if text.isdecimal() else []
    return []
