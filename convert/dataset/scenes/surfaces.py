"""The ground, house fronts and car bodies of a street: their colours at points in metres."""

from dataclasses import dataclass

import numpy as np

from maskdepth.convert.dataset.scenes.raycast import FACE_UP, Bounds, Hits
from maskdepth.convert.dataset.scenes.textures import Noise, blend, inside, scatter, shaded


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
    crossing: Bounds | None  # bounds in z of a side street
    zebra: float | None  # z of a pedestrian crossing
    dash: float  # length of the dashes of the middle line, 0 for a street without lines; metres
    slab: float  # side of the paving slabs
    paint: np.ndarray  # colour of the markings
    salt: float  # shifts the patterns, so that no two look alike
    noise: Noise  # large stains
    fine: Noise  # grain

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
            return np.asarray(self._walk(x, z, clear) * (self.beyond / self.pavement))
        tufts = 0.16 * self.noise(x * 20, z * 9) + 0.22 * clear * self.fine(x * 40, z * 25)
        dry = np.clip(0.5 * self.noise(x * 5, z * 5), 0, 0.6)
        colour = shaded(self.beyond, np.clip(1 + tufts, 0.2, 2))
        return blend(colour, (0.5, 0.45, 0.28), dry)


@dataclass(frozen=True, kw_only=True)
class Facade:
    """A house front: windows in storeys and bays, above shops or a plain ground floor; metres."""

    wall: np.ndarray
    trim: np.ndarray
    glass: np.ndarray
    accent: np.ndarray  # colour of shutters, doors and signs
    storey: float
    bay: float
    window: tuple[float, float]  # width and height of a window as shares of bay and storey
    shop: float  # height of the shop front, 0 for none
    bricks: bool
    shutters: bool
    height: float
    salt: float  # shifts the patterns, so that no two look alike
    noise: Noise  # large stains
    fine: Noise  # grain

    def __call__(self, hits: Hits) -> np.ndarray:
        """Colour of points on any side of the house."""
        along = np.where(hits.face < 2, hits.z, hits.x) + self.salt
        colour = self._walls(along, hits)
        above = hits.y >= self.shop
        colour[above] = self._windows(along[above], hits.y[above] - self.shop, colour[above])
        if self.shop:
            colour[~above] = self._shops(along[~above], hits.y[~above], colour[~above])
        cornice = inside(hits.y, self.height - 0.4, self.height + 0.1)
        colour = blend(colour, self.trim * 0.9, cornice)
        return np.where((hits.face == FACE_UP)[:, None], self.wall * 0.5, colour)

    def _walls(self, along: np.ndarray, hits: Hits) -> np.ndarray:
        clear = 1 / (1 + (hits.depth / 14) ** 2)
        stain = 0.07 * self.noise(along * 11, hits.y * 5)
        stain = stain + 0.08 * clear * self.fine(along * 45, hits.y * 45)
        colour = shaded(self.wall, 1 + stain)
        damp = np.clip(1 - hits.y / 0.7, 0, 1) * 0.3
        if self.bricks:
            course = np.floor(hits.y / 0.16)
            joint = (np.mod(hits.y, 0.16) < 0.03) | (np.mod(along + course * 0.19, 0.38) < 0.03)
            tone = scatter(course, np.floor((along + course * 0.19) / 0.38), self.salt) - 0.5
            colour = colour * (1 + 0.25 * clear * tone)[:, None]
            colour = blend(colour, self.wall * 0.4 + 0.38, 0.6 * joint * clear)
        return colour * (1 - damp)[:, None]

    def _windows(self, along: np.ndarray, y: np.ndarray, colour: np.ndarray) -> np.ndarray:
        floor, column = np.floor(y / self.storey), np.floor(along / self.bay)
        u = np.abs(along / self.bay - column - 0.5) * self.bay
        v = (y / self.storey - floor - 0.52) * self.storey
        half_w, half_h = self.window[0] * self.bay / 2, self.window[1] * self.storey / 2
        has = (floor >= 0) & (y < self.height - self.shop - 0.5) & (np.abs(v) < half_h + 0.35)
        if self.shutters:
            beside = inside(u, half_w, half_w * 1.75) * (np.abs(v) < half_h)
            colour = blend(colour, self.accent * 0.8, beside * has)
        frame = (u < half_w + 0.12) & (np.abs(v) < half_h + 0.12)
        sill = (u < half_w + 0.2) & (v < -half_h) & (v > -half_h - 0.22)
        colour = blend(colour, self.trim, (frame | sill) * has)
        pane = (u < half_w) & (np.abs(v) < half_h) & has
        colour[pane] = self._panes(floor[pane], column[pane], u[pane], v[pane] / half_h)
        return colour

    def _panes(
        self, floor: np.ndarray, column: np.ndarray, u: np.ndarray, v: np.ndarray
    ) -> np.ndarray:
        """Glass with reflections, curtains and glazing bars, which differ between windows."""
        chance = scatter(floor, column, self.salt)
        light = 0.55 + 0.75 * chance + 0.25 * v * (chance > 0.4)
        glass = self.glass * light[..., None]
        curtain = ((chance * 7) % 1 < 0.35) * (v > 1 - 2 * ((chance * 31) % 1))
        glass = blend(glass, (0.72, 0.69, 0.62), 0.8 * curtain)
        bars = (u < 0.045) | (np.abs(v - 0.25) < 0.05)
        return blend(glass, self.trim * 0.9, bars * 0.9)

    def _shops(self, along: np.ndarray, y: np.ndarray, colour: np.ndarray) -> np.ndarray:
        """The ground floor: shop windows, shutters, doors, and signs with letters."""
        width = self.bay * 2
        shop = np.floor(along / width)
        u = along / width - shop
        chance = scatter(shop, shop * 0, self.salt + 5)
        tint = 0.45 + 0.75 * np.stack([scatter(shop, shop + c, self.salt) for c in range(3)], -1)
        sign_colour = self.accent * tint
        pane = inside(u, 0.06, 0.68) * inside(y, 0.5, self.shop - 0.75)
        door = inside(u, 0.74, 0.94) * (y < self.shop - 0.75)
        dark = self.glass * (0.35 + 0.5 * chance + 0.35 * np.sin(along * 5 + y * 3) ** 2)[:, None]
        goods = inside(np.mod(along * 2.3, 1), 0.15, 0.8) * inside(np.mod(y * 2.1, 1), 0.1, 0.7)
        dark = blend(dark, 0.25 + 0.6 * tint, 0.5 * goods * (y < 1.6))
        shutter = 0.5 + 0.12 * np.sign(np.sin(y * 40))
        dark = np.where((chance < 0.25)[:, None], shutter[:, None] * self.trim, dark)
        out = blend(colour, dark, pane)
        out = blend(out, sign_colour * 0.6, door)
        sign = inside(u, 0.03, 0.97) * inside(y, self.shop - 0.7, self.shop - 0.08)
        out = blend(out, sign_colour, sign)
        letters = (self.fine(along * 9, np.floor(y * 8) * 17) > 0.4) * inside(u, 0.2, 0.8)
        letters = letters * inside(y, self.shop - 0.55, self.shop - 0.22)
        return blend(out, np.array([0.95, 0.93, 0.85]) - sign_colour * 0.4, letters * 0.9)


