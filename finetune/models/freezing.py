"""Freezing strategies: pure functions from a model's layout to the rates at which its parameters learn.

A rate is a factor of the learning rate; 0 keeps a parameter as it is, and what a strategy does not name has 1.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from finetune.errors import FinetuneError, suggestion
from finetune.registry import freezers


@dataclass(frozen=True)
class Layout:
    """A model's parameters by name, in order, in three rooms: embeddings, layers from the bottom up, and the rest.

    `head` is what is on top of the encoder, and whatever the checkpoint did not bring: freezing random weights would
    make them noise for ever.
    """

    parameters: dict[str, int]
    embeddings: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    head: tuple[str, ...]

    def group(self, name: str) -> str:
        """Return the name of the room that a parameter is in."""
        if name in self.head:
            return "head"
        if name in self.embeddings:
            return "embeddings"
        for index, layer in enumerate(self.layers):
            if name in layer:
                return f"layer {index}"
        return "encoder, rest"


def layout_of(model: Any, new_parameters: Iterable[str] = ()) -> Layout:
    """Read a transformers model's layout; the layers are its largest list of modules."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    prefix = _encoder_prefix(model)
    head = {name for name in sizes if not name.startswith(prefix)} | set(new_parameters)
    encoder = [name for name in sizes if name not in head]
    stack = _layer_stack(model, sizes)
    layers = tuple(
        tuple(name for name in encoder if name.startswith(f"{stack}.{index}."))
        for index in range(_stack_length(encoder, stack))
    )
    first = next((position for position, name in enumerate(encoder) if stack and name.startswith(f"{stack}.")), 0)
    return Layout(sizes, tuple(encoder[:first]), layers, tuple(name for name in sizes if name in head))


