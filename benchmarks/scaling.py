"""How cost grows as work grows: threads, batch size, image size, number of records.

python -m benchmarks scaling SHARDS
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.harness.contender import Contender, race
from benchmarks.harness.images import read_truth
from benchmarks.harness.loading import Loading
from benchmarks.harness.ours import ENGINES, missing_engines, our_contenders
from benchmarks.harness.repeated import write_repeated
from benchmarks.harness.results import CaseResult, Result, make_result
from convert.dataset.compose import compose
from convert.pack import pack
from convert.shards import Shards
from loaders import build_loader

BATCH_SIZES = (16, 64, 256)
IMAGE_SIZES = (112, 224, 448)
_MIB = 2**20
_BATCHES = 40  # of 64, for each number of records


def run(
    shards: Path,
    loading: Loading,
    *,
    samples: int,
    records: Sequence[int],
    say: Callable[[str], None],
) -> Result:
    """Each axis on its own, the others at their defaults; both engines.

    samples: composed for each image size. records: numbers of records to open.
    """
    cases: dict[str, CaseResult] = {}

    def add(axis: str, value: int, contenders: list[Contender]) -> list[Contender]:
        """Contenders of one point of an axis, without pixels to compare."""
        renamed = []
        for contender in contenders:
            name = f"{contender.name}, {axis} {value}"
            parameters: dict[str, str | float] = {"axis": axis, "value": float(value)}
            cases[name] = CaseResult(parameters={**parameters, "engine": contender.name})
            renamed.append(replace(contender, name=name, scale=None))
        return renamed

    counts = sorted({1, loading.threads, *(2**n for n in range(10) if 2**n < loading.threads)})
    for axis, values in (("threads", counts), ("batch size", BATCH_SIZES)):
        field = []
        for value in values:
            varied = (
                replace(loading, threads=value)
                if axis == "threads"
                else replace(loading, batch_size=value)
            )
            field += add(axis, value, our_contenders(shards, varied))
        _time(cases, field, shards, loading.repeats, say)
    with tempfile.TemporaryDirectory(prefix="maskdepth-scaling-") as name:
        folder = Path(name)
        field = []
        for size in IMAGE_SIZES:
            packed = _composed(folder, size, samples)
            field += add("image size", size, our_contenders(packed, loading))
        _time(cases, field, shards, loading.repeats, say)
        for count in records:
            cases |= _opened(shards, folder / f"repeated-{count}", count, loading, say)
    arguments = loading.arguments(shards=shards.name, samples=samples)
    return make_result("scaling", arguments, cases, device=loading.device)


def _time(
    cases: dict[str, CaseResult],
    field: list[Contender],
    shards: Path,
    repeats: int,
    say: Callable[[str], None],
) -> None:
    """Put the repeats of these contenders into their cases."""
    truth = read_truth(Shards(shards), np.arange(1))
    found = race(field, truth, repeats, say=say)
    for name, measured in found.repeats.items():
        cases[name] = CaseResult.of(measured, cases[name].parameters)


def _composed(folder: Path, size: int, samples: int) -> Path:
    """Drawn composites of one image size, packed."""
    dataset, packed = folder / f"data-{size}", folder / f"shards-{size}"
    people = max(1, samples // 40)
    compose(dataset, backgrounds=4, foregrounds=people, placements=10, size=size, progress=False)
    pack(dataset, packed, progress=False)
    return packed


def _opened(
    shards: Path, folder: Path, count: int, loading: Loading, say: Callable[[str], None]
) -> dict[str, CaseResult]:
    """Opening a folder of so many records, in a fresh process for each engine."""
    samples = write_repeated(shards, folder, count)
    found = {}
    for engine in (name for name in ENGINES if name not in missing_engines(shards)):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            figures = pool.submit(_open, engine, shards, folder, loading).result()
        name = f"ours, {engine.upper()}"
        say(f"{name}, {samples} records: first batch after {figures['first_batch_s']:.2f} s")
        found[f"{name}, records {samples}"] = CaseResult(
            parameters={"axis": "records", "value": float(samples), "engine": name},
            figures=figures,
        )
    return found


def _open(engine: str, warm: Path, folder: Path, loading: Loading) -> dict[str, float]:
    """Seconds to the first batch, memory that the loader adds, and the rate of what follows."""
    options: dict[str, Any] = {
        "device": loading.device, "num_workers": loading.threads, "rank": 0, "world_size": 1
    }  # fmt: skip
    with build_loader(engine, warm, **options) as loader:  # imports, compiled kernels
        next(iter(loader.epoch(0)))
    this = psutil.Process()
    before, began = this.memory_info().rss, time.perf_counter()
    with build_loader(engine, folder, **options) as loader:
        batches = iter(loader.epoch(0))
        next(batches)
        first_batch_s = time.perf_counter() - began
        added_mib = (this.memory_info().rss - before) / _MIB
        began, cpu = time.perf_counter(), time.process_time()
        seen = sum(len(batch.index) for batch in islice(batches, _BATCHES))
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    rates = {"samples_per_s": seen / wall_s, "cpu_us_per_sample": cpu_s / seen * 1e6}
    return {"first_batch_s": first_batch_s, "added_mib": added_mib, **(rates if seen else {})}
