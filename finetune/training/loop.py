"""The training loop: a generator that yields one `Step` per optimizer step and knows nothing of files or printing."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune.errors import FinetuneError, NotFinite
from finetune.models.freezing import Freezing, Stage, enter_stage, set_training_mode
from finetune.processes import gathered
from finetune.tasks import Batch, Task
from finetune.training.batching import StepGroup

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.optim import Optimizer

    from finetune.training.averaging import MovingAverage
    from finetune.training.penalties import Penalty

Features = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """What one optimizer step did; `loss` is the mean over its targets, `tokens` leave padding out."""

    number: int
    epoch: int
    loss: float
    learning_rate: float
    gradient_norm: float
    rows: int
    tokens: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return the step as a line of `log.jsonl`."""
        return {
            "step": self.number,
            "epoch": self.epoch,
            "loss": self.loss,
            "learning_rate": self.learning_rate,
            "gradient_norm": self.gradient_norm,
            "rows": self.rows,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 4),
        }


@dataclass
class Learner:
    """The things that change while training: model and optimizer, as Accelerate prepared them.

    `fitted` is what was fitted on the training rows for the task's loss. `rows_that_fit` is how many windows the
    device's memory holds at a time, once a micro-batch was too many; a loss that compares them is not `divisible`.
    """

    accelerator: Accelerator
    model: Any
    optimizer: Optimizer
    freezing: Freezing
    task: Task
    tokenizer: Any
    fitted: Mapping[str, Any] = field(default_factory=dict)
    draws: bool = False
    penalty: Penalty | None = None
    average: MovingAverage | None = None
    divisible: bool = True
    rows_that_fit: int | None = None


def optimizer_steps(
    learner: Learner,
    rows: Sequence[Features],
    epoch_groups: Callable[[int], list[StepGroup]],
    *,
    learning_rate: float,
    schedule: Callable[[int, int], float],
    total_steps: int,
    max_gradient_norm: float | None,
    seed: int,
    done_steps: int = 0,
    steps_per_epoch: int = 1,
) -> Iterator[Step]:
    """Train from step `done_steps` to `total_steps`, one yielded `Step` per update; stop it by not asking for more.

    `steps_per_epoch` is for a freezing that changes by epochs.

    Everything random in a step is a pure function of (seed, step): the order of rows comes from `epoch_groups`, and
    torch's generator is seeded anew for each step. Therefore a training that was stopped and resumed, or evaluated
    in between, takes exactly the same steps as one that was not, and no generator state has to be stored.
    """
    entered: Stage | None = None
    for number, epoch, group in planned_groups(epoch_groups, total_steps, done_steps):
        started = time.perf_counter()
        stage = learner.freezing.stage(number, steps_per_epoch)
        if stage is not None and stage is not entered:
            _enter(learner, stage)
            entered = stage
        rate = learning_rate * schedule(number, total_steps)
        for parameters in learner.optimizer.param_groups:
            parameters["lr"] = rate * parameters.get("factor", 1.0)
        _seed_step(seed, number, learner.accelerator.process_index)
        loss, tokens = _that_fit(learner, rows, group, (seed, epoch) if learner.draws else None, entered)
        if learner.penalty is not None:
            learner.penalty.add_gradients()
        norm = _clip(learner, max_gradient_norm)
        if not math.isfinite(norm):
            learner.optimizer.zero_grad()
            found = f"a loss of {loss:.4g} with a gradient norm of {norm}"
            raise NotFinite(found, [window for micro_batch in group for window in micro_batch])
        learner.optimizer.step()
        learner.optimizer.zero_grad()
        if learner.average is not None:
            learner.average.update(number + 1)
        yield Step(
            number=number + 1,
            epoch=epoch,
            loss=loss,
            learning_rate=rate,
            gradient_norm=norm,
            rows=sum(map(len, group)),
            tokens=tokens,
            seconds=time.perf_counter() - started,
        )


def planned_groups(
    epoch_groups: Callable[[int], list[StepGroup]], total_steps: int, done_steps: int
) -> Iterator[tuple[int, int, StepGroup]]:
    """Yield (step, epoch, rows) for every step from `done_steps` on, counted from 0."""
    number = 0
    for epoch in itertools.count():
        for group in epoch_groups(epoch):
            if number >= total_steps:
                return
            if number >= done_steps:
                yield number, epoch, group
            number += 1


def _clip(learner: Learner, max_norm: float | None) -> float:
    """Return the norm of all gradients; scale them down to `max_norm` if they exceed it."""
    norm = learner.accelerator.clip_grad_norm_(learner.model.parameters(), math.inf if max_norm is None else max_norm)
    return float(norm)


def _seed_step(seed: int, step: int, process: int) -> None:
    """Seed torch's generators (dropout) for one step of one process, far apart from its neighbours."""
    import torch

    key = f"{seed}/{step}" if process == 0 else f"{seed}/{step}/{process}"
    digest = hashlib.blake2b(key.encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "big"))


