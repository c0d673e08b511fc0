"""Images of the user's: found by name or pattern, paired, read and written."""

from __future__ import annotations

import glob
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from model.errors import ModelError
from model.files import replace_bytes

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


class Pair(NamedTuple):
    """One scene without and with the person, and what its results are called."""

    name: str
    bg: Path
    fg_bg: Path

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (H, W, 3), RGB, each. Raises ModelError where they are not of one size."""
        bg, fg_bg = read_image(self.bg), read_image(self.fg_bg)
        if bg.shape != fg_bg.shape:
            sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in (bg, fg_bg)]
            raise ModelError(
                f"{self.fg_bg} is {sizes[1]}, but {self.bg} is {sizes[0]}: expected the same scene "
                "in one size"
            )
        return bg, fg_bg


def find_images(pattern: str) -> list[Path]:
    """The file itself, the images of a folder, or the files that match a pattern; by name.

    Raises ModelError where there is none.
    """
    path = Path(pattern)
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file()]
    elif path.exists() or not glob.has_magic(pattern):
        found = [path]
    else:
        found = [Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file()]
    if not found:
        raise ModelError(f"{pattern}: found no image; expected a file, a folder or a pattern")
    return sorted(found)


def pair_images(bg: str, fg_bg: str) -> list[Pair]:
    """Pairs of images that two names, folders or patterns stand for (`find_images`).

    One background goes with every image of the other side; several go by equal names, up to
    the suffix. Raises ModelError where one has no counterpart or two have one name.
    """
    backgrounds, composites = _by_name(find_images(bg)), _by_name(find_images(fg_bg))
    if len(backgrounds) == 1:
        (alone,) = backgrounds.values()
        return [Pair(name, alone, path) for name, path in composites.items()]
    for name, path in composites.items():
        if name not in backgrounds:
            raise ModelError(
                f"{path}: found no {name} among the {len(backgrounds)} backgrounds {bg}; expected "
                "one of the same name, or one background for all"
            )
    return [Pair(name, backgrounds[name], path) for name, path in composites.items()]


def _by_name(paths: list[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in paths:
        if path.stem in named:
            raise ModelError(f"{path}: has the name of {named[path.stem]}; expected each name once")
        named[path.stem] = path
    return named


def read_image(path: Path) -> np.ndarray:
    """uint8 (H, W, 3), RGB, turned as its EXIF says. Raises ModelError if it is no image."""
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; expected an image") from None
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a readable image: {error}") from None


def write_gray(path: Path, pixels: np.ndarray) -> None:
    """uint8 (H, W) as PNG."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    replace_bytes(path, content.getvalue())
