"""How fast data is converted: ours, stock FFCV's writer, and reading and decoding alone."""

from __future__ import annotations

import importlib.util
import multiprocessing
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg

from maskdepth.benchmarks.harness.images import spread_indices
from maskdepth.benchmarks.harness.options import (
    DATASET,
    MINUTES,
    REPEATS,
    SAMPLES,
    command,
    keep,
    up_to_most_workers,
)
from maskdepth.benchmarks.harness.results import CaseResult, Result, make_result
from maskdepth.benchmarks.harness.timing import Found, Repeat, interleave, print_progress, time_once
from maskdepth.benchmarks.peers.ffcv import write_beton
from maskdepth.benchmarks.peers.source import Files
from maskdepth.convert.manifest import Manifest, read_manifest
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.convert.source import Source, read_source
from maskdepth.convert.workers import run_all, worker_pool

OURS = "ours, FFCV file"
_CHUNK = 1000
_FFCV_QUALITY = 90  # FFCV's default


@command(DATASET, SAMPLES, REPEATS, MINUTES, up_to_most_workers("--workers"))
def convert(dataset: Path, samples: int, repeats: int, minutes: float, workers: int) -> Result:
    """Packing DATASET against stock FFCV's writer and against reading and decoding alone.

    With --samples they are copied to a data set of their own, outside the clock.
    """
    source, name_of_all = read_source(dataset), dataset.name
    with tempfile.TemporaryDirectory(prefix="maskdepth-bench-") as name:
        folder = Path(name)
        if samples < source.layout.samples:
            dataset = folder / "part"
            copy_some(source, spread_indices(source.layout.samples, samples), dataset)
            source = read_source(dataset)
        jpegs = PackConfig(formats=("ffcv",), codec="jpeg")
        cases: dict[str, Callable[[], object]] = {
            OURS: partial(_pack, dataset, folder / "ffcv", PackConfig(formats=("ffcv",)), workers),
            "ours, FFCV file of JPEGs": partial(_pack, dataset, folder / "jpegs", jpegs, workers),
            "ours, both formats": partial(_pack, dataset, folder / "both", PackConfig(), workers),
            "floor: read and decode": partial(_read_and_decode, source, workers),
        }
        if importlib.util.find_spec("ffcv") is None:
            print_progress("stock FFCV: skipped, FFCV is not installed")
        else:
            files = Files(dataset, np.arange(source.layout.samples))
            files.paths(0)  # lists the folder outside the clock; the writer's processes inherit it
            cases["stock FFCV DatasetWriter, 4 RGB JPEG fields"] = partial(
                write_beton, files, workers, _FFCV_QUALITY, folder / "stock.beton"
            )

        def result(found: Found) -> Result:
            arguments = {
                "dataset": name_of_all, "repeats": repeats, "workers": workers,
                "samples": source.layout.samples,
            }  # fmt: skip
            results = {name: CaseResult(repeats=list(some)) for name, some in found.items()}
            sizes = _sizes(source, read_manifest(folder / "both"))
            return make_result("convert", arguments, results, ours=(OURS,), sizes=sizes)

        measures = {name: partial(_time, work, source) for name, work in cases.items()}
        return result(
            interleave(
                measures, repeats, minutes=minutes, after_round=lambda found: keep(result(found))
            )
        )


def copy_some(source: Source, indices: Sequence[int], folder: Path) -> None:
    """Copy samples of a data set with their backgrounds: a data set of these alone.

    It has no `dataset.json`: the samples of one foreground may be incomplete.
    """
    groups = source.layout.background_of(np.asarray(indices))
    for group in np.unique(groups).tolist():
        to = [folder / path.relative_to(source.folder) for path in source.folders(group)]
        for path in (folder / "bg", *to):
            path.mkdir(parents=True, exist_ok=True)
        shutil.copy(source.bg[group], folder / "bg")
    for index in indices:
        for path in source.paths(index):
            shutil.copy(path, folder / path.relative_to(source.folder))


def _time(work: Callable[[], object], source: Source) -> Repeat:
    """Time work on all samples; its processes have ended before the next case is timed."""

    def run() -> int:
        work()
        return source.layout.samples

    repeat = time_once(run)
    for child in multiprocessing.active_children():
        child.join()
    return repeat


def _pack(dataset: Path, shards: Path, config: PackConfig, workers: int) -> None:
    shutil.rmtree(shards, ignore_errors=True)
    pack(dataset, shards, config=config, workers=workers, progress=False)


def _sizes(source: Source, manifest: Manifest) -> dict[str, float]:
    """Stored bytes of each format over the source's apparent bytes, backgrounds in both."""
    source_bytes = manifest.counts["source_bytes"] + sum(path.stat().st_size for path in source.bg)
    stored: dict[str, float] = {"source_bytes": source_bytes}
    for name, form in manifest.formats.items():
        bases = (base.file for base in manifest.bases.values()) if name == "ffcv" else ()
        files = ("backgrounds.npy", *bases, *form.files, form.index)
        stored[f"{name}_bytes"] = total = sum(manifest.files[file].bytes for file in files)
        stored[f"{name}_share_of_source"] = total / source_bytes
    return stored


def _read_and_decode(source: Source, workers: int) -> None:
    """Read every file and decode it once with libjpeg-turbo, nothing else."""
    samples = source.layout.samples
    tasks = [(source, at, min(at + _CHUNK, samples)) for at in range(0, samples, _CHUNK)]
    with worker_pool(workers) as executor:
        for _ in run_all(executor, _decode_some, tasks):
            pass


def _decode_some(source: Source, start: int, stop: int) -> None:
    height, width = source.layout.height, source.layout.width
    rgb = np.empty((height, width, 3), np.uint8)
    gray = np.empty((height, width, 1), np.uint8)
    for index in range(start, stop):
        fg_bg, mask, depth = source.paths(index)
        simplejpeg.decode_jpeg(fg_bg.read_bytes(), "RGB", buffer=rgb)
        simplejpeg.decode_jpeg(mask.read_bytes(), "GRAY", buffer=gray)
        simplejpeg.decode_jpeg(depth.read_bytes(), "GRAY", buffer=gray)
