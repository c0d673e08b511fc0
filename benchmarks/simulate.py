"""Millions and billions of samples on up to 1,024 GPUs, by arithmetic and by our own order.

The order of an epoch is evaluated at its true size, for real ranks and steps. What would need the
data itself is computed from the bytes of a packed folder.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from pathlib import Path

import numpy as np

from maskdepth.benchmarks.harness.options import SHARDS, command
from maskdepth.benchmarks.harness.results import CaseResult, Result, make_result
from maskdepth.convert.layout import RECORD
from maskdepth.convert.manifest import Manifest, read_manifest
from maskdepth.loaders.options import LoaderOptions
from maskdepth.loaders.order import Order

SAMPLES = (400_000, 4_000_000, 4_000_000_000)
WORLDS = (1, 8, 1024)
SAMPLES_PER_BG = 4000  # as in the original data set
BATCH_SIZE = 64
STEPS = 50
FILE_BYTES = 2**30  # of a tar shard for such sizes


@command(SHARDS)
def simulate(shards: Path) -> Result:
    """Order, index and shards at 400,000 to 4 billion samples, on 1 to 1,024 GPUs."""
    manifest = read_manifest(shards)
    cases = {}
    for samples in SAMPLES:
        for world in WORLDS:
            name = f"{samples:,} samples, {world:,} GPU{'s' if world > 1 else ''}"
            cases[name] = CaseResult(
                parameters={"samples": float(samples), "world_size": float(world)},
                figures={**sizes(manifest, samples, world), **walk(samples, world)},
            )
    arguments = {"shards": shards.name, "batch_size": BATCH_SIZE, "steps": STEPS}
    return make_result("simulation", arguments, cases)


def sizes(manifest: Manifest, samples: int, world: int) -> dict[str, float]:
    """Bytes by arithmetic, from the mean bytes per sample of the packed folder."""
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
        "backgrounds_gib": backgrounds * pixels / 2**30,
        "steps_per_epoch": float(-(-samples // (BATCH_SIZE * world))),
    }


def walk(samples: int, world: int) -> dict[str, float]:
    """Cost and memory of the order at this size, of the first and the last rank.

    Each takes ``STEPS`` steps from the middle of epoch 3. Raises AssertionError unless all of
    their samples differ.
    """
    # Compile the permutation before timing starts.
    Order(10_000, LoaderOptions(batch_size=1)).batch(0, 0)
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
    return {
        "order_us_per_batch": statistics.median(seconds for _, seconds in walked) * 1e6,
        "order_peak_kib": peak / 2**10,
        "resume_in_mid_epoch_us": resume_s * 1e6,
        "distinct_backgrounds_in_64": _count_backgrounds(seen[0]),
        "distinct_backgrounds_seen": _count_backgrounds(every),
    }


def _timed(order: Order, step: int) -> tuple[np.ndarray, float]:
    began = time.perf_counter()
    batch = order.batch(3, step)
    return batch, time.perf_counter() - began


def _count_backgrounds(samples: np.ndarray) -> float:
    return float(len(np.unique(samples // SAMPLES_PER_BG)))
