"""Small images that tests generate quickly."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth gray image, uint8 (H, W)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def jpeg_bytes(pixels: np.ndarray, **options: object) -> bytes:
    """A JPEG of uint8 (H, W) or (H, W, 3); options as Pillow's."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", **options)
    return out.getvalue()
