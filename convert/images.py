"""Reads the images that a user names: photos, cut-outs and depth maps, in any mode that Pillow has.

The images of a data set or of shards are read by `convert.jpeg`, which knows their form.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from convert.errors import DataError
from convert.files import require_regular

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Of files that are taken for images where a user names a folder, in lower case."""

_EXPECTED = "expected a complete, readable image"


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Decode an image completely, as it is stored.

    Raises DataError that names the file: for one that is missing, irregular, damaged or no image,
    and for one of more than twice `PIL.Image.MAX_IMAGE_PIXELS` pixels, about 179 million.
    """
    try:
        require_regular(path)
        with warnings.catch_warnings():
            # Of half as many pixels as are refused: some cameras make such photos.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
            image.load()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected an image") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: found no readable image, expected a photo or cut-out") from None
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(
            f"{path}: found an image of more than 179 million pixels; make it smaller"
        ) from None
    # Pillow's decoders raise almost any exception on corrupt bytes.
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or "damaged"
        raise DataError(f"{path}: {reason[:200]}; {_EXPECTED}") from None
    with image:
        yield image


def upright(image: Image.Image, path: Path) -> Image.Image:
    """A copy that is rotated and mirrored as its EXIF data say. Raises DataError."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # damaged EXIF data
        raise DataError(f"{path}: its EXIF data are damaged ({error}); {_EXPECTED}") from None


def read_rgb(path: Path) -> np.ndarray:
    """An upright photo, uint8 (H, W, 3), RGB; modes as in `to_rgb`. Raises DataError."""
    with opened(path) as image:
        return np.array(to_rgb(upright(image, path), path))


def to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """Convert any mode to 8 bit RGB.

    Transparency becomes white. Gray of more than 8 bits is scaled by what its largest value says
    of its range: 0..1 (floats), 0..255 or 0..65535. Raises DataError for other values.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(
            _eight_bits(np.asarray(image, np.float64), image.mode, path)
        ).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _eight_bits(pixels: np.ndarray, mode: str, path: Path) -> np.ndarray:
    least, largest = float(pixels.min()), float(pixels.max())
    if not (least >= 0 and largest <= 65535):  # true for NaN
        raise DataError(
            f"{path}: found values from {least:g} to {largest:g}, expected gray within 0..1, "
            "0..255 or 0..65535"
        )
    if mode == "F" and largest <= 1:
        pixels = np.rint(pixels * 255)
    return (pixels / (256 if largest > 255 else 1)).astype(np.uint8)
