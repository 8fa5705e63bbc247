"""Where the work runs."""

from __future__ import annotations

import pytest
import torch

from finetune.errors import FinetuneError
from finetune.runtime import Runtime


def test_the_processor_is_always_there_and_computes_in_single_precision() -> None:
    assert Runtime("cpu").torch_device().type == "cpu"
    assert Runtime("cpu").accelerator().mixed_precision == "no"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device: str) -> None:
    with pytest.raises(FinetuneError, match=rf"expected one of auto, cpu.* on this machine; found {device}"):
        Runtime(device).torch_device()


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    Runtime("cpu", threads=1).torch_device()
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
