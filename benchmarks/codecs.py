"""How fields can be stored without loss: bytes and time of the candidates.

`codecs` is why masks are stored as run lengths, `luma` why this project cuts depth maps itself,
`decode` what storing differences gives.
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import simplejpeg

from maskdepth.benchmarks.harness.images import spread_indices
from maskdepth.benchmarks.harness.options import DATASET, REPEATS, SHARDS, at_least_1, command
from maskdepth.benchmarks.harness.results import CaseResult, Result, make_result, summarize
from maskdepth.benchmarks.harness.timing import time_cpu
from maskdepth.convert import jpeg
from maskdepth.convert.codecs import decode_mask_jpeg, decode_runs, pack_runs
from maskdepth.convert.errors import DataError
from maskdepth.convert.jpeg.luma import cut_to_luma
from maskdepth.convert.manifest import read_manifest
from maskdepth.convert.shards import Shards
from maskdepth.convert.source import read_source

LIBRARY = "libturbojpeg.so.0"
# TJXOPT_GRAY | TJXOPT_COPYNONE | TJXOPT_OPTIMIZE; libjpeg-turbo before 3.0 ignores the last.
_OPTIONS = 8 | 64 | 256


class Candidate(NamedTuple):
    """One way to store a binary mask."""

    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, int, int], np.ndarray]
    on_a_gpu: str


def _unpack_bits(data: bytes, height: int, width: int) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=height * width)
    return bits.reshape(height, width)


CANDIDATES = {
    "run lengths": Candidate(pack_runs, decode_runs, "two prefix sums"),
    "packed bits": Candidate(
        lambda mask: np.packbits(mask).tobytes(), _unpack_bits, "a shift and a mask"
    ),
    "zlib of packed bits": Candidate(
        lambda mask: zlib.compress(np.packbits(mask).tobytes(), 6),
        lambda data, height, width: _unpack_bits(zlib.decompress(data), height, width),
        "no inflate in torch",
    ),
    "zlib of run lengths": Candidate(
        lambda mask: zlib.compress(pack_runs(mask), 6),
        lambda data, height, width: decode_runs(zlib.decompress(data), height, width),
        "no inflate in torch",
    ),
    "JPEG, quality 65": Candidate(
        lambda mask: simplejpeg.encode_jpeg(
            mask[..., None] * np.uint8(255), 65, colorspace="GRAY", colorsubsampling="Gray"
        ),
        decode_mask_jpeg,
        "nvJPEG; not lossless by itself",
    ),
}


@command(SHARDS, at_least_1("--samples", default=1000, help="Evenly spread over SHARDS."), REPEATS)
def codecs(shards: Path, samples: int, repeats: int) -> Result:
    """Lossless ways to store the masks of SHARDS: bytes and decoding time."""
    opened = Shards(shards)
    indices = spread_indices(len(opened), samples)
    masks = [opened.decode(index, "mask") for index in indices]
    cases = {}
    for name, candidate in CANDIDATES.items():
        stored = [(candidate.encode(mask), *mask.shape) for mask in masks]
        if not np.array_equal([candidate.decode(*one) for one in stored], masks):
            raise AssertionError(f"{name} does not return the mask")
        cpu_us = time_cpu(candidate.decode, stored, repeats)
        cases[name] = CaseResult(
            parameters={"on_a_gpu": candidate.on_a_gpu},
            figures={"bytes": fmean(len(data) for data, *_ in stored)}
            | summarize(cpu_us, "decode_cpu_us"),
        )
    arguments = {"shards": shards.name, "samples": len(indices), "repeats": repeats}
    return make_result("codecs", arguments, cases)


@command(SHARDS, at_least_1("--samples", default=1000, help="Evenly spread over SHARDS."), REPEATS)
def decode(shards: Path, samples: int, repeats: int) -> Result:
    """Bytes and decoding time of fg_bg and depth in each format of SHARDS.

    Samples are decoded one by one and in order, with the time that Python takes for each.
    """
    forms = [Shards(shards, form) for form in read_manifest(shards).formats]
    indices = spread_indices(len(forms[0]), samples)
    cases = {}
    for name in ("fg_bg", "depth"):
        for opened in forms:
            work = [(index, name) for index in indices]
            cpu_us = time_cpu(opened.decode, work, repeats)
            figures = {"bytes": fmean(opened.stored(*one).size for one in work)}
            case = f"{name}, {opened.codecs[name]}"
            cases[case] = CaseResult(figures=figures | summarize(cpu_us, "cpu_us"))
    arguments = {"shards": shards.name, "samples": len(indices), "repeats": repeats}
    return make_result("decode", arguments, cases)


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
    DATASET, at_least_1("--samples", default=1000, help="Evenly spread over DATASET."), REPEATS
)
def luma(dataset: Path, samples: int, repeats: int) -> Result:
    """Two ways to cut the depth maps of DATASET to their luma plane; pixels are compared."""
    source = read_source(dataset)
    indices = spread_indices(source.layout.samples, samples)
    maps = [source.paths(index)[2].read_bytes() for index in indices]
    ways = {"cut_to_luma": cut_to_luma, f"tjTransform of {LIBRARY}": gray_transform()}
    cases = {}
    for name, way in ways.items():
        cuts = [way(one) for one in maps]
        for one, cut in zip(maps, cuts, strict=True):
            if not np.array_equal(jpeg.decode_gray(cut), jpeg.decode_gray(one)):
                raise AssertionError(f"{name} changes pixels")
        cpu_us = time_cpu(way, [(one,) for one in maps], repeats)
        figures = {"bytes": fmean(map(len, cuts)), "source_bytes": fmean(map(len, maps))}
        cases[name] = CaseResult(figures=figures | summarize(cpu_us, "cpu_us"))
    return make_result("luma", {"samples": len(maps), "repeats": repeats}, cases)
