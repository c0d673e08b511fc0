"""Where the time of a conversion goes: each step of packing a sample, in one process."""

from __future__ import annotations

import tempfile
from pathlib import Path

import crc32c
import numpy as np

from maskdepth.benchmarks.harness.options import DATASET, REPEATS, at_least_1, command
from maskdepth.benchmarks.harness.results import CaseResult, Result, make_result, summarize
from maskdepth.benchmarks.harness.timing import StepClock
from maskdepth.convert import jpeg
from maskdepth.convert.bases import RecordWriter, open_bases
from maskdepth.convert.codecs import Encoded, pack_runs, threshold_mask
from maskdepth.convert.encoding import write_part
from maskdepth.convert.jpeg.coefficients import read_coefficients
from maskdepth.convert.jpeg.luma import Luma, luma_of, write_luma
from maskdepth.convert.manifest import BaseFile
from maskdepth.convert.pack import PackConfig
from maskdepth.convert.parts import Part, new_accumulators
from maskdepth.convert.source import Source, read_source
from maskdepth.convert.storage import DIFFERENCE_CODECS
from maskdepth.convert.vote import write_bases
from maskdepth.convert.workers import worker_pool

ALL_STEPS = "all of it, as `pack` does it"


@command(DATASET, at_least_1("--samples", default=1000, help="Of the first background."), REPEATS)
def encode(dataset: Path, samples: int, repeats: int) -> Result:
    """CPU time of each step of packing, on the first samples of DATASET.

    A first round is not counted.
    """
    source = read_source(dataset)
    samples = min(samples, int(source.layout.group_starts[1]))
    with tempfile.TemporaryDirectory(prefix="maskdepth-bench-") as name:
        work = Path(name)
        with worker_pool(0) as executor:
            bases = write_bases(source, DIFFERENCE_CODECS, work, executor, shown=False)
        rounds = [_round(source, samples, bases, work) for _ in range(repeats + 1)][1:]
    cases = {
        step: CaseResult(figures=summarize([one[step] for one in rounds], "cpu_us"))
        for step in rounds[0]
    }
    return make_result("encode", {"samples": samples, "repeats": repeats}, cases)


def _round(
    source: Source, samples: int, bases: dict[str, BaseFile], work: Path
) -> dict[str, float]:
    """CPU microseconds per sample of each step."""
    clock = StepClock()
    sums = new_accumulators()
    height, width = source.layout.height, source.layout.width
    writers = {
        name: RecordWriter(open_bases(work, described, source.layout), 0, name)
        for name, described in bases.items()
    }
    rgb, gray = np.empty((height, width, 3), np.uint8), np.empty((height, width, 1), np.uint8)
    for index in range(samples):
        fg_bg, mask, depth = clock("read 3 files", list, map(Path.read_bytes, source.paths(index)))
        clock("decode fg_bg", jpeg.decode_rgb, fg_bg, rgb)
        clock("sums of fg_bg", sums["fg_bg"].add, rgb)
        pixels = clock("decode mask", jpeg.decode_gray, mask, gray)
        clock("threshold mask", threshold_mask, pixels)
        runs = clock("mask to run lengths", pack_runs, pixels)
        clock("sums of mask", sums["mask"].add, pixels)
        found = clock("read coefficients of depth", _read_luma, depth)
        cut = clock("write luma of depth", write_luma, found)
        pixels = clock("decode depth", jpeg.decode_gray, cut, gray)
        clock("sums of depth", sums["depth"].add, pixels)
        encoded = Encoded(cut, pixels, {}, found)
        record = clock("record of depth, and compare", writers["depth"].encode, encoded).data
        found = clock("read coefficients of fg_bg", read_coefficients, fg_bg)
        encoded = Encoded(fg_bg, rgb, {}, found)
        other = clock("record of fg_bg, and compare", writers["fg_bg"].encode, encoded).data
        clock("checksums", list, map(crc32c.crc32c, (fg_bg, runs, cut, record, other, runs)))
    part = Part(number=0, start=0, stop=samples)
    (work / "parts").mkdir(exist_ok=True)
    clock(ALL_STEPS, write_part, source, PackConfig().codecs, bases, part, work / "parts")
    return clock.us_per_sample(samples)


def _read_luma(source: bytes) -> Luma:
    """The luma coefficients of a gray image."""
    return luma_of(read_coefficients(source))
