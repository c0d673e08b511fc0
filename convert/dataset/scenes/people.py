"""Draws people as round, shaded limbs with soft edges, one over another."""

from dataclasses import dataclass, field

import numpy as np

from maskdepth.convert.dataset.scenes.body import Body, Limb, draw_pose
from maskdepth.convert.dataset.scenes.textures import Noise
from maskdepth.convert.dataset.scenes.wardrobe import dress

STREAM_FG = 2  # random stream of a seed; `draw` uses 1 and `compose.place` 3
CANVAS = 640  # height and width of the picture before it is cropped, pixels
MARGIN = 60  # space below the feet, pixels


@dataclass
class Sheet:
    """A transparent picture in floats 0..1: straight (not premultiplied) colours, and alpha."""

    height: float  # pixels per body height
    light: np.ndarray  # unit vector towards the light: right, down, towards the viewer
    noise: Noise
    colour: np.ndarray = field(default_factory=lambda: np.zeros((CANVAS, CANVAS, 3), np.float32))
    alpha: np.ndarray = field(default_factory=lambda: np.zeros((CANVAS, CANVAS), np.float32))

    def draw(self, limb: Limb) -> None:
        """Draw one limb over the picture, with soft edges."""
        a, b = self._pixel(limb.start), self._pixel(limb.end)
        shares, widths = np.array(limb.profile).T
        widths = widths * self.height
        reach = widths.max() + 2
        low = np.floor(np.minimum(a, b) - reach).clip(0, CANVAS).astype(int)
        high = np.ceil(np.maximum(a, b) + reach).clip(0, CANVAS).astype(int)
        box = np.s_[low[1] : high[1], low[0] : high[0]]
        x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
        length = max(float(np.hypot(*(b - a))), 1e-3)
        axis = (b - a) / length
        side = np.array([-axis[1], axis[0]]) * (1 if axis[1] < 0 else -1)
        along = (x - a[0]) * axis[0] + (y - a[1]) * axis[1]
        across = (x - a[0]) * side[0] + (y - a[1]) * side[1]
        u = along / length
        width = np.interp(u, shares, widths)
        blunt_start, blunt_end = limb.bluntness
        beyond = np.maximum(np.maximum(-along * blunt_start, (along - length) * blunt_end), 0)
        cover = np.clip(width - np.hypot(across, beyond) + 0.5, 0, 1)
        s = np.clip(across / width, -1, 1)
        colour = limb.dye(np.clip(u, 0, 1), s)
        colour = np.clip(colour * self._shade(s, side, x, y, limb.folds)[..., None], 0, 1)
        under = self.alpha[box] * (1 - cover)
        total = under + cover
        mixed = colour * cover[..., None] + self.colour[box] * under[..., None]
        self.colour[box] = mixed / np.maximum(total, 1e-6)[..., None]
        self.alpha[box] = total

    def _shade(
        self, s: np.ndarray, side: np.ndarray, x: np.ndarray, y: np.ndarray, folds: float
    ) -> np.ndarray:
        """Light on a round limb, with folds of cloth."""
        crease = folds * self.noise(x * 0.55 + y * 0.2, y * 0.8 - x * 0.3)
        s = np.clip(s * 0.94 + 0.35 * crease, -1, 1)
        facing = s * (side @ self.light[:2]) + np.sqrt(1 - s * s) * self.light[2]
        return np.asarray(0.5 + 0.62 * np.maximum(facing, 0) + 0.35 * crease)

    def _pixel(self, point: np.ndarray) -> np.ndarray:
        x, y = point * self.height
        return np.array([CANVAS / 2 + x, CANVAS - MARGIN - y])


def draw_person(seed: int, index: int) -> np.ndarray:
    """Draw person ``index`` of ``seed``: RGBA uint8 (h, w, 4), some hundred pixels high.

    Cropped to the visible pixels, soft at the edges.
    """
    rng = np.random.default_rng([seed, STREAM_FG, index])
    height = rng.uniform(400, 470)
    light = np.array([rng.uniform(-0.9, 0.9), rng.uniform(-0.8, -0.2), rng.uniform(0.4, 1)])
    sheet = Sheet(height, light / np.linalg.norm(light), Noise(rng, 1.4))
    for limb in Body(rng, draw_pose(rng), dress(rng)).limbs():
        sheet.draw(limb)
    rows, columns = np.nonzero(sheet.alpha > 0.5 / 255)
    box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    alpha = sheet.alpha[box]
    # What a camera adds: grain, exposure and tint.
    grain = 1 + rng.uniform(0.01, 0.05) * rng.standard_normal((*alpha.shape, 1))
    tint = rng.uniform(0.8, 1.2) * (1 + rng.normal(0, 0.025, 3))
    rgba = np.dstack([sheet.colour[box] * grain * tint, alpha])
    return np.asarray(np.rint(np.clip(rgba, 0, 1) * 255).astype(np.uint8))
