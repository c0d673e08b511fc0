"""Where the time of loading goes: each step of making batches with the engine `ffcv`."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from maskdepth.benchmarks.harness.options import REPEATS, SHARDS, at_least_1, command
from maskdepth.benchmarks.harness.results import CaseResult, Result, make_result, summarize
from maskdepth.benchmarks.harness.timing import StepClock
from maskdepth.convert.codecs import unpack_runs
from maskdepth.convert.errors import DataError
from maskdepth.convert.jpeg.difference import Decoding, decode_record
from maskdepth.convert.jpeg.record import is_record
from maskdepth.convert.jpeg.streaming import stream_copy
from maskdepth.convert.layout import CHANNELS, FIELDS
from maskdepth.convert.shards import Shards
from maskdepth.loaders import Loader, build_loader
from maskdepth.loaders.backgrounds import Backgrounds

ALL_STEPS = "all of it, as `ffcv` does it"
FLOOR = "floor: write as many bytes to memory"
BATCH_SIZE = 64
_BUFFERS = 6  # as many as the engine has while one batch is used and four are decoded


@command(SHARDS, at_least_1("--batches", default=60, help="Of 64 samples each."), REPEATS)
def batch(shards: Path, batches: int, repeats: int) -> Result:
    """CPU time of each step of loading batches of SHARDS as uint8, in one thread.

    A first round is not counted.
    """
    opened = Shards(shards, "ffcv")
    if set(opened.bases) != {"fg_bg", "depth"} or opened.codecs["mask"] != "runs":
        raise DataError(
            f"{shards}: found images stored as JPEGs, expected differences and masks as runs; "
            "pack again with --codec difference"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        visited = np.random.default_rng(0).permutation(len(opened))[: batches * BATCH_SIZE]
        with build_loader(
            "ffcv", shards, indices=visited, batch_size=BATCH_SIZE, num_workers=1
        ) as loader:
            steps = Steps(opened, loader.backgrounds)
            rounds = [_round(steps, loader, batches, seed) for seed in range(repeats + 1)][1:]
    finally:
        torch.set_num_threads(threads)
    cases = {
        step: CaseResult(figures=summarize([one[step] for one in rounds], "cpu_us"))
        for step in rounds[0]
    }
    arguments = {"shards": shards.name, "batches": batches, "repeats": repeats}
    return make_result("batch", arguments, cases)


def _round(steps: Steps, loader: Loader, batches: int, seed: int) -> dict[str, float]:
    """CPU microseconds per sample of each step, on batches of random samples."""
    clock = StepClock()
    rng = np.random.default_rng(seed)
    for _ in range(batches):
        steps.load(rng.integers(0, loader.layout.samples, BATCH_SIZE), clock)
    for _ in range(batches):
        steps.write(clock)
    found = clock.us_per_sample(batches * BATCH_SIZE)
    before, samples = time.process_time(), 0
    for one in loader.epoch(seed):
        loader.backgrounds.gather(one.index)
        samples += len(one.index)
    return found | {ALL_STEPS: (time.process_time() - before) / samples * 1e6}


class Steps:
    """The steps in which the engine `ffcv` makes a batch of `BATCH_SIZE`, one at a time."""

    def __init__(self, shards: Shards, backgrounds: Backgrounds) -> None:
        self._shards, self._backgrounds, layout = shards, backgrounds, shards.manifest.layout
        self._file = np.asarray(shards.files[0])
        self._decodings = {name: bases.decoding() for name, bases in shards.bases.items()}
        sizes = {n: layout.height * layout.width * c for n, c in CHANNELS.items()}
        self._buffers = cycle(
            {name: np.zeros((BATCH_SIZE, size), np.uint8) for name, size in sizes.items()}
            for _ in range(_BUFFERS)
        )

    def load(
        self, indices: np.ndarray, clock: Callable[..., Any]
    ) -> tuple[dict[str, np.ndarray], torch.Tensor]:
        """Make a batch: the fields, uint8 (BATCH_SIZE, H * W * C) each, and the backgrounds.

        clock: calls its second argument with those that follow; the first is the step's name.
        """
        out = next(self._buffers)
        offsets, ends, numbers = clock("look up the records", self._look_up, indices)
        clock("checksums", self._shards.all_intact, indices)
        for name, decoding in self._decodings.items():
            places = offsets[name], ends[name]
            step = f"{name} from its base and record"
            clock(step, _decode, decoding, numbers, self._file, *places, out[name])
        clock("mask from runs", _unpack, self._file, offsets["mask"], ends["mask"], out["mask"])
        gathered = clock("copy the background", self._backgrounds.gather, torch.from_numpy(indices))
        return out, gathered

    def write(self, clock: Callable[..., Any]) -> None:
        """Write as many bytes, without reading other memory than the caches."""
        clock(FLOOR, _write, next(self._buffers))
        clock(FLOOR, self._backgrounds.gather, torch.zeros(BATCH_SIZE, dtype=torch.int64))

    def _look_up(
        self, indices: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
        """Where the records of each field begin and end, and the background of each sample."""
        records = self._shards.records[indices]
        offsets = {name: records[name]["offset"].astype(np.int64) for name in FIELDS}
        ends = {name: offsets[name] + records[name]["size"] for name in FIELDS}
        return offsets, ends, self._shards.manifest.layout.background_of(indices)


@numba.njit(cache=True, nogil=True)
def _copy(pixels: np.ndarray, numbers: np.ndarray, out: np.ndarray) -> None:
    for i, number in enumerate(numbers):
        stream_copy(out[i], pixels[number])


@numba.njit(cache=True, nogil=True)
def _decode(
    decoding: Decoding, numbers: np.ndarray, file: np.ndarray, offsets: np.ndarray,
    ends: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """JPEGs that are stored beside records are passed over."""
    for i, number in enumerate(numbers):
        stored = file[offsets[i] : ends[i]]
        if is_record(stored):
            base, planes = decoding.pixels[number], decoding.planes[number]
            decode_record(stored, base, planes, decoding.decoder, out[i])


@numba.njit(cache=True, nogil=True)
def _unpack(file: np.ndarray, offsets: np.ndarray, ends: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(out)):
        unpack_runs(file[offsets[i] : ends[i]], out[i])


def _write(out: dict[str, np.ndarray]) -> None:
    """Copy one row, which stays in the cache, to all rows."""
    for rows in out.values():
        _copy(rows[:1].copy(), np.zeros(len(rows), np.int64), rows)
