"""How fast data is converted: ours, stock FFCV's writer, and the floor no converter can beat.

python -m benchmarks convert DATASET
"""

from __future__ import annotations

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from benchmarks.harness.results import CaseResult, Result, make_result
from benchmarks.harness.timing import Case, run_interleaved
from convert.manifest import read_manifest
from convert.pack import PackConfig, pack
from convert.source import Source, read_source
from convert.workers import run_all, worker_pool

OURS = "ours, FFCV file"
_CHUNK = 1000


def run(dataset: Path, *, repeats: int, workers: int, say: Any) -> Result:
    """Time packing ``dataset``, after a round that is not counted."""
    source = read_source(dataset)
    with tempfile.TemporaryDirectory(prefix="maskdepth-bench-") as folder:
        target = Path(folder)
        cases = [
            Case(name=OURS, run=partial(_ours, dataset, target, ("ffcv",), workers)),
            Case(name="ours, both formats", run=partial(_ours, dataset, target, None, workers)),
            Case(name="floor: read and decode", run=partial(_floor, source, workers)),
        ]
        stock = _stock_ffcv(source, target / "stock.beton", workers)
        if stock is not None:
            cases.append(stock)
        else:
            say("stock FFCV: skipped, FFCV is not installed")
        found = run_interleaved(
            cases, repeats, report=lambda name, r: say(f"{name}: {r.samples_per_s:,.0f} samples/s")
        )
        sizes = _sizes(dataset, target, workers)
    arguments = {"dataset": dataset.name, "repeats": repeats, "workers": workers}
    arguments["samples"] = source.layout.samples
    results = {name: CaseResult.of(repeats) for name, repeats in found.items()}
    return make_result("convert", arguments, results, ours=(OURS,), sizes=sizes)


def _ours(dataset: Path, target: Path, formats: tuple[str, ...] | None, workers: int) -> int:
    shutil.rmtree(target / "shards", ignore_errors=True)
    config = PackConfig() if formats is None else PackConfig(formats=formats)
    manifest = pack(dataset, target / "shards", config=config, workers=workers, progress=False)
    return manifest.layout.samples


def _sizes(dataset: Path, target: Path, workers: int) -> dict[str, float]:
    """Stored bytes of each format over the source's apparent bytes, backgrounds in both."""
    _ours(dataset, target, None, workers)
    manifest = read_manifest(target / "shards")
    backgrounds = sum(path.stat().st_size for path in read_source(dataset).bg)
    source = manifest.counts["source_bytes"] + backgrounds
    bank = manifest.files["backgrounds.npy"].bytes
    stored: dict[str, float] = {"source_bytes": source}
    for name, form in manifest.formats.items():
        total = bank + sum(manifest.files[file].bytes for file in (*form.files, form.index))
        stored[f"{name}_bytes"] = total
        stored[f"{name}_share_of_source"] = total / source
    return stored


def _floor(source: Source, workers: int) -> int:
    """Read every file and decode it once with libjpeg-turbo, nothing else."""
    samples = source.layout.samples
    tasks = [(source, at, min(at + _CHUNK, samples)) for at in range(0, samples, _CHUNK)]
    with worker_pool(workers) as executor:
        return sum(run_all(executor, _decode_some, tasks))


def _decode_some(source: Source, start: int, stop: int) -> int:
    height, width = source.layout.height, source.layout.width
    rgb = np.empty((height, width, 3), np.uint8)
    gray = np.empty((height, width, 1), np.uint8)
    for index in range(start, stop):
        fg_bg, mask, depth = source.paths(index)
        simplejpeg.decode_jpeg(fg_bg.read_bytes(), "RGB", buffer=rgb)
        simplejpeg.decode_jpeg(mask.read_bytes(), "GRAY", buffer=gray)
        simplejpeg.decode_jpeg(depth.read_bytes(), "GRAY", buffer=gray)
    return stop - start


class _Images:
    """What one would hand to stock FFCV: four decoded RGB images a sample."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __len__(self) -> int:
        return self._source.layout.samples

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        group = int(self._source.layout.background_of(np.asarray(index)))
        paths = (self._source.bg[group], *self._source.paths(index))
        return tuple(np.asarray(Image.open(path).convert("RGB")) for path in paths)


def _stock_ffcv(source: Source, path: Path, workers: int) -> Case | None:
    """FFCV's `DatasetWriter` as its documentation uses it: four JPEG fields."""
    try:
        from ffcv.fields import RGBImageField
        from ffcv.writer import DatasetWriter
    except ImportError:
        return None

    def write() -> int:
        names = ("bg", "fg_bg", "mask", "depth")
        fields = {name: RGBImageField(write_mode="jpg") for name in names}
        writer = DatasetWriter(str(path), fields, num_workers=workers)
        writer.from_indexed_dataset(_Images(source))
        return source.layout.samples

    return Case(name="stock FFCV DatasetWriter, 4 RGB JPEG fields", run=write)
