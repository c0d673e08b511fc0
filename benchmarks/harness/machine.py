"""Where and with what a result was made: processor, device, driver, versions, commit."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch
from pydantic import BaseModel

from convert.workers import available_cores

_LIBRARIES = (
    "torch", "numpy", "numba", "pillow", "simplejpeg", "kornia", "ffcv", "nvidia-dali-cuda130",
    "nvidia-dali-cuda120", "webdataset", "mosaicml-streaming", "litdata", "spdl",
)  # fmt: skip


class Machine(BaseModel, extra="forbid", frozen=True):
    """Where a result was measured; gpu and driver are None where device is "cpu"."""

    cpu: str
    cores: int
    device: str
    gpu: str | None
    driver: str | None
    system: str

    @classmethod
    def of(cls, name: str) -> Machine:
        """This machine, with the device that was measured."""
        device = torch.device(name)
        on_gpu = device.type == "cuda"
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return cls(
            cpu=_processor(),
            cores=available_cores(),
            device=device.type,
            gpu=torch.cuda.get_device_name(device) if on_gpu else None,
            driver=_first_line(query) if on_gpu else None,
            system=platform.platform(),
        )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """Of the checkout, with "-dirty" where it has changes; "unknown" without a checkout."""
    return _first_line(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"])


def _first_line(command: list[str]) -> str:
    """Of the output of a command; "unknown" if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.partition("\n")[0].strip() or "unknown"


def versions() -> dict[str, str]:
    """Of Python and of the libraries of `_LIBRARIES` that are installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
