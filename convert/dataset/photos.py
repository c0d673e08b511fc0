"""Reads the user's photos, depth maps and cut-outs, and says clearly what is wrong with them."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from convert.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


def list_images(folder: Path) -> tuple[Path, ...]:
    """The files of ``folder`` by name, hidden ones left out.

    Raises DataError if the folder is missing or empty or holds a file that by its suffix is no
    image: a stray file would silently shift the numbering of all after it.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise DataError(f"{folder}: found {found}, expected a folder of images.")
    files = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    if not files:
        raise DataError(f"{folder}: found no files, expected images ({', '.join(_suffixes())}).")
    for path in files:
        if not path.is_file() or path.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{path}: found no image, expected only images ({', '.join(_suffixes())}) in this "
                "folder. Move it elsewhere."
            )
    return tuple(files)


def match_stems(photos: tuple[Path, ...], folder: Path) -> tuple[Path, ...]:
    """The image in ``folder`` that has each photo's name, up to the suffix."""
    by_stem: dict[str, Path] = {}
    for path in list_images(folder):
        if path.stem in by_stem:
            raise DataError(f"{path}: found also {by_stem[path.stem].name}, expected one of them.")
        by_stem[path.stem] = path
    missing = [p for p in photos if p.stem not in by_stem]
    if missing:
        raise DataError(
            f"{folder}: found no depth map for {missing[0].name} ({len(missing)} of {len(photos)} "
            "photos have none), expected an image of the same name for each photo."
        )
    return tuple(by_stem[p.stem] for p in photos)


def background_jpeg(path: Path, size: int, quality: int) -> bytes:
    """JPEG bytes of the photo's centre square at ``size``.

    A file that is such a JPEG already is passed on byte for byte.
    """
    with _opened(path) as image:
        upright = image.getexif().get(0x0112, 1) == 1
        as_wanted = image.format == "JPEG" and image.mode == "RGB" and image.size == (size, size)
        if as_wanted and upright:
            return path.read_bytes()
        square = _centre_square(ImageOps.exif_transpose(image), size, Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        _flatten(square).save(buffer, "JPEG", quality=quality, optimize=True)
        return buffer.getvalue()


def open_depth(path: Path, photo: Path, size: int) -> np.ndarray:
    """Depth of the photo's centre square, float32 (size, size), larger is farther.

    Takes 8 and 16 bit, float and RGB gray images of the photo's shape (within 2 %).
    """
    with _opened(photo) as image:
        width, height = ImageOps.exif_transpose(image).size
    with _opened(path) as image:
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

    Raises DataError where the image has no transparency or nothing else.
    """
    with _opened(path) as image:
        if "A" not in image.getbands() and "transparency" not in image.info:
            raise DataError(
                f"{path}: found a {image.mode} image without transparency, expected an RGBA "
                "cut-out. Remove the background of the person first."
            )
        person = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))
    visible = person[..., 3] != 0
    if visible.all():
        raise DataError(f"{path}: found no transparent pixel, expected a cut-out of a person.")
    if not visible.any():
        raise DataError(f"{path}: found only transparent pixels, expected a person.")
    return person


def scale_cutout(person: np.ndarray, height: int, max_width: int, path: Path) -> np.ndarray:
    """Scale RGBA uint8 (h, w, 4) to ``height``, width by aspect ratio.

    Colours are averaged weighted by alpha, in floats: 8 bit arithmetic leaves wrong colours
    where alpha is small, and every pixel whose alpha is not 0 shows in a composite.

    Raises DataError naming ``path`` unless the result is narrower than ``max_width`` and shows
    something.
    """
    width = max(1, round(person.shape[1] * height / person.shape[0]))
    if width >= max_width:
        raise DataError(
            f"{path}: found {person.shape[1]}x{person.shape[0]}, {width} pixels wide when scaled "
            f"to height {height}, expected less than {max_width}. Crop it closer to the person."
        )
    alpha = person[..., 3].astype(np.float32)
    planes = [alpha] + [person[..., c] * alpha for c in range(3)]
    small_alpha, *colours = (
        np.asarray(Image.fromarray(p).resize((width, height), Image.Resampling.BILINEAR))
        for p in planes
    )
    colour = np.stack(colours, axis=-1) / np.maximum(small_alpha, 1e-3)[..., None]
    scaled = np.dstack([colour, small_alpha])
    scaled[small_alpha < 0.5] = 0
    pixels = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    if not pixels[..., 3].any():
        raise DataError(
            f"{path}: found only transparent pixels when scaled to height {height}, expected a "
            "person. Crop it closer to the person."
        )
    return pixels


def _suffixes() -> list[str]:
    return sorted(SUFFIXES)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The loaded image; what Pillow raises becomes a DataError that names the file."""
    try:
        with Image.open(path) as image:
            image.load()
            yield image
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: found no readable image, expected a photo or cut-out.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: {error}. Expected a whole, readable image.") from error


def _centre_square(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """Crop the centred square and resize it to ``size``."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Palette and bilevel images cannot be interpolated, so colours come first.
    image = image if image.mode == "F" else _flatten(image)
    return image.resize((size, size), resample, box=(left, top, left + side, top + side))


def _flatten(image: Image.Image) -> Image.Image:
    """RGB of any mode; 16 bit gray keeps its upper byte, transparency shows as white."""
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image, np.float64)
        scale = 1 / 256 if pixels.max() > 255 else 1
        return Image.fromarray(np.clip(pixels * scale, 0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
