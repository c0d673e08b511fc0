"""A slow model of a GPU's JPEG decoder in NumPy: float inverse DCT, chroma upsampled at choice.

What it has in common with libjpeg is the format alone: libjpeg, and so Pillow, computes in
integers and rounds after each step.
"""

from __future__ import annotations

import numpy as np

from maskdepth.convert.jpeg.coefficients import Coefficients, read_coefficients

# The orthonormal DCT-II of 8 samples: row k is the k-th cosine (ITU-T T.81, A.3.3).
_K, _N = np.arange(8)[:, None], np.arange(8)[None]
DCT = np.cos((2 * _N + 1) * _K * np.pi / 16) * np.where(_K == 0, np.sqrt(1 / 8), np.sqrt(1 / 4))
# JFIF: RGB from Y, Cb - 128 and Cr - 128.
RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])


def decode(source: bytes, *, interpolate: bool) -> np.ndarray:
    """uint8 (H, W, 3) of a colour JPEG.

    interpolate: whether chroma that is stored at half the size is interpolated linearly, as with
    DALI's jpeg_fancy_upsampling and in libjpeg; otherwise each value is repeated.
    """
    coefficients = read_coefficients(source)
    height, width = coefficients.geometry.height, coefficients.geometry.width
    planes = []
    for plane in _planes(coefficients):
        while plane.shape[0] < height:
            plane = _double(plane, interpolate)
        while plane.shape[1] < width:
            plane = _double(plane.T, interpolate).T
        planes.append(plane[:height, :width])
    rgb = (np.stack(planes, -1) - [0, 128, 128]) @ RGB.T
    return rgb.round().clip(0, 255).astype(np.uint8)


def _planes(coefficients: Coefficients) -> list[np.ndarray]:
    """Samples of each component, float64 in 0..255, without the padding of its blocks."""
    geometry, quantisers, values = coefficients
    rows, columns = geometry.mcus
    planes = []
    for component, (down, across) in enumerate(geometry.samplings):
        chosen = values[:, geometry.components == component] * quantisers[component].astype(float)
        blocks = DCT.T @ chosen.reshape(-1, 8, 8) @ DCT + 128
        grid = blocks.reshape(rows, columns, down, across, 8, 8).transpose(0, 2, 4, 1, 3, 5)
        plane = grid.reshape(rows * down * 8, columns * across * 8).clip(0, 255)
        planes.append(plane[: geometry.planes[component, 2], : geometry.planes[component, 3]])
    return planes


def _double(plane: np.ndarray, interpolate: bool) -> np.ndarray:
    """Twice as many rows, each in the middle of the nearer half of its source row."""
    if not interpolate:
        return plane.repeat(2, axis=0)
    before, after = np.roll(plane, 1, axis=0), np.roll(plane, -1, axis=0)
    before[0], after[-1] = plane[0], plane[-1]
    pairs = np.stack([3 * plane + before, 3 * plane + after], axis=1) / 4
    return pairs.reshape(-1, plane.shape[1])
