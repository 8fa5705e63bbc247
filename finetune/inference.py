"""Running a model over rows, the same way for evaluation, prediction and quantized models."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from finetune import registry
from finetune.artifacts import ENSEMBLE, FeatureTable, Run
from finetune.data.tokenization import Encoded, Encoder, Limits
from finetune.errors import FinetuneError
from finetune.evaluation.predictions import Predictions
from finetune.generation import Written, configure, longest_room, write_texts
from finetune.models.loading import (
    ModelSettings,
    check_weights,
    config_context,
    find_model,
    fit_to_tokenizer,
    load_model,
    load_tokenizer,
)
from finetune.processes import count, gathered, rank
from finetune.progress import Progress
from finetune.recipe import Adapter, GenerationSection, Recipe
from finetune.runtime import Runtime
from finetune.tasks import Task, TaskSpec, end_ids, open_task, reads_words
from finetune.tasks.voting import Ensemble, mean_of_fitted
from finetune.training.batching import Together, evaluation_batches

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from finetune.models.adapters import AdapterSettings

SAMPLES = 5  # texts that a language model goes on with in its report
HELD_OUT = 2**32  # no seed of a training is as high


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
    generation: GenerationSection = field(default_factory=GenerationSection)
    seed: int = 0
    on_piece: Callable[[str], None] | None = None  # is told what is written while it is written

    def predict(
        self,
        rows: Sequence[Mapping[str, Any]],
        features: FeatureTable,
        batch_size: int,
        progress: Progress | None = None,
    ) -> Predictions:
        """Return predictions for rows whose features are given, in the order of the rows."""
        if self.spec.prompt is None:
            return self.decode(run_model(self, features, batch_size, progress), rows, features, self.fitted)
        known = "label_ids" in features[0]  # otherwise there is nothing to guess
        outputs = run_model(self, features, batch_size, progress) if known else Outputs([], None)
        predictions = self.decode(outputs, rows, features, self.fitted)
        if self.spec.judged_by_text or not known:
            return self.write(predictions, features, progress)
        return self._with_samples(predictions, features)

    def write(self, predictions: Predictions, features: FeatureTable, progress: Progress | None = None) -> Predictions:
        """Return predictions with what the model writes for each of their rows; `features` are those of all rows."""
        written = self.write_rows(features, predictions.rows.tolist(), progress)
        texts, finished, cut = zip(*written, strict=True) if written else ((), (), ())
        return predictions.writing(texts, finished, cut)  # type: ignore[attr-defined, no-any-return]

    def write_rows(
        self, features: FeatureTable, rows: Sequence[int], progress: Progress | None = None
    ) -> list[Written]:
        """Return what the model writes for some rows."""
        return self._written(self._prompts(features, rows), progress)

    def _with_samples(self, predictions: Predictions, features: FeatureTable) -> Predictions:
        """Return predictions with how the model goes on from the beginnings of the first rows."""
        prompts = self._prompts(features, predictions.rows[:SAMPLES].tolist())
        begun = [self.tokenizer.decode(prompt, skip_special_tokens=True) for prompt in prompts]
        texts = [one.text for one in self._written(prompts, None)]
        return predictions.with_samples(list(zip(begun, texts, strict=True)))  # type: ignore[attr-defined, no-any-return]

    def _prompts(self, features: FeatureTable, rows: Sequence[int]) -> list[list[int]]:
        """Return the ids after which writing begins, of each row's first window."""
        assert self.spec.prompt is not None
        first = dict(reversed([(row, window) for window, row in enumerate(features.row_ids.tolist())]))
        return [self.spec.prompt(features[first[row]]) for row in rows]

    def longest_writing(self, features: FeatureTable) -> tuple[int, int]:
        """Return how many tokens a prompt has as it is read and how many are written behind it: the longest of all."""
        rows = range(int(features.row_ids[-1]) + 1)
        prompts = self._prompts(features, rows)
        return longest_room(self.model, prompts, self.generation, self._context)

    @property
    def _context(self) -> int | None:
        return config_context(self.model.config.to_dict())

    def _written(self, prompts: Sequence[Sequence[int]], progress: Progress | None) -> list[Written]:
        return write_texts(
            self.model,
            self.tokenizer,
            prompts,
            self.generation,
            seed=self.writing_seed,
            context=self._context,
            progress=progress,
            on_piece=self.on_piece,
        )

    @property
    def writing_seed(self) -> int:
        """What sampling draws from."""
        return self.seed if self.generation.seed is None else self.generation.seed

    def decode(
        self, outputs: Outputs, rows: Sequence[Mapping[str, Any]], features: FeatureTable, fitted: Mapping[str, Any]
    ) -> Predictions:
        """Return what raw outputs mean, with what is fitted beside the weights."""
        said = self.task.decode(outputs.values, features, rows, self.labels, fitted)
        # a language model that is asked to go on says texts, not tokens
        in_words = self.spec.in_words if said.kind == self.spec.kind else None
        return in_words(said, self.tokenizer) if in_words else said

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
    if run.format == ENSEMBLE:
        return _open_ensemble(run, runtime)
    run.check_model()
    recipe = run.recipe
    task, spec = open_task(recipe.task.name, recipe.task.options)
    tokenizer = load_tokenizer(run.model_folder, allow_code=runtime.allow_code, pretokenized=reads_words(task))
    encoder = Encoder.of(tokenizer, Limits(**run.limits), whole=spec.whole_tokenizer)
    rest = (tokenizer, task, spec, run.labels)
    if run.format in ("transformers", "adapter"):
        device = runtime.torch_device()
        model = _open_model(run, task, tokenizer, runtime).to(device).eval()
        if spec.prompt is not None:
            configure(model, tokenizer, recipe.generation, recipe.seed, end_ids(task, tokenizer))
        ready = (partial(task.forward, model), *rest, device, encoder, run.fitted)
        return Predictor(model, *ready, recipe.generation, recipe.seed)
    import torch

    model = _backend_of(run).attributes["load"](run.model_folder, torch.get_num_threads())
    return Predictor(model, model, *rest, torch.device("cpu"), encoder, run.fitted)


