"""Checkpoints: everything that training needs to go on, as safetensors and JSON, so that no code can hide in them."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.artifacts import write_json, write_tensors
from finetune.errors import FinetuneError

if TYPE_CHECKING:
    from finetune.training.loop import Learner

STATE = "state.json"
MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"


@dataclass(frozen=True)
class TrainingState:
    """Where training stands. `evaluations_without_gain` counts towards the patience."""

    step: int = 0
    best_step: int = 0
    best_score: float | None = None
    evaluations_without_gain: int = 0
    stopped_because: str = ""
    log_bytes: int = 0


def trained_tensors(model: Any, frozen: frozenset[str]) -> dict[str, Any]:
    """Return what training changes: trainable parameters, each tied one once, and persistent buffers."""
    names = {name for name, _ in model.named_parameters()} - frozen
    buffers = {name for name, _ in model.named_buffers()}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names or name in buffers}


def load_tensors(model: Any, path: Path) -> None:
    """Put saved tensors back into the model, leaving the frozen ones as they are."""
    unexpected = model.load_state_dict(_read_tensors(path), strict=False).unexpected_keys
    assert not unexpected, f"{path} belongs to another model: {unexpected[:3]}"


def _read_tensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise FinetuneError(f"{path}: damaged ({error}); add --force to start again") from None


def best_path(folder: Path, step: int) -> Path:
    """Return where the best model is kept: a file for each step, so that a state always finds the one it means."""
    return folder / f"best-{step:07d}.safetensors"


def save_best(learner: Learner, step: int, folder: Path) -> None:
    """Keep the model as it is now as the best so far; one before it stays as long as a checkpoint means it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = learner.accelerator.unwrap_model(learner.model)
    write_tensors(best_path(folder, step), trained_tensors(model, learner.freezing.frozen))
    checkpoint = latest_checkpoint(folder)
    _remove_best(folder, {step, read_state(checkpoint).best_step if checkpoint else step})


def _remove_best(folder: Path, but_of: set[int]) -> None:
    kept = {best_path(folder, step) for step in but_of}
    for other in set(folder.glob("best-*")) - kept:
        other.unlink()


def restore_best(learner: Learner, step: int, folder: Path) -> None:
    """Put the best model back."""
    load_tensors(learner.accelerator.unwrap_model(learner.model), best_path(folder, step))


def save_checkpoint(learner: Learner, state: TrainingState, folder: Path) -> None:
    """Save model, optimizer and state as `step-N`, complete or not at all, and remove the older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{state.step:07d}"
    temporary = folder / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    model = learner.accelerator.unwrap_model(learner.model)
    write_tensors(temporary / MODEL, trained_tensors(model, learner.freezing.frozen))
    write_tensors(temporary / OPTIMIZER, _optimizer_tensors(learner, model))
    write_json(temporary / STATE, asdict(state))
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    for other in folder.glob("step-*"):
        if other != target:
            shutil.rmtree(other)
    _remove_best(folder, {state.best_step})


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint."""
    return max((path for path in folder.glob("step-*") if _is_complete(path)), default=None)


def _is_complete(checkpoint: Path) -> bool:
    if not all((checkpoint / name).is_file() for name in (STATE, MODEL, OPTIMIZER)):
        return False
    best_step = read_state(checkpoint).best_step
    return not best_step or best_path(checkpoint.parent, best_step).is_file()


def load_checkpoint(learner: Learner, checkpoint: Path) -> TrainingState:
    """Put model and optimizer back to where they were; return the state. The next step is then exactly the same."""
    model = learner.accelerator.unwrap_model(learner.model)
    load_tensors(model, checkpoint / MODEL)
    parameters = dict(model.named_parameters())
    for key, tensor in _read_tensors(checkpoint / OPTIMIZER).items():
        name, _, slot = key.rpartition("/")
        parameter = parameters[name]
        # the fused kernels want all of a parameter's state, the step counter too, on the parameter's device
        learner.optimizer.state[parameter][slot] = tensor.to(parameter.device)
    return read_state(checkpoint)


def read_state(checkpoint: Path) -> TrainingState:
    """Return the state that a checkpoint was saved in."""
    try:
        return TrainingState(**json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise FinetuneError(f"{checkpoint / STATE}: damaged; add --force to start again") from None


def _optimizer_tensors(learner: Learner, model: Any) -> dict[str, Any]:
    import torch

    return {
        f"{name}/{slot}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for slot, value in learner.optimizer.state.get(parameter, {}).items()
    }
