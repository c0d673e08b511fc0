"""Upper limits on GPUs that were not measured, from FLOPs and bytes alone.

A step of each stage runs on torch's meta device. Time is FLOPs over the GPU's peak rate plus the
bytes that each operation reads and writes over its memory's rate: kernels run one after another,
and nothing is fused. Real kernels reach only a part of these peaks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.gpus import GPUS
from benchmarks.harness.options import command, width_option
from benchmarks.harness.results import CaseResult, Result, make_result
from benchmarks.harness.steps import make_stage
from loaders import Inputs
from model.losses import training_loss
from model.recipe import Recipe, Stage
from model.training.optimizer import make_optimizer
from model.unet import DualDecoderUNet

DEVICES = ("T4", "A100", "H100")
_BATCH = 2  # rates are per sample
_PCIE_GB_S = 12.0  # PCIe 3.0 x16, as a T4 has; the others have more


class ByteCounter(TorchDispatchMode):
    """Adds up the bytes that every operation reads and writes; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
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
            gflop, mbyte = work(make_stage(kind, size, _BATCH), width)
            for name in DEVICES:
                gpu = GPUS[name]
                step_s = gflop / (gpu.tflops_half * 1e3) + mbyte / (gpu.memory_gb_s * 1e3)
                figures = {
                    "gflop_per_sample": gflop,
                    "mbyte_per_sample": mbyte,
                    "limit_samples_per_s": 1 / step_s,
                    "copied_gb_per_s": 5 * 224 * 224 / step_s / 1e9,
                    "share_of_pcie": 5 * 224 * 224 / step_s / 1e9 / _PCIE_GB_S,
                }
                cases[f"{name}, {kind} {size}"] = CaseResult(
                    parameters={"gpu": name, "stage": kind, "size": size}, figures=figures
                )
    return make_result("estimate", {"width": width}, cases)


def work(stage: Stage, width: int) -> tuple[float, float]:
    """GFLOP and MB of memory traffic of one training step, per sample, in bfloat16."""
    with torch.device("meta"):
        network = DualDecoderUNet(width).bfloat16().freeze(*stage.frozen).train()
        image = torch.empty(_BATCH, 3, stage.size, stage.size, dtype=torch.bfloat16)
        target = torch.empty(_BATCH, 1, stage.size, stage.size)
    inputs = Inputs(image, image, target, target)
    optimizer = torch.optim.SGD(network.trained_parameters(), lr=1e-3, momentum=0.9)
    with FlopCounterMode(display=False) as flops, ByteCounter() as traffic:
        mask_logits, depth = network(inputs.bg, inputs.fg_bg, decode=stage.decode)
        training_loss(stage, inputs, mask_logits, depth).backward()
        optimizer.step()
    return flops.get_total_flops() / _BATCH / 1e9, traffic.bytes / _BATCH / 1e6


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
