"""Why masks are stored as run lengths: bytes and decoding time of the lossless candidates."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import simplejpeg

from benchmarks.harness.images import spread_indices
from benchmarks.harness.options import REPEATS, SHARDS, at_least_1, command
from benchmarks.harness.results import CaseResult, Result, make_result, summarize
from benchmarks.harness.timing import time_cpu
from convert.codecs import decode_mask_jpeg, decode_runs, pack_runs
from convert.shards import Shards


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


@command(
    SHARDS,
    at_least_1("--samples", default=1000, help="Evenly spread over SHARDS."),
    REPEATS,
)
def codecs(shards: Path, samples: int, repeats: int) -> Result:
    """Lossless ways to store the masks of SHARDS: bytes and decoding time."""
    opened = Shards(shards)
    indices = spread_indices(len(opened), samples)
    masks = [opened.decode(index, "mask") for index in indices]
    cases = {name: _case(name, one, masks, repeats) for name, one in CANDIDATES.items()}
    arguments = {"shards": shards.name, "samples": len(indices), "repeats": repeats}
    return make_result("codecs", arguments, cases)


def _case(name: str, candidate: Candidate, masks: list[np.ndarray], repeats: int) -> CaseResult:
    stored = [candidate.encode(mask) for mask in masks]
    for data, mask in zip(stored, masks, strict=True):
        if not np.array_equal(candidate.decode(data, *mask.shape), mask):
            raise AssertionError(f"{name} does not return the mask")
    height, width = masks[0].shape
    cpu_us = time_cpu(
        lambda: [candidate.decode(data, height, width) for data in stored], len(stored), repeats
    )
    return CaseResult(
        parameters={"on_a_gpu": candidate.on_a_gpu},
        figures={"bytes": fmean(map(len, stored))} | summarize(cpu_us, "decode_cpu_us"),
    )