def _open_ensemble(run: Run, runtime: Runtime) -> Predictor:
    """Load the members of an ensemble; what was fitted beside them is averaged too."""
    if reason := run.recipe.no_average:
        listed = ", ".join(str(member.folder) for member in run.members)
        raise FinetuneError(f"{run.folder}: its models do not answer as one: {reason}. Ask one of them: {listed}")
    members = [open_run(member, runtime) for member in run.members]
    ensemble = Ensemble(members, run.recipe.spec.voting)
    fitted = mean_of_fitted([member.fitted for member in members])
    encoder = replace(members[0].encoder, limits=Limits(**run.limits))
    return replace(members[0], model=ensemble, forward=ensemble, encoder=encoder, fitted=fitted, seed=run.recipe.seed)


def _open_model(run: Run, task: Task, tokenizer: Any, runtime: Runtime) -> Any:
    """Load a run's own model; with an adapter, the model that it was trained beside, and merge it in."""
    head, settings = task.head(run.labels), model_settings(run.recipe, runtime)
    if run.format == "transformers":
        loaded = load_model(run.model_folder, head, settings)
        if loaded.new_parameters:
            raise FinetuneError(
                f"{run.model_folder}: damaged, lacks {', '.join(sorted(loaded.new_parameters)[:3])}; train again"
            )
        return loaded.model
    from finetune.models.adapter_files import load_adapter
    from finetune.models.adapter_merging import merge

    base = find_model(run.recipe.model, allow_code=runtime.allow_code)
    check_weights(base, run.manifest["pretrained_sha256"])
    model = load_model(base, head, settings).model
    fit_to_tokenizer(model, tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id  # as while training
    adapted = load_adapter(model, run.model_folder)
    return adapted if settings.quantization else merge(adapted)


def open_pretrained(run: Run, runtime: Runtime) -> Predictor:
    """Load the model that a run started from, under a new head, if it has one."""
    import torch

    recipe = run.recipe
    if recipe.model.scratch is not None:
        raise FinetuneError("there is no pretrained model: it was trained from scratch")
    task, spec = open_task(recipe.task.name, recipe.task.options)
    folder = find_model(recipe.model, allow_code=runtime.allow_code)
    check_weights(folder, run.manifest["pretrained_sha256"])
    tokenizer = load_tokenizer(folder, allow_code=runtime.allow_code, pretokenized=reads_words(task))
    torch.manual_seed(recipe.seed)
    device = runtime.torch_device()
    model = load_model(folder, task.head(run.labels), model_settings(recipe, runtime)).model.to(device).eval()
    encoder = Encoder.of(tokenizer, Limits(**run.limits), whole=spec.whole_tokenizer)
    return Predictor(
        model,
        partial(task.forward, model),
        tokenizer,
        task,
        spec,
        run.labels,
        device,
        encoder,
        run.fitted,
        recipe.generation,
        recipe.seed,
    )


def model_settings(recipe: Recipe, runtime: Runtime, *, empty: bool = False) -> ModelSettings:
    """Return how the recipe wants its model loaded."""
    section = recipe.model
    quantization = None
    if recipe.adapter is not None and recipe.adapter.bits:
        from finetune.models.adapters import quantization_config

        quantization = quantization_config(adapter_settings(recipe.adapter))
    return ModelSettings(runtime.allow_code, section.attention, section.dropout, section.dtype, quantization, empty)


def adapter_settings(adapter: Adapter) -> AdapterSettings:
    """Return what the recipe says of its adapters."""
    from finetune.models.adapters import AdapterSettings

    return AdapterSettings(**adapter.model_dump(exclude={"merge"}))


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
    shared: bool = False,
) -> Outputs:
    """Run a model (which is in eval mode) over all windows; the global generators are left as they were.

    Windows of similar length share a batch, each is computed once, and nothing is repeated to fill a batch up. The
    model is given `batch_size` windows at a time, of however many groups. With `loss_batch_size` the loss is that of
    so many groups at a time, in their order. Where it is `shared`, each of several processes computes some of the
    batches, and all of them have the outputs of all.
    """
    import torch

    from finetune.progress import Silent

    together = Together(features.lengths_of(predictor.spec.sized_by), features.keys(predictor.spec.together))
    outputs: list[Any] = [None] * len(features)
    loss, targets = 0.0, 0.0
    with torch.random.fork_rng(), torch.no_grad(), (progress or Silent()).bar("scoring", len(features)) as bar:
        batches = evaluation_groups(together, batch_size, loss_batch_size)
        for groups in itertools.islice(batches, rank(), None, count()) if shared else batches:
            windows = together.windows(groups)
            scored = score_batch(predictor, features, windows, batch_size)
            loss, targets = loss + scored.loss, targets + scored.count
            for place, (window, values) in enumerate(zip(windows, scored.outputs.cpu().numpy(), strict=True)):
                outputs[window] = values[: scored.lengths[place]].copy() if scored.lengths else values
            bar.advance(len(windows))
    if shared:
        own = [(place, values) for place, values in enumerate(outputs) if values is not None]
        outputs = [values for _, values in sorted(gathered(own), key=itemgetter(0))]
        sums = gathered([(loss, targets)])
        loss, targets = sum(part for part, _ in sums), sum(part for _, part in sums)
    return Outputs(outputs, loss / targets if targets else None)


