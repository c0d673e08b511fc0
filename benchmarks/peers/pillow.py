"""The plain loop of the original work, which makes composites with Pillow, in processes.

Its processes do not import torch: their start is timed.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from maskdepth.convert.names import FOLDERS
from maskdepth.convert.placements import PLACEMENTS
from maskdepth.convert.source import Source
from maskdepth.convert.workers import run_all, worker_pool

COLOUR_QUALITY, MASK_QUALITY, DEPTH_QUALITY = 65, 65, 75


def loop(truth: Source, work: Path, out: Path, workers: int, *, keep_images: bool) -> None:
    """The original work's loop, with the same places, in ``workers`` processes."""
    (out / "bg").mkdir(parents=True)
    groups = range(len(truth.bg))
    for name, group in itertools.product(FOLDERS.values(), groups):
        (out / name / truth.bg[group].stem).mkdir(parents=True)
    with worker_pool(workers) as executor:
        tasks = ((truth, work, out, group, keep_images) for group in groups)
        for _ in run_all(executor, _loop_over, tasks):
            pass


def _loop_over(truth: Source, work: Path, out: Path, group: int, keep_images: bool) -> None:
    """All composites of one background."""
    shutil.copy(truth.bg[group], out / "bg")
    rows = np.load(truth.folder / PLACEMENTS)
    scaled = sorted((work / "scaled").iterdir())
    with Image.open(work / "depth" / f"{truth.bg[group].stem}.png") as image:
        depth = image.convert("L")
    background = _read(truth.bg[group])
    cutouts: dict[tuple[int, int], tuple[Image.Image, Image.Image]] = {}
    last = None
    folders = [out / path.relative_to(truth.folder) for path in truth.folders(group)]
    for index, file in zip(_indices(truth, group), truth.names(group), strict=True):
        _, fg, flipped, x, y, _ = rows[index].item()
        if (fg, flipped) != last and (not keep_images or (fg, flipped) not in cutouts):
            cutouts[fg, flipped] = _open_stencil(scaled[fg], bool(flipped))
        last = fg, flipped
        colour, stencil = cutouts[fg, flipped]
        fg_bg = background.copy() if keep_images else _read(truth.bg[group])
        fg_bg.paste(colour, (x, y), stencil)
        mask = Image.new("L", fg_bg.size)
        mask.paste(stencil, (x, y))
        fg_bg_depth = depth.copy()
        fg_bg_depth.paste(_nearest(depth, stencil, x, y), (x, y), stencil)
        fg_bg.save(folders[0] / file, quality=COLOUR_QUALITY, optimize=True)
        mask.save(folders[1] / file, quality=MASK_QUALITY, optimize=True)
        fg_bg_depth.convert("RGB").save(folders[2] / file, quality=DEPTH_QUALITY)


def _nearest(depth: Image.Image, stencil: Image.Image, x: int, y: int) -> int:
    """The depth of a foreground by the rule of ours."""
    covered = np.asarray(depth.crop((x, y, x + stencil.width, y + stencil.height)))
    return int(covered.min(where=np.asarray(stencil) != 0, initial=128))


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _open_stencil(path: Path, flipped: bool) -> tuple[Image.Image, Image.Image]:
    """Colours and stencil of a scaled cut-out."""
    with Image.open(path) as image:
        cutout = image.convert("RGBA")
    if flipped:
        cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return cutout.convert("RGB"), cutout.getchannel("A").point([0] + [255] * 255)


def _indices(source: Source, group: int) -> range:
    return range(*source.layout.group_starts[group : group + 2].tolist())


def write(truth: Source, out: Path, workers: int) -> None:
    """Write as many files of the same bytes, and compose nothing."""
    groups = range(len(truth.bg))
    for name, group in itertools.product(FOLDERS.values(), groups):
        (out / name / truth.bg[group].stem).mkdir(parents=True)
    with worker_pool(workers) as executor:
        for _ in run_all(executor, _write_group, ((truth, out, group) for group in groups)):
            pass


def _write_group(truth: Source, out: Path, group: int) -> None:
    indices = _indices(truth, group)
    images = next(iter(truth.read(indices[:1]))).images
    folders = [out / path.relative_to(truth.folder) for path in truth.folders(group)]
    for name in truth.names(group):
        for folder, data in zip(folders, images, strict=True):
            with open(folder / name, "wb", buffering=0) as file:
                file.write(data)
