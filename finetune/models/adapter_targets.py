"""Which layers of a model get adapters, and which modules are trained whole beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from finetune.errors import FinetuneError, suggestion
from finetune.models.heads import listed

AUTO, ALL_LINEAR = "auto", "all-linear"
# Query and value, or the one layer that computes both, of families that peft's own table leaves out
ATTENTION: dict[str, tuple[str, ...]] = {
    "distilbert": ("q_lin", "v_lin"),
    "camembert": ("query", "value"),
    "xlm-roberta-xl": ("query", "value"),
    "roberta-prelayernorm": ("query", "value"),
    "albert": ("query", "value"),
    "mpnet": ("q", "v"),
    "modernbert": ("Wqkv",),
    "marian": ("q_proj", "v_proj"),
    "pegasus": ("q_proj", "v_proj"),
    "mbart": ("q_proj", "v_proj"),
}
# Heads of these kinds belong to one task: they are trained whole even where a checkpoint brings one
TASK_HEADS = ("sequence", "tokens", "spans")


def whole_modules(model: Any, new_parameters: Iterable[str], head_kind: str, also_train: Sequence[str]) -> list[str]:
    """Return the names of the modules that are trained and saved whole, none of them inside another.

    These are the task's head, the owner of every new parameter (random weights that stay as they are would be noise
    for ever), and what the recipe names. A language model's head is trained only where it is new.
    """
    names = [name for name in _head(model) if head_kind in TASK_HEADS]
    owners = [name.rpartition(".")[0] for name in sorted(new_parameters)]
    if "" in owners:
        raise FinetuneError(
            "adapter: expected new parameters inside modules of the model, found some at its top, which adapters "
            "cannot save. Train without an adapter, or start from a checkpoint that has them"
        )
    names += owners + [name for ending in also_train for name in _also(model, ending)]
    return [name for name in dict.fromkeys(names) if not any(name.startswith(f"{other}.") for other in names)]


def _head(model: Any) -> list[str]:
    """Return the modules beside the encoder, at the model's top: `classifier`; DistilBERT has two."""
    if model.base_model is model:
        return []
    return [
        name for name, module in model.named_children() if name != model.base_model_prefix and [*module.parameters()]
    ]


def _also(model: Any, ending: str) -> list[str]:
    import torch

    with_weights = [
        name
        for name, module in model.named_modules()
        if name and [*module.parameters()] and not isinstance(module, (torch.nn.ModuleList, torch.nn.ModuleDict))
    ]
    found = [name for name in with_weights if ends_with(name, (ending,))]
    if not found:
        known = endings_of(with_weights)
        raise FinetuneError(f"adapter.also_train: no module is called {ending!r}{suggestion(ending, known)}")
    for name in found:
        shared = shared_weights(model, name)
        if shared:
            raise FinetuneError(
                f"adapter.also_train: {name} shares its weights ({shared[0]}) with another module of the model; "
                "trained whole it would no longer, and a merged model could not be saved. Leave it out"
            )
    return found


def shared_weights(model: Any, name: str) -> list[str]:
    """Return the parameters of a module that are parameters of another module too, such as tied embeddings."""
    everywhere = list(model.named_parameters(remove_duplicate=False))
    elsewhere = {id(parameter) for path, parameter in everywhere if not inside(path, (name,))}
    return [path for path, parameter in everywhere if inside(path, (name,)) and id(parameter) in elsewhere]


def target_modules(
    model: Any, targets: str | Sequence[str], whole: Sequence[str], *, quantized: bool = False
) -> tuple[list[str], str]:
    """Return the names of the linear layers that get adapters, and how they were chosen.

    `auto` takes the attention's query and value projections, which at the same number of parameters did best in LoRA
    (Hu et al. 2021, section 7.1, table 5), by family as peft's table has them (`peft.utils.constants`). For a quantized
    model, and for a family that is in no table, it takes every linear layer of the blocks, which QLoRA found necessary
    to reach full fine-tuning (Dettmers et al. 2023, section 4, figure 2), as does `all-linear`. A list has endings of
    modules' names, other text is a regular expression for whole names (peft's convention). Raises FinetuneError with
    the endings that there are when one matches no linear layer outside the head and the embeddings.
    """
    linear = _linear_modules(model, whole)
    family = model.config.model_type
    if targets == AUTO and not quantized:
        attention = _attention(family, linear)
        if attention:
            return attention, f"the attention's projections that LoRA adapts in the family {family!r}"
    if targets in (AUTO, ALL_LINEAR):
        why = {ALL_LINEAR: "as asked for"}.get(str(targets), "as for every quantized model")
        if targets == AUTO and not quantized:
            why = f"since attention's layers of the family {family!r} are not known by name"
        return _matched(_in_blocks(linear), ALL_LINEAR, linear), f"every linear layer of the blocks, {why}"
    if isinstance(targets, str):
        return _matched(_matching(targets, linear), targets, linear), f"what matches {targets!r}"
    found = [name for ending in targets for name in _matched(_ending(linear, (ending,)), ending, linear)]
    return list(dict.fromkeys(found)), "as listed"


def _linear_modules(model: Any, whole: Sequence[str]) -> list[str]:
    """Return the linear layers outside the head and what is trained whole; GPT-2 has them as Conv1D."""
    import torch
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not output and not inside(name, whole)
    ]


def _attention(family: str, linear: Sequence[str]) -> list[str]:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as BY_FAMILY

    known = ATTENTION.get(family) or BY_FAMILY.get(family, ())
    return _matching(known, linear) if isinstance(known, str) else _ending(linear, known)


def _in_blocks(linear: Sequence[str]) -> list[str]:
    """Return the layers in numbered blocks: no embedding's projection, no pooler; all where none is numbered."""
    return [name for name in linear if re.search(r"\.\d+\.", name)] or list(linear)


def _ending(names: Sequence[str], endings: Sequence[str]) -> list[str]:
    return [name for name in names if ends_with(name, endings)]


def _matching(pattern: str, linear: Sequence[str]) -> list[str]:
    try:
        return [name for name in linear if re.fullmatch(pattern, name)]
    except re.error as error:
        raise FinetuneError(f"adapter.targets: expected a regular expression, found {pattern!r} ({error})") from None


def _matched(found: list[str], target: str, linear: Sequence[str]) -> list[str]:
    if found:
        return found
    raise FinetuneError(
        f"adapter.targets: {target!r} matches no linear layer outside the head. There are: "
        f"{listed(endings_of(linear), most=30) or 'none'}"
    )


def endings_of(names: Iterable[str]) -> list[str]:
    """Return the last parts of modules' names, each once, in order."""
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def as_endings(model: Any, names: Sequence[str], whole: Sequence[str]) -> list[str]:
    """Return endings that stand for exactly these modules, which every reader of an adapter knows, else full names."""
    endings = endings_of(names)
    covered = [name for name, _ in model.named_modules() if ends_with(name, endings) and not inside(name, whole)]
    return sorted(endings) if set(covered) == set(names) else sorted(names)


def ends_with(name: str, endings: Iterable[str]) -> bool:
    """Return whether a dotted name ends in one of the endings, at a dot."""
    return any(f".{name}".endswith(f".{ending}") for ending in endings)


def inside(name: str, modules: Iterable[str]) -> bool:
    """Return whether a dotted name is that of one of the modules, or of something in it."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)
