"""Lays out a random street: ground, houses, cars, trees and posts, for the ray caster."""

import numpy as np

from maskdepth.convert.dataset.scenes.districts import District
from maskdepth.convert.dataset.scenes.raycast import (
    Bounds,
    Camera,
    Card,
    Draw,
    Hits,
    Solid,
    block,
    taper,
)
from maskdepth.convert.dataset.scenes.surfaces import Car, Facade, Ground
from maskdepth.convert.dataset.scenes.textures import Noise, leafy, plain, shaded

WALLS = np.array([
    (0.62, 0.36, 0.28), (0.55, 0.30, 0.24), (0.82, 0.76, 0.64), (0.86, 0.84, 0.80),
    (0.72, 0.66, 0.55), (0.78, 0.62, 0.48), (0.55, 0.55, 0.56), (0.67, 0.72, 0.76),
    (0.80, 0.70, 0.45), (0.45, 0.42, 0.40), (0.84, 0.70, 0.66), (0.60, 0.66, 0.56),
], np.float32)  # fmt: skip
ACCENTS = np.array([
    (0.10, 0.35, 0.62), (0.70, 0.14, 0.12), (0.12, 0.38, 0.22), (0.85, 0.62, 0.12),
    (0.28, 0.18, 0.13), (0.20, 0.22, 0.26), (0.15, 0.55, 0.60), (0.85, 0.82, 0.74),
], np.float32)  # fmt: skip
CAR_PAINTS = np.array([
    (0.85, 0.86, 0.87), (0.12, 0.12, 0.13), (0.50, 0.52, 0.54), (0.60, 0.08, 0.07),
    (0.10, 0.20, 0.45), (0.30, 0.34, 0.30), (0.72, 0.70, 0.62), (0.80, 0.50, 0.10),
], np.float32)  # fmt: skip
X_AXIS, Y_AXIS, Z_AXIS = np.eye(3)
EAVES_M = 0.35  # how far a roof extends beyond the walls