def _encoder_prefix(model: Any) -> str:
    """Return what the names of the encoder's parameters begin with: `bert.`, or nothing if the model is an encoder."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def _layer_stack(model: Any, sizes: dict[str, int]) -> str:
    import torch

    def weight(name: str) -> int:
        return sum(size for parameter, size in sizes.items() if parameter.startswith(f"{name}."))

    stacks = [name for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    return max(stacks, key=weight, default="")


def _stack_length(names: Sequence[str], stack: str) -> int:
    indices = [int(name[len(stack) + 1 :].split(".")[0]) for name in names if stack and name.startswith(f"{stack}.")]
    return max(indices, default=-1) + 1


Rates = dict[str, float]


def _state(value: object) -> object:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value in ("trainable", "frozen") or (number and 0 < value < math.inf):  # type: ignore[operator]
        return value
    raise ValueError(f"expected trainable, frozen, or a factor above 0, found {value!r}")


State = Annotated[Literal["trainable", "frozen"] | float, BeforeValidator(_state)]


def frozen(names: Iterable[str]) -> Rates:
    """Return the rates of parameters that stay as they are."""
    return dict.fromkeys(names, 0.0)


@freezers.register("none")
def none(layout: Layout) -> Rates:  # noqa: ARG001
    """Train everything."""
    return {}


@freezers.register("encoder")
def encoder(layout: Layout) -> Rates:
    """Train the head alone (feature extraction)."""
    return frozen(set(layout.parameters) - set(layout.head))


@freezers.register("embeddings")
def embeddings(layout: Layout) -> Rates:
    """Train everything but the embeddings, which in small models are half of all parameters."""
    return frozen(layout.embeddings)


@freezers.register("all-but-biases")
def all_but_biases(layout: Layout) -> Rates:
    """Train the head and the biases of the rest (BitFit, Ben Zaken et al. 2022, https://aclanthology.org/2022.acl-short.1)."""
    inside = [name for name in layout.parameters if name not in layout.head]
    if not any(_is_bias(name) for name in inside):
        raise FinetuneError("freeze: expected a model with biases, found one without (Llama and T5 have none)")
    return frozen(name for name in inside if not _is_bias(name))


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"


@freezers.register("first-layers")
def first_layers(layout: Layout, *, count: Annotated[int, Field(ge=0)]) -> Rates:
    """Freeze the embeddings and the first `count` layers; with 0, the embeddings alone."""
    if count > len(layout.layers):
        raise FinetuneError(f"freeze.count: expected at most {len(layout.layers)}, the model's layers; found {count}")
    return frozen(name for room in (layout.embeddings, *layout.layers[:count]) for name in room)


@freezers.register("gradual")
def gradual(
    layout: Layout,
    *,
    layers: Annotated[int, Field(ge=1)] = 1,
    every: Annotated[int, Field(ge=1)] = 1,  # noqa: ARG001 -- when, which is not for the layout to say
    unit: Literal["epochs", "steps"] = "epochs",  # noqa: ARG001
) -> list[Rates]:
    """Train the head first, and after `every` epochs or steps so many more `layers`, from the top; the embeddings last.

    Howard and Ruder 2018 (ULMFiT), https://arxiv.org/abs/1801.06146. What is above the layers comes with the first.
    """
    waiting = list(layout.layers)
    inside = [*layout.embeddings, *(name for layer in layout.layers for name in layer)]
    stages = [frozen(set(layout.parameters) - set(layout.head))]
    while waiting:
        del waiting[-layers:]
        opened = {name for layer in layout.layers[len(waiting) :] for name in layer}
        stages.append(frozen(name for name in inside if name not in opened))
    return [*stages, {}] if layout.embeddings else stages


@freezers.register("rules")
def rules(layout: Layout, *, rules: list[dict[str, State]]) -> Rates:
    """Decide by ordered `pattern: trainable | frozen | factor` rules; the first that matches a parameter's name holds.

    A factor is of the learning rate, for rates that differ within a model. Patterns are shell-style (`*`, `?`). Every
    parameter has to be covered, and every rule has to match something that no earlier rule took. Model: big_vision's
    ordered masks.
    """
    ordered = [(pattern, state) for rule in rules for pattern, state in rule.items()]
    state_of: dict[str, str | float] = {}
    for pattern, state in ordered:
        matched = [name for name in layout.parameters if fnmatch.fnmatchcase(name, pattern) and name not in state_of]
        if not matched:
            raise FinetuneError(
                f"freeze.rules: {pattern!r} matches no parameter that is left{suggestion(pattern, layout.parameters)}"
            )
        state_of.update(dict.fromkeys(matched, state))
    uncovered = [name for name in layout.parameters if name not in state_of]
    if uncovered:
        raise FinetuneError(
            f"freeze.rules: expected rules that cover every parameter; {len(uncovered)} are not covered, such as "
            f"{uncovered[0]}. End with a rule for '*'."
        )
    rates = {"frozen": 0.0, "trainable": 1.0}
    return {name: rates[state] if isinstance(state, str) else float(state) for name, state in state_of.items()}


@dataclass(frozen=True)
class FreezingRow:
    """One line of the freezing table; `rates` are the lowest and highest factor of what is trained in it."""

    group: str
    parameters: int
    trainable: int
    rates: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Stage:
    """A time of a gradual unfreezing: what is frozen, which modules therefore run in eval mode, and how much learns."""

    frozen: frozenset[str]
    eval_modules: tuple[str, ...]
    trainable: int


@dataclass(frozen=True)
class Freezing:
    """A model with some parameters frozen: which, how many, and which modules therefore run in eval mode.

    `rates` are the factors of the learning rate of those parameters that learn at another one. Where it is gradual,
    this is how it ends; `stages` are how it goes there, each `every` so many epochs or steps.
    """

    frozen: frozenset[str]
    table: tuple[FreezingRow, ...]
    eval_modules: tuple[str, ...]
    rates: Mapping[str, float] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    every: tuple[int, Literal["epochs", "steps"]] = (1, "epochs")

    def stage(self, step: int, steps_per_epoch: int) -> Stage | None:
        """Return the stage of a step, counted from 0; None where nothing changes while training."""
        if not self.stages:
            return None
        return self.stages[min(step // self.stage_steps(steps_per_epoch), len(self.stages) - 1)]

    def stage_steps(self, steps_per_epoch: int) -> int:
        """Return how many steps a stage lasts."""
        number, unit = self.every
        return number * (steps_per_epoch if unit == "epochs" else 1)

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(row.parameters for row in self.table)

    @property
    def trainable(self) -> int:
        """The parameters that training may change."""
        return sum(row.trainable for row in self.table)


def apply_freezing(
    model: Any,
    name: str,
    options: dict[str, Any],
    new_parameters: Iterable[str] = (),
    *,
    layer_decay: float = 1.0,
) -> Freezing:
    """Freeze the model's parameters in place by the named strategy; raise FinetuneError if none is left to train.

    Positions that are a formula, and no parameters but by name, are never trained. With `layer_decay` each layer learns
    so much more slowly than the one above it.
    """
    layout = layout_of(model, new_parameters)
    built: Rates | list[Rates] = freezers.get(name).build(options)(layout)
    gradual = built if isinstance(built, list) else []
    chosen = gradual[-1] if gradual else built
    assert isinstance(chosen, dict)
    fixed = fixed_parameters(model)
    held = frozenset(key for key, rate in chosen.items() if not rate) | fixed
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name not in held)
    if len(held) == len(layout.parameters):
        raise FinetuneError("freeze: expected at least one trainable parameter, found none; nothing would be learned")
    decayed = _layer_rates(model, layout, layer_decay)
    rates = {key: chosen.get(key, 1.0) * decayed.get(key, 1.0) for key in layout.parameters if key not in held}
    others = {key: rate for key, rate in rates.items() if rate != 1}
    found = Freezing(held, _table(layout, held, rates), _eval_modules(model, layout, held), others)
    if not gradual:
        return found
    times = [frozenset(stage) | fixed for stage in gradual]
    if getattr(model.config, "is_encoder_decoder", False):
        raise FinetuneError("freeze: gradual is for models with one stack of layers; found an encoder with a decoder")
    sizes = [sum(size for key, size in layout.parameters.items() if key not in one) for one in times]
    stages = tuple(  # a language model whose scores are its embeddings has no head to begin with
        Stage(one, _eval_modules(model, layout, one), size) for one, size in zip(times, sizes, strict=True) if size
    )
    every = (options.get("every", 1), options.get("unit", "epochs"))
    return replace(found, stages=stages, every=every)


def _layer_rates(model: Any, layout: Layout, decay: float) -> Rates:
    """Return the rates by depth, as in BEiT's fine-tuning (Bao et al. 2022), after ULMFiT (Howard and Ruder 2018).

    The head has 1, each layer below it `decay` times the rate of the one above, the embeddings that of a layer below
    all others.
    """
    if decay == 1:
        return {}
    if getattr(model.config, "is_encoder_decoder", False):
        raise FinetuneError(
            "train.layer_decay: expected a model with one stack of layers, found an encoder with a decoder; remove it, "
            "or give rates by name (freeze: rules)"
        )
    depth = len(layout.layers)
    rates = dict.fromkeys(layout.embeddings, decay ** (depth + 1))
    for index, layer in enumerate(layout.layers):
        rates |= dict.fromkeys(layer, decay ** (depth - index))
    return rates


def fixed_parameters(model: Any) -> frozenset[str]:
    """Return the tables of sinusoidal positions (Vaswani et al. 2017), which transformers holds as parameters."""
    tables = [name for name, module in model.named_modules() if "Sinusoidal" in type(module).__name__]
    names = {f"{table}.weight" for table in tables}
    if getattr(model.config, "sinusoidal_pos_embds", False):  # DistilBERT's
        names |= {name for name, _ in model.named_parameters() if name.endswith("position_embeddings.weight")}
    return frozenset(names & {name for name, _ in model.named_parameters()})


def _table(layout: Layout, held: frozenset[str], rates: Mapping[str, float]) -> tuple[FreezingRow, ...]:
    groups: dict[str, list[str]] = {}
    for name in layout.parameters:
        groups.setdefault(layout.group(name), []).append(name)
    rows = []
    for group, names in groups.items():
        learning = [name for name in names if name not in held]
        total, trainable = (sum(layout.parameters[name] for name in some) for some in (names, learning))
        found = [rates[name] for name in learning] or [1.0]
        rows.append(FreezingRow(group, total, trainable, (min(found), max(found))))
    return tuple(rows)


def _eval_modules(model: Any, layout: Layout, frozen: frozenset[str]) -> tuple[str, ...]:
    """Name the whole blocks that are frozen: the encoder, else the embeddings and single layers.

    Only blocks count: a Dropout has no parameters, so "all its parameters are frozen" is always true of it.
    """
    blocks = [model.base_model_prefix] if model.base_model is not model else []
    blocks += [_common_module(layer) for layer in layout.layers]
    blocks += sorted({_top_module(name, _encoder_prefix(model)) for name in layout.embeddings})
    if layout.embeddings and all(name in frozen for name in layout.embeddings):
        dropouts = _dropouts_before_the_layers(model, layout)
    else:
        dropouts = []
    chosen: list[str] = []
    for block in blocks:
        inside = [name for name in layout.parameters if name.startswith(f"{block}.")]
        covered = any(block.startswith(f"{outer}.") for outer in chosen)
        if inside and not covered and all(name in frozen for name in inside):
            chosen.append(block)
    return tuple(chosen) + tuple(name for name in dropouts if model.base_model_prefix not in chosen)


def _dropouts_before_the_layers(model: Any, layout: Layout) -> list[str]:
    """Name the encoder's own dropouts that stand between the embeddings and the layers, as in GPT-2."""
    names = []
    for name, child in model.base_model.named_children():
        path = f"{_encoder_prefix(model)}{name}"
        if any(parameter.startswith(f"{path}.") for layer in layout.layers for parameter in layer):
            break
        if "Dropout" in type(child).__name__:
            names.append(path)
    return names


def _common_module(names: Sequence[str]) -> str:
    """Return the module that all of a layer's parameters are in: `bert.encoder.layer.0`."""
    pairs = zip(min(names).split("."), max(names).split("."), strict=False)
    return ".".join(part for part, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _top_module(name: str, prefix: str) -> str:
    """Return the child of the encoder that a parameter is in: `bert.embeddings`."""
    depth = prefix.count(".") + 1
    return ".".join(name.split(".")[:depth])


def enter_stage(model: Any, stage: Stage) -> None:
    """Let the parameters of a stage learn, and no others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in stage.frozen)


def set_training_mode(model: Any, freezing: Freezing | Stage) -> None:
    """Put the model in train mode, and its frozen blocks in eval mode, so that they compute the same every time."""
    model.train()
    for name in freezing.eval_modules:
        model.get_submodule(name).eval()
