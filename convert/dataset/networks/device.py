"""The device and precision of a network: parameters of one code path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from maskdepth.convert.dataset.networks.model import Amp
from maskdepth.convert.errors import DataError
from maskdepth.convert.workers import available_cores

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def find_device(name: str | None) -> torch.device:
    """The device with this name; by default a GPU, or the CPU. DataError if it is missing.

    "cuda" is the GPU of this rank.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise DataError(f"device {name}: expected cpu, cuda or cuda:N")
    if device.type != "cuda":
        return torch.device("cpu")
    rank = int(os.environ.get("LOCAL_RANK", "0")) if "WORLD_SIZE" in os.environ else 0
    index = rank if str(device) == "cuda" else device.index
    if index >= (count := torch.cuda.device_count()):
        raise DataError(f"device {name}: found {count} GPUs, expected GPU {index}; use another one")
    return torch.device("cuda", index)


def find_amp(amp: Amp, device: torch.device) -> str:
    """The precision: off, fp16 or bf16. DataError for one of a GPU on a CPU."""
    if device.type == "cpu":
        if amp in _DTYPES:
            raise DataError(f"--amp {amp}: is for a GPU; use off")
        return "off"
    return "fp16" if amp == "auto" else amp


@contextmanager
def inference(device: torch.device, amp: str) -> Iterator[None]:
    """Within this block networks run without gradients, in the precision of `find_amp`."""
    with (
        torch.inference_mode(),
        torch.autocast(device.type, _DTYPES.get(amp), enabled=amp != "off"),
    ):
        yield


def calls_at_once(device: torch.device) -> int:
    """Batches at one time: one for each core that this rank has, or one on a GPU."""
    if device.type == "cuda":
        return 1
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def one_thread_per_call() -> Iterator[None]:
    """Within this block torch uses one thread for each call.

    Sums then have one order, whatever the number of cores and ranks. Cores are used by several
    calls at once.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def to_numpy(depth: Any) -> Any:  # a tensor of (h, w) or more dimensions of 1 -> its array
    """A map on the host, float32 (h, w)."""
    return depth.detach().float().cpu().numpy().reshape(depth.shape[-2:])
