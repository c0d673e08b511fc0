"""Checks all images that a user gives to `compose`, before anything is written.

Each is read here, and again when it is used: a folder with ten unusable images needs one run, not
ten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from maskdepth.convert.dataset.photos import (
    find_depth,
    find_images,
    open_cutout,
    open_depth,
    open_photo,
)
from maskdepth.convert.dataset.plan import STANDARD
from maskdepth.convert.dataset.scaling import scale
from maskdepth.convert.errors import DataError, raise_all
from maskdepth.convert.progress import followed
from maskdepth.convert.style import Style
from maskdepth.convert.workers import run_all, worker_pool

_FEW_BYTES = 8 << 20


def require_usable(
    bg: Path | None,
    fg: Path | None,
    bg_depth: Path | None,
    *,
    backgrounds: int | None,
    foregrounds: int | None,
    size: int,
    style: Style = STANDARD,
    workers: int | None,
    progress: bool = False,
) -> None:
    """Raise one DataError with all problems of the folders and of the images that are used.

    ``backgrounds``, ``foregrounds``: how many are used, the first by name; None: all. ``size``: of
    the composites. ``style``: of them. ``workers``: processes, as of `compose`.
    ``progress``: whether to show how many images are checked.
    """
    photos, of_bg = find_images(bg) if bg else ((), [])
    cutouts, of_fg = find_images(fg) if fg else ((), [])
    photos, cutouts = photos[:backgrounds], cutouts[:foregrounds]
    maps, of_depth = find_depth(photos, bg_depth) if bg_depth and photos else ({}, [])
    reads: list[tuple] = [(open_photo, photo) for photo in photos]
    reads += [(_open_scaled, cutout, size, style) for cutout in cutouts]
    reads += [(open_depth, path, photo, size) for photo, path in maps.items()]
    problems = of_bg + of_fg + of_depth
    if reads:
        with worker_pool(pool_size([read[1] for read in reads], workers)) as executor:
            tasks = ((number, *read) for number, read in enumerate(reads))
            checked = run_all(executor, _why_unusable, tasks)
            found = sorted(followed(checked, "check", len(reads), "images", shown=progress))
        problems += [reason for _, reason in found if reason]
    # An unreadable photo is reported once, though its depth map cannot be compared either.
    raise_all(list(dict.fromkeys(problems)), "nothing was written")


def _open_scaled(path: Path, size: int, style: Style) -> None:
    scale(style, open_cutout(path), size, path)


def pool_size(paths: Iterable[Path], workers: int | None) -> int | None:
    """``workers``, or none for so few bytes that starting processes would take longer."""
    try:
        few = sum(path.stat().st_size for path in paths) < _FEW_BYTES
    except OSError:  # reported where the file is read
        return workers
    return 0 if few else workers


def _why_unusable(number: int, read: Callable[..., object], *arguments: object) -> tuple[int, str]:
    """The number, and why an image cannot be used; an empty reason if it can."""
    try:
        read(*arguments)
    except DataError as error:
        return number, error.message
    return number, ""