@dataclass(frozen=True, kw_only=True)
class Car:
    """The shell of a car that is parked along the street (z)."""

    colour: np.ndarray
    middle: tuple[float, float]  # (x, z) in metres
    length: float
    noise: Noise

    def body(self, hits: Hits) -> np.ndarray:
        """Colour of the lower part: wheels, doors, lights, number plate."""
        across, along = hits.x - self.middle[0], hits.z - self.middle[1]
        rise = 0.35 * np.clip((hits.y - 0.3) / 0.6, 0, 1)
        colour = shaded(self.colour, 0.75 + rise + 0.02 * self.noise(along * 30, hits.y * 30))
        side, end = hits.face < 2, (hits.face >= 4) & (hits.face < 6)
        seam, crease = np.abs(along - 0.1) < 0.02, np.abs(hits.y - 0.72) < 0.03
        reach = np.hypot(np.abs(along) - self.length * 0.31, hits.y - 0.3)
        lamp = end & (np.abs(across) > 0.52) & (np.abs(hits.y - 0.7) < 0.1)
        plate = end & (np.abs(across) < 0.27) & (np.abs(hits.y - 0.48) < 0.07)
        colour = blend(colour, self.colour * 0.35, (side & (seam | crease)) * 0.8)
        colour = blend(colour, (0.08, 0.08, 0.08), hits.y < 0.27)
        colour = blend(colour, (0.05, 0.05, 0.06), side & (reach < 0.36))
        colour = blend(colour, (0.55, 0.56, 0.58), 0.8 * (side & (reach < 0.2)))
        colour = blend(colour, (0.75, 0.08, 0.06), lamp & (along < 0))
        colour = blend(colour, (0.95, 0.95, 0.85), lamp & (along >= 0))
        return blend(colour, (0.9, 0.88, 0.6), plate)

    def cabin(self, hits: Hits) -> np.ndarray:
        """Colour of the upper part: windows between pillars, under a roof."""
        along = hits.z - self.middle[1]
        shine = 0.2 * self.noise(along * 20, hits.y * 20)
        brightness = 0.8 + 1.6 * np.clip(hits.y - 0.95, 0, 1) + shine
        glass = np.array([0.12, 0.14, 0.17]) * brightness[:, None]
        window = inside(hits.y, 0.95, 1.36) * (hits.face != FACE_UP)
        pillar = (hits.face < 2) & (np.abs(along - 0.1) < 0.05)
        return blend(np.asarray(self.colour, np.float32), glass, window * ~pillar)
