"""Millions and billions of samples on up to 1,024 GPUs, without them: arithmetic and our own code.

The order of an epoch is evaluated at its true size, for real ranks and steps; what would need the
data itself is computed from the bytes of a packed folder.

python -m benchmarks simulate SHARDS
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.harness.results import CaseResult, Result, make_result
from convert.layout import RECORD
from convert.manifest import Manifest, read_manifest
from loaders.options import LoaderOptions
from loaders.order import Order

SAMPLES = (400_000, 4_000_000, 4_000_000_000)
WORLDS = (1, 8, 1024)
SAMPLES_PER_BG = 4000  # as in the original data set
BATCH_SIZE = 64
STEPS = 50
FILE_BYTES = 2**30  # of a tar shard for such sizes


def run(shards: Path, say: Callable[[str], None]) -> Result:
    """Every number of samples with every number of ranks."""
    manifest = read_manifest(shards)
    cases = {}
    for samples in SAMPLES:
        for world in WORLDS:
            name = f"{samples:,} samples, {world:,} GPUs"
            figures = {**sizes(manifest, samples, world), **walk(samples, world)}
            cases[name] = CaseResult(
                parameters={"samples": float(samples), "world_size": float(world)},
                figures=figures,
            )
            say(f"{name}: {figures['order_us_per_batch']:.0f} us a batch")
    arguments = {"shards": shards.name, "batch_size": BATCH_SIZE, "steps": STEPS}
    return make_result("simulation", arguments, cases)


def sizes(manifest: Manifest, samples: int, world: int) -> dict[str, float]:
    """Bytes by arithmetic, from what a sample of the packed folder takes."""
    form = manifest.formats.get("webdataset") or next(iter(manifest.formats.values()))
    stored = sum(manifest.files[name].bytes for name in form.files)
    total = stored / manifest.layout.samples * samples
    files = -(-total // FILE_BYTES)
    backgrounds = samples // SAMPLES_PER_BG
    pixels = manifest.layout.height * manifest.layout.width * 3
    return {
        "data_gib": total / 2**30,
        "files": files,
        "manifest_mib": files * 200 / 2**20,
        "index_gib": RECORD.itemsize * samples / 2**30,
        "index_mib_per_gpu": RECORD.itemsize * samples / world / 2**20,
        "backgrounds": float(backgrounds),
        "background_bank_gib": backgrounds * pixels / 2**30,
        "steps_per_epoch": float(-(-samples // (BATCH_SIZE * world))),
    }


def walk(samples: int, world: int) -> dict[str, float]:
    """The order at this size: cost, memory, resuming, and that no sample comes twice.

    The first and the last rank walk ``STEPS`` steps from the middle of epoch 3; that all of
    their samples differ is checked, not believed.
    """
    Order(10_000, LoaderOptions(batch_size=1)).batch(
        0, 0
    )  # compiles the permutation, outside the clock
    ranks = sorted({0, world - 1})
    tracemalloc.start()
    orders = [
        Order(samples, LoaderOptions(batch_size=BATCH_SIZE, seed=1, rank=rank, world_size=world))
        for rank in ranks
    ]
    middle = len(orders[0]) // 2
    first, resume_s = _timed(orders[0], middle)
    steps = range(middle, min(middle + STEPS, len(orders[0]) - 1))
    walked = [_timed(order, step) for order in orders for step in steps]
    seen = [batch for batch, _ in walked]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    every = np.concatenate(seen)
    if len(np.unique(every)) != len(every) or not np.array_equal(seen[0], first):
        raise AssertionError(f"order of {samples} samples on {world} ranks repeats samples")
    spread = np.unique(every // SAMPLES_PER_BG)
    return {
        "order_us_per_batch": statistics.median(seconds for _, seconds in walked) * 1e6,
        "order_peak_kib": peak / 2**10,
        "resume_in_mid_epoch_us": resume_s * 1e6,
        "distinct_backgrounds_in_64": _distinct(seen[0]),
        "distinct_backgrounds_seen": float(len(spread)),
    }


def _timed(order: Order, step: int) -> tuple[np.ndarray, float]:
    began = time.perf_counter()
    batch = order.batch(3, step)
    return batch, time.perf_counter() - began


def _distinct(batch: np.ndarray) -> float:
    return float(len(np.unique(batch // SAMPLES_PER_BG)))
