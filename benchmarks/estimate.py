"""Upper limits on GPUs that were not measured, and which part of a step sets them.

A step of each stage runs on torch's meta device. The GPU's time is FLOPs over its peak rate plus
the bytes that each operation reads and writes over its memory's rate: kernels run one after
another, and nothing is fused. Real kernels reach only a part of these peaks. Meanwhile the host
launches the operations and decodes, and the copies cross PCIe: the slowest of these parts limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from maskdepth.benchmarks.harness.gpus import GPUS, Gpu
from maskdepth.benchmarks.harness.options import PATH, command, width_option
from maskdepth.benchmarks.harness.results import CaseResult, Result, make_result, read_result
from maskdepth.benchmarks.harness.steps import make_stage
from maskdepth.convert.errors import DataError
from maskdepth.convert.program import BENCH
from maskdepth.loaders import Inputs
from maskdepth.model.losses import training_loss
from maskdepth.model.recipe import Recipe, Stage
from maskdepth.model.training.optimizer import make_optimizer
from maskdepth.model.unet import DualDecoderUNet
from maskdepth.model.upsampling import Upsampling

DEVICES = ("T4", "A100", "H100")
BATCH_SIZES = {112: 128, 224: 32}  # of the recipe `original`
_PCIE_GB_S = 12.0  # PCIe 3.0 x16, as a T4 has; the others have more
_LAUNCH_US = 10.0  # host time of an eager operation: an estimate
HOST_US = {"ours, FFCV": 4.0, "ours, DALI": 42.0}
"""A sample in the launching thread, measured on a CPU; by the case of `loader` that measures it."""
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


@command(
    width_option(default=64),
    click.option(
        "--loader", "loader_json", type=PATH,
        help="A result of `benchmarks loader`: the loaders' time in the launching thread is as "
        "measured there. Default: 4 us a sample with FFCV, 42 with DALI.",
    ),
)  # fmt: skip
def estimate(width: int, loader_json: Path | None) -> Result:
    """What FLOPs and bytes allow on a T4, an A100 and an H100: limits, never measured."""
    host_us = HOST_US if loader_json is None else measured_host_us(loader_json)
    cases = {}
    for size in (112, 224):
        for kind in ("depth", "mask"):
            counts = count(make_stage(kind, size, BATCH_SIZES[size]), width)
            for name in DEVICES:
                parts = times_us(counts, GPUS[name], BATCH_SIZES[size], host_us)
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
    arguments: dict[str, float] = {"width": width, "cores": _CORES}
    if loader_json is not None:
        arguments |= {f"host_us_{name}": round(time, 1) for name, time in host_us.items()}
    return make_result("estimate", arguments, cases)


def measured_host_us(path: Path) -> dict[str, float]:
    """`HOST_US` by a result of `benchmarks loader`. DataError if it has none of them."""
    result = read_result(path)
    found = {
        name: result.cases[name].thread_us_per_sample for name in HOST_US if name in result.cases
    }
    measured = {name: time.median for name, time in found.items() if time is not None}
    if result.benchmark != "loader" or not measured:
        raise DataError(
            f"{path}: found a result of `{result.benchmark}` without thread_us_per_sample of "
            f"{' or '.join(HOST_US)}, expected one of `{BENCH} loader`; measure again"
        )
    return HOST_US | measured


class Counts(NamedTuple):
    """A training step: operations of the step, GFLOP and MB of memory traffic a sample."""

    operations: int
    gflop: float
    mbyte: float


def times_us(
    counts: Counts, gpu: Gpu, batch_size: int, host_us: Mapping[str, float] = HOST_US
) -> dict[str, float]:
    """Microseconds a sample of each part, at the peaks of a GPU and with the host's costs.

    launches: of the operations and the loader (FFCV) in the launching thread; dali_launches: with
    DALI. host_us: the loaders' part, as `HOST_US`. decoding: FFCV on 8 cores.
    """
    return {
        "flops": counts.gflop / gpu.tflops_half * 1e3,
        "bytes": counts.mbyte / gpu.memory_gb_s * 1e3,
        "launches": counts.operations * _LAUNCH_US / batch_size + host_us["ours, FFCV"],
        "dali_launches": counts.operations * _LAUNCH_US / batch_size + host_us["ours, DALI"],
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
