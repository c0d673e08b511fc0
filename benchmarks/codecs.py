"""Why masks are stored as run lengths: bytes and decoding time of the lossless candidates.

python -m benchmarks codecs SHARDS
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import simplejpeg

from benchmarks.harness.results import CaseResult, Result, make_result
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


def run(folder: Path, *, samples: int, repeats: int) -> Result:
    """Bytes and CPU microseconds of each candidate, on evenly spread masks of a shard folder."""
    shards = Shards(folder)
    indices = np.unique(np.linspace(0, len(shards) - 1, samples).astype(int)).tolist()
    masks = [shards.decode(index, "mask") for index in indices]
    cases = {name: _case(name, one, masks, repeats) for name, one in CANDIDATES.items()}
    arguments = {"shards": folder.name, "samples": len(indices), "repeats": repeats}
    return make_result("codecs", arguments, cases)


def _case(name: str, candidate: Candidate, masks: list[np.ndarray], repeats: int) -> CaseResult:
    stored = [candidate.encode(mask) for mask in masks]
    for data, mask in zip(stored, masks, strict=True):
        if not np.array_equal(candidate.decode(data, *mask.shape), mask):
            raise AssertionError(f"{name} does not return the mask")
    height, width = masks[0].shape
    times = []
    for _ in range(repeats):
        started = time.process_time()
        for data in stored:
            candidate.decode(data, height, width)
        times.append((time.process_time() - started) / len(stored) * 1e6)
    return CaseResult.of(
        parameters={"on_a_gpu": candidate.on_a_gpu},
        figures={
            "bytes": float(np.mean([len(data) for data in stored])),
            "median_decode_cpu_us": median(times),
            "lowest_decode_cpu_us": min(times),
            "highest_decode_cpu_us": max(times),
        },
    )
