"""Peak rates of GPUs, from NVIDIA's data sheets.

Dense rates in TFLOP/s, memory in GB/s. Sources: "Tesla P100 GPU Accelerator" (2016), "T4 Tensor
Core GPU" (2019), "V100 GPU Accelerator" (2020), "A100 Tensor Core GPU" (2021, 40 GB: 2020), "A10"
(2021), "L4" (2023), "H100 Tensor Core GPU" (2023), "H200 Tensor Core GPU" (2024). Rates that a
sheet gives "with sparsity" are halved here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from maskdepth.model.precision import Precision


class Gpu(NamedTuple):
    """Peaks of a GPU; tflops_half: float16 or bfloat16 on tensor cores (P100: without them)."""

    tflops_float: float
    tflops_half: float
    memory_gb_s: float


# Ordered: the first entry whose words are all in torch's name of the device is used.
GPUS = {
    "H200": Gpu(67, 989.5, 4800),
    "H100 PCIe": Gpu(51, 756.5, 2000),
    "H100 NVL": Gpu(60, 835.5, 3900),
    "H100": Gpu(67, 989.5, 3350),
    "A100-SXM4-80GB": Gpu(19.5, 312, 2039),
    "A100": Gpu(19.5, 312, 1555),
    "V100": Gpu(15.7, 125, 900),
    "P100": Gpu(9.3, 18.7, 732),
    "A10G": Gpu(31.2, 70, 600),
    "A10": Gpu(31.2, 125, 600),
    "L4": Gpu(30.3, 121, 300),
    "T4": Gpu(8.1, 65, 320),
}


def find_gpu(name: str) -> Gpu | None:
    """The GPU with torch's name of a device; None if it is not in the table."""
    words = set(name.replace("-", " ").split())
    found = (gpu for known, gpu in GPUS.items() if words >= set(known.replace("-", " ").split()))
    return next(found, None)


def peak_tflops(device: torch.device, precision: Precision) -> float | None:
    """Peak of a device with a precision, in TFLOP/s; None if it is not known."""
    gpu = find_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is None:
        return None
    if precision.tf32:
        return gpu.tflops_half / 2  # on every GPU that has TF32, by the same sheets
    return gpu.tflops_float if precision.dtype is None else gpu.tflops_half
