"""Dynamic int8 on ONNX Runtime: weights as int8 per channel, activations quantized on the fly, for any CPU."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from finetune.errors import FinetuneError
from finetune.registry import backends

MODEL_FILE = "model.onnx"
Forward = Callable[[Any, Mapping[str, Any]], Any]
# The largest difference between eager and exported outputs that rounding explains
EXPORT_TOLERANCE = 1e-3


def load(folder: Path, threads: int) -> Any:
    """Open an exported model: a function from the inputs of the task's batches to the task's raw outputs."""
    import torch

    _require_onnx()
    session = _open_session(folder / MODEL_FILE, threads)
    names = [entry.name for entry in session.get_inputs()]

    class OnnxModel:
        """An ONNX session that answers as the task's `forward` does."""

        @staticmethod
        def in_threads(count: int) -> Any:
            """Open the same model once more, for another number of threads."""
            return load(folder, count)

        def __call__(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
            arrays = {name: inputs[name].numpy() for name in names}
            return torch.from_numpy(session.run(None, arrays)[0])

    return OnnxModel()


def _open_session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@backends.register("onnx-int8", format="onnx", load=load, title="dynamic int8, ONNX Runtime")
def onnx_int8(
    model: Any,
    forward: Forward,
    inputs: dict[str, Any],
    folder: Path,
    *,
    per_channel: bool = True,
    reduce_range: bool = True,
    opset: Annotated[int, Field(ge=18, le=20)] = 20,
) -> None:
    """Export a model with torch's dynamo exporter and quantize its weights, embeddings included, into `folder`.

    `forward` gives the task's raw outputs for a model and its inputs, of which `inputs` are an example: two rows at
    least. With `reduce_range` weights keep to 7 bits, which
    is exact on CPUs without VNNI too. At opset 23 ONNX Runtime mistakes the standard Attention operator for its own,
    hence at most 20.
    """
    _require_onnx()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    exported = folder / "exported.onnx"
    prepared = folder / "prepared.onnx"
    with _quiet():
        _export(model, forward, inputs, exported, opset)
        graph = onnx.load(exported)
        # The exporter's own shapes contradict those that the quantizer infers after it has changed the graph
        del graph.graph.value_info[:]
        onnx.save(graph, prepared)
        quantize_dynamic(
            prepared,
            folder / MODEL_FILE,
            per_channel=per_channel,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,  # unsigned weights are hardly faster than float32
        )
    for path in folder.glob("exported.onnx*"):
        path.unlink()
    prepared.unlink()


def _export(model: Any, forward: Forward, inputs: dict[str, Any], target: Path, opset: int) -> None:
    """Write the float32 graph with dynamic batch and length, and prove on other shapes that it computes the same."""
    import torch

    names = list(inputs)
    if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
        model = copy.deepcopy(model).float()  # processors have no kernels for the others
    was_training = model.training
    wrapper = _outputs_of(model, forward, names).eval()
    rows, length = torch.export.Dim("rows"), torch.export.Dim("length")
    try:
        program = torch.onnx.export(
            wrapper,
            tuple(inputs[name] for name in names),
            dynamo=True,
            opset_version=opset,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes={"inputs": tuple({0: rows, 1: length} for _ in names)},
            verbose=False,
        )
        assert program is not None
        program.save(str(target))
        _compare(wrapper, inputs, target)
    finally:
        model.train(was_training)


def _outputs_of(model: Any, forward: Forward, names: list[str]) -> Any:
    """Return the model as a module from tensors, in the order of `names`, to the task's raw outputs."""
    import torch

    class Outputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = forward(self.model, dict(zip(names, inputs, strict=True)))
            return outputs

    return Outputs()


def _compare(wrapper: Any, batch: dict[str, Any], exported: Path) -> None:
    import torch

    session = _open_session(exported, threads=1)
    rows, length = next(iter(batch.values())).shape
    for shape in ((1, length), (rows, max(2, length // 2)), (2 * rows + 1, length)):
        inputs = {name: _resize(tensor, shape) for name, tensor in batch.items()}
        with torch.inference_mode():
            expected = wrapper(*inputs.values()).numpy()
        found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})[0]
        difference = float(abs(found - expected).max())
        if difference > EXPORT_TOLERANCE:
            raise FinetuneError(
                f"quantize: the exported model does not compute what the model computes (outputs differ by "
                f"{difference:.2g} at shape {shape}); this architecture cannot be exported faithfully"
            )


def _resize(tensor: Any, shape: tuple[int, int]) -> Any:
    rows, length = shape
    repeats = -(-rows // tensor.shape[0])
    return tensor.repeat(repeats, 1)[:rows, :length].contiguous()


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise FinetuneError(
            f"onnx-int8 needs the onnx extra ({error.name} is missing): pip install 'finetune-toolkit[onnx]'"
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's and the quantizer's chatter off the terminal; errors still come through as exceptions."""
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
