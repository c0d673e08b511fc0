"""How much memory of a device is free."""

from __future__ import annotations

import re
from pathlib import Path

import torch

_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 2**63


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated on a device now.

    On a GPU, what CUDA reports, and what torch has reserved and does not use. On a CPU, the
    smaller of the system's available memory and what the control groups of this process (version
    2) allow.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min(_read_number(Path("/proc/meminfo"), "MemAvailable:") * 1024, _left_in_groups())


def _left_in_groups(groups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that the control group of this process and all groups around it leave."""
    try:
        name = re.search(r"^0::/(.*)$", own.read_text(), re.MULTILINE)
    except OSError:
        return _UNLIMITED
    group = groups / (name[1] if name else "")
    around = [one for one in (group, *group.parents) if one.is_relative_to(groups)]
    return min(map(_left_in, around), default=_UNLIMITED)


def _left_in(group: Path) -> int:
    """Bytes that one control group leaves, as if the files that it caches were dropped."""
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        return limit - used + _read_number(group / "memory.stat", "inactive_file")
    except (OSError, ValueError):  # no such group, or "max": without a limit
        return _UNLIMITED


def _read_number(path: Path, name: str) -> int:
    """The number after a name at the start of a line; ValueError if there is none."""
    found = re.search(rf"^{name}\s+(\d+)", path.read_text(), re.MULTILINE)
    if not found:
        raise ValueError(f"{path}: found no {name}")
    return int(found[1])
