"""What a training changes, opened once: the model under its head, what of it is frozen, the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from finetune import registry
from finetune.artifacts import PreparedData
from finetune.data.tokenization import Encoder, Limits
from finetune.errors import FinetuneError
from finetune.generation import configure
from finetune.inference import Predictor, adapter_settings, model_settings
from finetune.models.freezing import Freezing, FreezingRow, apply_freezing
from finetune.models.loading import (
    LoadedModel,
    check_weights,
    embeddings_of,
    find_model,
    fit_to_tokenizer,
    load_model,
    load_tokenizer,
)
from finetune.models.scratch import new_model
from finetune.progress import Progress
from finetune.recipe import Recipe
from finetune.runtime import Runtime
from finetune.tasks import TaskSpec, check_model, end_ids, open_task, prepare_tokenizer, reads_words
from finetune.training.averaging import MovingAverage
from finetune.training.loop import Learner
from finetune.training.optimizers import give_rates
from finetune.training.penalties import Penalty

if TYPE_CHECKING:
    from finetune.training.shapes import Shapes


def open_learner(
    recipe: Recipe, data: PreparedData, runtime: Runtime, progress: Progress, shapes: Shapes | None = None
) -> tuple[Learner, TaskSpec]:
    """Return what a recipe trains, ready for its first step, and the declaration of its task.

    With `shapes` nothing is read or drawn but what the files say of sizes: the model has no content, and can only be
    computed with in that mode. Raises FinetuneError where the recipe's model, tokenizer and settings do not fit; what
    can only be told from the weights (`model.sha256`, whether packing keeps rows apart) is not looked at then.
    """
    import torch

    model_folder = find_model(recipe.model, allow_code=runtime.allow_code) if recipe.model.id else None
    tokenizer_folder = data.tokenizer_folder or model_folder
    assert tokenizer_folder is not None, "a recipe has a model or a tokenizer"
    loss = recipe.train.loss
    task, spec = open_task(recipe.task.name, recipe.task.options, (loss.name, loss.options) if loss else None)
    tokenizer = load_tokenizer(tokenizer_folder, allow_code=runtime.allow_code, pretokenized=reads_words(task))
    prepare_tokenizer(task, tokenizer)
    accelerator = runtime.accelerator()
    if accelerator.num_processes > 1 and not spec.adds_up:
        raise FinetuneError(
            f"--processes: the loss of {recipe.task.name} compares each row with the others of its batch, which "
            "several processes would divide; use one"
        )
    head, settings = task.head(data.labels), model_settings(recipe, runtime, empty=shapes is not None)
    torch.manual_seed(recipe.seed)  # what is new is drawn from it
    if recipe.model.scratch is not None:
        loaded = new_model(recipe.model.scratch, tokenizer, head, settings)
    else:
        assert model_folder is not None
        if shapes is None:
            check_weights(model_folder, recipe.model.sha256)
        loaded = load_model(model_folder, head, settings)
    added = fit_to_tokenizer(loaded.model, tokenizer)
    for notice in (*loaded.notices, *added):
        progress.note(notice)
    if spec.prompt is not None:
        configure(loaded.model, tokenizer, recipe.generation, recipe.seed, end_ids(task, tokenizer))
    model, freezing = _trainable_parts(recipe, loaded, head.kind, added, progress)
    progress.note(freezing_table(freezing))
    if recipe.train.gradient_checkpointing:
        _compute_activations_twice(model)
    # what pads has to be what the model takes for padding
    model.config.pad_token_id = tokenizer.pad_token_id
    if shapes is not None:
        shapes.fill(model)
    make = registry.optimizers.get(recipe.train.optimizer.name).build(recipe.train.optimizer.options)
    if shapes is None:
        if not settings.quantization:  # what is loaded in few bits has its place already
            model = model.to(accelerator.device)
        with accelerator.autocast():
            check_model(task, model)
    optimizer = make(model.named_parameters(), recipe.train.peak_learning_rate)
    give_rates(optimizer, model, freezing.rates)
    # shapes lie on no device, and cannot be moved
    model, optimizer = accelerator.prepare(model, optimizer, device_placement=[shapes is None] * 2)
    divisible = spec.adds_up and spec.together is None
    with shapes.watch() if shapes is not None else nullcontext():
        penalty = Penalty(model, recipe.train.penalty) if recipe.train.penalty else None
        average = MovingAverage(accelerator.unwrap_model(model), recipe.train.ema) if recipe.train.ema else None
    rows = data.split("train")
    fitted = {**(spec.fit_targets(rows.rows) if spec.fit_targets else {}), **_fit_loss(recipe, spec, data)}
    return Learner(
        accelerator, model, optimizer, freezing, task, tokenizer, fitted, spec.draws, penalty, average, divisible
    ), spec


def _fit_loss(recipe: Recipe, spec: TaskSpec, data: PreparedData) -> dict[str, Any]:
    """Return what the recipe's loss has to know of the training rows."""
    loss = recipe.train.loss
    fit = registry.losses.get(loss.name).attributes.get("fit") if loss else None
    if loss is None or fit is None or spec.frequencies is None:
        return {}
    return dict(fit(spec.frequencies(data.split("train"), data.labels), loss.options))


