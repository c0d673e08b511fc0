"""Small images that tests generate quickly."""

from __future__ import annotations

import io

import cv2
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


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 (H, W, 3) with details of several sizes."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for size in (2, 5, 12):
        noise = rng.standard_normal((height, width, 3)).astype(np.float32)
        blurred = cv2.GaussianBlur(noise, (0, 0), size)
        image += blurred / blurred.std()
    low, high = image.min(), image.max()
    return ((image - low) / (high - low) * 255).astype(np.uint8)


def with_disc(image: np.ndarray) -> np.ndarray:
    """The image with a foreground that covers some 8 % of it."""
    height, width = image.shape[:2]
    out = image.copy()
    cv2.circle(out, (width // 3, height // 2), min(height, width) // 6, (250, 20, 30), -1)
    return out
