"""Mixed precision, compilation and devices, with the capabilities of the hardware injected."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maskdepth.model import ModelError
from maskdepth.model.precision import (
    COMPILE,
    Precision,
    choose_compile,
    choose_device,
    choose_precision,
    require_compile,
)


@pytest.mark.parametrize(
    ("request_", "device", "capability", "dtype", "scale"),
    [
        ("auto", "cpu", None, None, False),
        ("auto", "cuda", (6, 0), torch.float16, True),  # P100
        ("auto", "cuda", (7, 5), torch.float16, True),  # T4
        ("auto", "cuda", (8, 0), torch.bfloat16, False),  # A100
        ("auto", "cuda", (9, 0), torch.bfloat16, False),  # H100
        ("off", "cuda", (9, 0), None, False),
        ("fp16", "cuda", (9, 0), torch.float16, True),
        ("bf16", "cpu", None, torch.bfloat16, False),
        ("tf32", "cuda", (8, 0), None, False),
    ],
)
def test_precision(
    request_: str,
    device: str,
    capability: tuple[int, int] | None,
    dtype: torch.dtype | None,
    scale: bool,
) -> None:
    expected = Precision(dtype=dtype, scale=scale, tf32=request_ == "tf32")
    assert choose_precision(request_, device, capability) == expected


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fpu sse2 avx2", None),  # emulates bfloat16
        ("avx2 avx512f avx512_bf16", torch.bfloat16),
        ("avx512f amx_bf16 amx_tile", torch.bfloat16),
    ],
)
def test_precision_of_a_cpu(flags: str, dtype: torch.dtype | None) -> None:
    found = choose_precision("auto", "cpu", None, frozenset(flags.split()))
    assert found == Precision(dtype=dtype, scale=False)


GPUS = {"P100": (6, 0), "T4": (7, 5), "A100": (8, 0), "H100": (9, 0)}


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("mode", sorted({*COMPILE} - {"auto"}))
def test_compile_on_gpus(gpu: str, mode: str) -> None:
    if gpu == "P100" and mode != "off":
        with pytest.raises(ModelError, match=r"found a GPU of compute capability 6\.0, expected 7"):
            require_compile(mode, torch.device("cuda"), GPUS[gpu])
    else:
        require_compile(mode, torch.device("cuda"), GPUS[gpu])


@pytest.mark.parametrize(
    ("gpu", "triton", "world_size", "mode"),
    [
        ("P100", True, 1, "off"),
        ("T4", True, 1, "default"),
        ("H100", True, 1, "default"),
        ("H100", False, 1, "off"),
        ("H100", True, 2, "off"),
    ],
)
def test_auto_compiles_on_gpus_with_triton(
    gpu: str, triton: bool, world_size: int, mode: str
) -> None:
    device, capability = torch.device("cuda"), GPUS[gpu]
    options: Any = {"capability": capability, "triton": triton, "world_size": world_size}
    assert choose_compile("auto", device, **options) == mode
    assert choose_compile("off", device, **options) == "off"


def test_auto_does_not_compile_on_a_cpu() -> None:
    assert choose_compile("auto", torch.device("cpu"), triton=True) == "off"


def test_compile_on_a_cpu() -> None:
    require_compile("default", torch.device("cpu"))
    with pytest.raises(ModelError, match="CUDA graphs need a GPU"):
        require_compile("reduce-overhead", torch.device("cpu"))


def test_tf32_is_set_explicitly() -> None:
    kept = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        for request_ in ("tf32", "off", "bf16"):
            choose_precision(request_, "cuda", (8, 0)).set_tf32()
            assert torch.backends.cudnn.allow_tf32 is (request_ == "tf32")
            assert torch.backends.cuda.matmul.allow_tf32 is (request_ == "tf32")
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = kept


def test_unsupported_devices_are_named() -> None:
    with pytest.raises(ModelError, match="fp16 needs a GPU"):
        choose_precision("fp16", "cpu", None)
    for capability in ((6, 0), (7, 5)):
        with pytest.raises(ModelError, match="tf32 needs a GPU of compute capability"):
            choose_precision("tf32", "cuda", capability)
    for name in ("gpu", "nonsense", "", "cuda:-1", "cuda:99999999999999999999"):
        with pytest.raises(ModelError, match="not a device; expected auto, cpu, cuda or cuda:N"):
            choose_device(name)
    for name in ("meta", "mps"):
        with pytest.raises(ModelError, match=f"found type {name}; expected auto, cpu, cuda or cud"):
            choose_device(name)
    with pytest.raises(ModelError, match="CUDA devices"):
        choose_device("cuda:99")
