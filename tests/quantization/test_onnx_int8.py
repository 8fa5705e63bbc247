"""Dynamic int8 on ONNX Runtime, and the traps on the way there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from finetune.models.heads import Head
from finetune.models.loading import ModelSettings, load_model
from finetune.quantization import onnx_int8
from finetune.quantization.onnx_int8 import MODEL_FILE, load


def classifier(folder: Path, *labels: str) -> Any:
    return load_model(folder, Head("sequence", labels), ModelSettings())


def logits(model: Any, inputs: Any) -> Any:
    return model(**inputs).logits


@pytest.fixture(scope="module")
def exported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    model = classifier(tiny_model, "a", "b", "c").model.train()
    batch = inputs_of((2, 9))
    onnx_int8.onnx_int8(model, logits, batch, folder)
    return model, folder


def inputs_of(shape: tuple[int, int]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(shape[0] * 100 + shape[1])
    ids = torch.randint(5, 39, shape, generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, shape[1] // 2 :] = 0
    return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": mask}


@pytest.mark.parametrize("shape", [(1, 3), (1, 32), (5, 17), (33, 8)])
def test_any_batch_and_length_gives_nearly_the_models_logits(
    exported: tuple[Any, Path], shape: tuple[int, int]
) -> None:
    model, folder = exported
    inputs = inputs_of(shape)
    with torch.inference_mode():
        expected = model.eval()(**inputs).logits.numpy()
    found = load(folder, threads=1)(inputs).numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 0.1


def test_exporting_leaves_the_model_in_the_mode_that_it_was_in(tiny_model: Path, tmp_path: Path) -> None:
    model = classifier(tiny_model, "a", "b").model.train()
    onnx_int8.onnx_int8(model, logits, inputs_of((2, 6)), tmp_path)
    assert model.training


def test_the_weights_really_are_int8_the_embeddings_too(exported: tuple[Any, Path]) -> None:
    graph = onnx.load(exported[1] / MODEL_FILE).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMulInteger"]
    weights = {kinds[node.input[1]] for node in products if node.input[1] in kinds}
    assert weights == {onnx.TensorProto.INT8}, "unsigned weights would be hardly faster than float32"
    assert len([node for node in products if node.input[1] in kinds]) >= 2 * 6
    [embeddings] = [tensor for tensor in graph.initializer if list(tensor.dims) == [39, 32]]
    assert embeddings.data_type in {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}


def test_only_the_quantized_file_remains(exported: tuple[Any, Path]) -> None:
    assert [path.name for path in exported[1].iterdir()] == [MODEL_FILE]


def test_a_graph_that_computes_something_else_is_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.errors import FinetuneError

    class Wrong:
        def run(self, *arguments: Any) -> list[Any]:
            return [np.full((1, 2), 7.0)]

    model = classifier(tiny_model, "a", "b").model.eval()
    monkeypatch.setattr(onnx_int8, "_open_session", lambda path, threads: Wrong())
    with pytest.raises(FinetuneError, match="cannot be exported faithfully"):
        onnx_int8.onnx_int8(model, logits, inputs_of((2, 6)), tmp_path)


def test_the_session_uses_the_threads_that_it_is_given(
    exported: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = onnxruntime.InferenceSession

    def spy(path: str, options: Any, **more: Any) -> Any:
        seen.append(options.intra_op_num_threads)
        return real(path, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    load(exported[1], threads=3).in_threads(1)
    assert seen == [3, 1]


def test_a_model_in_half_precision_is_exported_in_float32(tiny_model: Path, tmp_path: Path) -> None:
    model = classifier(tiny_model, "a", "b").model.eval().bfloat16()
    onnx_int8.onnx_int8(model, logits, inputs_of((2, 6)), tmp_path)
    assert model.dtype == torch.bfloat16
    inputs = inputs_of((3, 5))
    with torch.inference_mode():
        expected = model.float()(**inputs).logits.numpy()
    assert np.abs(load(tmp_path, threads=1)(inputs).numpy() - expected).max() < 0.1
