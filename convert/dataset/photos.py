"""Reads and checks the user's photos, depth maps and cut-outs."""

from pathlib import Path

import numpy as np
from PIL import Image

from convert.dataset.canvas import encode_jpeg
from convert.errors import DataError
from convert.images import SUFFIXES, opened, to_rgb, upright

EXIF_ORIENTATION = 0x0112


def list_images(folder: Path) -> tuple[Path, ...]:
    """The files of ``folder`` sorted by name, without hidden ones.

    Raises DataError if the folder is missing or empty, or holds a file whose suffix is not one of
    SUFFIXES: an unrelated file would silently shift the numbers of all files after it.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise DataError(f"{folder}: found {found}, expected a folder of images.")
    files = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    if not files:
        raise DataError(f"{folder}: found no files, expected images ({', '.join(SUFFIXES)}).")
    for path in files:
        if not path.is_file() or path.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{path}: found no image, expected only images ({', '.join(SUFFIXES)}) in this "
                "folder. Move it elsewhere."
            )
    return tuple(files)


def match_stems(photos: tuple[Path, ...], folder: Path) -> tuple[Path, ...]:
    """For each photo the image in ``folder`` of the same name, apart from the suffix."""
    by_stem: dict[str, Path] = {}
    for path in list_images(folder):
        if path.stem in by_stem:
            raise DataError(f"{path}: found also {by_stem[path.stem].name}, expected one of them.")
        by_stem[path.stem] = path
    missing = [path for path in photos if path.stem not in by_stem]
    if missing:
        raise DataError(
            f"{folder}: found no depth map for {missing[0].name} ({len(missing)} of {len(photos)} "
            "photos have none), expected an image of the same name for each photo."
        )
    return tuple(by_stem[path.stem] for path in photos)


def background_jpeg(path: Path, size: int, quality: int) -> bytes:
    """JPEG bytes of the photo's centre square, RGB (size, size).

    A file that is such a JPEG already is returned byte for byte.
    """
    with opened(path) as image:
        is_upright = image.getexif().get(EXIF_ORIENTATION, 1) == 1
        form = (image.format, image.mode, image.size)
        if is_upright and form == ("JPEG", "RGB", (size, size)):
            return path.read_bytes()
        # Palette and bilevel images cannot be interpolated, so they are converted before resizing.
        photo = to_rgb(upright(image, path), path)
        square = _centre_square(photo, size, Image.Resampling.LANCZOS)
        return encode_jpeg(square, quality, optimize=True)


def open_depth(path: Path, photo: Path, size: int) -> np.ndarray:
    """Depth of the photo's centre square, float32 (size, size), larger is farther.

    Accepts 8 bit, 16 bit, float and RGB images of the photo's aspect ratio (within 2 %).
    """
    with opened(photo) as image:
        width, height = upright(image, photo).size
    with opened(path) as image:
        if abs(image.width * height / (image.height * width) - 1) > 0.02:
            raise DataError(
                f"{path}: found {image.width}x{image.height}, expected the shape of {photo.name} "
                f"({width}x{height}, or that scaled)."
            )
        wide = image.mode.startswith(("I", "F"))
        gray = image.convert("F") if wide else image.convert("L").convert("F")
        depth = np.asarray(_centre_square(gray, size, Image.Resampling.BILINEAR), np.float32)
    if not np.isfinite(depth).all():
        raise DataError(f"{path}: found values that are not finite, expected a depth everywhere.")
    return depth


def open_cutout(path: Path) -> np.ndarray:
    """RGBA cut-out, uint8 (h, w, 4).

    Raises DataError if the image has no transparent pixel, or only transparent ones.
    """
    with opened(path) as image:
        if "A" not in image.getbands() and "transparency" not in image.info:
            raise DataError(
                f"{path}: found a {image.mode} image without transparency, expected an RGBA "
                "cut-out. Remove the background first."
            )
        cutout = np.asarray(upright(image, path).convert("RGBA"))
    visible = cutout[..., 3] != 0
    if visible.all():
        raise DataError(f"{path}: found no transparent pixel, expected a cut-out.")
    if not visible.any():
        raise DataError(f"{path}: found only transparent pixels, expected a cut-out.")
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
    alpha = cutout[..., 3].astype(np.float32)
    planes = [alpha] + [cutout[..., c] * alpha for c in range(3)]
    bilinear = Image.Resampling.BILINEAR
    small = [Image.fromarray(plane).resize((width, height), bilinear) for plane in planes]
    small_alpha, *colours = map(np.asarray, small)
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
