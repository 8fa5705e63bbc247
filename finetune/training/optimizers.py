"""Optimizers: functions from named parameters and a learning rate to a torch optimizer.

All are torch's own, and all spare biases and norms (whatever has one dimension) from weight decay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from finetune.registry import optimizers

if TYPE_CHECKING:
    import torch

Beta = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0)]
Small = Annotated[float, Field(gt=0)]
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


def give_rates(optimizer: torch.optim.Optimizer, model: Any, rates: Mapping[str, float]) -> None:
    """Divide an optimizer's groups by the factors of the learning rate (`factor`) at which their parameters learn."""
    if not rates:
        return
    factor_of = {parameter: rates.get(name, 1.0) for name, parameter in model.named_parameters()}
    divided = []
    for group in optimizer.param_groups:
        for factor in dict.fromkeys(factor_of[parameter] for parameter in group["params"]):
            own = [parameter for parameter in group["params"] if factor_of[parameter] == factor]
            divided.append({**group, "params": own, "factor": factor})
    optimizer.param_groups = divided


@optimizers.register("adamw")
def adamw(
    parameters: Iterable[tuple[str, torch.nn.Parameter]],
    learning_rate: float,
    *,
    weight_decay: Decay = 0.01,
    betas: Betas = [0.9, 0.999],  # noqa: B006 -- a default that pydantic copies
    eps: Small = 1e-8,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), in torch's fused form."""
    import torch

    groups = parameter_groups(parameters, weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(betas[0], betas[1]), eps=eps, fused=True)


@optimizers.register("adam")
def adam(
    parameters: Iterable[tuple[str, torch.nn.Parameter]],
    learning_rate: float,
    *,
    weight_decay: Decay = 0.0,
    betas: Betas = [0.9, 0.999],  # noqa: B006 -- a default that pydantic copies
    eps: Small = 1e-8,
) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015), fused; its weight decay is part of the gradient, as L2 regularization is."""
    import torch

    groups = parameter_groups(parameters, weight_decay)
    return torch.optim.Adam(groups, lr=learning_rate, betas=(betas[0], betas[1]), eps=eps, fused=True)


def check_nesterov(options: Mapping[str, Any]) -> None:
    """Raise ValueError for Nesterov's step without a momentum to look ahead with."""
    if options["nesterov"] and not options["momentum"]:
        raise ValueError("expected a momentum above 0 with `nesterov: true`, found 0")


@optimizers.register("sgd", check=check_nesterov)
def sgd(
    parameters: Iterable[tuple[str, torch.nn.Parameter]],
    learning_rate: float,
    *,
    momentum: Beta = 0.9,
    nesterov: bool = False,
    weight_decay: Decay = 0.0,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum, Nesterov's (Sutskever et al. 2013) if asked for, fused."""
    import torch

    groups = parameter_groups(parameters, weight_decay)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, nesterov=nesterov, fused=True)


@optimizers.register("rmsprop")
def rmsprop(
    parameters: Iterable[tuple[str, torch.nn.Parameter]],
    learning_rate: float,
    *,
    alpha: Beta = 0.99,
    momentum: Beta = 0.0,
    centered: bool = False,
    weight_decay: Decay = 0.0,
    eps: Small = 1e-8,
) -> torch.optim.Optimizer:
    """RMSprop (Tieleman and Hinton 2012): steps divided by a running mean of the gradient's size."""
    import torch

    groups = parameter_groups(parameters, weight_decay)
    return torch.optim.RMSprop(groups, lr=learning_rate, alpha=alpha, momentum=momentum, centered=centered, eps=eps)


@optimizers.register("adagrad")
def adagrad(
    parameters: Iterable[tuple[str, torch.nn.Parameter]],
    learning_rate: float,
    *,
    weight_decay: Decay = 0.0,
    eps: Small = 1e-10,
) -> torch.optim.Optimizer:
    """Adagrad (Duchi et al. 2011): steps divided by all that the gradients have been so far, fused."""
    import torch

    return torch.optim.Adagrad(parameter_groups(parameters, weight_decay), lr=learning_rate, eps=eps, fused=True)


@optimizers.register("adafactor")
def adafactor(
    parameters: Iterable[tuple[str, torch.nn.Parameter]],
    learning_rate: float,
    *,
    weight_decay: Decay = 0.0,
    beta2_decay: Annotated[float, Field(lt=0)] = -0.8,
    clip: Annotated[float, Field(ge=1)] = 1.0,
) -> torch.optim.Optimizer:
    """Adafactor (Shazeer and Stern 2018): Adam's second moment by rows and columns alone, for little memory.

    As torch has it: steps are scaled to the size of the parameter, so that learning rates are of the order of 1e-2.
    """
    import torch

    groups = parameter_groups(parameters, weight_decay)
    return torch.optim.Adafactor(groups, lr=learning_rate, beta2_decay=beta2_decay, d=clip)
