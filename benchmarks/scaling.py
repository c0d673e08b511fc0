"""How cost grows as work grows: threads, batch size, image size, number of records."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import click
import numpy as np
import psutil

from maskdepth.benchmarks.harness.contender import Contender, race
from maskdepth.benchmarks.harness.images import read_truth
from maskdepth.benchmarks.harness.options import (
    SHARDS,
    Loading,
    command,
    keep,
    loading_options,
    option,
)
from maskdepth.benchmarks.harness.ours import DECODING, our_contenders, skipped_engines
from maskdepth.benchmarks.harness.repeated import write_repeated
from maskdepth.benchmarks.harness.results import CaseResult, Result, make_result
from maskdepth.benchmarks.harness.timing import print_progress
from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.pack import pack
from maskdepth.convert.shards import Shards
from maskdepth.convert.workers import run_all, worker_pool
from maskdepth.loaders import build_loader

BATCH_SIZES = (16, 64, 256)
IMAGE_SIZES = (112, 224, 448)
_BATCHES = 40  # of 64, for each number of records


@command(
    SHARDS,
    option("--samples", type=click.IntRange(40), default=2000, help="Composed at each image size."),
    option(
        "--records", type=click.IntRange(100), multiple=True,
        default=(1_000, 10_000, 100_000, 400_000), help="Numbers of records to open.",
    ),
    loading_options,
)  # fmt: skip
def scaling(shards: Path, loading: Loading, samples: int, records: tuple[int, ...]) -> Result:
    """Rates of our decoding engines against threads, batch size, image size and number of records.

    Each axis is measured with the other options at their values.
    """
    cases: dict[str, CaseResult] = {}
    skipped: dict[str, str] = {}

    def result() -> Result:
        arguments = loading.arguments(shards=shards.name, samples=samples)
        return make_result("scaling", arguments, cases, device=loading.device, skipped=skipped)

    threads = sorted({1, loading.threads, *(2**n for n in range(10) if 2**n < loading.threads)})
    loadings = {
        "threads": {count: replace(loading, threads=count) for count in threads},
        "batch size": {size: replace(loading, batch_size=size) for size in BATCH_SIZES},
    }
    for axis, points in loadings.items():
        contenders = {
            value: our_contenders(shards, varied, engines=DECODING)
            for value, varied in points.items()
        }
        cases |= _race_axis(axis, contenders, shards, loading)
        keep(result())
    with tempfile.TemporaryDirectory(prefix="maskdepth-scaling-") as name:
        folder = Path(name)
        contenders = {}
        for size in IMAGE_SIZES:
            dataset, packed = folder / f"data-{size}", folder / f"shards-{size}"
            foregrounds = max(1, samples // 40)
            draw = partial(compose, backgrounds=4, foregrounds=foregrounds, placements=10)
            draw(dataset, size=size, progress=False)
            pack(dataset, packed, progress=False)
            contenders[size] = our_contenders(packed, loading, engines=DECODING)
        cases |= _race_axis("image size", contenders, shards, loading)
        keep(result())
        for count in records:
            repeated = folder / f"repeated-{count}"
            cases |= _open_records(shards, repeated, count, loading)
            reasons = skipped_engines(repeated)
            skipped |= {f"{name}, records": reasons[name] for name in DECODING if name in reasons}
            keep(result())
    return result()


def _race_axis(
    axis: str, contenders: dict[int, list[Contender]], shards: Path, loading: Loading
) -> dict[str, CaseResult]:
    """Cases of the contenders at each value of an axis, without pixels to compare."""
    points = {
        f"{contender.name}, {axis} {value}": (value, contender)
        for value, some in contenders.items()
        for contender in some
    }
    renamed = [replace(one, name=name, scale=None) for name, (_, one) in points.items()]
    found, _ = race(renamed, read_truth(Shards(shards), np.arange(1)), loading)
    return {
        name: CaseResult(
            parameters={"axis": axis, "value": float(value), "engine": contender.name},
            repeats=found[name].repeats,
        )
        for name, (value, contender) in points.items()
    }


def _open_records(
    shards: Path, folder: Path, count: int, loading: Loading
) -> dict[str, CaseResult]:
    """Cases of opening a folder of so many records, in a new process for each engine."""
    samples = write_repeated(shards, folder, count)
    found = {}
    for contender in our_contenders(folder, loading, engines=DECODING):
        name, engine = contender.name, contender.options["engine"]
        with worker_pool(1) as pool:
            (figures,) = run_all(pool, _open, [(engine, shards, folder, loading)])
        first = figures["first_batch_s"]
        print_progress(f"{name}, {samples} records: first batch after {first:.2f} s")
        found[f"{name}, records {samples}"] = CaseResult(
            parameters={"axis": "records", "value": float(samples), "engine": name}, figures=figures
        )
    return found


def _open(engine: str, warm: Path, folder: Path, loading: Loading) -> dict[str, float]:
    """Seconds to the first batch, memory that the loader adds, and the rate of later batches."""
    open_loader = partial(
        build_loader, engine, device=loading.device, num_workers=loading.threads, rank=0,
        world_size=1,
    )  # fmt: skip
    with open_loader(warm) as loader:  # imports modules, compiles kernels
        next(iter(loader.epoch(0)))
    this = psutil.Process()
    before, began = this.memory_info().rss, time.perf_counter()
    with open_loader(folder) as loader:
        batches = iter(loader.epoch(0))
        next(batches)
        first_batch_s = time.perf_counter() - began
        added_mib = (this.memory_info().rss - before) / 2**20
        began, cpu = time.perf_counter(), time.process_time()
        seen = sum(len(batch.index) for batch in islice(batches, _BATCHES))
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    figures = {"first_batch_s": first_batch_s, "added_mib": added_mib}
    if seen:
        figures |= {"samples_per_s": seen / wall_s, "cpu_us_per_sample": cpu_s / seen * 1e6}
    return figures
