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
    from collections.abc import Mapping

    from finetune.training.loop import Learner

STATE = "state.json"
MODEL, OPTIMIZER, AVERAGE = "model.safetensors", "optimizer.safetensors", "average.safetensors"


@dataclass(frozen=True)
class TrainingState:
    """Where training stands.

    `best_averaged` tells whether the best weights were those of the moving average, `best_steps` which models are kept
    to be averaged at the end, with their scores. `evaluations_without_gain` counts towards the patience. `unscored`:
    the evaluation after this step was interrupted.
    """

    step: int = 0
    best_step: int = 0
    best_score: float | None = None
    best_averaged: bool = False
    best_steps: tuple[tuple[int, float], ...] = ()
    evaluations_without_gain: int = 0
    stopped_because: str = ""
    unscored: bool = False
    log_bytes: int = 0

    @property
    def kept_steps(self) -> set[int]:
        """The steps whose models are kept."""
        return {self.best_step, *(step for step, _ in self.best_steps)}


def trained_tensors(model: Any, frozen: frozenset[str]) -> dict[str, Any]:
    """Return what training changes: trainable parameters, each tied one once, and persistent buffers."""
    names = {name for name, _ in model.named_parameters()} - frozen
    buffers = {name for name, _ in model.named_buffers()}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names or name in buffers}


def put_tensors(model: Any, tensors: Mapping[str, Any]) -> None:
    """Put tensors into the model, leaving the frozen ones as they are."""
    unexpected = model.load_state_dict(tensors, strict=False).unexpected_keys
    assert not unexpected, f"tensors of another model: {unexpected[:3]}"


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


def save_best(learner: Learner, state: TrainingState, folder: Path) -> None:
    """Keep the model as it is now as that of the state's step; others stay as long as a state means them."""
    folder.mkdir(parents=True, exist_ok=True)
    model = learner.accelerator.unwrap_model(learner.model)
    _write(best_path(folder, state.step), trained_tensors(model, learner.freezing.frozen))
    _remove_best(folder, state)


def _remove_best(folder: Path, state: TrainingState) -> None:
    """Remove best models that neither a state nor a checkpoint means."""
    kept = state.kept_steps.union(*(read_state(one).kept_steps for one in complete_checkpoints(folder)))
    for other in set(folder.glob("best-*")) - {best_path(folder, step) for step in kept}:
        other.unlink()


def _write(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write tensors if there is room for them; otherwise nothing is begun."""
    needed, free = sum(tensor.nbytes for tensor in tensors.values()), shutil.disk_usage(path.parent).free
    if needed > free:
        raise FinetuneError(
            f"{path.parent}: expected {needed / 1e6:,.0f} MB of free space for {path.name}, found "
            f"{free / 1e6:,.0f} MB. Make room and give the same command again: it goes on from the last checkpoint"
        )
    write_tensors(path, tensors)


def restore_best(learner: Learner, step: int, folder: Path) -> None:
    """Put the best model back."""
    put_tensors(learner.accelerator.unwrap_model(learner.model), _read_tensors(best_path(folder, step)))


def save_checkpoint(learner: Learner, state: TrainingState, folder: Path, *, keep: int = 1) -> None:
    """Save model, optimizer, average and state as `step-N`, complete or not at all; leave the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{state.step:07d}"
    temporary = folder / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    model = learner.accelerator.unwrap_model(learner.model)
    parts = {MODEL: trained_tensors(model, learner.freezing.frozen), OPTIMIZER: _optimizer_tensors(learner, model)}
    if learner.average is not None:
        parts[AVERAGE] = learner.average.tensors
    try:
        for name, tensors in parts.items():
            _write(temporary / name, tensors)
        write_json(temporary / STATE, asdict(state))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    kept = complete_checkpoints(folder)[-keep:]
    for other in set(folder.glob("step-*")) - set(kept):
        shutil.rmtree(other)
    _remove_best(folder, state)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints, the newest last."""
    return sorted(path for path in folder.glob("step-*") if _is_complete(path))


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint."""
    return max(complete_checkpoints(folder), default=None)


def _is_complete(checkpoint: Path) -> bool:
    if not all((checkpoint / name).is_file() for name in (STATE, MODEL, OPTIMIZER)):
        return False
    kept = read_state(checkpoint).kept_steps - {0}
    return all(best_path(checkpoint.parent, step).is_file() for step in kept)


def load_checkpoint(learner: Learner, checkpoint: Path) -> TrainingState:
    """Put model, optimizer and average back to where they were; return the state.

    The next step is then exactly the same.
    """
    model = learner.accelerator.unwrap_model(learner.model)
    put_tensors(model, _read_tensors(checkpoint / MODEL))
    parameters = dict(model.named_parameters())
    for key, tensor in _read_tensors(checkpoint / OPTIMIZER).items():
        name, _, slot = key.rpartition("/")
        parameter = parameters[name]
        # the fused kernels want all of a parameter's state, the step counter too, on the parameter's device
        learner.optimizer.state[parameter][slot] = tensor.to(parameter.device)
    if learner.average is not None:
        learner.average.load(_read_tensors(checkpoint / AVERAGE))
    return read_state(checkpoint)


def read_state(checkpoint: Path) -> TrainingState:
    """Return the state that a checkpoint was saved in."""
    try:
        values = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        return TrainingState(**{**values, "best_steps": tuple((step, score) for step, score in values["best_steps"])})
    except (ValueError, TypeError, KeyError):
        raise FinetuneError(f"{checkpoint / STATE}: damaged; add --force to start again") from None


def _optimizer_tensors(learner: Learner, model: Any) -> dict[str, Any]:
    import torch

    return {
        f"{name}/{slot}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for slot, value in learner.optimizer.state.get(parameter, {}).items()
    }
