"""Terms that are added to a loss for the size of the weights, as gradients of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.recipe import PenaltySection


class Penalty:
    """`l1` times the sum of absolute weights and half of `l2` times that of their squares; biases and norms are spared.

    Around the `start` it is for the distance from where training began (L2-SP, Li et al. 2018,
    https://arxiv.org/abs/1802.01483): a fine-tuned model shall not go further from the pretrained one than it gains by.
    Unlike an optimizer's decoupled weight decay it is part of the gradient, as torch's `weight_decay` of Adam and SGD.
    """

    def __init__(self, model: Any, settings: PenaltySection) -> None:
        self._l1, self._l2 = settings.l1, settings.l2
        self._weights = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
        self._start = [p.detach().clone() for p in self._weights] if settings.around == "start" else None

    def add_gradients(self) -> None:
        """Add the gradients of the terms to those of a step, for weights that have one."""
        import torch

        chosen = [place for place, weight in enumerate(self._weights) if weight.grad is not None]
        if not chosen:
            return
        gradients = [self._weights[place].grad for place in chosen]
        values = [self._weights[place].detach() for place in chosen]
        if self._start is not None:
            values = list(torch._foreach_sub(values, [self._start[place] for place in chosen]))
        if self._l2:
            torch._foreach_add_(gradients, values, alpha=self._l2)
        if self._l1:
            torch._foreach_add_(gradients, torch._foreach_sign(values), alpha=self._l1)
