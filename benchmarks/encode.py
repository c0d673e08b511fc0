"""Where the time of a conversion goes: each step of a sample's way into a shard, one process.

python -m benchmarks encode DATASET
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import click
import crc32c
import numpy as np

from benchmarks.harness.options import DATASET, REPEATS, command, option
from benchmarks.harness.results import CaseResult, Result, make_result
from convert import jpeg
from convert.codecs import pack_runs, threshold_mask
from convert.jpeg.luma import cut_to_luma
from convert.pack import PackConfig
from convert.parts import Part, new_accumulators, write_part
from convert.source import Source, read_source

WHOLE = "all of it, as `pack` does it"


class _Clock:
    """CPU time by step, in seconds: other work on the machine is not counted."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def time(self, step: str, work: Callable[..., Any], *arguments: Any) -> Any:
        before = time.thread_time()
        result = work(*arguments)
        self.seconds[step] += time.thread_time() - before
        return result


@command(
    DATASET,
    option("--samples", type=click.IntRange(1), default=1000, help="Of the first background."),
    REPEATS,
)
def encode(dataset: Path, samples: int, repeats: int) -> Result:
    """CPU time of each step of packing, on the first samples of DATASET.

    A first round is not counted.
    """
    source = read_source(dataset)
    samples = min(samples, int(source.layout.group_starts[1]))
    rounds = [_round(source, samples) for _ in range(repeats + 1)][1:]
    cases = {step: _case([one[step] for one in rounds]) for step in rounds[0]}
    return make_result("encode", {"samples": samples, "repeats": repeats}, cases)


def _case(cpu_us: list[float]) -> CaseResult:
    figures = {"median_cpu_us": median(cpu_us), "lowest_cpu_us": min(cpu_us)}
    return CaseResult.of(figures=figures | {"highest_cpu_us": max(cpu_us)})


def _round(source: Source, samples: int) -> dict[str, float]:
    clock = _Clock()
    sums = new_accumulators()
    height, width = source.layout.height, source.layout.width
    rgb, gray = np.empty((height, width, 3), np.uint8), np.empty((height, width, 1), np.uint8)
    for index in range(samples):
        fg_bg, mask, depth = clock.time("read 3 files", _read, source.paths(index))
        clock.time("decode fg_bg", jpeg.decode_rgb, fg_bg, rgb)
        clock.time("sums of fg_bg", sums["fg_bg"].add, rgb)
        pixels = clock.time("decode mask", jpeg.decode_gray, mask, gray)
        clock.time("threshold mask", threshold_mask, pixels)
        runs = clock.time("mask to run lengths", pack_runs, pixels)
        clock.time("sums of mask", sums["mask"].add, pixels)
        cut = clock.time("cut depth to luma", cut_to_luma, depth)
        pixels = clock.time("decode depth", jpeg.decode_gray, cut, gray)
        clock.time("sums of depth", sums["depth"].add, pixels)
        clock.time("checksums", _checksums, fg_bg, runs, cut)
    with tempfile.TemporaryDirectory(prefix="maskdepth-bench-") as folder:
        part = Part(number=0, start=0, stop=samples)
        clock.time(WHOLE, write_part, source, PackConfig().codecs, part, Path(folder))
    return {step: seconds / samples * 1e6 for step, seconds in clock.seconds.items()}


def _read(paths: Iterable[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


def _checksums(*fields: bytes) -> list[int]:
    return [crc32c.crc32c(data) for data in fields]