def _trainable_parts(
    recipe: Recipe, loaded: LoadedModel, head_kind: str, added: Sequence[str], progress: Progress
) -> tuple[Any, Freezing]:
    """Return the model with what is frozen frozen, and with adapters if the recipe has them.

    `added` tells of tokens that are new to the model: adapters alone would never learn them.
    """
    if recipe.adapter is None:
        strategy, train = recipe.freeze, recipe.train
        freezing = apply_freezing(
            loaded.model, strategy.name, strategy.options, loaded.new_parameters, layer_decay=train.layer_decay
        )
        return loaded.model, freezing
    from finetune.models.adapters import apply_adapter

    applied = apply_adapter(loaded.model, adapter_settings(recipe.adapter), loaded.new_parameters, head_kind)
    missing = [name for name in embeddings_of(loaded.model) if not applied.trains_whole(name)] if added else []
    if missing:
        raise FinetuneError(
            f"adapter: {added[0]}, and adapters leave embeddings as they are. Set adapter.also_train: "
            f"[{', '.join(missing)}], or name a template without new tokens"
        )
    for notice in applied.notices:
        progress.note(notice)
    return applied.model, applied.freezing


def _compute_activations_twice(model: Any) -> None:
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise FinetuneError(
            f"train.gradient_checkpointing: models of the family {model.config.model_type} cannot do it; remove it"
        )
    # transformers 5.23 has renamed it
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    # it lets the embeddings' output ask for a gradient, which this form does not need: frozen layers would keep all
    with suppress(AttributeError):  # transformers before 5.23 knows of nothing to undo where it did nothing
        model.disable_input_require_grads()


def predictor_of(learner: Learner, spec: TaskSpec, recipe: Recipe, data: PreparedData) -> Predictor:
    """Return the model that is being trained, as it will be asked when it is a run."""
    model = learner.accelerator.unwrap_model(learner.model)
    return Predictor(
        model=model,
        forward=partial(learner.task.forward, model),
        tokenizer=learner.tokenizer,
        task=learner.task,
        spec=spec,
        labels=data.labels,
        device=learner.accelerator.device,
        encoder=Encoder.of(learner.tokenizer, Limits(**data.limits), whole=spec.whole_tokenizer),
        fitted=learner.fitted,
        generation=recipe.generation,
        seed=recipe.seed,
    )


def freezing_table(freezing: Any) -> str:
    """Return the freezing table as text."""
    rows = [(row.group, row.parameters, row.trainable, _rates(row)) for row in freezing.table]
    rows.append(("total", freezing.total, freezing.trainable, ""))
    width = max(len(name) for name, *_ in rows)
    lines = [f"{'parameters':<{width}}  {'all':>12}  {'trainable':>12}" + ("  rate" if freezing.rates else "")]
    lines += [f"{name:<{width}}  {size:>12,}  {trainable:>12,}  {rate}" for name, size, trainable, rate in rows]
    return "\n".join(line.rstrip() for line in lines)


def describe_stages(freezing: Freezing, total_steps: int, steps_per_epoch: int) -> str:
    """Return in a sentence when a gradual unfreezing does what, if it is one; else nothing."""
    if not freezing.stages:
        return ""
    each = freezing.stage_steps(steps_per_epoch)
    times = [f"{stage.trainable:,} from step {place * each + 1}" for place, stage in enumerate(freezing.stages)]
    missed = len(freezing.stages) - min(len(freezing.stages), -(-total_steps // each))
    end = f"; training ends with step {total_steps}, before the last {missed} of these" if missed else ""
    return f"gradual unfreezing, parameters that learn: {', '.join(times)}{end}"


def _rates(row: FreezingRow) -> str:
    """Return by how much a group learns faster or more slowly, where it does."""
    low, high = row.rates
    if not row.trainable or low == high == 1:
        return ""
    return f"x {low:.3g}" if low == high else f"x {low:.3g} to {high:.3g}"
