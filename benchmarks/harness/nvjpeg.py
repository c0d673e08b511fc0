"""The version of nvJPEG, which DALI decodes JPEGs with, and the JPEG engines that it finds."""

from __future__ import annotations

import ctypes
from ctypes.util import find_library
from importlib import metadata
from typing import Any

import torch

_PACKAGES = ("nvidia-nvjpeg", "nvidia-nvjpeg-cu12")
_HARDWARE = 3  # NVJPEG_BACKEND_HARDWARE
_ARCH_MISMATCH = 7  # NVJPEG_STATUS_ARCH_MISMATCH
_VERSION = range(3)  # MAJOR_VERSION, MINOR_VERSION and PATCH_LEVEL of libraryPropertyType


def load() -> Any:
    """The library of the installed package, else of the system; None without either."""
    paths = [find_library("nvjpeg")]
    for package in _PACKAGES:
        try:
            found = metadata.distribution(package)
        except metadata.PackageNotFoundError:
            continue
        files = [file for file in found.files or () if file.name.startswith("libnvjpeg.so")]
        paths = [*(str(found.locate_file(file)) for file in files), *paths]
    for path in filter(None, paths):
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None


def version(library: Any) -> str | None:
    """As 13.3.2; None if the library is None or does not say it."""
    try:
        return ".".join(str(_property(library, which)) for which in _VERSION)
    except (AttributeError, OSError):
        return None


def _property(library: Any, which: int) -> int:
    value = ctypes.c_int(-1)
    if library.nvjpegGetProperty(which, ctypes.byref(value)) != 0:
        raise OSError("nvjpegGetProperty")
    return value.value


def engines(library: Any, device: torch.device) -> int | None:
    """Number of JPEG engines that nvJPEG can use on the GPU; None if unknown.

    0: the GPU has none, or a container without the driver's capability `video` hides them.
    """
    handle, number, cores = ctypes.c_void_p(), ctypes.c_uint(0), ctypes.c_uint(0)
    try:
        with torch.cuda.device(device):
            status = library.nvjpegCreateEx(_HARDWARE, None, None, 0, ctypes.byref(handle))
            if status != 0:
                return 0 if status == _ARCH_MISMATCH else None
            status = library.nvjpegGetHardwareDecoderInfo(
                handle, ctypes.byref(number), ctypes.byref(cores)
            )
            library.nvjpegDestroy(handle)
    except (AttributeError, OSError, RuntimeError):  # an old library, or none
        return None
    return number.value if status == 0 else None


def has_engine(capability: tuple[int, int]) -> bool:
    """Whether GPUs of a compute capability have a JPEG engine, by nvJPEG's manual (13.4, 1.5).

    It lists A100 and A30 (8.0), Ada (8.9), Hopper (9.0) and Blackwell (from 10.0).
    """
    return capability in ((8, 0), (8, 9)) or capability >= (9, 0)
