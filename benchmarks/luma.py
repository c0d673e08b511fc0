"""Cutting depth maps to their luma: this project's code against libjpeg-turbo's tjTransform."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import numpy as np

from benchmarks.harness.images import spread_indices
from benchmarks.harness.options import DATASET, REPEATS, at_least_1, command
from benchmarks.harness.results import CaseResult, Result, make_result, summarize
from benchmarks.harness.timing import time_cpu
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


@command(
    DATASET,
    at_least_1("--samples", default=1000, help="Evenly spread over DATASET."),
    REPEATS,
)
def luma(dataset: Path, samples: int, repeats: int) -> Result:
    """Two ways to cut the depth maps of DATASET to their luma plane; pixels are compared."""
    source = read_source(dataset)
    indices = spread_indices(source.layout.samples, samples)
    maps = [source.paths(index)[2].read_bytes() for index in indices]
    ways = {"cut_to_luma": cut_to_luma, f"tjTransform of {LIBRARY}": gray_transform()}
    cases = {name: _case(name, way, maps, repeats) for name, way in ways.items()}
    return make_result("luma", {"samples": len(maps), "repeats": repeats}, cases)


def _case(name: str, way: Callable[[bytes], bytes], maps: list[bytes], repeats: int) -> CaseResult:
    cuts = [way(one) for one in maps]
    for one, cut in zip(maps, cuts, strict=True):
        if not np.array_equal(jpeg.decode_gray(cut), jpeg.decode_gray(one)):
            raise AssertionError(f"{name} changes pixels")
    cpu_us = time_cpu(lambda: [way(one) for one in maps], len(maps), repeats)
    figures = {"bytes": fmean(map(len, cuts)), "source_bytes": fmean(map(len, maps))}
    return CaseResult(figures=figures | summarize(cpu_us, "cpu_us"))
