"""Upper limits on GPUs that were not measured, and which part of a step sets them.

A step of each stage runs on torch's meta device. The GPU's time is FLOPs over its peak rate plus
the bytes that each operation reads and writes over its memory's rate: kernels run one after
another, and nothing is fused. Real kernels reach only a part of these peaks. Meanwhile the host
launches the operations and decodes, and the copies cross PCIe: the slowest of these parts limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.gpus import GPUS, Gpu
from benchmarks.harness.options import command, width_option
from benchmarks.harness.results import CaseResult, Result, make_result
from benchmarks.harness.steps import make_stage
from loaders import Inputs
from model.losses import training_loss
from model.recipe import Recipe, Stage
from model.training.optimizer import make_optimizer
from model.unet import DualDecoderUNet
from model.upsampling import Upsampling

DEVICES = ("T4", "A100", "H100")
BATCH_SIZES = {112: 128, 224: 32}  # of the recipe `original`
_PCIE_GB_S = 12.0  # PCIe 3.0 x16, as a T4 has; the others have more
_LAUNCH_US = 10.0  # host time of an eager operation: an estimate
_FFCV_US, _DALI_US = 4.0, 42.0  # a sample, in the launching thread: measured on a CPU
_DECODING_CORE_US = 145.0  # a sample, FFCV file: measured on two cores of AMD EPYC
_CORES = 8


class ByteCounter(TorchDispatchMode):
    """Adds up operations and the bytes that they read and write; views do neither."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operations += 1
            tensors = tree_leaves((args, kwargs, found))
            self.bytes += sum(
                one.numel() * one.element_size() for one in tensors if isinstance(one, torch.Tensor)
            )
        return found


@command(width_option(default=64))
def estimate(width: int) -> Result:
    """What FLOPs and bytes allow on a T4, an A100 and an H100: limits, never measured."""
    cases = {}
    for size in (112, 224):
        for kind in ("depth", "mask"):
            counts = count(make_stage(kind, size, BATCH_SIZES[size]), width)
            for name in DEVICES:
                parts = times_us(counts, GPUS[name], BATCH_SIZES[size])
                limit, us_per_sample = find_limit(parts)
                figures = {
                    "gflop_per_sample": counts.gflop,
                    "mbyte_per_sample": counts.mbyte,
                    **{f"{part}_us_per_sample": time for part, time in parts.items()},
                    "limit_samples_per_s": 1e6 / us_per_sample,
                }
                cases[f"{name}, {kind} {size}: {limit}"] = CaseResult(
                    parameters={"gpu": name, "stage": kind, "size": size, "limit": limit},
                    figures=figures,
                )
    return make_result("estimate", {"width": width, "cores": _CORES}, cases)


class Counts(NamedTuple):
    """A training step: operations of the step, GFLOP and MB of memory traffic a sample."""

    operations: int
    gflop: float
    mbyte: float


def times_us(counts: Counts, gpu: Gpu, batch_size: int) -> dict[str, float]:
    """Microseconds a sample of each part, at the peaks of a GPU and with the host's costs.

    launches: of the operations and the loader (FFCV) in the launching thread; with DALI the
    latter is 42 us instead of 4. decoding: FFCV on 8 cores.
    """
    return {
        "flops": counts.gflop / gpu.tflops_half * 1e3,
        "bytes": counts.mbyte / gpu.memory_gb_s * 1e3,
        "launches": counts.operations * _LAUNCH_US / batch_size + _FFCV_US,
        "dali_launches": counts.operations * _LAUNCH_US / batch_size + _DALI_US,
        "decoding": _DECODING_CORE_US / _CORES,
        "pcie": 5 * 224 * 224 / _PCIE_GB_S / 1e3,
    }


def find_limit(parts: Mapping[str, float]) -> tuple[str, float]:
    """The slowest part, and microseconds a sample; parts as `times_us` returns them.

    On the GPU, FLOPs and bytes add up; the other parts run at the same time.
    """
    gpu_us = parts["flops"] + parts["bytes"]
    beside = max(("launches", "decoding", "pcie"), key=lambda part: parts[part])
    if parts[beside] > gpu_us:
        return beside, parts[beside]
    return max(("flops", "bytes"), key=lambda part: parts[part]), gpu_us


def work(stage: Stage, width: int) -> float:
    """GFLOP of one training step per sample: the unit in which trainings are compared.

    Those of the network as it is described, with torch's upsampling, of which none are counted:
    the work is the same however a version computes it.
    """
    return count(stage, width, "torch").gflop


def count(stage: Stage, width: int, upsampling: Upsampling = "products") -> Counts:
    """What one training step in bfloat16 does, on the meta device, where no batch is too large.

    The optimiser and the weights move the same bytes in a step of any batch size.
    """
    samples = stage.batch_size
    with torch.device("meta"):
        network = DualDecoderUNet(width, upsampling).bfloat16().freeze(*stage.frozen).train()
        image = torch.empty(samples, 3, stage.size, stage.size, dtype=torch.bfloat16)
        target = torch.empty(samples, 1, stage.size, stage.size)
    inputs = Inputs(image, image, target, target)
    optimizer = torch.optim.SGD(network.trained_parameters(), lr=1e-3, momentum=0.9)
    with FlopCounterMode(display=False) as flops, ByteCounter() as traffic:
        mask_logits, depth = network(inputs.bg, inputs.fg_bg, decode=stage.decode)
        training_loss(stage, inputs, mask_logits, depth).backward()
        optimizer.step()
    flop, moved = flops.get_total_flops() / samples, traffic.bytes / samples
    return Counts(traffic.operations, flop / 1e9, moved / 1e6)


def optimizer_work(recipe: Recipe, stage: Stage) -> float:
    """GFLOP of one step of the recipe's optimiser, whatever the batch size.

    torch counts matrix products, as in `work`: Muon has them, SGD does not.
    """
    with torch.device("meta"):
        network = DualDecoderUNet(recipe.width).freeze(*stage.frozen)
    for parameter in network.trained_parameters():
        parameter.grad = torch.empty_like(parameter)
    optimizer = make_optimizer(network, recipe, stage)
    with FlopCounterMode(display=False) as flops:
        optimizer.step()
    return float(flops.get_total_flops() / 1e9)


def step_pflop(recipe: Recipe, stage: Stage) -> float:
    """Work of one step of a stage: that of its samples, and the optimiser's own."""
    gflop = work(stage, recipe.width) * stage.batch_size + optimizer_work(recipe, stage)
    return gflop / 1e6
