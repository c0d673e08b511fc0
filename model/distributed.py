"""Several processes that train one network: who we are, and how they stay equal.

Each rank takes its slice of every step (`loaders.Order`); gradients are averaged, BatchNorm
takes its statistics over all ranks. So W ranks compute what one process would with W times
the batch size, but for rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from model.errors import ModelError
from model.unet import DualDecoderUNet


def local_device(device: torch.device, world_size: int) -> torch.device:
    """The GPU of this rank, where there are several and none is named: that of LOCAL_RANK."""
    if world_size == 1 or str(device) != "cuda":
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def joined(rank: int, world_size: int, device: torch.device) -> Iterator[None]:
    """Belong to the process group that torchrun's environment describes: NCCL, or gloo on CPUs.

    With one rank there is no group. After an error the group is left as it is: to end it would
    wait for ranks that wait for us; torchrun ends them.
    """
    if world_size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, rank=rank, world_size=world_size)
    except ValueError as error:  # MASTER_ADDR or MASTER_PORT is missing
        raise ModelError(f"environment: {error}; start with torchrun") from None
    yield
    dist.destroy_process_group()


def several() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized()


def share_batch_norm(network: DualDecoderUNet) -> DualDecoderUNet:
    """Make every BatchNorm take its statistics over all ranks; names and values stay.

    On a GPU by torch's SyncBatchNorm, which knows no CPU; there by `SharedBatchNorm`.
    """
    if next(network.parameters()).device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, SharedBatchNorm.of(child))
    return network


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batches of all ranks, for any backend; eval mode is as ever."""

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> SharedBatchNorm:
        """One that holds the parameters and buffers of ``norm`` themselves."""
        shared = cls(norm.num_features, norm.eps, norm.momentum, device="meta")
        shared._parameters, shared._buffers = norm._parameters, norm._buffers
        return shared.train(norm.training)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W), B of this rank; gradients flow through the sums of all ranks."""
        if not self.training:
            return super().forward(images)
        # float64: the variance is a small difference of large sums.
        values, over = images.double(), (0, 2, 3)
        count = values.new_full((1,), images.numel() / images.shape[1])
        sums = torch.cat([values.sum(over), values.square().sum(over), count])
        sums = all_reduce(sums)
        total, square = sums[:-1].chunk(2)
        mean = total / sums[-1]
        variance = square / sums[-1] - mean.square()
        self._follow(mean.detach(), (variance * sums[-1] / (sums[-1] - 1)).detach())
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        values = values * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
        return values.to(images.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics as `nn.BatchNorm2d` does."""
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            raise ValueError("running statistics with a momentum are needed")
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        self.get_buffer("num_batches_tracked").add_(1)


def wrap_network(network: DualDecoderUNet, compile_mode: str) -> nn.Module:
    """What a stage calls in place of the network: shared by the ranks, compiled if asked for.

    After freezing: what does not train has no gradient to wait for.
    """
    module: nn.Module = network
    if several():
        module = DistributedDataParallel(
            network, broadcast_buffers=False, gradient_as_bucket_view=True
        )  # buffers are equal on all ranks by themselves: their statistics are shared
    if compile_mode != "off":
        # Each stage has other shapes and other frozen parts: torch counts recompilations, and
        # from a limit on runs uncompiled without a word.
        torch.compiler.reset()
        module.compile(mode=compile_mode)
    return module
