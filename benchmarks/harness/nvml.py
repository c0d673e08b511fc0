"""What NVML, the library of `nvidia-smi`, says of a GPU: clocks, limits, other users, energy.

A driver, a GPU or a container may not say each of it: what cannot be read is None.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch

GIB = 2**30


class Nvml:
    """One GPU. ``library``: `pynvml`, or what replaces it in a test."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle

    def read(self, function: str, *arguments: str) -> Any:
        """The result of a function of the library, or None where it fails or does not exist.

        arguments: names of the library's constants.
        """
        try:
            values = [getattr(self._library, name) for name in arguments]
            return getattr(self._library, function)(self._handle, *values)
        except Exception:  # an NVMLError, or a version of the library without the function
            return None

    def used_gib(self) -> float | None:
        """Memory of the GPU that is in use, by this process and by all others."""
        memory = self.read("nvmlDeviceGetMemoryInfo")
        return None if memory is None else memory.used / GIB

    def processes(self) -> int | None:
        """Processes that have a CUDA context on the GPU."""
        found = self.read("nvmlDeviceGetComputeRunningProcesses")
        return None if found is None else len(found)

    def state(self) -> dict[str, Any]:
        """Clocks in MHz, now and at most; the limit of power in W; whether MIG is on."""
        milliwatts = self.read("nvmlDeviceGetEnforcedPowerLimit")
        mig = self.read("nvmlDeviceGetMigMode")
        return {
            "sm_clock_mhz": self.read("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM"),
            "sm_clock_max_mhz": self.read("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_SM"),
            "memory_clock_mhz": self.read("nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM"),
            "memory_clock_max_mhz": self.read("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_MEM"),
            "power_limit_w": None if milliwatts is None else milliwatts / 1e3,
            "mig": None if mig is None else mig[0] == 1,
        }

    def energy_counter(self) -> Callable[[], int] | None:
        """Reads the millijoules that the GPU has used; None for a GPU without the counter."""
        name = "nvmlDeviceGetTotalEnergyConsumption"
        if self.read(name) is None:
            return None
        return lambda: int(getattr(self._library, name)(self._handle))


def open_nvml(device: torch.device, library: Any = None) -> Nvml | None:
    """NVML of torch's device; None for a CPU, and without the library or a driver.

    The GPU is found by its UUID, as the numbers of torch follow CUDA_VISIBLE_DEVICES.
    """
    if device.type != "cuda":
        return None
    try:
        if library is None:
            library = import_module("pynvml")
        library.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
    except Exception:  # not installed, or no driver
        return None
    for kind in ("GPU", "MIG"):
        try:
            return Nvml(library, library.nvmlDeviceGetHandleByUUID(f"{kind}-{uuid}".encode()))
        except Exception:  # the other kind, or not visible here
            continue
    return None


class Idle(NamedTuple):
    """Of a GPU before this process used it: memory in use, and processes; None: unknown."""

    used_gib: float | None
    processes: int | None


def before_use(device: torch.device | str) -> Idle:
    """What others use of a device, as the first call in this process has found it.

    Call it before the process uses the device; where torch has memory there at the first call,
    the answer is unknown.
    """
    device = torch.device(device)
    return _before_use(device.type, device.index or 0)  # "cuda" is "cuda:0"


@cache
def _before_use(kind: str, index: int) -> Idle:
    device = torch.device(kind, index)
    nvml = open_nvml(device)
    if nvml is None or torch.cuda.memory_reserved(device) > 0:
        return Idle(None, None)
    return Idle(nvml.used_gib(), nvml.processes())


def added_gib(device: torch.device | str) -> float | None:
    """Memory of a device that is in use now and was not at the first call of `before_use`.

    It is that of this process, of its CUDA context and of all libraries, as far as no other
    process has changed what it uses. None for a CPU, and where it is unknown.
    """
    before, nvml = before_use(device).used_gib, open_nvml(torch.device(device))
    now = None if nvml is None else nvml.used_gib()
    return None if before is None or now is None else now - before
