"""Work on shapes alone: tensors without content, every operation as real training has it, and the bytes they take.

Floating-point tensors are torch's fake ones: they have a shape and a storage of known size, and no memory behind it.
Whole numbers and truth values (token ids, masks, labels) are real and small, so that what depends on them, such as how
many targets a batch has, is as it is in training. A model of any size can thus be "trained" in a second or two.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

# Operations whose result's shape depends on the places of a mask, which is real
BY_MASK = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
# With this autograd adds up the gradient of what was chosen by a mask, where it meets tensors without content; real
# ones are added to in place
ADDING = torch.ops.aten.index_put.default
AS_NUMBER = torch.ops.aten._local_scalar_dense.default


class Shapes(TorchDispatchMode):
    """A mode in which what is computed has a shape alone; it counts the bytes of all tensors that are alive.

    `live_bytes` are those now, `peak_bytes` the most since `watch` began. A number that is asked of a tensor without
    content (`float(loss)`) is 1. Gradients, optimizer states and what autograd keeps are counted as they come and go.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._alive: set[int] = set()
        self.live_bytes = self.peak_bytes = 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Compute shapes, and take note of the largest sum of bytes from here on."""
        self.peak_bytes = self.live_bytes
        with self:
            yield

    def fill(self, model: Any) -> None:
        """Give a model parameters and floating-point buffers without content, of its own shapes; tied ones stay tied.

        What it had may be on the `meta` device, where nothing can be computed as on a processor. Whole numbers there,
        which are positions and kinds of tokens, become 0.
        """
        made: dict[int, Any] = {}
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if tensor.is_floating_point():
                        tensors[name] = made.setdefault(id(tensor), self._like(tensor))
                    elif tensor.is_meta:
                        tensors[name] = made.setdefault(id(tensor), torch.zeros(tensor.shape, dtype=tensor.dtype))
                    else:
                        made[id(tensor)] = tensor
        for tensor in made.values():
            self._count(tensor)

    def _like(self, tensor: Any) -> Any:
        with self._fake:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
        return empty

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do one operation: on shapes if it is given one, else for real."""
        kwargs = kwargs or {}
        if any(isinstance(value, FakeTensor) for value in tree_iter((args, kwargs))):
            if func is AS_NUMBER:
                return 1.0 if args[0].is_floating_point() else 1
            if func is ADDING and len(args) > 3 and args[3]:
                return args[0]
            if func in BY_MASK:
                args = (args[0], _as_places(args[1]), *args[2:])
            with self._fake:
                result = func(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self._count(value)
        return result

    def _count(self, tensor: Any) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()
        self._alive.add(key)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.live_bytes -= size


def _as_places(indices: Any) -> list[Any]:
    """Return indices with real masks replaced by the places where they are true."""
    places: list[Any] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            places += index.nonzero(as_tuple=True)
        else:
            places.append(index)
    return places