class Street:
    """A random street: its ``ground``, and the ``solids`` and ``cards`` on it."""

    def __init__(self, rng: np.random.Generator, camera: Camera, district: District) -> None:
        self._rng, self._camera, self._district = rng, camera, district
        self._noise, self._fine = Noise(rng, 1.3), Noise(rng, 0.35)
        self.ground = self._make_ground()
        self.solids: list[Solid] = []
        self.cards: list[Card] = []
        for side in (-1, 1):
            self._houses(side)
            self._along_kerb(side)
        if self._chance(district.closed):
            z, middle = self._between((28, 60)), self.ground.middle + self._between((-6, 6))
            half = self._between((10, 30)) / 2
            self._house((middle - half, middle + half), (z, z + 8))
        # Near solids first, so that most far ones prove to be hidden before their rays are cast.
        self.solids.sort(key=lambda solid: float(np.abs(solid.corners[:, 2]).min()))

    def _chance(self, share: float) -> bool:
        return bool(self._rng.random() < share)

    def _between(self, bounds: Bounds) -> float:
        return float(self._rng.uniform(*bounds))

    def _tinted(self, palette: np.ndarray, spread: float = 0.03) -> np.ndarray:
        colour = palette[self._rng.integers(len(palette))] * self._between((0.85, 1.1))
        return np.asarray(
            np.clip(colour + self._rng.normal(0, spread, 3), 0.03, 0.95).astype(np.float32)
        )

    def _make_ground(self) -> Ground:
        district, crossing = self._district, None
        if self._chance(0.4):
            start = self._between((7, 25))
            crossing = start, start + self._between((5, 8))
        road = self._between((0.25, 0.5)) + self._rng.normal(0, 0.012, 3)
        road = road + self._between((-0.02, 0.04)) * np.array([1, 0.3, -1])
        grassy = self._chance(district.grassy)
        green = np.array([0.26, 0.36, 0.15]) * self._between((0.8, 1.3))
        pavement = self._between((0.42, 0.68)) * np.array([1.02, 1, self._between((0.85, 0.99))])
        half_road = self._between(district.half_road)
        return Ground(
            road=np.clip(road, 0.12, 0.8),
            pavement=pavement,
            beyond=green if grassy else pavement * self._between((0.8, 1.05)),
            grassy=grassy,
            middle=self._between((-0.6, 0.6)) * half_road,
            half_road=half_road,
            walk=self._between(district.walk),
            crossing=crossing,
            zebra=self._between((3.5, 14)) if self._chance(0.35) else None,
            dash=self._between((1.5, 3)) if self._chance(0.7) else 0.0,
            slab=self._between((0.4, 0.9)),
            paint=np.array([0.9, 0.89, self._between((0.75, 0.9))]),
            salt=self._between((0, 50)),
            noise=self._noise,
            fine=self._fine,
        )

    def _houses(self, side: int) -> None:
        """A row of houses along one side (-1 left, 1 right), starting close to the camera."""
        district, ground = self._district, self.ground
        z = self._between((-6, 2))
        while z < 75:
            width = self._between(district.front)
            edge = ground.half_road + ground.walk + self._between(district.setback)
            near = ground.middle + side * edge
            crossing = ground.crossing
            if crossing and z < crossing[1] + 2 and z + width > crossing[0] - 2:
                z = crossing[1] + 2
                continue
            if side * near > 0.8:  # so that the camera is outside of every house
                far = near + side * self._between((6, 11))
                self._house((min(near, far), max(near, far)), (z, z + width))
            z += width + (self._between((1.5, 7)) if self._chance(district.gap) else 0)

    def _house(self, x: Bounds, z: Bounds) -> None:
        height = self._between(self._district.height)
        shop = self._between((3, 3.8)) if self._chance(self._district.shops) else 0.0
        wall = self._tinted(WALLS)
        facade = Facade(
            wall=wall,
            trim=np.clip(wall * 0.4 + self._between((0.2, 0.55)), 0, 0.95),
            glass=np.array([0.22, 0.26, 0.31]) * self._between((0.6, 1.5)),
            accent=self._tinted(ACCENTS),
            storey=self._between((2.7, 3.6)),
            bay=self._between((1.7, 3.6)),
            window=(self._between((0.3, 0.65)), self._between((0.42, 0.65))),
            shop=min(shop, height - 1),
            bricks=self._chance(0.45),
            shutters=self._chance(0.2),
            height=height,
            salt=self._between((0, 100)),
            noise=self._noise,
            fine=self._fine,
        )
        self.solids.append(block(x, (0, height), z, facade))
        if self._chance(self._district.gable):
            self._roof(x, height, z)
        elif self._chance(0.4):
            inset = 0.3 * (x[1] - x[0])
            top = (x[0] + inset, x[1] - inset), (height, height + 2.2), (z[0] + 1, z[0] + 3)
            self.solids.append(block(*top, plain(wall * 0.8, self._noise)))

    def _roof(self, x: Bounds, base: float, z: Bounds) -> None:
        """A pitched roof with its ridge along the street or across it."""
        rise = self._between((1.6, 3.2))
        tiles = self._tinted(np.array([(0.45, 0.22, 0.16), (0.30, 0.29, 0.30), (0.5, 0.33, 0.2)]))

        def paint(hits: Hits) -> np.ndarray:
            rows = 0.12 * np.sign(np.sin(hits.y * 26)) / (1 + (hits.depth / 15) ** 2)
            grain = 0.10 * self._noise((hits.x + hits.z) * 20, hits.y * 30)
            return shaded(tiles, 1 + rows + grain)

        x, z = (x[0] - EAVES_M, x[1] + EAVES_M), (z[0] - EAVES_M, z[1] + EAVES_M)
        body = block(x, (base, base + rise), z, paint)
        across, (start, stop) = (X_AXIS, x) if self._chance(0.6) else (Z_AXIS, z)
        tilt, height = (stop - start) / 2 * Y_AXIS, base * Y_AXIS
        slopes = [(tilt - rise * across, height + start * across)]
        slopes += [(tilt + rise * across, height + stop * across)]
        self.solids.append(taper(body, slopes))

    def _along_kerb(self, side: int) -> None:
        """Cars at the kerb; trees, lamps and street furniture on the pavement; hedges."""
        ground, district = self.ground, self._district
        for z in np.arange(4.5, 58, 6.5) + self._between((0, 6)):
            if self._chance(district.cars) and not self._on_crossing(z, 3):
                self._car(ground.middle + side * (ground.half_road - 1.05), z)
        kerb = ground.middle + side * (ground.half_road + min(0.7, ground.walk * 0.5))
        lawn = ground.middle + side * (ground.half_road + ground.walk + 1.2)
        for z in np.arange(4, 62, 7) + self._between((0, 7)):
            if self._on_crossing(z, 1):
                continue
            if self._chance(district.trees):
                self._tree(lawn if ground.grassy and self._chance(0.7) else kerb, z)
            elif self._chance(0.35):
                self._lamp(kerb, z, -side)
            elif self._chance(0.3):
                self._furniture(kerb, z)
        if ground.grassy and self._chance(0.6):
            self._hedges(ground.middle + side * (ground.half_road + ground.walk + 0.5))

    def _on_crossing(self, z: float, margin: float) -> bool:
        crossing = self.ground.crossing
        return crossing is not None and crossing[0] - margin < z < crossing[1] + margin

    def _car(self, x: float, z: float) -> None:
        length = self._between((3.8, 4.8))
        half, van = 0.87, self._chance(0.15)
        colour = self._tinted(CAR_PAINTS)
        if self._camera.to_view(x, z - length / 2)[1] < 1.8:
            return
        look = Car(colour=colour, middle=(x, z), length=length, noise=self._noise)
        span, wide = (z - length / 2, z + length / 2), (x - half, x + half)
        body = block(wide, (0.16, 0.92), span, look.body)
        ends = [((0, -0.9, s), (x, 0.35, z + s * length / 2)) for s in (-1, 1)]
        self.solids.append(taper(body, ends))
        top = 2.0 if van else self._between((1.38, 1.5))
        cabin = block(wide, (0.9, top), (span[0] + 0.25, span[1] - 0.9), look.cabin)
        lean = [((0, 0.5, -1), (x, 0.92, span[0] + 0.3)), ((0, 1.1, 1), (x, 0.92, span[1] - 0.95))]
        lean += [((s, 0.22, 0), (x + s * half, 0.92, z)) for s in (-1, 1)]
        self.solids.append(taper(cabin, lean))

    def _hedges(self, x: float) -> None:
        colour = np.array([0.20, 0.32, 0.12]) * self._between((0.7, 1.3))
        z, height = self._between((3, 8)), self._between((0.6, 1.5))
        while z < 45:
            length = self._between((4, 9))
            if not self._on_crossing(z + length / 2, length / 2) and abs(x) > 0.9:
                paint = leafy(colour, self._noise, self._fine)
                self.solids.append(block((x - 0.3, x + 0.3), (0, height), (z, z + length), paint))
            z += length + self._between((2, 6))

    def _furniture(self, x: float, z: float) -> None:
        """A box on the pavement: a bin, a letter box or a cabinet."""
        half, height = self._between((0.2, 0.4)), self._between((0.8, 1.6))
        paint = plain(0.25 + 0.5 * (self._tinted(ACCENTS) - 0.2), self._noise, 0.14)
        self.solids.append(block((x - half, x + half), (0, height), (z - half, z + half), paint))

    def _card(self, x: float, z: float, half: float, height: float, draw: Draw) -> None:
        """Add a card at (x, z), unless that is too close to the camera."""
        right, depth = self._camera.to_view(x, z)
        card = Card(right=right, depth=depth, half_width=half, height=height, draw=draw)
        if depth > 2.5:
            self.cards.append(card)

    def _tree(self, x: float, z: float) -> None:
        height, spread = self._between((4, 9)), self._between((1.4, 3.2))
        crown = height - spread * self._between((0.8, 1.1))
        green = np.array([0.30, 0.42, 0.15]) * self._between((0.6, 1.25))
        leaf = green + self._rng.normal(0, 0.04, 3)
        bark = np.array([0.30, 0.24, 0.19]) * self._between((0.7, 1.2))
        shift, trunk = self._between((0, 200)), self._between((0.09, 0.22))

        def draw(right: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            u, v = right / spread, (y - crown) / (spread * 1.05)
            clumps = self._noise(right * 32 + shift, y * 32)
            leaves = self._fine(right * 22 + shift, y * 22)
            full = 1.05 - np.hypot(u, v) + 0.20 * clumps + 0.10 * leaves
            foliage = (full > 0.32) & (y > crown - spread * 1.1)
            light = 0.75 + 0.28 * v - 0.14 * u + 0.22 * clumps + 0.20 * leaves
            colour = leaf * np.clip(light, 0.15, 1.9)[..., None]
            wood = (np.abs(right) < trunk * (1.4 - 0.6 * y / height)) & (y < crown) & (y > 0)
            grain = 1 + 0.2 * self._fine(right * 60, y * 9) - 0.5 * right / trunk
            colour = np.where(foliage[..., None], colour, bark * grain[..., None])
            return colour, foliage | wood

        self._card(x, z, spread * 1.6, height + spread, draw)

    def _lamp(self, x: float, z: float, reach: int) -> None:
        """A street lamp with an arm towards ``reach`` (-1 left, 1 right), or a sign on a post."""
        colour = np.full(3, self._between((0.12, 0.5)))
        sign = self._chance(0.35)
        height = self._between((2.4, 3)) if sign else self._between((4.5, 8))
        face = ACCENTS[self._rng.integers(3)]

        def draw(right: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            pole = (np.abs(right) < 0.07) & (y > 0) & (y < height)
            shade = np.clip(1 - 4 * right, 0.5, 1.5)
            out = colour * shade[..., None]
            if sign:
                ring = np.hypot(right, y - height + 0.3)
                out = np.where((ring < 0.33)[..., None], face, out)
                out = np.where((ring < 0.22)[..., None], 0.9, out)
                return out, pole | (ring < 0.33)
            arm = (np.abs(y - height + 0.1) < 0.06) & (right * reach > 0) & (right * reach < 1.3)
            head = (np.abs(y - height + 0.12) < 0.11) & (np.abs(right * reach - 1.3) < 0.35)
            return np.where(head[..., None], 0.8, out), pole | arm | head

        self._card(x, z, 1.8, height + 0.1, draw)
