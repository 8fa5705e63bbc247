"""The memory that a training needs, found by doing its first steps on shapes alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.generation import without_adapter
from finetune.inference import Predictor, evaluation_groups, score_batch
from finetune.learners import open_learner, predictor_of
from finetune.models.freezing import Freezing
from finetune.progress import Silent
from finetune.runtime import Runtime
from finetune.training.batching import Batches, StepGroup, Together
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
) -> Estimate:
    """Return what training a recipe on its prepared data needs, without the memory to hold any of it.

    Two optimizer steps of the largest micro-batch are done on shapes (the optimizer has its state from the second on),
    then the largest batch of an evaluation is scored, and the cache of writing made. All of it is computed as on a
    processor. With `longest` it is as if no window had more ids. Raises FinetuneError as training would.
    """
    import torch

    from finetune.training.shapes import Shapes

    on_gpu = runtime.torch_device().type == "cuda"
    plain = Runtime("cpu", runtime.threads, _precision(runtime), runtime.allow_code)
    shapes = Shapes()
    with torch.random.fork_rng():
        learner, spec = open_learner(recipe, data, plain, progress or Silent(), shapes)
        weights = shapes.live_bytes
        features = data.split("train").features
        batches = batches_of(recipe, features, spec)
        step = largest_step(batches, features.lengths_of(spec.sized_by), longest)
        draw = (recipe.seed, 0) if spec.draws else None
        activations = _activations(learner, features, step[0], draw, shapes)
        training = _two_steps(learner, features, step, recipe, shapes)
        kept = shapes.live_bytes
        predictor = predictor_of(learner, spec, recipe, data)
        predictor.model.eval()
        scoring = _scoring(predictor, data, recipe, shapes)
        caches = _caches(predictor, data, shapes) if spec.prompt is not None else 0
        ids = training_batch(learner, features, step[0], draw).inputs
    if on_gpu:
        _forget_accelerator()
    tensors = max(training, kept + scoring, kept + caches)
    process = 0 if on_gpu else process_bytes()
    trainable = [parameter for parameter in learner.model.parameters() if parameter.requires_grad]
    memory = Memory(
        weights=weights,
        gradients=_bytes(trainable),
        optimizer=kept - weights,
        activations=activations,
        scoring=scoring,
        caches=caches,
        tensors=tensors,
        process=process,
        peak=tensors if on_gpu else process + weights + int((tensors - weights) * GAPS),
        rows=len(step[0]),
        tokens=sum(ids[name].numel() for name in ("input_ids", "labels") if name in ids),
    )
    return Estimate(memory, learner.freezing, spec, batches, learner)


def batches_of(recipe: Recipe, features: FeatureTable, spec: TaskSpec) -> Batches:
    """Return the order in which training would meet these windows."""
    together = Together(features.lengths_of(spec.sized_by), features.keys(spec.together))
    return Batches(together, recipe.train, recipe.seed)


def largest_step(batches: Batches, sizes: Sequence[int], longest: int | None = None) -> StepGroup:
    """Return the micro-batch of the first epoch with most ids, twice if a step has several; `sizes` are of windows.

    With `longest` those are left out that have a longer window, as long as there are others.
    """
    micro_batches = [micro_batch for step in batches.epoch(0) for micro_batch in step]
    if longest is not None:
        short = [windows for windows in micro_batches if max(sizes[window] for window in windows) <= longest]
        micro_batches = short or micro_batches
    largest = max(micro_batches, key=lambda windows: len(windows) * max(sizes[window] for window in windows))
    return [largest] * min(2, batches.settings.gradient_accumulation)


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
        learning_rate=settings.learning_rate,
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

    features = data.split("validation").features
    spec, settings = predictor.spec, recipe.train
    together = Together(features.lengths_of(spec.sized_by), features.keys(spec.together))
    compared = None if spec.adds_up else settings.batch_size
    groups = next(evaluation_groups(together, settings.eval_batch_size, compared))
    with torch.no_grad(), shapes.watch():
        before = shapes.live_bytes
        score_batch(predictor, features, together.windows(groups), settings.eval_batch_size)
        return shapes.peak_bytes - before


def _caches(predictor: Predictor, data: PreparedData, shapes: Shapes) -> int:
    """Return what a model keeps of the tokens before while it writes the largest batch of validation rows."""
    import torch

    settings, features = predictor.generation, data.split("validation").features
    sizes = sorted(features.lengths, reverse=True)[: settings.batch_size]
    model = without_adapter(predictor.model)
    rows, new = len(sizes) * settings.beams, settings.max_new_tokens
    read = torch.zeros((rows, sizes[0]), dtype=torch.long)
    written = torch.zeros((rows, new), dtype=torch.long)
    inputs = {"input_ids": read, "decoder_input_ids": written} if model.config.is_encoder_decoder else None
    with torch.no_grad(), shapes.watch():
        inputs = inputs or {"input_ids": torch.cat([read, written], dim=1)}
        before = shapes.live_bytes
        cache = model(**inputs, use_cache=True).past_key_values
        return shapes.live_bytes - before if cache is not None else 0


def _bytes(tensors: Sequence[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _precision(runtime: Runtime) -> str:
    """Return the precision that training computes in on its own device."""
    mixed = runtime.accelerator().mixed_precision
    _forget_accelerator()
    return "fp32" if mixed == "no" else str(mixed)


def _forget_accelerator() -> None:
    """Let the next Accelerator have another device: Accelerate holds one for the whole process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def process_bytes() -> int:
    """Return the memory that this program holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


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
