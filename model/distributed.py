"""Training one network in several processes (ranks).

Each rank takes its slice of every step (`loaders.Order`). Gradients are averaged, and BatchNorm
statistics are computed over all ranks. So W ranks compute what one process computes with W
times the batch size, except for rounding.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.nn.functional import all_reduce
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from maskdepth.model.errors import ModelError
from maskdepth.model.unet import DualDecoderUNet

Value = TypeVar("Value")

JOIN_S = 600.0
"""Seconds in which all ranks must join."""


def local_device(device: torch.device, world_size: int) -> torch.device:
    """The device of this rank: with several ranks, `cuda` becomes the GPU of LOCAL_RANK."""
    if world_size == 1 or str(device) != "cuda":
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def joined(rank: int, world_size: int, device: torch.device) -> Iterator[None]:
    """Join the process group that torchrun's environment describes: NCCL, or gloo on CPUs.

    With one rank there is no group. After an error the group is not destroyed, because that
    would wait for ranks that wait for this one; torchrun ends them.
    """
    if world_size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        shared, _, _ = next(iter(rendezvous("env://", rank, world_size)))
    except ValueError as error:  # MASTER_ADDR or MASTER_PORT is missing
        raise ModelError(f"environment: {error}; start with torchrun") from None
    store = agreed_store(shared, rank, world_size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
    yield
    dist.destroy_process_group()


def agreed_store(shared: Store, rank: int, world_size: int) -> Store:
    """The part of a store that only the ranks that call this now use.

    torchrun keeps its store when it restarts ranks, with the addresses at which the ranks before
    could be reached; new ranks that read those wait in vain. So the first rank draws a name, each
    of the others answers to it with one of its own, and the first rank confirms that.

    Raises ModelError if a rank does not answer for `JOIN_S`.
    """
    own = uuid4().hex
    if rank:
        return PrefixStore(_wait(partial(_answer, shared, own, rank), rank, 0), shared)
    shared.set("first", own)
    for other in range(1, world_size):
        _wait(partial(_confirm, shared, own, other), rank, other)
    return PrefixStore(own, shared)


def _answer(shared: Store, own: str, rank: int) -> str:
    """The name of the first rank, once it has confirmed ours; empty before."""
    if not shared.check(["first"]):
        return ""
    name = shared.get("first").decode()  # that of an earlier start until the first rank sets it
    shared.set(f"answer of {rank}", f"{name} {own}")
    return name if shared.check([f"{name} confirms {own}"]) else ""


def _confirm(shared: Store, own: str, other: int) -> bool:
    """Whether another rank has answered to our name; confirms it."""
    key = f"answer of {other}"
    name, answer = shared.get(key).decode().split() if shared.check([key]) else ("", "")
    if name == own:
        shared.set(f"{own} confirms {answer}", "")
    return name == own


def _wait(until: Callable[[], Value], rank: int, other: int) -> Value:
    """The first result that is true; ModelError after `JOIN_S`."""
    deadline = time.monotonic() + JOIN_S
    while not (found := until()):
        if time.monotonic() > deadline:
            raise ModelError(f"rank {rank}: rank {other} has not joined in {JOIN_S:.0f} s")
        time.sleep(0.02)
    return found


def from_first_rank(value: Value) -> Value:
    """The value that the first rank calls this with, on every rank. All ranks must call it."""
    if not is_distributed():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def is_distributed() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized()


def count_ranks() -> int:
    """Processes that train together; 1 before they have joined."""
    return dist.get_world_size() if is_distributed() else 1


def without_exchange(module: nn.Module) -> AbstractContextManager[object]:
    """Context in which a wrapped network adds up the gradients of its rank alone."""
    if isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def require_same(value: object, what: str) -> None:
    """ModelError on each rank whose value is not that of the first. All ranks must call it."""
    expected = from_first_rank(value)
    if value != expected:
        raise ModelError(
            f"rank {dist.get_rank()}: found {what} {value}, and the first rank {expected}; all "
            "machines must see the same RUN_DIR"
        )


def share_batch_norm(network: DualDecoderUNet) -> None:
    """Make every BatchNorm compute its statistics over all ranks; names and values are kept.

    Uses torch's SyncBatchNorm on a GPU, and `SharedBatchNorm` on a CPU.
    """
    if network.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm  # the same state with another forward


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batches of all ranks on CPUs, which torch's SyncBatchNorm rejects."""

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W), B of this rank; gradients flow through the sums of all ranks."""
        if not self.training:
            return super().forward(images)
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            raise ValueError("running statistics with a momentum are needed")
        # float64: the variance is a small difference of large sums.
        values, over = images.double(), (0, 2, 3)
        count = values.new_full((1,), images.numel() / images.shape[1])
        sums: Tensor = all_reduce(torch.cat([values.sum(over), values.square().sum(over), count]))
        total, square = sums[:-1].chunk(2)
        mean = total / sums[-1]
        variance = square / sums[-1] - mean.square()
        # Update the running statistics as nn.BatchNorm2d does.
        unbiased = variance * sums[-1] / (sums[-1] - 1)
        self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.detach().to(self.running_var.dtype), self.momentum)
        self.get_buffer("num_batches_tracked").add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        normalised: Tensor = values * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
        return normalised.to(images.dtype)


def wrap_network(network: DualDecoderUNet, compile_mode: str) -> nn.Module:
    """Return the module to call in place of the network: DDP with several ranks, compiled if asked.

    Freeze first: DDP waits for the gradient of every parameter that requires one.
    """
    module: nn.Module = network
    if is_distributed():
        # No broadcast: buffers are equal on all ranks, because BatchNorm statistics are shared.
        module = DistributedDataParallel(
            network, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    if compile_mode != "off":
        # Stages differ in shapes and frozen parts. torch counts recompilations, and after a limit
        # it silently runs uncompiled; reset the count for each stage.
        torch.compiler.reset()
        # Each shape has its own graph: there is one in training and one in validation, whose
        # smaller last batch runs uncompiled.
        module.compile(mode=compile_mode, dynamic=False)
    return module
