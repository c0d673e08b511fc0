"""How fast a data set is made: ours, and the plain loop of the original work with Pillow."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from click import IntRange
from PIL import Image

from maskdepth.benchmarks.harness.options import MINUTES, REPEATS, at_least_1, command, keep, option
from maskdepth.benchmarks.harness.results import CaseResult, Result, make_result
from maskdepth.benchmarks.harness.timing import Found, Repeat, interleave, print_progress, time_once
from maskdepth.benchmarks.peers.pillow import loop, write
from maskdepth.convert.dataset.canvas import stretch
from maskdepth.convert.dataset.compose import compose as compose_files
from maskdepth.convert.dataset.compose_shards import compose_shards
from maskdepth.convert.dataset.photos import open_cutout, scale_cutout
from maskdepth.convert.dataset.scenes import draw_background
from maskdepth.convert.errors import DataError
from maskdepth.convert.limits import MOST_WORKERS
from maskdepth.convert.pack import PackConfig
from maskdepth.convert.source import Source, read_source
from maskdepth.convert.style import FG_SHARE
from maskdepth.convert.workers import available_cores

OURS = "ours, files"
SHARDS = "ours, straight into an FFCV file"
LOOP = "Pillow loop, reads the background for each paste"
KEPT = "Pillow loop, keeps all images"
FLOOR = "floor: write the files"
_SIZE = 224
_CHECKED = 200


@command(
    at_least_1("--backgrounds", default=20, help="Drawn, before the clock starts."),
    at_least_1("--foregrounds", default=25, help="Drawn, before the clock starts."),
    option("--scratch", type=Path, help="Folder to write to; default: that of temporary files."),
    REPEATS, MINUTES,
    option(
        "--workers", type=IntRange(0, MOST_WORKERS), default=available_cores(),
        help="Processes of each case; 0: none.",
    ),
)  # fmt: skip
def compose(
    backgrounds: int, foregrounds: int, scratch: Path | None, repeats: int, minutes: float,
    workers: int,
) -> Result:  # fmt: skip
    """Composing 40 samples of each pair, against the plain loop with Pillow.

    All have the same photos, depth maps, cut-outs and places, and as many processes. What they make
    is compared before anything is timed.
    """
    with tempfile.TemporaryDirectory(prefix="maskdepth-bench-", dir=scratch) as name:
        work = Path(name)
        options = _draw(work, backgrounds, foregrounds)
        compose_files(work / "truth", workers=workers, progress=False, **options)
        truth = read_source(work / "truth")
        _scale(truth, work)
        loop(truth, work, work / LOOP, workers, keep_images=False)
        checked = {LOOP: compare(truth, read_source(work / LOOP))}
        cases: dict[str, Callable[[Path], object]] = {
            OURS: partial(compose_files, workers=workers, progress=False, **options),
            SHARDS: partial(
                compose_shards, config=PackConfig(formats=("ffcv",)), workers=workers,
                progress=False, **options,
            ),
            LOOP: partial(loop, truth, work, workers=workers, keep_images=False),
            KEPT: partial(loop, truth, work, workers=workers, keep_images=True),
            FLOOR: partial(write, truth, workers=workers),
        }  # fmt: skip

        def result(found: Found) -> Result:
            arguments = {
                "samples": truth.layout.samples, "repeats": repeats, "workers": workers,
                "disk": _kind_of_disk(work),
            }  # fmt: skip
            results = {
                case: CaseResult(repeats=list(some), figures=checked.get(case, {}))
                for case, some in found.items()
            }
            return make_result("compose", arguments, results, ours=(OURS,))

        measures = {case: partial(_time, run, work / "out", truth) for case, run in cases.items()}
        return result(
            interleave(
                measures, repeats, minutes=minutes, after_round=lambda found: keep(result(found))
            )
        )


def _draw(work: Path, backgrounds: int, foregrounds: int) -> dict[str, Any]:
    """Write photos, depth maps and cut-outs as a user has them; the arguments of `compose`."""
    drawn = work / "drawn"
    compose_files(
        drawn, backgrounds=backgrounds, foregrounds=foregrounds, placements=2, size=_SIZE,
        workers=0, progress=False,
    )  # fmt: skip
    (work / "depth").mkdir()
    for bg in range(backgrounds):
        depth = stretch(draw_background(0, bg, _SIZE).depth)
        Image.fromarray(depth).save(work / "depth" / f"{read_source(drawn).bg[bg].stem}.png")
    return {"bg": drawn / "bg", "fg": drawn / "fg", "bg_depth": work / "depth", "size": _SIZE}


def _scale(truth: Source, work: Path) -> None:
    """Write the scaled cut-outs: the loop does not have to scale them."""
    (work / "scaled").mkdir()
    for path in sorted((truth.folder / "fg").iterdir()):
        height = round(_SIZE * FG_SHARE)
        scaled = scale_cutout(open_cutout(path), height, _SIZE, path)
        Image.fromarray(scaled).save(work / "scaled" / path.name)


def _time(run: Callable[[Path], object], out: Path, truth: Source) -> Repeat:
    """Time one case; its processes have ended, and its files are gone, before the next one."""

    def timed() -> int:
        run(out)
        return truth.layout.samples

    os.sync()  # what an earlier case wrote is not to be written during this one
    repeat = time_once(timed)
    for child in multiprocessing.active_children():
        child.join()
    shutil.rmtree(out)
    return repeat


def compare(truth: Source, other: Source) -> dict[str, float]:
    """How the loop's images differ from ours; DataError if they are not the same composites."""
    indices = range(0, truth.layout.samples, max(1, truth.layout.samples // _CHECKED))
    largest, pixels = 0, 0
    for index in indices:
        ours, theirs = (list(_open_all(source, index)) for source in (truth, other))
        pixels += int(((ours[1] >= 128) != (theirs[1] >= 128)).sum())
        for one, two in zip(ours, theirs, strict=True):
            largest = max(largest, int(np.abs(one.astype(int) - two).max()))
    if largest:
        raise DataError(
            f"the loop's images are not ours: levels differ by up to {largest}, and {pixels} mask "
            "pixels; report this"
        )
    print_progress(f"{LOOP}: {len(indices)} samples with the pixels of ours")
    return {"largest_difference_levels": largest, "mask_pixels_that_differ": pixels}


def _open_all(source: Source, index: int) -> Iterator[np.ndarray]:
    for path in source.paths(index):
        with Image.open(path) as image:
            yield np.asarray(image)


def _kind_of_disk(folder: Path) -> str:
    """The type of the file system that a folder is on: the last mount point above it."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, found, *_ = line.split()
        if folder.resolve().is_relative_to(point) and len(point) >= len(best):
            best, kind = point, found
    return kind
