"""Running a model over rows, the same way for evaluation, prediction and quantized models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune import registry
from finetune.artifacts import FeatureTable, Run
from finetune.data.tokenization import Encoded, Encoder, Limits
from finetune.errors import FinetuneError
from finetune.evaluation.predictions import Predictions
from finetune.models.loading import load_tokenizer
from finetune.progress import Progress
from finetune.runtime import Runtime
from finetune.tasks import NOT_FOR_THE_MODEL, Task, TaskSpec, open_task
from finetune.training.batching import evaluation_batches

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Predictor:
    """A run's model, ready to be asked: whatever its format, it takes the task's batches and returns logits."""

    model: Any
    tokenizer: Any
    task: Task
    spec: TaskSpec
    labels: list[str]
    device: torch.device
    encoder: Encoder

    def predict(
        self,
        rows: Sequence[Mapping[str, Any]],
        features: FeatureTable,
        batch_size: int,
        progress: Progress | None = None,
    ) -> Predictions:
        """Return predictions for rows whose features are given, in the order of the rows."""
        outputs = run_model(self.model, self.task, self.tokenizer, features, batch_size, self.device, progress)
        return self.task.decode(outputs, features.row_ids, rows, self.labels)

    def encode(self, rows: Mapping[str, Sequence[Any]]) -> Encoded:
        """Return the features of rows (given column by column), cut as those were that the model has learned from."""
        return self.task.encode(rows, self.encoder, self.labels)


def open_run(run: Run, runtime: Runtime) -> Predictor:
    """Load a run's model with the loader that its format names."""
    run.check_model()
    recipe = run.recipe
    task, spec = open_task(recipe.task.name, recipe.task.options)
    tokenizer = load_tokenizer(run.model_folder, allow_code=runtime.allow_code)
    encoder = Encoder.of(tokenizer, Limits(**run.limits))
    device = runtime.torch_device()
    if run.format == "transformers":
        loaded = task.build_model(run.model_folder, run.labels, allow_code=runtime.allow_code)
        if loaded.new_parameters:
            raise FinetuneError(
                f"{run.model_folder}: damaged, lacks {', '.join(sorted(loaded.new_parameters)[:3])}; train again"
            )
        return Predictor(loaded.model.to(device).eval(), tokenizer, task, spec, run.labels, device, encoder)
    import torch

    model = _backend_of(run).attributes["load"](run.model_folder, torch.get_num_threads())
    return Predictor(model, tokenizer, task, spec, run.labels, torch.device("cpu"), encoder)


def _backend_of(run: Run) -> registry.Entry:
    for name in registry.backends.names():
        entry = registry.backends.get(name)
        if entry.attributes["format"] == run.format:
            return entry
    raise FinetuneError(f"{run.folder}: no quantization backend reads the format {run.format!r}")


def run_model(
    model: Any,
    task: Task,
    tokenizer: Any,
    features: FeatureTable,
    batch_size: int,
    device: torch.device,
    progress: Progress | None = None,
) -> NDArray[Any]:
    """Return the model's logits for all windows, in order; the global generators are left as they were.

    Windows of similar length share a batch, each is computed once, and nothing is repeated to fill a batch up.
    """
    import numpy as np
    import torch

    from finetune.progress import Silent

    batches = evaluation_batches(features.lengths, batch_size)
    outputs: list[Any] = [None] * len(features)
    was_training = getattr(model, "training", False)
    model.eval()
    with torch.random.fork_rng(), torch.no_grad(), (progress or Silent()).bar("scoring", len(features)) as bar:
        for rows in batches:
            batch = task.collate([features[row] for row in rows], tokenizer)
            inputs = {name: tensor.to(device) for name, tensor in batch.items() if name not in NOT_FOR_THE_MODEL}
            logits = model(**inputs).logits.float().cpu().numpy()
            for row, values in zip(rows, logits, strict=True):
                outputs[row] = values
            bar.advance(len(rows))
    model.train(was_training)
    return np.stack(outputs)
