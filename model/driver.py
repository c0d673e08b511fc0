"""NVIDIA's driver of this machine, and the wheels of torch and DALI that it can run.

Standard library only, because `.ci/install` runs this file before anything is installed:
`python model/driver.py` prints the CUDA to install for and, if not that of constraints.txt, the
version of torch. The environment variable CUDA (12 or 13) overrides the choice.

- A driver runs what was built for its major version of CUDA or an older one: CUDA 13 needs
  driver 580, CUDA 12 driver 525 (NVIDIA, "CUDA Compatibility", minor version compatibility).
- CUDA 13 has no code for GPUs before Turing, compute capability 7.5.
- On PyPI, torch 2.11 is the first version that is built for CUDA 13. 2.10 is built for CUDA 12.8
  and for GPUs from Volta (7.0), 2.7 for CUDA 12.6 and for GPUs from Maxwell (5.0); PyTorch's
  RELEASE.md lists them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

MINIMUM_DRIVER = {13: 580, 12: 525}
"""Oldest major version of the driver for each major version of CUDA, newest first."""
TURING, VOLTA = (7, 5), (7, 0)
TORCH_FOR_CUDA_12, TORCH_BEFORE_VOLTA = "2.10.0", "2.7.1"
QUERY = ("nvidia-smi", "--query-gpu=driver_version,compute_cap", "--format=csv,noheader")


class Driver(NamedTuple):
    """An NVIDIA driver and its GPUs."""

    version: str
    """Such as 550.54.14."""
    capabilities: tuple[tuple[int, int], ...] = ()
    """Compute capability of each GPU, where the driver reports it."""

    @property
    def cuda(self) -> int | None:
        """Newest major version of CUDA that the driver runs; None before CUDA 12."""
        major = int(self.version.split(".")[0])
        return next((cuda for cuda, minimum in MINIMUM_DRIVER.items() if major >= minimum), None)


def parse_driver(text: str) -> Driver | None:
    """The driver from the output of `QUERY`, one line per GPU; None if it lists none."""
    found = re.findall(r"^\s*(\d+(?:\.\d+)+)\s*,\s*(?:(\d+)\.(\d+))?", text, re.MULTILINE)
    if not found:
        return None
    capabilities = tuple((int(major), int(minor)) for _, major, minor in found if major)
    return Driver(found[0][0], capabilities)


def read_driver(query: Sequence[str] = QUERY) -> Driver | None:
    """The driver of this machine, from nvidia-smi; None without one, or without a GPU."""
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_driver(done.stdout) if done.returncode == 0 else None


def choose_cuda(driver: Driver | None) -> int:
    """The major version of CUDA to install for: 13, or 12 for an older driver or GPU."""
    if driver is None or driver.cuda is None:
        return 13
    return 12 if driver.cuda == 12 or min(driver.capabilities, default=TURING) < TURING else 13


def choose_torch(cuda: int, driver: Driver | None) -> str | None:
    """The version of torch on PyPI for this CUDA and the oldest GPU; None for constraints.txt's."""
    if cuda == 13:
        return None
    oldest = min(driver.capabilities, default=TURING) if driver else TURING
    return TORCH_BEFORE_VOLTA if oldest < VOLTA else TORCH_FOR_CUDA_12


def find_mismatch(driver: Driver, built_for: str | None) -> str | None:
    """Why torch cannot run on this driver, and what to install, in one line; None if it can.

    built_for: torch's version of CUDA, such as "13.0"; None for a build without CUDA.
    """
    if driver.cuda is None:
        return f"driver {driver.version} is too old: install {MINIMUM_DRIVER[12]} or newer"
    remedy = f"remove .venv and run `make install CUDA={choose_cuda(driver)}`"
    if built_for is None:
        return f"driver {driver.version} was found, but torch was built without CUDA: {remedy}"
    if int(built_for.split(".")[0]) <= driver.cuda:
        return None
    return (
        f"driver {driver.version} supports CUDA {driver.cuda}, torch was built for CUDA "
        f"{built_for}: {remedy}, or install driver {MINIMUM_DRIVER[13]} or newer"
    )


def find_missing_code(
    capability: tuple[int, int], built_for: str | None, kernels: Sequence[str]
) -> str | None:
    """Why torch cannot run on a GPU of this compute capability, as `find_mismatch`.

    kernels: what torch was built for, as in `torch.cuda.get_arch_list()`.
    """
    if has_kernels(kernels, capability):
        return None
    cuda = 12 if capability < TURING else 13
    return (
        f"torch for CUDA {built_for} has no code for a GPU of compute capability {capability[0]}."
        f"{capability[1]}: remove .venv and run `make install CUDA={cuda}`"
    )


def has_kernels(kernels: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether a GPU runs code for these architectures; true if none is known.

    kernels: "sm_75" and the like run on GPUs of the same major version that are not older,
    "compute_75" (PTX) on all that are not older; a letter at the end is ignored.
    """
    known = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", kernel) for kernel in kernels]
    built = [(one[1], (int(one[2]), int(one[3]))) for one in known if one]
    return not built or any(
        made <= capability and (kind == "compute" or made[0] == capability[0])
        for kind, made in built
    )


def main() -> None:
    """Print the choice for `.ci/install`: "CUDA" or "CUDA TORCH"; what it means goes to stderr."""
    driver, request = read_driver(), os.environ.get("CUDA", "")
    if request not in ("", *map(str, MINIMUM_DRIVER)):
        sys.exit(f"install: CUDA={request}: expected CUDA=12 or CUDA=13")
    cuda = int(request) if request else choose_cuda(driver)
    torch = choose_torch(cuda, driver)
    if driver is not None:
        print(f"== driver {driver.version}: torch and DALI for CUDA {cuda}", file=sys.stderr)
        turing = ("compute_75",) if cuda == 13 else ()
        warnings = [find_mismatch(driver, str(cuda))]
        warnings += [find_missing_code(one, str(cuda), turing) for one in driver.capabilities]
        if warning := next(filter(None, warnings), None):
            print(f"== Warning: {warning}", file=sys.stderr)
    print(cuda, torch or "")


if __name__ == "__main__":
    main()
