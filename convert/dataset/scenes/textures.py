"""Noise, masks and colour mixing for all procedural surfaces; plain and leafy paint."""

import numpy as np
from numpy.typing import ArrayLike

from maskdepth.convert.dataset.scenes.raycast import Hits, Paint

TILE = 256


class Noise:
    """A tile of smooth random texture, mean 0 and deviation 1, repeated in all directions."""

    def __init__(self, rng: np.random.Generator, roughness: float) -> None:
        """``roughness``: 0 is white noise, 1 looks like clouds or stains."""
        frequency = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.rfftfreq(TILE)[None])
        frequency[0, 0] = np.inf
        spectrum = np.fft.rfft2(rng.standard_normal((TILE, TILE))) / frequency**roughness
        tile = np.fft.irfft2(spectrum)
        self._tile = ((tile - tile.mean()) / tile.std()).astype(np.float32)

    def __call__(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Values at ``u``, ``v`` in texels, interpolated; any shape, float32."""
        column, row = np.floor(u), np.floor(v)
        du, dv = u - column, v - row
        i, j = row.astype(np.int64) % TILE, column.astype(np.int64) % TILE
        next_i, next_j = (i + 1) % TILE, (j + 1) % TILE
        upper = self._tile[i, j] * (1 - du) + self._tile[i, next_j] * du
        lower = self._tile[next_i, j] * (1 - du) + self._tile[next_i, next_j] * du
        return np.asarray(upper * (1 - dv) + lower * dv)


def scatter(i: np.ndarray, j: np.ndarray, salt: float) -> np.ndarray:
    """A repeatable number in 0..1 for each cell (i, j)."""
    wave = np.sin(i * 12.9898 + j * 78.233 + salt * 37.719) * 43758.5453
    return wave - np.floor(wave)


def blend(base: np.ndarray, over: ArrayLike, share: np.ndarray) -> np.ndarray:
    """Mix colours (..., 3): ``share`` (...) of ``over``, the rest ``base``; a mask is 0 or 1."""
    return np.asarray(
        base + (np.asarray(over, np.float32) - base) * share.astype(np.float32)[..., None]
    )


def inside(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """Where low < value < high, as float."""
    return ((value > low) & (value < high)).astype(np.float32)


def shaded(colour: np.ndarray, shade: np.ndarray) -> np.ndarray:
    """Colours (k, 3): one colour (3,) times the brightness (k,) of each point."""
    return np.asarray(np.asarray(colour, np.float32) * shade[:, None])


def plain(colour: np.ndarray, noise: Noise, strength: float = 0.06) -> Paint:
    """Paint of one colour with stains."""
    return lambda hits: shaded(colour, 1 + strength * noise((hits.x + hits.z) * 40, hits.y * 40))


def leafy(colour: np.ndarray, noise: Noise, fine: Noise) -> Paint:
    """Paint of a hedge."""

    def paint(hits: Hits) -> np.ndarray:
        clumps = noise((hits.x + hits.z) * 30, hits.y * 30 + hits.x * 9)
        leaves = fine((hits.x + hits.z) * 25, hits.y * 25)
        light = 1 + 0.22 * clumps + 0.16 * leaves / (1 + (hits.depth / 12) ** 2)
        return shaded(colour, np.clip(light, 0.25, 2))

    return paint
