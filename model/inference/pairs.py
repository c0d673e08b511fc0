"""Pairs of photos: which files belong together, and whether the network can take them."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maskdepth.convert.errors import DataError, raise_all
from maskdepth.convert.found import visible
from maskdepth.convert.images import SUFFIXES, read_rgb, read_size
from maskdepth.convert.outputs import is_output
from maskdepth.model.errors import ModelError

LONGEST = 8
"""Largest proportion of the sides of an image; memory grows with it."""
COMMAND = "predict"
"""Whose outputs the results of pairs are, see `convert.outputs`."""


class Pair(NamedTuple):
    """A background, the same scene with a foreground, and the name of their results."""

    name: str
    bg: Path
    fg_bg: Path

    def results(self, out: Path) -> tuple[Path, ...]:
        """Files of mask, depth and picture in a folder."""
        return tuple(out / f"{self.name}_{kind}.png" for kind in ("mask", "depth", "side_by_side"))

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Return bg and fg_bg, uint8 (H, W, 3), RGB.

        Raises DataError for an unreadable image, and ModelError if their sizes differ or one side
        is more than `LONGEST` times the other.
        """
        bg, fg_bg = read_rgb(self.bg), read_rgb(self.fg_bg)
        self.require_sizes(*((image.shape[1], image.shape[0]) for image in (bg, fg_bg)))
        return bg, fg_bg

    def require_sizes(self, bg: tuple[int, int], fg_bg: tuple[int, int]) -> None:
        """Raise ModelError unless images of these widths and heights can be used together."""
        if bg != fg_bg:
            sizes = [f"{width}x{height}" for width, height in (bg, fg_bg)]
            raise ModelError(
                f"{self.fg_bg} is {sizes[1]}, but {self.bg} is {sizes[0]}: expected the same scene "
                "in one size; crop or scale one of them"
            )
        width, height = bg
        if max(height, width) > LONGEST * min(height, width):
            raise ModelError(
                f"{self.fg_bg}: found {width}x{height}, expected at most {LONGEST} times as many "
                "pixels in one direction as in the other; crop the images"
            )


def require_usable(pairs: Sequence[Pair]) -> None:
    """Raise an error with all problems of the pairs' files and sizes; pixels are not decoded.

    A DataError, or its kind for several problems. What is damaged behind its header is found later.
    """
    size_of, problems = lru_cache(maxsize=4)(read_size), []
    for pair in pairs:
        try:
            pair.require_sizes(size_of(pair.bg), size_of(pair.fg_bg))
        except (DataError, ModelError) as error:
            problems.append(error.message)
    raise_all(list(dict.fromkeys(problems)), "nothing was predicted")


def pair_images(bg: str, fg_bg: str) -> list[Pair]:
    """Pair the images that two file names, folders or patterns stand for (`find_images`).

    One background is paired with every image of the other side. Several are paired by equal
    names, without the suffix. Raises ModelError if a composite has no background of its name
    or if two images of one side have one name.
    """
    backgrounds, composites = _by_name(find_images(bg)), _by_name(find_images(fg_bg))
    if len(backgrounds) == 1:
        (background,) = backgrounds.values()
        return [Pair(name, background, path) for name, path in composites.items()]
    for name, path in composites.items():
        if name not in backgrounds:
            raise ModelError(
                f"{path}: found no {name} among the {len(backgrounds)} backgrounds {bg}; expected "
                "one of the same name, or one background for all"
            )
    return [Pair(name, backgrounds[name], path) for name, path in composites.items()]


def find_images(pattern: str) -> list[Path]:
    """Return a file, the images of a folder, or the files that match a pattern, sorted.

    A file that is named is taken as it is. Of a folder and a pattern, results of `predict_files`
    are left out, so that OUT_DIR may be the folder of the photos. Raises ModelError if there is
    no image.
    """
    path = Path(pattern)
    if path.is_dir():
        files = map(path.joinpath, visible(os.listdir(path)))
        named = [p for p in files if p.suffix.lower() in SUFFIXES and not p.is_dir()]
    elif path.exists() or not glob.has_magic(pattern):
        return [path]
    else:
        named = [p for p in map(Path, glob.glob(pattern, recursive=True)) if not p.is_dir()]
    found = [p for p in named if not _is_result(p)]
    if not found:
        raise ModelError(f"{pattern}: found no image; expected a file, a folder or a pattern")
    return sorted(found)


def _is_result(path: Path) -> bool:
    """Whether a file is an earlier result; `require_usable` reports one that cannot be read."""
    try:
        return is_output(path, COMMAND)
    except DataError:
        return False


def _by_name(paths: list[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in paths:
        if path.stem in named:
            raise ModelError(f"{path}: has the name of {named[path.stem]}; expected each name once")
        named[path.stem] = path
    return named