@dataclass(frozen=True)
class ScoredBatch:
    """A batch's raw outputs, the sum of its losses and over how many targets; of tokens' outputs the rows' lengths."""

    outputs: torch.Tensor
    loss: float
    count: float
    lengths: list[int]


def score_batch(predictor: Predictor, features: FeatureTable, windows: Sequence[int], batch_size: int) -> ScoredBatch:
    """Run a model (which is in eval mode) over some windows at once, `batch_size` of them at a time."""
    import torch

    task, spec = predictor.task, predictor.spec
    batch = task.collate(features_of(spec, features, windows), predictor.tokenizer).to(predictor.device)
    parts = [
        {name: tensor[start : start + batch_size] for name, tensor in batch.inputs.items()}
        for start in range(0, len(windows), batch_size)
    ]
    found = [predictor.forward(part).float() for part in parts]
    outputs = found[0] if len(found) == 1 else torch.cat(found)  # a copy of a vocabulary's scores is large
    loss, count = 0.0, 0.0
    if batch.targets:
        total, targets = task.loss(outputs, batch, predictor.fitted)
        loss, count = float(total), float(targets)
    lengths = batch.inputs["attention_mask"].sum(dim=1).tolist() if spec.by_token else []
    return ScoredBatch(spec.reduce(outputs, batch) if spec.reduce else outputs, loss, count, lengths)


def features_of(spec: TaskSpec, features: FeatureTable, windows: Sequence[int]) -> list[dict[str, Any]]:
    """Return the features of some windows; what is drawn for them is the same in every evaluation."""
    if not spec.draws:
        return [features[window] for window in windows]
    return [{**features[window], "draw": (HELD_OUT, 0, window)} for window in windows]


def evaluation_windows(
    predictor: Predictor, features: FeatureTable, batch_size: int, training_batch_size: int
) -> list[list[int]]:
    """Return the windows of each batch of an evaluation during training."""
    spec = predictor.spec
    together = Together(features.lengths_of(spec.sized_by), features.keys(spec.together))
    # a loss that compares the rows of a batch is one of training's batches, whatever fits in memory
    compared = None if spec.adds_up else training_batch_size
    return [together.windows(groups) for groups in evaluation_groups(together, batch_size, compared)]


def evaluation_groups(together: Together, batch_size: int, loss_batch_size: int | None = None) -> Iterator[list[int]]:
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