def _that_fit(
    learner: Learner, rows: Sequence[Features], group: StepGroup, draw: tuple[int, int] | None, stage: Stage | None
) -> tuple[float, int]:
    """Take a step's gradients as `_accumulate` does; if the memory does not hold them, in parts of half the rows.

    The gradients are the same. What was found to fit holds for the steps to come.
    """
    import torch

    while True:
        most = learner.rows_that_fit or max(map(len, group))
        parts = [windows[start : start + most] for windows in group for start in range(0, len(windows), most)]
        try:
            return _accumulate(learner, rows, parts, draw, stage)
        except torch.OutOfMemoryError:
            learner.optimizer.zero_grad()
            if most == 1 or not learner.divisible or learner.accelerator.num_processes > 1:
                raise FinetuneError(
                    f"training: {most} rows at a time do not fit into the memory of {learner.accelerator.device}. "
                    "Lower train.batch_size or model.max_length, set train.gradient_checkpointing, or use an adapter "
                    "(see `finetune plan`)"
                ) from None
        learner.rows_that_fit = most // 2
        if learner.accelerator.device.type == "cuda":
            torch.cuda.empty_cache()


def _accumulate(
    learner: Learner, rows: Sequence[Features], group: StepGroup, draw: tuple[int, int] | None, stage: Stage | None
) -> tuple[float, int]:
    """Add up the gradients of a step group and divide by its targets; return the mean loss and the tokens read.

    The losses are summed, not averaged, and divided once by the number of targets of the whole group: micro-batches
    of other sizes, and a short last group, then give the same gradient. Averages of averages would not. With `draw`
    each window also gets what seeds its drawing, whatever its company.
    """
    import torch

    accelerator = learner.accelerator
    set_training_mode(accelerator.unwrap_model(learner.model), stage or learner.freezing)
    loss_sum, count, tokens = 0.0, 0.0, 0
    bad: list[int] = []
    for place, micro_batch in enumerate(group):
        own, share = _share(micro_batch, accelerator.process_index, accelerator.num_processes)
        batch = training_batch(learner, rows, own, draw)
        with nullcontext() if place == len(group) - 1 else accelerator.no_sync(learner.model):
            loss, targets, read = _backward(learner, batch, share)
        bad += [] if math.isfinite(loss) else own
        loss_sum, count, tokens = loss_sum + loss, count + targets, tokens + read
    loss_sum, count, total_tokens = _totals(learner, loss_sum, count, tokens)
    if not math.isfinite(loss_sum):
        learner.optimizer.zero_grad()
        raise NotFinite(f"a loss of {loss_sum}", sorted(set(gathered(bad))))
    gradients = [parameter.grad for parameter in learner.model.parameters() if parameter.grad is not None]
    if count:  # what several processes have is averaged over them already
        torch._foreach_div_(gradients, count / accelerator.num_processes)
    return (loss_sum / count if count else 0.0), int(total_tokens)


def _share(micro_batch: list[int], process: int, processes: int) -> tuple[list[int], int]:
    """Return the windows of a micro-batch that a process computes, and what they count as.

    One for which there are none computes one that counts nothing, so that it takes part in adding up.
    """
    own = micro_batch[process::processes]
    return (own, 1) if own else (micro_batch[:1], 0)


def _backward(learner: Learner, batch: Batch, share: int) -> tuple[float, float, int]:
    """Add a batch's gradients; return the sum of its losses, the number of its targets and the tokens read."""
    tokens = int(batch.inputs["attention_mask"].sum())
    batch = batch.to(learner.accelerator.device)
    with learner.accelerator.autocast():
        outputs = learner.task.forward(learner.model, batch.inputs)
    loss, targets = learner.task.loss(outputs, batch, learner.fitted)
    learner.accelerator.backward(loss if share else 0 * loss)
    return float(loss.detach()) * share, float(targets) * share, tokens * share


def _totals(learner: Learner, *numbers: float) -> list[float]:
    """Return the sums of some numbers over all processes."""
    if learner.accelerator.num_processes == 1:
        return list(numbers)
    import torch

    own = torch.tensor(numbers, dtype=torch.float64, device=learner.accelerator.device)
    summed: list[float] = learner.accelerator.reduce(own, reduction="sum").tolist()
    return summed


def _enter(learner: Learner, stage: Stage) -> None:
    """Let other parameters learn; several processes have to be told, or those would go apart without a word."""
    accelerator = learner.accelerator
    model = accelerator.unwrap_model(learner.model)
    enter_stage(model, stage)
    if accelerator.num_processes > 1:
        accelerator._models.clear()
        learner.model = accelerator.prepare(model)


def training_batch(
    learner: Learner, rows: Sequence[Features], micro_batch: Sequence[int], draw: tuple[int, int] | None
) -> Batch:
    """Return the tensors of some windows as training has them; `draw` are seed and epoch if the task draws."""
    # a task may put the rows of a batch together otherwise where no row has to be found again
    collate = learner.task.pack if getattr(learner.task, "packs", False) else learner.task.collate  # type: ignore[attr-defined]
    features = [rows[index] if draw is None else {**rows[index], "draw": (*draw, index)} for index in micro_batch]
    batch: Batch = collate(features, learner.tokenizer)
    return batch
