"""Where the time of a conversion goes: each step of packing a sample, in one process."""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crc32c
import numpy as np

from benchmarks.harness.options import DATASET, REPEATS, at_least_1, command
from benchmarks.harness.results import CaseResult, Result, make_result, summarize
from convert import jpeg
from convert.codecs import pack_runs, threshold_mask
from convert.jpeg.luma import cut_to_luma
from convert.pack import PackConfig
from convert.parts import Part, new_accumulators, write_part
from convert.source import Source, read_source

ALL_STEPS = "all of it, as `pack` does it"


@command(DATASET, at_least_1("--samples", default=1000, help="Of the first background."), REPEATS)
def encode(dataset: Path, samples: int, repeats: int) -> Result:
    """CPU time of each step of packing, on the first samples of DATASET.

    A first round is not counted.
    """
    source = read_source(dataset)
    samples = min(samples, int(source.layout.group_starts[1]))
    rounds = [_round(source, samples) for _ in range(repeats + 1)][1:]
    cases = {
        step: CaseResult(figures=summarize([one[step] for one in rounds], "cpu_us"))
        for step in rounds[0]
    }
    return make_result("encode", {"samples": samples, "repeats": repeats}, cases)


def _round(source: Source, samples: int) -> dict[str, float]:
    """CPU microseconds per sample of each step; other work on the machine is not counted."""
    seconds: dict[str, float] = defaultdict(float)

    def clock(step: str, work: Callable[..., Any], *arguments: Any) -> Any:
        before = time.thread_time()
        result = work(*arguments)
        seconds[step] += time.thread_time() - before
        return result

    sums = new_accumulators()
    height, width = source.layout.height, source.layout.width
    rgb, gray = np.empty((height, width, 3), np.uint8), np.empty((height, width, 1), np.uint8)
    for index in range(samples):
        fg_bg, mask, depth = clock("read 3 files", list, map(Path.read_bytes, source.paths(index)))
        clock("decode fg_bg", jpeg.decode_rgb, fg_bg, rgb)
        clock("sums of fg_bg", sums["fg_bg"].add, rgb)
        pixels = clock("decode mask", jpeg.decode_gray, mask, gray)
        clock("threshold mask", threshold_mask, pixels)
        runs = clock("mask to run lengths", pack_runs, pixels)
        clock("sums of mask", sums["mask"].add, pixels)
        cut = clock("cut depth to luma", cut_to_luma, depth)
        pixels = clock("decode depth", jpeg.decode_gray, cut, gray)
        clock("sums of depth", sums["depth"].add, pixels)
        clock("checksums", list, map(crc32c.crc32c, (fg_bg, runs, cut)))
    with tempfile.TemporaryDirectory(prefix="maskdepth-bench-") as folder:
        part = Part(number=0, start=0, stop=samples)
        clock(ALL_STEPS, write_part, source, PackConfig().codecs, part, Path(folder))
    return {step: total / samples * 1e6 for step, total in seconds.items()}
