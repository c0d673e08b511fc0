"""Small data sets of foregrounds among things, and the rule of composites in plain loops."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskdepth.convert.dataset.canvas import encode_jpeg
from maskdepth.convert.dataset.remake import remake
from maskdepth.convert.source import read_source
from maskdepth.convert.style import Style
from tests.pictures import texture

QUIET: dict[str, Any] = {"workers": 0, "progress": False}
SIZE, HEIGHT = 64, 30
Pasted = tuple[np.ndarray, int, int]
"""RGBA uint8 (h, w, 4) with an alpha of 0 or 255, and the place of its top-left corner."""


def reference(
    image: np.ndarray, depth: np.ndarray, pasted: Sequence[Pasted], occlusion: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """fg_bg, mask and depth (0..255) of a composite, in plain loops."""
    near, far = float(depth.min()), float(depth.max())
    levels = [
        [round((float(d) - near) * 255 / max(far - near, 1e-9)) for d in row] for row in depth
    ]
    found: list[tuple[int, float, list[tuple[int, int, np.ndarray]]]] = []
    for rgba, left, top in pasted:
        pixels = [(y, x) for y, x in np.ndindex(rgba.shape[:2]) if rgba[y, x, 3]]
        feet = top + max(y for y, _ in pixels)
        first, last = min(x for _, x in pixels), max(x for _, x in pixels)
        reach, right = len(rgba), depth.shape[1] - 1
        columns = range(max(0, left + first - reach), min(right, left + last + reach) + 1)
        level = min(128, max(levels[feet][x] for x in columns))
        value = min((near + far) / 2, max(float(depth[feet, x]) for x in columns))
        shown = [(y, x) for y, x in pixels if levels[top + y][left + x] >= level - 5]
        if not occlusion or len(shown) < len(pixels) / 4:
            shown = pixels
            level = min(128, min(levels[top + y][left + x] for y, x in pixels))
            value = min((near + far) / 2, min(float(depth[top + y, left + x]) for y, x in pixels))
        found.append((level, value, [(top + y, left + x, rgba[y, x]) for y, x in shown]))
    fg_bg, mask, metres = image.copy(), np.zeros(depth.shape, bool), depth.astype(np.float64)
    for _, value, colours in sorted(found, key=lambda one: one[0], reverse=True):
        for y, x, colour in colours:
            fg_bg[y, x], mask[y, x] = colour[:3], True
            metres[y, x] = min(metres[y, x], value)
    span = max(metres.max() - metres.min(), 1e-9)
    return fg_bg, mask, (metres - metres.min()) * 255 / span


def person(width: int = 20, seed: int = 3) -> np.ndarray:
    """An ellipse of `HEIGHT` pixels, so that it is not scaled."""
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : width * 1j]
    rgba = np.dstack([texture(HEIGHT, width, seed=seed), (x * x + y * y < 1) * np.uint8(255)])
    rgba[rgba[..., 3] == 0] = 0
    return rgba


def depth_maps() -> dict[str, np.ndarray]:
    """16 bit, near is small: a street with things on it, and maps that make less sense."""
    rows = np.arange(SIZE, dtype=np.float64)[:, None] * np.ones(SIZE)
    street = np.where(rows > 20, 4000 / np.maximum(rows - 18, 1), 3000.0)
    street[10:50, 20:24] = 130  # a post
    street[25:55, 40:60] = 105  # a car
    noise = np.random.default_rng(1).uniform(100, 900, (SIZE, SIZE))
    maps = {"street": street, "flat": np.full((SIZE, SIZE), 700.0), "noise": noise}
    maps |= {"reversed": street.max() + 100 - street, "wall": np.where(rows < 40, 100.0, 900.0)}
    return {name: np.rint(pixels).astype(np.uint16) for name, pixels in maps.items()}


def write_photos(folder: Path, *names: str) -> dict[str, Any]:
    """A photo with each of these depth maps, and three cut-outs; the arguments of `compose`."""
    for name in ("bg", "fg", "depth"):
        (folder / name).mkdir(parents=True)
    for number, name in enumerate(names):
        Image.fromarray(texture(SIZE, SIZE, seed=number)).save(folder / f"bg/{name}.png")
        Image.fromarray(depth_maps()[name]).save(folder / f"depth/{name}.png")
    for number, width in enumerate((20, 9, 40)):
        Image.fromarray(person(width, seed=number)).save(folder / f"fg/{number}.png")
    return {
        "bg": folder / "bg", "fg": folder / "fg", "bg_depth": folder / "depth", "size": SIZE,
        "placements": 6, **QUIET,
    }  # fmt: skip


def check_composites(dataset: Path, maps: Sequence[np.ndarray], style: Style) -> tuple[int, int]:
    """Compare every file with the rule; returns in how many samples a pixel is hidden, or none.

    maps: depth of each background, float32 (SIZE, SIZE).
    """
    source = read_source(dataset)
    people = [np.asarray(Image.open(path)) for path in sorted((dataset / "fg").iterdir())]
    others = np.empty(0, [("sample", "<u8")])
    if (dataset / "others.npy").exists():
        others = np.load(dataset / "others.npy")
    hidden = 0
    assert source.layout.placements is not None
    for index, (bg, fg, flipped, x, y, _) in enumerate(source.layout.placements.tolist()):
        image = np.asarray(Image.open(source.bg[bg]))
        rows = [(fg, flipped, x, y), *(row[1:5] for row in others.tolist() if row[0] == index)]
        pasted = [(np.fliplr(people[f]) if m else people[f], left, top) for f, m, left, top in rows]
        fg_bg, mask, gray = reference(image, maps[bg], pasted, style.occlusion)
        again = remake(source, index)
        np.testing.assert_array_equal(again[0], fg_bg)
        np.testing.assert_array_equal(again[1], mask)
        paths = source.paths(index)
        for path, expected in zip(paths, (fg_bg, mask * np.uint8(255)), strict=False):
            same_pixels(path, expected, style.quality)
        stored = np.asarray(Image.open(paths[2]).convert("L"), np.int16)
        levels = np.repeat(np.rint(gray).astype(np.uint8)[..., None], 3, axis=2)
        jpeg = decoded(encode_jpeg(Image.fromarray(levels), 75))
        assert np.abs(stored - jpeg[..., 0]).max() <= 12  # a level more or less, and its JPEG
        assert np.median(np.abs(stored - jpeg[..., 0])) <= 1
        hidden += int(mask.sum() < sum((rgba[..., 3] > 0).sum() for rgba, _, _ in pasted))
    return hidden, source.layout.samples - hidden


def read_maps(folder: Path) -> list[np.ndarray]:
    """Depth maps in the order of their names, float32."""
    return [np.asarray(Image.open(path), np.float32) for path in sorted(folder.iterdir())]


def same_pixels(path: Path, expected: np.ndarray, quality: int) -> None:
    found = decoded(path.read_bytes())
    np.testing.assert_array_equal(found, decoded(encode_jpeg(Image.fromarray(expected), quality)))


def decoded(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)), np.int16)
