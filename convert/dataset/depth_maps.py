"""From a prediction to the file of a map: which value is 0, which is 255, and how it is stored."""

from __future__ import annotations

import io
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from maskdepth.convert.dataset.canvas import DEPTH_QUALITY, encode_jpeg
from maskdepth.convert.dataset.networks.model import Predicts
from maskdepth.convert.errors import OptionError
from maskdepth.convert.outputs import png_mark
from maskdepth.convert.source import DepthScale

Stretch = Literal["image", "dataset"]
"""What is stretched from the nearest to the farthest value: each map, or all with one scale."""


class Range(NamedTuple):
    """The model's values at the nearest and the farthest point."""

    near: float
    far: float


def resize(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A prediction (h, w) as float64 (H, W) of ``size``."""
    image = Image.fromarray(np.asarray(depth, np.float32))
    if depth.shape != size:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image, np.float64)


def range_of(depth: np.ndarray, predicts: Predicts) -> Range:
    """The range of a map."""
    low, high = float(depth.min()), float(depth.max())
    return Range(high, low) if predicts == "inverse" else Range(low, high)


def widest(ranges: list[Range], predicts: Predicts) -> Range:
    """The range that has all of some."""
    near, far = (np.array(ends) for ends in zip(*ranges, strict=True))
    if predicts == "inverse":
        return Range(float(near.max()), float(far.min()))
    return Range(float(near.min()), float(far.max()))


def require_range(found: Range, predicts: Predicts) -> None:
    """OptionError for a range that has its ends in the wrong order."""
    ordered = found.near > found.far if predicts == "inverse" else found.near < found.far
    if not ordered:
        order = "NEAR above FAR" if predicts == "inverse" else "NEAR below FAR"
        raise OptionError(
            "value_range", f": found {found.near:g} {found.far:g}, expected {order}, as the "
            f"model's values are {predicts}"
        )  # fmt: skip


def scale_of(found: Range, predicts: Predicts) -> DepthScale:
    """A range as `dataset.json` has it."""
    return DepthScale(
        near=found.near, far=found.far, unit="metres" if predicts == "metric" else "none"
    )


def levels(depth: np.ndarray, found: Range, top: int) -> np.ndarray:
    """Values as whole numbers, 0 at the nearest and ``top`` at the farthest; beyond, the same.

    Inverse depth is turned, not inverted: relative models have an unknown scale and zero, so 1 / x
    would not be distance either. A flat map becomes 0.
    """
    span = found.far - found.near
    if abs(span) < 1e-9:
        span = 1e-9 if span >= 0 else -1e-9
    return np.clip(np.rint((depth - found.near) * (top / span)), 0, top)


def encode_map(depth: np.ndarray, found: Range) -> bytes:
    """A map of a composite: a gray JPEG stored as RGB, 0 nearest, 255 farthest."""
    gray = Image.fromarray(levels(depth, found, 255).astype(np.uint8))
    return encode_jpeg(gray.convert("RGB"), DEPTH_QUALITY, optimize=True)


def encode_background(depth: np.ndarray, found: Range) -> bytes:
    """A map of a background: a PNG of 16 bits, 0 nearest, 65,535 farthest."""
    image = Image.fromarray(levels(depth, found, 65535).astype(np.uint16))
    text = f"depth: {found.near!r} at 0, {found.far!r} at 65535, in the model's unit"
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=png_mark("depth", text))
    return buffer.getvalue()
