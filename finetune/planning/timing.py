"""How long a training will take, from a few of its steps done for real."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from finetune.inference import evaluation_windows, score_batch
from finetune.learners import open_learner, predictor_of
from finetune.planning.memory import forget_peak, largest_step, padded_ids, peak_process_bytes
from finetune.planning.work import evenly
from finetune.progress import Silent
from finetune.training.batching import Batches, StepGroup
from finetune.training.loop import Learner, optimizer_steps

if TYPE_CHECKING:
    from finetune.artifacts import FeatureTable, PreparedData
    from finetune.inference import Predictor
    from finetune.planning.memory import Estimate
    from finetune.planning.work import Work
    from finetune.recipe import Recipe
    from finetune.runtime import Runtime

TIMED_STEPS = 3
WRITTEN_ROWS = 8


@dataclass(frozen=True)
class Timing:
    """Seconds: of each timed step, and of a whole training and its parts at that speed.

    `writing` is what a model that has learned nothing takes, which seldom ends a text itself: the most that it can be.
    `peak` are the most bytes that were in use on a GPU, or held by the program, in the steps, the largest among them.
    """

    steps: list[float]
    training: float
    scoring: float
    writing: float
    total: float
    peak: int

    def as_json(self) -> dict[str, object]:
        """Return it as a report has it."""
        return asdict(self)


def measure(recipe: Recipe, data: PreparedData, estimate: Estimate, work: Work, runtime: Runtime) -> Timing:
    """Return how long a training will take here; nothing of it is kept.

    The largest step warms up, three of usual sizes are timed, then one batch of an evaluation, and, if validation rows
    are written, a few of these.
    """
    forget_peak()
    learner, spec = open_learner(recipe, data, runtime, Silent())
    features = data.split("train").features
    sizes = features.lengths_of(spec.sized_by)
    steps, groups = _timed_steps(recipe, learner, features, estimate.batches, sizes)
    epoch = [padded_ids(step, sizes) for step in estimate.batches.epoch(0)]
    timed = sum(padded_ids(step, sizes) for step in groups)
    training = sum(steps) / timed * sum(epoch) / len(epoch) * work.steps
    predictor = predictor_of(learner, spec, recipe, data)
    predictor.model.eval()
    scoring = _scoring(predictor, data, recipe) * work.evaluations
    writing = _writing(predictor, data, work) * work.evaluations if work.writes else 0.0
    rounded = [round(seconds, 4) for seconds in steps]
    total = training + scoring + writing
    return Timing(rounded, round(training, 1), round(scoring, 1), round(writing, 1), round(total, 1), _peak(runtime))


def _timed_steps(
    recipe: Recipe, learner: Learner, features: FeatureTable, batches: Batches, sizes: list[int]
) -> tuple[list[float], list[StepGroup]]:
    ordered = sorted(batches.epoch(0), key=lambda step: padded_ids(step, sizes))
    timed = evenly(ordered, TIMED_STEPS) * TIMED_STEPS
    groups = [largest_step(batches, sizes), *timed[:TIMED_STEPS]]
    steps = optimizer_steps(
        learner,
        features,
        lambda _: groups,
        learning_rate=recipe.train.peak_learning_rate,
        schedule=lambda *_: 0.0,
        total_steps=len(groups),
        max_gradient_norm=recipe.train.max_gradient_norm,
        seed=recipe.seed,
    )
    seconds = [step.seconds for step in steps]
    return seconds[1:], groups[1:]


def _scoring(predictor: Predictor, data: PreparedData, recipe: Recipe) -> float:
    """Return the seconds of scoring all validation windows, from those of the middle batch."""
    import torch

    features, settings = data.split("validation").features, recipe.train
    batches = evaluation_windows(predictor, features, settings.eval_batch_size, settings.batch_size)
    sizes = features.lengths_of(predictor.spec.sized_by)
    middle = batches[len(batches) // 2]
    started = time.perf_counter()
    with torch.no_grad():
        score_batch(predictor, features, middle, settings.eval_batch_size)
    seconds = time.perf_counter() - started
    return seconds * sum(padded_ids([batch], sizes) for batch in batches) / padded_ids([middle], sizes)


def _writing(predictor: Predictor, data: PreparedData, work: Work) -> float:
    """Return the seconds of writing the validation rows of one evaluation, from those of a few."""
    features = data.split("validation").features
    rows = range(min(WRITTEN_ROWS, work.writes))
    started = time.perf_counter()
    predictor.write_rows(features, rows)
    batches = -(-work.writes // predictor.generation.batch_size)
    return (time.perf_counter() - started) * min(batches, work.writes / len(rows))


def _peak(runtime: Runtime) -> int:
    import torch

    if runtime.torch_device().type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return peak_process_bytes()
