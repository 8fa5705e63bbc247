"""Optimizers: functions from named parameters and a learning rate to a torch optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from finetune.registry import optimizers

if TYPE_CHECKING:
    import torch

Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[
    list[Beta], Field(min_length=2, max_length=2), BeforeValidator(lambda v: list(v) if isinstance(v, tuple) else v)
]


def parameter_groups(parameters: Iterable[tuple[str, torch.nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters in two groups: matrices, which decay, and biases and norms, which do not."""
    trainable = [parameter for _, parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


@optimizers.register("adamw")
def adamw(
    parameters: Iterable[tuple[str, torch.nn.Parameter]],
    learning_rate: float,
    *,
    weight_decay: Annotated[float, Field(ge=0)] = 0.01,
    betas: Betas = [0.9, 0.999],  # noqa: B006 -- a default that pydantic copies
    eps: Annotated[float, Field(gt=0)] = 1e-8,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), in torch's fused form."""
    import torch

    groups = parameter_groups(parameters, weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(betas[0], betas[1]), eps=eps, fused=True)
