"""Peak rates of GPUs, from NVIDIA's data sheets, and the energy that a GPU uses.

Dense rates in TFLOP/s, memory in GB/s. Sources: "Tesla P100 GPU Accelerator"
(2016), "T4 Tensor Core GPU" (2019), "V100 GPU Accelerator" (2020), "A100 Tensor Core GPU" (2021,
40 GB: 2020), "A10" (2021), "L4" (2023), "H100 Tensor Core GPU" (2023), "H200 Tensor Core GPU"
(2024). Rates that a sheet gives "with sparsity" are halved here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from model.precision import Precision


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Peaks of a GPU; tflops_half: float16 or bfloat16 on tensor cores (P100: without them)."""

    tflops_float: float
    tflops_half: float
    memory_gb_s: float


# Ordered: the first entry whose words are all in torch's name of the device is used.
GPUS = {
    "H200": Gpu(tflops_float=67, tflops_half=989.5, memory_gb_s=4800),
    "H100 PCIe": Gpu(tflops_float=51, tflops_half=756.5, memory_gb_s=2000),
    "H100 NVL": Gpu(tflops_float=60, tflops_half=835.5, memory_gb_s=3900),
    "H100": Gpu(tflops_float=67, tflops_half=989.5, memory_gb_s=3350),
    "A100-SXM4-80GB": Gpu(tflops_float=19.5, tflops_half=312, memory_gb_s=2039),
    "A100": Gpu(tflops_float=19.5, tflops_half=312, memory_gb_s=1555),
    "V100": Gpu(tflops_float=15.7, tflops_half=125, memory_gb_s=900),
    "P100": Gpu(tflops_float=9.3, tflops_half=18.7, memory_gb_s=732),
    "A10G": Gpu(tflops_float=31.2, tflops_half=70, memory_gb_s=600),
    "A10": Gpu(tflops_float=31.2, tflops_half=125, memory_gb_s=600),
    "L4": Gpu(tflops_float=30.3, tflops_half=121, memory_gb_s=300),
    "T4": Gpu(tflops_float=8.1, tflops_half=65, memory_gb_s=320),
}


def find_gpu(name: str) -> Gpu | None:
    """The GPU with torch's name of a device; None if it is not in the table."""
    words = name.replace("-", " ").split()
    for known, gpu in GPUS.items():
        if all(part in words for part in known.replace("-", " ").split()):
            return gpu
    return None


def peak_tflops(device: torch.device, precision: Precision) -> float | None:
    """Peak of a device with a precision, in TFLOP/s; None if it is not known."""
    gpu = find_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is None:
        return None
    if precision.tf32:
        return gpu.tflops_half / 2  # on every GPU that has TF32, by the same sheets
    return gpu.tflops_float if precision.dtype is None else gpu.tflops_half


def energy_counter(device: torch.device) -> Callable[[], int] | None:
    """Reads the millijoules that a GPU has used, by NVML; None where that cannot be read."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # not installed, no driver, or a GPU without the counter
        return None
    return partial(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
