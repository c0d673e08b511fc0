"""Reads and checks the user's photos, depth maps and cut-outs."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from maskdepth.convert import jpeg
from maskdepth.convert.dataset.canvas import encode_jpeg
from maskdepth.convert.errors import DataError, raise_all
from maskdepth.convert.files import why_irregular
from maskdepth.convert.found import visible
from maskdepth.convert.images import SUFFIXES, opened, read_size, to_rgb, to_rgba, upright
from maskdepth.convert.outputs import PNG_KEY, mark_of

_MOST_COLOUR = 16
"""Levels by which the channels of a depth map may differ: a JPEG of a gray image has no more."""


def find_images(folder: Path) -> tuple[tuple[Path, ...], list[str]]:
    """The images of ``folder`` sorted by name, and one line for each problem of the other files.

    An image has one of SUFFIXES, and its name without the suffix once. Hidden files and those of
    file managers are left out. Any other file is a problem: if it were skipped, the numbers of all
    images after it would change as soon as it is readable.
    """
    try:
        names = visible(os.listdir(folder))
    except FileNotFoundError:
        return (), [f"{folder}: found nothing, expected a folder of images"]
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        return (), [f"{folder}: {reason}, expected a folder of images"]
    if not names:
        return (), [f"{folder}: found no files, expected images ({', '.join(SUFFIXES)})"]
    images: dict[str, Path] = {}
    problems = []
    for path in (folder / name for name in names):
        found = _why_no_image(path)
        if found is None and (other := images.setdefault(path.stem, path)) is not path:
            problems.append(
                f"{path}: found {other.name} too, expected one image of this name; rename or "
                "remove one"
            )
        elif found is not None:
            problems.append(
                f"{path}: {found}, expected only images ({', '.join(SUFFIXES)}) in this folder; "
                "convert it, or move it elsewhere"
            )
    return tuple(images.values()), problems


def _why_no_image(path: Path) -> str | None:
    """What was found instead of an image, by its name and kind; None if it may be one."""
    try:
        irregular = why_irregular(path.stat().st_mode)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if irregular is not None:
        return irregular.partition(",")[0]
    return None if path.suffix.lower() in SUFFIXES else "found no image"


def list_images(folder: Path) -> tuple[Path, ...]:
    """The files of `find_images`. Raises DataError with all problems, if there are any."""
    files, problems = find_images(folder)
    raise_all(problems, "expected a folder of images")
    return files


def find_depth(photos: Iterable[Path], folder: Path) -> tuple[dict[Path, Path], list[str]]:
    """The depth map of each photo that has one, and one line for each problem of the folder.

    A depth map has the name of its photo, apart from the suffix.
    """
    files, problems = find_images(folder)
    by_stem = {path.stem: path for path in files}
    found = {photo: by_stem[photo.stem] for photo in photos if photo.stem in by_stem}
    if files:
        problems += [
            f"{folder}: found no depth map for {photo.name}, expected an image of the same name, "
            "with any suffix; add it, or remove the photo"
            for photo in photos
            if photo not in found
        ]
    return found, problems


def match_stems(photos: tuple[Path, ...], folder: Path) -> tuple[Path, ...]:
    """The depth map of each photo. Raises DataError with all problems, if there are any."""
    found, problems = find_depth(photos, folder)
    raise_all(problems, "expected a depth map for each photo")
    return tuple(found.values())


def open_photo(path: Path) -> Image.Image:
    """An upright photo of any mode, as sRGB. Raises DataError, also for a picture of ours."""
    with opened(path) as image:
        if str(image.info.get(PNG_KEY, "")).startswith(mark_of("")):
            raise DataError(
                f"{path}: found a picture that maskdepth made, expected a photo; move it elsewhere"
            )
        return to_rgb(upright(image, path), path)


def background_jpeg(path: Path, size: int, quality: int) -> bytes:
    """JPEG bytes of the photo's centre square, RGB (size, size).

    A file whose pixels are just these is returned byte for byte, if `pack` reads it.
    """
    photo = open_photo(path)
    if photo.size == (size, size):
        data = path.read_bytes()
        if _decodes_to(data, photo):
            return data
    # Palette and bilevel images cannot be interpolated, so they are converted before resizing.
    square = _centre_square(photo, size, Image.Resampling.LANCZOS)
    return encode_jpeg(square, quality, optimize=True)


def _decodes_to(data: bytes, photo: Image.Image) -> bool:
    """Whether a file is an RGB JPEG that `pack` decodes to this photo."""
    try:
        header = jpeg.read_header(data)
        if header.refusal or header.components != 3:
            return False
        return np.array_equal(jpeg.decode_rgb(data), np.asarray(photo))
    except ValueError:
        return False


def open_depth(path: Path, photo: Path, size: int) -> np.ndarray:
    """Depth of the photo's centre square, float32 (size, size), larger is farther.

    Accepts 8 bit, 16 bit, float and gray RGB images of the photo's aspect ratio (within 2 %).
    """
    width, height = read_size(photo)
    with opened(path) as image:
        found = upright(image, path)
    if abs(found.width * height / (found.height * width) - 1) > 0.02:
        raise DataError(
            f"{path}: found {found.width}x{found.height}, expected the shape of {photo.name} "
            f"({width}x{height}, or that scaled)"
        )
    gray = found if found.mode.startswith(("I", "F")) else _gray(found, path)
    square = _centre_square(gray.convert("F"), size, Image.Resampling.BILINEAR)
    depth = np.asarray(square, np.float32)
    if not np.isfinite(depth).all():
        raise DataError(
            f"{path}: found values that are not finite (NaN or infinity), expected a depth "
            "everywhere; fill them in"
        )
    return depth


def _gray(image: Image.Image, path: Path) -> Image.Image:
    """A gray image of 8 bits in any mode. Raises DataError for a colour image.

    Profiles and transparency mean nothing for a depth map.
    """
    rgb = image.convert("RGBA").convert("RGB")  # a palette with transparency has no other way
    pixels = np.asarray(rgb)
    spread = int((pixels.max(axis=2) - pixels.min(axis=2)).max())
    if spread > _MOST_COLOUR:
        raise DataError(
            f"{path}: found a colour image (channels differ by up to {spread}), expected a gray "
            "depth map, dark near and bright far; save it with a gray colour map"
        )
    return rgb.convert("L")


def open_cutout(path: Path) -> np.ndarray:
    """Upright cut-out of any mode with transparency, sRGB and alpha, uint8 (h, w, 4).

    Raises DataError if the image has no transparent pixel, or only transparent ones.
    """
    with opened(path) as image:
        if not image.has_transparency_data:
            raise DataError(
                f"{path}: found an image of mode {image.mode} without transparency, expected an "
                "RGBA cut-out; remove the background first"
            )
        cutout = np.asarray(to_rgba(upright(image, path), path))
    visible = cutout[..., 3] != 0
    if visible.all():
        raise DataError(
            f"{path}: found no transparent pixel, expected a cut-out; remove the background first"
        )
    if not visible.any():
        raise DataError(
            f"{path}: found only transparent pixels, expected a cut-out; cut it out again"
        )
    return cutout


def scale_cutout(cutout: np.ndarray, height: int, max_width: int, path: Path) -> np.ndarray:
    """Scale RGBA uint8 (h, w, 4) to ``height`` pixels, keeping the aspect ratio.

    Colours are averaged with alpha as weight, in floats: 8 bit arithmetic gives wrong colours
    where alpha is small, and every pixel whose alpha is not 0 is visible in a composite.

    Raises DataError naming ``path`` if the result is not narrower than ``max_width`` or has no
    visible pixel.
    """
    width = max(1, round(cutout.shape[1] * height / cutout.shape[0]))
    if width >= max_width:
        raise DataError(
            f"{path}: found {cutout.shape[1]}x{cutout.shape[0]}, {width} pixels wide when scaled "
            f"to height {height}, expected less than {max_width}. Crop it closer."
        )

    def scaled_plane(plane: np.ndarray) -> np.ndarray:
        resized = Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(resized)

    alpha = cutout[..., 3].astype(np.float32)
    small_alpha = scaled_plane(alpha)
    # One plane in floats at a time, as cut-outs may have 179 million pixels.
    colours = [scaled_plane(cutout[..., channel] * alpha) for channel in range(3)]
    colour = np.stack(colours, axis=-1) / np.maximum(small_alpha, 1e-3)[..., None]
    scaled = np.dstack([colour, small_alpha])
    scaled[small_alpha < 0.5] = 0
    pixels = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    if not pixels[..., 3].any():
        raise DataError(
            f"{path}: found only transparent pixels when scaled to height {height}, expected a "
            "cut-out. Crop it closer."
        )
    return np.asarray(pixels)


def _centre_square(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """Crop the centred square and resize it to ``size``."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), resample, box=(left, top, left + side, top + side))
