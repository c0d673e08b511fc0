"""Small data sets of composites, encoded in any way."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageDraw

from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.errors import DataError

Encode = Callable[[np.ndarray], bytes]
"""A JPEG of uint8 (H, W) or (H, W, 3)."""


def as_jpeg(quality: int = 75, subsampling: str = "4:2:0", **options: object) -> Encode:
    """Encode as Pillow does; ``subsampling`` of any kind, with which there are no options."""

    def encode(image: np.ndarray) -> bytes:
        if subsampling in ("4:4:0", "4:1:1"):
            kind = subsampling.replace(":", "")
            return bytes(simplejpeg.encode_jpeg(image, quality, "RGB", kind))
        stream = io.BytesIO()
        chosen = {} if image.ndim == 2 else {"subsampling": subsampling}
        Image.fromarray(image).save(stream, "JPEG", quality=quality, **chosen, **options)
        return stream.getvalue()

    return encode


def smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3) without details."""
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def rough(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3) with noise in it."""
    noise = rng.integers(-25, 26, (height, width, 3))
    return (smooth(rng, height, width) + noise).clip(0, 255).astype(np.uint8)


def place(number: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Box of a person: in turn in the middle, at each edge and in each corner."""
    tall, wide = max(1, height // 3), max(1, width // 3)
    top = (height // 3, 0, height - tall)[number % 3]
    left = (width // 3, 0, width - wide)[number // 3 % 3]
    return left, top, left + wide - 1, top + tall - 1


def with_person(image: np.ndarray, number: int, colour: tuple[int, ...] | int) -> np.ndarray:
    """The image with a rectangle or a disc at the place of a number."""
    drawn = Image.fromarray(image)
    box = place(number, *image.shape[:2])
    draw = ImageDraw.Draw(drawn)
    (draw.rectangle if number % 2 else draw.ellipse)(box, fill=colour)
    return np.array(drawn)


def make_dataset(
    folder: Path,
    *,
    size: tuple[int, int] = (40, 56),
    groups: tuple[int, ...] = (9, 6),
    encode: Encode | None = None,
    encode_bg: Encode | None = None,
    encode_depth: Encode | None = None,
    depth: str = "gray",
    texture: Callable[[np.random.Generator, int, int], np.ndarray] = rough,
    seed: int = 0,
) -> Path:
    """Write a data set; returns its folder.

    groups: composites of each background. depth: "gray" (of one component), "rgb" (gray saved as
    RGB), "noise" (gray, different everywhere in each map) or "colour".
    """
    encode = encode or as_jpeg()
    encode_depth = encode_depth or as_jpeg()
    rng = np.random.default_rng(seed)
    height, width = size
    for group, count in enumerate(groups):
        stem = f"bg_{group:03d}"
        background, flat = texture(rng, height, width), smooth(rng, height, width)[..., 0]
        write(folder / f"bg/{stem}.jpg", (encode_bg or encode)(background))
        for number in range(count):
            name = f"{stem}/img_{number:04d}.jpg"
            colour = tuple(rng.integers(0, 256, 3).tolist())
            write(folder / "fg_bg" / name, encode(with_person(background, number, colour)))
            mask = with_person(np.zeros((height, width), np.uint8), number, 255)
            write(folder / "fg_bg_mask" / name, as_jpeg(95)(mask))
            gray = with_person(flat, number, 40 + 9 * number)
            if depth == "noise":
                gray = rng.integers(0, 256, gray.shape, np.uint8)
            image = gray if depth == "gray" else np.stack([gray] * 3, -1)
            if depth == "colour":
                image[..., 0] = np.minimum(gray, 250) + 5  # a trace, as of a colour map
            write(folder / "fg_bg_depth" / name, encode_depth(image))
    return folder


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def composites(dataset: Path, folder: str = "fg_bg") -> list[Path]:
    """All files of a field in the order of the samples."""
    return sorted((dataset / folder).glob("*/*.jpg"))


def reencode(path: Path, encode: Encode) -> None:
    """Encode a file again, from its pixels."""
    with Image.open(path) as image:
        pixels = np.array(image)
    path.write_bytes(encode(pixels))


def with_zero_quantiser(data: bytes) -> bytes:
    """A JPEG whose last quantiser of the first table is 0."""
    match = re.search(rb"\xff\xdb..", data, re.DOTALL)
    assert match
    at = match.end() + 64
    return data[:at] + b"\x00" + data[at + 1 :]


# A data set that `compose` makes quickly.
SMALL: dict[str, Any] = {
    "backgrounds": 2,
    "foregrounds": 2,
    "placements": 4,
    "size": 64,
    "progress": False,
}


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels.astype(np.uint8))
    (image.convert(mode) if mode else image).save(path)
    return path


def person_pixels(height: int = 60, width: int = 30) -> np.ndarray:
    """A reddish ellipse on a transparent background."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[..., :3] = (200, 40, 30)
    pixels[..., 3] = (x * x + y * y < 0.9) * 255
    return pixels


def refused(tmp_path: Path, match: str, **arguments: Any) -> None:
    """Check that compose() raises a one-line DataError and leaves no folder, even a hidden one."""
    before = sorted(p.name for p in tmp_path.iterdir())
    counts = {"backgrounds": None} if "bg" in arguments else {}
    counts |= {"foregrounds": None} if "fg" in arguments else {}
    with pytest.raises(DataError, match=match) as caught:
        compose(tmp_path / "out", **({"workers": 0} | SMALL | counts | arguments))
    assert "\n" not in caught.value.message
    assert sorted(p.name for p in tmp_path.iterdir()) == before
