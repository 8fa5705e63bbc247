"""Averages of the weights that a training passes through: a moving one, and that of its best moments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class MovingAverage:
    """The exponential moving average of what is trained (Polyak and Juditsky 1992; here as TensorFlow has it).

    After step t it moves by 1 - min(decay, (1 + t) / (10 + t)) towards the weights: early on faster, so that it
    forgets where training began.
    """

    def __init__(self, model: Any, decay: float) -> None:
        """Begin with the weights as they are; whatever can learn by then is averaged."""
        self._decay = decay
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._parameters.items()}

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The averages by the parameters' names."""
        return self._average

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from averages that were saved."""
        for name, average in self._average.items():
            average.copy_(tensors[name])

    def update(self, step: int) -> None:
        """Move towards the weights after a step, counted from 1."""
        import torch

        decay = min(self._decay, (1 + step) / (10 + step))
        weights = [parameter.detach() for parameter in self._parameters.values()]
        torch._foreach_lerp_(list(self._average.values()), weights, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the averages as its weights for a while; nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self._average[name] = self._average[name], parameter.data


def mean_of_files(paths: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Return the mean of each tensor over some files (Izmailov et al. 2018, Wortsman et al. 2022).

    It is summed in float64, one file in memory at a time. Of whole numbers it is the first.
    """
    from safetensors.torch import load_file

    first = load_file(paths[0])
    sums = {name: tensor.double() for name, tensor in first.items() if tensor.is_floating_point()}
    for path in paths[1:]:
        for name, tensor in load_file(path).items():
            if name in sums:
                sums[name] += tensor.double()
    return {
        name: (sums[name] / len(paths)).to(tensor.dtype) if name in sums else tensor for name, tensor in first.items()
    }
