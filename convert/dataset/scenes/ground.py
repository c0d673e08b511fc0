"""The ground of a street: its colours at points in metres."""

from dataclasses import dataclass

import numpy as np

from convert.dataset.scenes.textures import Noise, blend, inside, scatter, shaded


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A street's plan: road with markings, kerbs, pavements, and grass or paving beyond them."""

    road: np.ndarray
    pavement: np.ndarray
    beyond: np.ndarray
    grassy: bool
    middle: float  # x of the road's middle
    half_road: float
    walk: float  # width of each pavement
    crossing: tuple[float, float] | None  # bounds in z of a side street
    zebra: float | None  # z of a pedestrian crossing
    dash: float  # length of the dashes of the middle line, 0 for a street without lines; metres
    slab: float  # side of the paving slabs
    paint: np.ndarray  # colour of the markings
    salt: float
    noise: Noise
    fine: Noise

    def __call__(self, x: np.ndarray, z: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Colour (k, 3) at points of the ground."""
        across = np.abs(x - self.middle)
        clear = 1 / (1 + (depth / 9) ** 2)
        off_road = across > self.half_road
        if self.crossing:
            off_road &= (z < self.crossing[0]) | (z > self.crossing[1])
        land = off_road & (across > self.half_road + self.walk)
        walk = off_road & ~land
        colour = np.empty((len(x), 3), np.float32)
        for zone, texture in (~off_road, self._road), (walk, self._walk), (land, self._land):
            colour[zone] = texture(x[zone], z[zone], clear[zone])
        kerb = off_road & (across < self.half_road + 0.16)
        gutter = inside(across, self.half_road - 0.2, self.half_road) * 0.25
        colour = blend(colour, self.pavement * 1.12, 0.85 * kerb)
        return colour * (1 - gutter)[:, None]

    def _road(self, x: np.ndarray, z: np.ndarray, clear: np.ndarray) -> np.ndarray:
        grain = 0.15 * clear * self.fine(x * 55, z * 55) + 0.05 * self.noise(x * 9, z * 4)
        lane = np.abs(np.abs(x - self.middle) - self.half_road * 0.5)
        tracks = 0.05 * np.cos(np.clip(lane / 0.9, 0, 1) * 2 * np.pi)
        crack = np.abs(self.noise(x * 14 + 99, z * 14)) < 0.035
        patch = inside(np.mod(z + self.salt, 11.3), 2, 4.2) * inside(x - self.middle, 0.4, 2.1)
        shade = 1 + grain + tracks - 0.3 * crack * np.sqrt(clear) - 0.14 * patch
        return self._marked(shaded(self.road, shade), x, z)

    def _marked(self, colour: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        across = x - self.middle
        worn = np.clip(0.85 + 0.16 * self.noise(x * 25, z * 25), 0.2, 1)
        marks = np.zeros_like(x)
        if self.dash:
            centre = np.abs(across) < 0.08
            marks = centre * (np.mod(z + self.salt, self.dash * 2) < self.dash)
            edge = np.abs(np.abs(across) - self.half_road + 0.35) < 0.05
            marks = np.maximum(marks, edge * 0.8)
        if self.crossing:
            marks = marks * ((z < self.crossing[0]) | (z > self.crossing[1]))
        if self.zebra is not None:
            here = inside(z, self.zebra, self.zebra + 3)
            bars = np.mod(across, 1.1) < 0.55
            marks = np.where(here > 0, bars, marks)
        return blend(colour, self.paint, marks * worn * (np.abs(across) < self.half_road))

    def _walk(self, x: np.ndarray, z: np.ndarray, clear: np.ndarray) -> np.ndarray:
        row = np.floor(z / self.slab)
        shifted = x + 0.5 * self.slab * (row % 2)
        tone = scatter(row, np.floor(shifted / self.slab), self.salt) - 0.5
        joint = (np.mod(z, self.slab) < 0.035) | (np.mod(shifted, self.slab) < 0.035)
        grain = 0.07 * clear * self.fine(x * 45, z * 45) + 0.05 * self.noise(x * 12, z * 12)
        shade = 1 + grain + 0.14 * tone * np.sqrt(clear) - 0.3 * joint * np.sqrt(clear)
        return shaded(self.pavement, shade)

    def _land(self, x: np.ndarray, z: np.ndarray, clear: np.ndarray) -> np.ndarray:
        if not self.grassy:
            return self._walk(x, z, clear) * (self.beyond / self.pavement)
        tufts = 0.16 * self.noise(x * 20, z * 9) + 0.22 * clear * self.fine(x * 40, z * 25)
        dry = np.clip(0.5 * self.noise(x * 5, z * 5), 0, 0.6)
        colour = shaded(self.beyond, np.clip(1 + tufts, 0.2, 2))
        return blend(colour, np.array([0.5, 0.45, 0.28]), dry)
