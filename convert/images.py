"""Reads the images that a user names: photos, cut-outs and depth maps, in any mode that Pillow has.

The images of a data set or of shards are read by `convert.jpeg`, which knows their form.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from maskdepth.convert import jpeg
from maskdepth.convert.errors import DataError
from maskdepth.convert.files import read_regular, require_regular

SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Of files that are taken for images where a user names a folder, in lower case."""

_EXPECTED = "expected a complete, readable image; copy or save it again"
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Mode of an image by the colour space of its profile, as ICC.1:2022, table 19, spells it."""
_TURNED = (5, 6, 7, 8)
"""Values of EXIF's orientation by which width and height are exchanged."""
_NEARLY = 2
"""Levels of 255 by which a profile may differ from sRGB and count as sRGB."""


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Decode an image completely, as it is stored; of several in one file, the first.

    Raises DataError that names the file: for one that is missing, irregular, damaged or no image,
    and for one of more than twice `PIL.Image.MAX_IMAGE_PIXELS` pixels, about 179 million.
    """
    with _errors_named(path):
        # From memory: of TIFF files, Pillow maps some, and scrambles those that are turned.
        data = read_regular(path)
        if not data:
            raise DataError(f"{path}: found an empty file; {_EXPECTED}")
        image = Image.open(io.BytesIO(data))
        image.load()
        if image.format in ("JPEG", "MPO"):
            _require_intact(data)
    with image:
        yield image


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of an upright image, without decoding it where its header is enough.

    That is so for most formats, not for TIFF, nor for PNG, which may have its orientation at the
    end. Raises DataError as `opened`, but most damages are found only when an image is decoded.
    """
    with _errors_named(path):
        require_regular(path)
        if not path.stat().st_size:
            raise DataError(f"{path}: found an empty file; {_EXPECTED}")
        with open(path, "rb") as file, Image.open(file) as image:
            # Of a TIFF file, it depends on the version of Pillow which size the header gives.
            if image.format != "TIFF":
                is_turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
                return image.size[::-1] if is_turned else image.size
    with opened(path) as image:
        return upright(image, path).size


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Raise a DataError that names the file for anything that reading it can raise."""
    try:
        with warnings.catch_warnings():
            # Of half as many pixels as are refused: some cameras make such photos.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected an image") from None
    except UnidentifiedImageError:
        raise DataError(
            f"{path}: found no readable image, expected a photo or cut-out; save it as PNG or JPEG"
        ) from None
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(
            f"{path}: found an image of more than 179 million pixels; make it smaller"
        ) from None
    except OSError as error:
        if error.errno is None:  # of Pillow
            raise DataError(f"{path}: {_reason(error)}; {_EXPECTED}") from None
        raise DataError(f"{path}: cannot be read ({_reason(error)}); fix that") from None
    # Pillow's decoders raise almost any exception on corrupt bytes.
    except Exception as error:
        raise DataError(f"{path}: {_reason(error)}; {_EXPECTED}") from None


def _require_intact(data: bytes) -> None:
    """ValueError for a JPEG of which data are missing: Pillow fills the rest and says nothing."""
    if jpeg.read_header(data).components != 4:  # which simplejpeg does not decode
        try:
            jpeg.decode_gray(data)  # reads the data of all components
        except ValueError as error:
            if "extraneous" not in str(error):  # some cameras write more than is needed
                raise


def _reason(error: Exception) -> str:
    """What an exception of Pillow says, in one line."""
    if isinstance(error, MemoryError):
        return "does not fit in memory"
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or "damaged"
    return str(text)[:200]


def upright(image: Image.Image, path: Path) -> Image.Image:
    """A copy that is rotated and mirrored as its EXIF data say. Raises DataError."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # damaged EXIF data
        raise DataError(f"{path}: its EXIF data are damaged ({error}); {_EXPECTED}") from None


def read_rgb(path: Path) -> np.ndarray:
    """An upright photo, uint8 (H, W, 3), sRGB; modes as in `to_rgb`. Raises DataError."""
    with opened(path) as image:
        return np.array(to_rgb(upright(image, path), path))


def to_rgb(image: Image.Image, path: Path) -> Image.Image:
    """Convert any mode to RGB as `to_rgba` does; transparency becomes white."""
    colours, alpha = _split(image, path)
    if alpha is None:
        return colours
    colours.putalpha(alpha)
    white = Image.new("RGBA", colours.size, "white")
    return Image.alpha_composite(white, colours).convert("RGB")


