"""Running a model over rows, the same way for evaluation, prediction and quantized models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from finetune import registry
from finetune.artifacts import FeatureTable, Run
from finetune.data.tokenization import Encoded, Encoder, Limits
from finetune.errors import FinetuneError
from finetune.evaluation.predictions import Predictions
from finetune.models.loading import ModelSettings, check_weights, find_model, load_model, load_tokenizer
from finetune.progress import Progress
from finetune.recipe import Recipe
from finetune.runtime import Runtime
from finetune.tasks import Task, TaskSpec, open_task, reads_words
from finetune.training.batching import Together, evaluation_batches

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Predictor:
    """A run's model, ready to be asked.

    Whatever its format, `forward` takes the inputs of the task's batches and returns the task's raw outputs.
    """

    model: Any
    forward: Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
    tokenizer: Any
    task: Task
    spec: TaskSpec
    labels: list[str]
    device: torch.device
    encoder: Encoder
    fitted: Mapping[str, Any] = field(default_factory=dict)

    def predict(
        self,
        rows: Sequence[Mapping[str, Any]],
        features: FeatureTable,
        batch_size: int,
        progress: Progress | None = None,
    ) -> Predictions:
        """Return predictions for rows whose features are given, in the order of the rows."""
        return self.decode(run_model(self, features, batch_size, progress), rows, features, self.fitted)

    def decode(
        self, outputs: Outputs, rows: Sequence[Mapping[str, Any]], features: FeatureTable, fitted: Mapping[str, Any]
    ) -> Predictions:
        """Return what raw outputs mean, with what is fitted beside the weights."""
        return self.task.decode(outputs.values, features, rows, self.labels, fitted)

    def encode(self, rows: Mapping[str, Sequence[Any]]) -> Encoded:
        """Return the features of rows (given column by column), cut as those were that the model has learned from."""
        return self.task.encode(rows, self.encoder, self.labels)

    def in_threads(self, threads: int) -> Predictor:
        """Return the same for another number of threads; torch's own are set for the whole process instead."""
        reopen = getattr(self.model, "in_threads", None)
        if reopen is None:
            return self
        model = reopen(threads)
        return replace(self, model=model, forward=model)


def open_run(run: Run, runtime: Runtime) -> Predictor:
    """Load a run's model with the loader that its format names."""
    run.check_model()
    recipe = run.recipe
    task, spec = open_task(recipe.task.name, recipe.task.options)
    tokenizer = load_tokenizer(run.model_folder, allow_code=runtime.allow_code, pretokenized=reads_words(task))
    encoder = Encoder.of(tokenizer, Limits(**run.limits))
    rest = (tokenizer, task, spec, run.labels)
    if run.format == "transformers":
        loaded = load_model(run.model_folder, task.head(run.labels), model_settings(recipe, runtime))
        if loaded.new_parameters:
            raise FinetuneError(
                f"{run.model_folder}: damaged, lacks {', '.join(sorted(loaded.new_parameters)[:3])}; train again"
            )
        device = runtime.torch_device()
        model = loaded.model.to(device).eval()
        return Predictor(model, partial(task.forward, model), *rest, device, encoder, run.fitted)
    import torch

    model = _backend_of(run).attributes["load"](run.model_folder, torch.get_num_threads())
    return Predictor(model, model, *rest, torch.device("cpu"), encoder, run.fitted)


def open_pretrained(run: Run, runtime: Runtime) -> Predictor:
    """Load the model that a run started from, under a new head, if it has one."""
    import torch

    recipe = run.recipe
    task, spec = open_task(recipe.task.name, recipe.task.options)
    folder = find_model(recipe.model, allow_code=runtime.allow_code)
    check_weights(folder, run.manifest["pretrained_sha256"])
    tokenizer = load_tokenizer(folder, allow_code=runtime.allow_code, pretokenized=reads_words(task))
    torch.manual_seed(recipe.seed)
    device = runtime.torch_device()
    model = load_model(folder, task.head(run.labels), model_settings(recipe, runtime)).model.to(device).eval()
    encoder = Encoder.of(tokenizer, Limits(**run.limits))
    return Predictor(
        model, partial(task.forward, model), tokenizer, task, spec, run.labels, device, encoder, run.fitted
    )


def model_settings(recipe: Recipe, runtime: Runtime) -> ModelSettings:
    """Return how the recipe wants its model loaded."""
    section = recipe.model
    return ModelSettings(runtime.allow_code, section.attention, section.dropout, section.dtype)


def _backend_of(run: Run) -> registry.Entry:
    for name in registry.backends.names():
        entry = registry.backends.get(name)
        if entry.attributes["format"] == run.format:
            return entry
    raise FinetuneError(f"{run.folder}: no quantization backend reads the format {run.format!r}")


@dataclass(frozen=True)
class Outputs:
    """The raw outputs, one array a window, and the mean loss over all targets, if there are any."""

    values: list[NDArray[Any]]
    loss: float | None


def run_model(
    predictor: Predictor,
    features: FeatureTable,
    batch_size: int,
    progress: Progress | None = None,
    *,
    loss_batch_size: int | None = None,
) -> Outputs:
    """Run a model (which is in eval mode) over all windows; the global generators are left as they were.

    Windows of similar length share a batch, each is computed once, and nothing is repeated to fill a batch up. The
    model is given `batch_size` windows at a time, of however many groups. With `loss_batch_size` the loss is that of
    so many groups at a time, in their order.
    """
    import torch

    from finetune.progress import Silent

    task, by_token = predictor.task, predictor.spec.by_token
    together = Together(features.lengths, features.keys(predictor.spec.together))
    outputs: list[Any] = [None] * len(features)
    loss, count = 0.0, 0.0
    with torch.random.fork_rng(), torch.no_grad(), (progress or Silent()).bar("scoring", len(features)) as bar:
        for groups in _batches(together, batch_size, loss_batch_size):
            windows = together.windows(groups)
            batch = task.collate([features[window] for window in windows], predictor.tokenizer).to(predictor.device)
            parts = [
                {name: tensor[start : start + batch_size] for name, tensor in batch.inputs.items()}
                for start in range(0, len(windows), batch_size)
            ]
            found = torch.cat([predictor.forward(part).float() for part in parts])
            if batch.targets:
                part = task.loss(found, batch, predictor.fitted)
                loss, count = loss + float(part[0]), count + float(part[1])
            lengths = batch.inputs["attention_mask"].sum(dim=1).tolist() if by_token else None
            for place, (window, values) in enumerate(zip(windows, found.cpu().numpy(), strict=True)):
                outputs[window] = values[: lengths[place]].copy() if lengths else values
            bar.advance(len(windows))
    return Outputs(outputs, loss / count if count else None)


def _batches(together: Together, batch_size: int, loss_batch_size: int | None) -> Iterator[list[int]]:
    """Yield the groups of each batch: of similar length, or, if the loss depends on its company, in their order."""
    if loss_batch_size is not None:
        every = list(range(len(together)))
        yield from (every[start : start + loss_batch_size] for start in range(0, len(every), loss_batch_size))
        return
    batch: list[int] = []
    held = 0
    for group in (group for groups in evaluation_batches(together.lengths, 1) for group in groups):
        size = together.size(group)
        if batch and held + size > batch_size:
            yield batch
            batch, held = [], 0
        batch.append(group)
        held += size
    if batch:
        yield batch
