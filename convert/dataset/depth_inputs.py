"""The images whose depth is estimated: composites of a data set, or backgrounds alone."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from maskdepth.convert import jpeg
from maskdepth.convert.dataset.depth_maps import Range, encode_background, encode_map
from maskdepth.convert.dataset.photos import list_images, open_photo
from maskdepth.convert.errors import DataError, RecordError
from maskdepth.convert.files import read_file, remove_replaced
from maskdepth.convert.found import DATA_SET, visible
from maskdepth.convert.metadata import DATASET
from maskdepth.convert.names import FOLDERS, list_backgrounds, list_jpegs, require_folder
from maskdepth.convert.source import read_metadata

LONGEST_SIDE = 1024
"""Pixels of a photo as the network sees it and of its map; larger photos are reduced."""


@dataclass(frozen=True, kw_only=True)
class Composites:
    """The composites of a data set folder that is ready to be given depth maps."""

    folder: Path
    names: tuple[str, ...]  # like "bg_001/img_0001.jpg", in the order of samples
    metadata: dict[str, object]  # what `dataset.json` says, empty if there is none
    replace: bool  # whether existing depth maps are to be replaced

    def __len__(self) -> int:
        return len(self.names)

    @property
    def target(self) -> Path:
        """Folder of the maps."""
        return self.folder / FOLDERS["depth"]

    def path(self, index: int) -> Path:
        """File of one composite."""
        return self.folder / FOLDERS["fg_bg"] / self.names[index]

    def map_name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int) -> np.ndarray:
        """Pixels of one composite, uint8 (H, W, 3); RecordError if `pack` would refuse it."""
        path = self.path(index)
        try:
            data, _ = read_file(path)
            reason = jpeg.read_header(data).refusal
            if reason is None:
                return jpeg.decode_rgb(data)
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        except ValueError as error:
            reason = f"{error}; fix or replace the file"
        raise RecordError(index, "fg_bg", str(path), reason)

    def encode(self, depth: np.ndarray, found: Range) -> bytes:
        return encode_map(depth, found)


def list_composites(dataset: str | Path) -> Composites:
    """List the composites of a data set with bg/ and fg_bg/; its masks are not needed.

    What a killed run has left in the middle of publishing is put right first. Raises DataError for
    a missing or empty folder, a folder that belongs to no background, a file that is no .jpg, and
    an unreadable `dataset.json`.
    """
    folder = Path(dataset)
    groups = folder / FOLDERS["fg_bg"]
    stems = [path.stem for path in list_backgrounds(folder)]
    names: list[str] = []
    for stem in stems:
        group = list_jpegs(groups / stem)
        if not group:
            raise DataError(f"{groups / stem}: found no images, expected at least 1")
        names += (f"{stem}/{name}" for name in group)
    found = {name for name in visible(os.listdir(groups)) if (groups / name).is_dir()}
    for name in sorted(found - set(stems)):
        raise DataError(
            f"{groups / name}: found a folder without a background, expected "
            f"{folder / 'bg' / name}.jpg; add that or move the folder away"
        )
    target = folder / FOLDERS["depth"]
    move_metadata(target, folder)
    if target.is_dir() and not target.is_symlink():
        remove_replaced(target)
    replace = os.path.lexists(target)
    metadata = read_metadata(folder)
    return Composites(folder=folder, names=tuple(names), metadata=metadata, replace=replace)


def move_metadata(target: Path, folder: Path) -> None:
    """Move `dataset.json` from among published maps to its place, unless it is there already.

    A run killed right before that leaves it among the maps, where `pack` refuses it.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        (target / DATASET).replace(folder / DATASET)


@dataclass(frozen=True, kw_only=True)
class Photos:
    """Backgrounds before they are cropped: of any size, in any format."""

    folder: Path
    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(path.name for path in self.files)

    def path(self, index: int) -> Path:
        """File of one photo."""
        return self.files[index]

    def map_name(self, index: int) -> str:
        return f"{self.files[index].stem}.png"

    def read(self, index: int) -> np.ndarray:
        """Pixels of a photo of at most LONGEST_SIDE, uint8 (H, W, 3)."""
        photo = open_photo(self.files[index])
        share = LONGEST_SIDE / max(photo.size)
        if share < 1:
            size = (max(1, round(photo.width * share)), max(1, round(photo.height * share)))
            photo = photo.resize(size, Image.Resampling.LANCZOS)
        return np.asarray(photo)

    def encode(self, depth: np.ndarray, found: Range) -> bytes:
        return encode_background(depth, found)


def list_photos(folder: str | Path) -> Photos:
    """The images of a folder, or the backgrounds of a data set; DataError with all problems."""
    folder = Path(folder)
    if require_folder(folder, "a folder of photos, or a data set") == DATA_SET:
        folder /= "bg"
    return Photos(folder=folder, files=list_images(folder))


def hash_names(names: tuple[str, ...]) -> str:
    """What tells lists of names apart."""
    return hashlib.sha256(os.fsencode("\0".join(names))).hexdigest()
