"""What becomes of a checkpoint's head: labels are matched by name, and only rows of the same label are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune.errors import FinetuneError
from finetune.models.families import Kind

OUTSIDE = "O"  # the tag that every tagger has: knowing it alone is no reason to keep a head


@dataclass(frozen=True)
class Head:
    """What a task needs on top of the encoder: one output a text, one a token, the ends of a span, or nothing.

    It has an output for each label, or, where those have no names, a number of outputs. `prior` is the probability
    that a new output begins with where it is made a sigmoid of; without one it begins as the family draws it.
    """

    kind: Kind
    labels: tuple[str, ...] = ()
    outputs: int = 0
    problem: str | None = None
    prior: float | None = None


@dataclass(frozen=True)
class HeadPlan:
    """With which outputs to open a checkpoint, and which of them become this task's.

    `rows` has for each output of the task the checkpoint's output that it goes on from, or None for a new one; it is
    empty where the checkpoint's head is taken, or made, as it is.
    """

    outputs: int
    rows: tuple[int | None, ...] = ()
    notice: str = ""


def plan_head(config: Any, head: Head) -> HeadPlan:
    """Decide what to keep of the head that a checkpoint's configuration tells of."""
    if head.labels:
        return _plan_labels(labels_of(config), head.labels)
    if head.kind == "spans":
        return HeadPlan(2)
    if not head.outputs:
        return HeadPlan(0)
    # several numbers go on from numbers; one output is one output
    if config.num_labels == head.outputs and (head.outputs == 1 or config.problem_type == "regression"):
        return HeadPlan(head.outputs)
    notice = f"the checkpoint's head is for {listed(labels_of(config))}; one for {head.outputs} numbers is made anew"
    return HeadPlan(head.outputs, (None,) * head.outputs, notice)


def _plan_labels(old: tuple[str, ...], labels: tuple[str, ...]) -> HeadPlan:
    common = [label for label in labels if label in old]
    if old == labels:
        return HeadPlan(len(labels))
    if not set(common) - {OUTSIDE}:
        notice = (
            f"the checkpoint's head is for other labels ({listed(old)}) than this task's ({listed(labels)}); its last "
            "layer is made anew. If they mean the same, give them the same names with data.label_map"
        )
        return HeadPlan(len(labels), (None,) * len(labels), notice)
    rows = tuple(old.index(label) if label in old else None for label in labels)
    if set(old) == set(labels):
        return HeadPlan(
            len(old), rows, f"the checkpoint's head has the labels in another order ({listed(old)}); put in this task's"
        )
    new, gone = [label for label in labels if label not in old], [label for label in old if label not in labels]
    parts = [f"the checkpoint's head goes on for the labels {listed(common)}"]
    parts += [f"those made anew: {listed(new)}"] if new else []
    parts += [f"those left out: {listed(gone)}"] if gone else []
    return HeadPlan(len(old), rows, "; ".join(parts))


def labels_of(config: Any) -> tuple[str, ...]:
    """Return a checkpoint's labels in the order of its outputs; LABEL_0 and so on where it has no names for them."""
    return tuple(str(config.id2label[index]) for index in sorted(config.id2label))


def set_labels(config: Any, head: Head, outputs: int) -> None:
    """Write into a configuration how many outputs there are, and what they are called if that is known."""
    if head.labels and outputs == len(head.labels):
        config.id2label = dict(enumerate(head.labels))
        config.label2id = {label: index for index, label in enumerate(head.labels)}
    elif outputs and config.num_labels != outputs:
        config.num_labels = outputs


def apply_plan(
    model: Any, head: Head, plan: HeadPlan, new: frozenset[str], mismatched: frozenset[str]
) -> tuple[frozenset[str], list[str]]:
    """Rearrange the last layer of a loaded model as planned; return the names of its new parameters, and notices.

    `new` are the parameters that the checkpoint did not bring, `mismatched` those of them that it has in another
    shape. A row of the layer is an output's weights and its bias.
    """
    changed = _rearrange(model, head, plan, new, mismatched)
    if head.prior is not None:
        _begin_with(model, head.prior, len(head.labels), plan, new)
    return changed


def _rearrange(
    model: Any, head: Head, plan: HeadPlan, new: frozenset[str], mismatched: frozenset[str]
) -> tuple[frozenset[str], list[str]]:
    if not plan.rows:
        return frozenset(), []
    name = output_layer(model, plan.outputs)
    if name is None and new:
        return frozenset(), []  # a head of a form that we don't know, and not from the checkpoint
    if name is None:
        raise FinetuneError(
            f"model.id: {plan.notice}; but the head of this family ({model.config.model_type}) has no last linear "
            "layer that could be changed. Start from a checkpoint without a head"
        )
    brought = f"{name}.weight" not in new
    if brought or plan.outputs != len(plan.rows):
        _replace(model, name, plan.rows if brought else (None,) * len(plan.rows))
    set_labels(model.config, head, len(plan.rows))
    model.num_labels = len(plan.rows)
    layer = {f"{name}.{parameter}" for parameter, _ in model.get_submodule(name).named_parameters()}
    had_one = brought or f"{name}.weight" in mismatched
    return frozenset(layer if brought and None in plan.rows else ()), [plan.notice] if had_one else []


def _begin_with(model: Any, prior: float, outputs: int, plan: HeadPlan, new: frozenset[str]) -> None:
    """Give the new outputs, and only these, the bias of a probability; a layer without biases stays as it is."""
    import torch

    name = output_layer(model, outputs)
    bias = None if name is None else model.get_submodule(name).bias
    if bias is None:
        return
    fresh = range(outputs) if f"{name}.weight" in new else [at for at, row in enumerate(plan.rows) if row is None]
    with torch.no_grad():
        bias[list(fresh)] = math.log(prior / (1 - prior))


def output_layer(model: Any, outputs: int) -> str | None:
    """Return the name of the last linear layer above the encoder with so many outputs: `classifier`, `score`."""
    import torch

    prefix = f"{model.base_model_prefix}."
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module.out_features == outputs and not name.startswith(prefix)
    ]
    return names[-1] if names else None


def _replace(model: Any, name: str, rows: Sequence[int | None]) -> None:
    """Put a linear layer in the place of another; its new rows are drawn as the family draws them."""
    import torch

    old = model.get_submodule(name)
    layer = torch.nn.Linear(old.in_features, len(rows), bias=old.bias is not None, dtype=old.weight.dtype)
    with torch.no_grad():
        model._init_weights(layer)
        for place, row in enumerate(rows):
            if row is not None:
                layer.weight[place] = old.weight[row]
                if old.bias is not None:
                    layer.bias[place] = old.bias[row]
    model.set_submodule(name, layer)


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return names as a message has them, the first few of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
