"""Freezing strategies: pure functions from a model's layout to the names of the parameters that stay as they are."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

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


@freezers.register("none")
def none(layout: Layout) -> set[str]:  # noqa: ARG001
    """Train everything."""
    return set()


@freezers.register("encoder")
def encoder(layout: Layout) -> set[str]:
    """Train the head alone (feature extraction)."""
    return set(layout.parameters) - set(layout.head)


@freezers.register("first-layers")
def first_layers(layout: Layout, *, count: Annotated[int, Field(ge=0)]) -> set[str]:
    """Freeze the embeddings and the first `count` layers; with 0, the embeddings alone."""
    if count > len(layout.layers):
        raise FinetuneError(f"freeze.count: expected at most {len(layout.layers)}, the model's layers; found {count}")
    return {name for room in (layout.embeddings, *layout.layers[:count]) for name in room}


@freezers.register("rules")
def rules(layout: Layout, *, rules: list[dict[str, Literal["trainable", "frozen"]]]) -> set[str]:
    """Decide by ordered `pattern: trainable | frozen` rules; the first that matches a parameter's name holds.

    Patterns are shell-style (`*`, `?`). Every parameter has to be covered, and every rule has to match something that
    no earlier rule took. Model: big_vision's ordered masks.
    """
    ordered = [(pattern, state) for rule in rules for pattern, state in rule.items()]
    state_of: dict[str, str] = {}
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
    return {name for name, state in state_of.items() if state == "frozen"}


@dataclass(frozen=True)
class FreezingRow:
    """One line of the freezing table."""

    group: str
    parameters: int
    trainable: int


@dataclass(frozen=True)
class Freezing:
    """A model with some parameters frozen: which, how many, and which modules therefore run in eval mode."""

    frozen: frozenset[str]
    table: tuple[FreezingRow, ...]
    eval_modules: tuple[str, ...]

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(row.parameters for row in self.table)

    @property
    def trainable(self) -> int:
        """The parameters that training may change."""
        return sum(row.trainable for row in self.table)


def apply_freezing(model: Any, name: str, options: dict[str, Any], new_parameters: Iterable[str] = ()) -> Freezing:
    """Freeze the model's parameters in place by the named strategy; raise FinetuneError if none is left to train.

    Positions that are a formula, and no parameters but by name, are never trained.
    """
    layout = layout_of(model, new_parameters)
    frozen = frozenset(freezers.get(name).build(options)(layout)) | fixed_parameters(model)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name not in frozen)
    if len(frozen) == len(layout.parameters):
        raise FinetuneError("freeze: expected at least one trainable parameter, found none; nothing would be learned")
    return Freezing(frozen, _table(layout, frozen), _eval_modules(model, layout, frozen))


def fixed_parameters(model: Any) -> frozenset[str]:
    """Return the tables of sinusoidal positions (Vaswani et al. 2017), which transformers holds as parameters."""
    tables = [name for name, module in model.named_modules() if "Sinusoidal" in type(module).__name__]
    names = {f"{table}.weight" for table in tables}
    if getattr(model.config, "sinusoidal_pos_embds", False):  # DistilBERT's
        names |= {name for name, _ in model.named_parameters() if name.endswith("position_embeddings.weight")}
    return frozenset(names & {name for name, _ in model.named_parameters()})


def _table(layout: Layout, frozen: frozenset[str]) -> tuple[FreezingRow, ...]:
    groups: dict[str, list[str]] = {}
    for name in layout.parameters:
        groups.setdefault(layout.group(name), []).append(name)
    return tuple(
        FreezingRow(
            group,
            sum(layout.parameters[name] for name in names),
            sum(layout.parameters[name] for name in names if name not in frozen),
        )
        for group, names in groups.items()
    )


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


def set_training_mode(model: Any, freezing: Freezing) -> None:
    """Put the model in train mode, and its frozen blocks in eval mode, so that they compute the same every time."""
    model.train()
    for name in freezing.eval_modules:
        model.get_submodule(name).eval()