def to_rgba(image: Image.Image, path: Path) -> Image.Image:
    """Convert any mode to 8 bit RGBA; opaque without transparency, and not multiplied by alpha.

    Colours are converted to sRGB by the image's profile; without a profile they count as sRGB.
    Gray of more than 8 bits is scaled by what its largest value says of its range: 0..1 (floats),
    0..255 or 0..65535. Raises DataError for other values, and for a profile that cannot be used.
    """
    colours, alpha = _split(image, path)
    colours.putalpha(255 if alpha is None else alpha)
    return colours


def _split(image: Image.Image, path: Path) -> tuple[Image.Image, Image.Image | None]:
    """New sRGB colours, and alpha if there is any."""
    try:
        colours, alpha = _without_alpha(image, path)
    except (OSError, ValueError, MemoryError) as error:
        raise DataError(f"{path}: {_reason(error)}; {_EXPECTED}") from None
    return _to_srgb(colours, image.info.get("icc_profile"), path), alpha


def _without_alpha(image: Image.Image, path: Path) -> tuple[Image.Image, Image.Image | None]:
    """Colours, of mode L, RGB or CMYK, and alpha, of mode L."""
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image, np.float64)
        colours = Image.fromarray(_eight_bits(pixels, image.mode, path))
        if "transparency" not in image.info:
            return colours, None
        # The one transparent value; in 8 bits, others would be equal to it.
        opaque = pixels != image.info["transparency"]
        return colours, Image.fromarray(opaque.astype(np.uint8) * 255)
    if not image.has_transparency_data:
        return image.convert(image.mode if image.mode in ("L", "CMYK") else "RGB"), None
    rgba = image.convert("RGBA")
    is_gray = image.mode in ("1", "L", "LA", "La")
    return rgba.getchannel("R") if is_gray else rgba.convert("RGB"), rgba.getchannel("A")


def _to_srgb(image: Image.Image, profile: bytes | None, path: Path) -> Image.Image:
    """RGB of an image of mode L, RGB or CMYK with this ICC profile, if it has one."""
    if not profile:
        return image.convert("RGB")
    try:
        mode, transform = _transform(profile)
    except Exception as error:  # lcms raises OSError, ValueError and PyCMSError
        reason = f"cannot be used ({_reason(error)})"
    else:
        if mode is not None and _fits(mode, image):
            return transform.apply(image.convert(mode)) if transform else image.convert("RGB")
        reason = f"is not for {image.mode} images"
    raise DataError(
        f"{path}: its colour profile {reason}; convert it to sRGB, or save it without a profile"
    )


def _fits(mode: str, image: Image.Image) -> bool:
    """Whether a profile for images of this mode is for this one, so that no colour is lost."""
    if mode == "L" and image.mode == "RGB":
        return len({plane.tobytes() for plane in image.split()}) == 1
    return (mode == "CMYK") == (image.mode == "CMYK")


@functools.lru_cache(maxsize=8)  # the photos of a camera have the same
def _transform(profile: bytes) -> tuple[str | None, ImageCms.ImageCmsTransform | None]:
    """Mode of the images of an ICC profile, and how to convert them; None if they are sRGB."""
    opened_profile = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = _MODES.get(opened_profile.profile.xcolor_space)
    if mode is None:
        return None, None
    transform = ImageCms.ImageCmsTransform(
        opened_profile, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")), mode, "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC, flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )  # fmt: skip
    # Profiles of sRGB have many names. Converting by one changes some colours by a level.
    is_srgb = mode != "CMYK" and _largest_change(mode, transform) <= _NEARLY
    return mode, None if is_srgb else transform


def _largest_change(mode: str, transform: ImageCms.ImageCmsTransform) -> int:
    """Of a channel, in levels of 255, over a grid of colours."""
    steps = range(0, 256, 17)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3).astype(np.uint8)
    image = Image.fromarray(grid).convert(mode)
    before, after = image.convert("RGB"), transform.apply(image)
    return int(np.abs(np.asarray(after, np.int16) - np.asarray(before, np.int16)).max())


def _eight_bits(pixels: np.ndarray, mode: str, path: Path) -> np.ndarray:
    least, largest = float(pixels.min()), float(pixels.max())
    if not np.isfinite(pixels).all():
        raise DataError(
            f"{path}: found values that are not finite (NaN or infinity), expected gray within "
            "0..1, 0..255 or 0..65535; replace them by numbers, or save the image as PNG"
        )
    if least < 0 or largest > 65535:
        raise DataError(
            f"{path}: found values from {least:g} to {largest:g}, expected gray within 0..1, "
            "0..255 or 0..65535; scale them, or save the image as PNG"
        )
    if mode == "F" and largest <= 1:
        pixels = np.rint(pixels * 255)
    return (pixels / (256 if largest > 255 else 1)).astype(np.uint8)
