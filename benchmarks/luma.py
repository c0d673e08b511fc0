"""Cutting depth maps to their luma plane: this program's code against libjpeg-turbo's tjTransform.

python -m benchmarks luma DATASET
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median

import numpy as np

from benchmarks.harness.results import CaseResult, Result, make_result
from convert import jpeg
from convert.errors import DataError
from convert.jpeg.luma import cut_to_luma
from convert.source import read_source

LIBRARY = "libturbojpeg.so.0"
# TJXOPT_GRAY | TJXOPT_COPYNONE | TJXOPT_OPTIMIZE; libjpeg-turbo before 3.0 ignores the last.
_OPTIONS = 8 | 64 | 256


class _Transform(ctypes.Structure):
    """`tjtransform` of turbojpeg.h."""

    _fields_ = (
        ("region", ctypes.c_int * 4),
        ("op", ctypes.c_int),
        ("options", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("custom_filter", ctypes.c_void_p),
    )


def gray_transform() -> Callable[[bytes], bytes]:
    """Lossless conversion of a JPEG to gray by `tjTransform`; DataError without the library."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise DataError(f"{LIBRARY}: cannot be loaded ({error}); install libturbojpeg") from None
    library.tjInitTransform.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(library.tjInitTransform())
    transform = _Transform(options=_OPTIONS)

    def run(source: bytes) -> bytes:
        out, size = ctypes.c_void_p(), ctypes.c_ulong()
        failed = library.tjTransform(
            handle, source, ctypes.c_ulong(len(source)), 1, ctypes.byref(out), ctypes.byref(size),
            ctypes.byref(transform), 0,
        )  # fmt: skip
        if failed:
            raise ValueError("tjTransform refused a depth map")
        data = ctypes.string_at(out, size.value)
        library.tjFree(out)
        return data

    return run


def run(dataset: Path, *, samples: int, repeats: int) -> Result:
    """Bytes and CPU microseconds a map, of evenly spread depth maps; pixels are compared."""
    source = read_source(dataset)
    indices = np.unique(np.linspace(0, source.layout.samples - 1, samples).astype(int)).tolist()
    maps = [source.paths(index)[2].read_bytes() for index in indices]
    ways = {"cut_to_luma": cut_to_luma, f"tjTransform of {LIBRARY}": gray_transform()}
    cases = {name: _case(name, way, maps, repeats) for name, way in ways.items()}
    return make_result("luma", {"samples": len(maps), "repeats": repeats}, cases)


def _case(name: str, way: Callable[[bytes], bytes], maps: list[bytes], repeats: int) -> CaseResult:
    cuts = [way(one) for one in maps]
    for one, cut in zip(maps, cuts, strict=True):
        if not np.array_equal(jpeg.decode_gray(cut), jpeg.decode_gray(one)):
            raise AssertionError(f"{name} changes pixels")
    cpu_us = []
    for _ in range(repeats):
        started = time.thread_time()
        for one in maps:
            way(one)
        cpu_us.append((time.thread_time() - started) / len(maps) * 1e6)
    figures = {"bytes": fmean(map(len, cuts)), "source_bytes": fmean(map(len, maps))}
    figures |= {"median_cpu_us": median(cpu_us), "lowest_cpu_us": min(cpu_us)}
    return CaseResult.of(figures=figures | {"highest_cpu_us": max(cpu_us)})
