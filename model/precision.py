"""The device, its arithmetic (float32, TF32, bfloat16, scaled float16) and torch.compile."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import click
import torch

from maskdepth.model.driver import find_mismatch, find_missing_code, read_driver
from maskdepth.model.errors import ModelError

AMP = ("auto", "off", "tf32", "bf16", "fp16")
COMPILE = ("auto", "off", "default", "reduce-overhead", "max-autotune")
"""Modes of torch.compile, off, or auto (`choose_compile`)."""
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
"""Modes that record CUDA graphs."""
BF16_UNITS = frozenset({"avx512_bf16", "amx_bf16"})
"""Flags in /proc/cpuinfo of CPUs with bfloat16 multiplication in hardware."""
DEVICES = "expected auto, cpu, cuda or cuda:N"


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The arithmetic of a training or evaluation step."""

    dtype: torch.dtype | None
    """dtype of autocast; None for no autocast."""
    scale: bool
    """Whether gradients need a scaler."""
    tf32: bool = False
    """Whether a GPU may round the factors of float32 products to 10 bits of mantissa."""

    def autocast(self, device_type: str) -> AbstractContextManager:
        """Return the context manager for the forward pass."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(device_type, dtype=self.dtype)

    def set_tf32(self) -> None:
        """Allow or forbid TF32 in the whole process, and let cuDNN choose its fastest kernels.

        By default torch allows TF32 in convolutions, but not in matrix products.
        """
        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        torch.backends.cudnn.benchmark = True

    def __str__(self) -> str:
        names = {None: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16, scaled"}
        return "TF32" if self.tf32 else names[self.dtype]


def choose_precision(
    request: str,
    device_type: str,
    capability: tuple[int, int] | None,
    cpu_flags: frozenset[str] = frozenset(),
) -> Precision:
    """Return the precision for `--amp` and a device.

    capability: CUDA compute capability, None on other devices. cpu_flags: of /proc/cpuinfo.

    auto is bfloat16 on GPUs from 8.0 (A100) and on CPUs with BF16_UNITS; float16 with a scaler
    on older GPUs (P100, T4), which emulate bfloat16; off on other CPUs, where bfloat16 was
    measured 5 to 6 times slower. off is full float32; tf32 is float32 with TF32 convolutions
    and products. Raises ModelError for fp16 on a CPU, and for tf32 on a device without it.
    """
    ampere = capability is not None and capability >= (8, 0)
    if request == "auto" and device_type == "cuda":
        request = "bf16" if ampere else "fp16"
    elif request == "auto":
        request = "bf16" if cpu_flags & BF16_UNITS else "off"
    if request == "fp16" and device_type == "cpu":
        raise ModelError("--amp fp16 needs a GPU; on a CPU use --amp off or bf16")
    if request == "tf32" and not ampere:
        raise ModelError("--amp tf32 needs a GPU of compute capability 8.0 (A100) or more")
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return Precision(dtype=dtypes.get(request), scale=request == "fp16", tf32=request == "tf32")


def choose_compile(
    request: str,
    device: torch.device,
    *,
    world_size: int = 1,
    capability: tuple[int, int] | None = None,
    triton: bool | None = None,
) -> str:
    """Return the mode of torch.compile for `--compile`, or off.

    auto is default on a GPU from compute capability 7.0 where Triton is installed, in a run of
    one rank; off elsewhere: several ranks would have to agree that compiling failed.
    capability, triton: of the device and of this Python, read from them if None. Raises
    ModelError for a mode that the device does not support.
    """
    capability = capability or capability_of(device)
    if request == "auto":
        if triton is None:
            triton = find_spec("triton") is not None
        able = triton and capability is not None and capability >= (7, 0)
        request = "default" if able and world_size == 1 else "off"
    require_compile(request, device, capability)
    return request


def require_compile(
    mode: str, device: torch.device, capability: tuple[int, int] | None = None
) -> None:
    """Raise ModelError unless the device supports the mode of `--compile`.

    capability: of a GPU, read from the device if None. Triton needs 7.0; a P100 has 6.0.
    """
    capability = capability or capability_of(device)
    if mode != "off" and capability is not None and capability < (7, 0):
        raise ModelError(
            f"--compile {mode}: found a GPU of compute capability {capability[0]}."
            f"{capability[1]}, expected 7.0 or more; use --compile off"
        )
    if mode == "reduce-overhead" and device.type == "cpu":
        raise ModelError(
            "--compile reduce-overhead: CUDA graphs need a GPU; on a CPU use default or off"
        )


def choose_device(request: str) -> torch.device:
    """Return the device for `--device`; auto is cuda if torch can use it, otherwise cpu.

    auto prints a warning if there is a GPU that torch cannot use. Raises ModelError for a name
    that torch does not know, or a device that is not available.
    """
    if request == "auto":
        if reason := unusable_gpu():
            _warn_once(f"the GPU is not used, because {reason}")
        return torch.device("cuda" if torch.cuda.is_available() and not reason else "cpu")
    try:
        device = torch.device(request)
    except RuntimeError:
        raise ModelError(f"--device {request}: not a device; {DEVICES}") from None
    if device.type == "cuda" and (reason := unusable_gpu(device)):
        raise ModelError(f"--device {request}: {reason}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"--device {request}: found {torch.cuda.device_count()} CUDA devices; "
            "use --device cpu, or a CUDA build of torch on a machine with a GPU"
        )
    if device.type not in ("cpu", "cuda"):
        raise ModelError(f"--device {request}: found type {device.type}; {DEVICES}")
    return device


def unusable_gpu(device: torch.device | str = "cuda") -> str | None:
    """Why torch cannot use this GPU, and what to install; None if it can or there is none."""
    if not torch.cuda.is_available():
        driver = read_driver()
        return find_mismatch(driver, torch.version.cuda) if driver else None
    device = torch.device(device)
    if (device.index or 0) >= torch.cuda.device_count():
        return None
    capability = torch.cuda.get_device_capability(device)
    return find_missing_code(capability, torch.version.cuda, torch.cuda.get_arch_list())


@cache
def _warn_once(message: str) -> None:
    click.echo(f"Warning: {message}", err=True)


def precision_for(request: str, device: torch.device) -> Precision:
    """`choose_precision` for a device of this machine; also sets TF32 for the process."""
    precision = choose_precision(request, device.type, capability_of(device), cpu_flags())
    precision.set_tf32()
    return precision


def capability_of(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of a GPU; None for another device."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def cpu_flags() -> frozenset[str]:
    """Flags of this machine's CPU from /proc/cpuinfo; empty if that file does not have them."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)", path.read_text() if path.exists() else "", re.MULTILINE)
    return frozenset(found[1].split() if found else ())
