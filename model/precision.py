"""Which arithmetic a device should train in: float32, bfloat16, or float16 with scaling."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from model.errors import ModelError

AMP = ("auto", "off", "bf16", "fp16")
DEVICES = "expected auto, cpu, cuda or cuda:N"


@dataclass(frozen=True, kw_only=True)
class Precision:
    """dtype of autocast (None: plain float32) and whether gradients need scaling."""

    dtype: torch.dtype | None
    scale: bool

    def autocast(self, device_type: str) -> AbstractContextManager:
        """Context of the forward pass."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(device_type, dtype=self.dtype)


def choose_precision(
    request: str, device_type: str, capability: tuple[int, int] | None
) -> Precision:
    """The precision for `--amp` and a device.

    ``capability`` is that of CUDA, None on other devices. auto: bfloat16 from 8.0 (A100) on;
    float16 with a scaler below (P100, T4), which emulate bfloat16; off on CPUs, where
    autocast was measured 5 to 6 times slower than float32 without bfloat16 units.
    Raises ModelError for fp16 on a CPU.
    """
    if request == "auto":
        if device_type != "cuda" or capability is None:
            request = "off"
        else:
            request = "bf16" if capability >= (8, 0) else "fp16"
    if request == "fp16" and device_type == "cpu":
        raise ModelError("--amp fp16 needs a GPU; on a CPU use --amp off or bf16")
    dtypes = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    return Precision(dtype=dtypes[request], scale=request == "fp16")


def choose_device(request: str) -> torch.device:
    """The device for `--device`; auto is cuda where there is one.

    Raises ModelError for a name torch does not know, or a device that is not there.
    """
    if request == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(request)
    except RuntimeError:
        raise ModelError(f"--device {request}: not a device; {DEVICES}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"--device {request}: found {torch.cuda.device_count()} CUDA devices here; "
            "use --device cpu, or a CUDA build of torch on a machine with a GPU"
        )
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"--device {request}: found type {device.type}; {DEVICES}")
    return device


def precision_for(request: str, device: torch.device) -> Precision:
    """`choose_precision` for a device that is there."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return choose_precision(request, device.type, capability)
