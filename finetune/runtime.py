"""Where the work runs: device, threads, precision, and whether code from models is allowed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from finetune.errors import FinetuneError
from finetune.processes import count

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator


@dataclass(frozen=True)
class Runtime:
    """The operational settings that a recipe's `train` section and the command line's flags decide together."""

    device: str = "auto"
    threads: int | None = None
    precision: str = "auto"
    allow_code: bool = False

    def accelerator(self) -> Accelerator:
        """Return Accelerate's view of the device; raise FinetuneError when the device is not there."""
        import torch
        from accelerate import Accelerator
        from accelerate.utils import (
            DistributedDataParallelKwargs,
            GradientAccumulationPlugin,
            InitProcessGroupKwargs,
        )

        for plugin in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
            if os.environ.get(f"ACCELERATE_USE_{plugin}", "false").lower() in {"1", "true", "yes"}:
                raise FinetuneError(f"ACCELERATE_USE_{plugin} is set, but {plugin} is not supported yet; unset it")
        device = self.torch_device()
        if device.type == "cuda" and count() == 1:  # otherwise each process has one of its own
            torch.cuda.set_device(device)
        precision = self.precision
        if precision == "tf32":
            if device.type != "cuda":
                raise FinetuneError(f"train.precision: tf32 is of NVIDIA GPUs, and this is {device}; use fp32 or bf16")
            torch.set_float32_matmul_precision("high")
            precision = "fp32"
        if precision == "auto":
            precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no" if precision == "fp32" else precision,
            # the loop accumulates by itself: an environment variable must not divide its losses once more
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[
                # a head may leave a part of its model unused; and others wait while the main process prepares rows
                DistributedDataParallelKwargs(find_unused_parameters=True),
                InitProcessGroupKwargs(timeout=timedelta(days=1)),
            ],
        )

    def torch_device(self) -> torch.device:
        """Return the chosen device and set the number of threads; raise FinetuneError when it is not there."""
        import torch

        if self.threads:
            torch.set_num_threads(self.threads)
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        device = torch.device(self.device)
        available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not available.get(device.type) or (device.index or 0) >= max(1, torch.cuda.device_count()):
            there = [name for name, found in available.items() if found]
            raise FinetuneError(
                f"--device: expected one of auto, {', '.join(there)} on this machine; found {self.device}"
            )
        return device
