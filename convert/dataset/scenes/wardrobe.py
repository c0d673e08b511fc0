"""What people look like and wear: skin, hair, faces, clothes, patterns and numbers."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from maskdepth.convert.dataset.scenes.textures import Noise, blend, inside

SKIN = np.array([
    (0.93, 0.76, 0.66), (0.87, 0.68, 0.55), (0.76, 0.56, 0.42), (0.60, 0.41, 0.29),
    (0.45, 0.30, 0.22), (0.33, 0.22, 0.17),
])  # fmt: skip
HAIR = np.array([
    (0.07, 0.06, 0.06), (0.16, 0.10, 0.07), (0.32, 0.20, 0.11), (0.62, 0.46, 0.24),
    (0.50, 0.24, 0.12), (0.55, 0.54, 0.53),
])  # fmt: skip
KIT = np.array([
    (0.80, 0.08, 0.10), (0.10, 0.20, 0.65), (0.95, 0.82, 0.10), (0.92, 0.92, 0.92),
    (0.05, 0.45, 0.22), (0.45, 0.72, 0.92), (0.95, 0.45, 0.08), (0.45, 0.10, 0.35),
])  # fmt: skip
# Colours of roads, walls and hedges, so that colour alone does not separate people from streets.
STREET = np.array([
    (0.36, 0.36, 0.38), (0.58, 0.57, 0.55), (0.20, 0.20, 0.22), (0.66, 0.58, 0.46),
    (0.52, 0.32, 0.25), (0.30, 0.34, 0.22), (0.18, 0.22, 0.34), (0.80, 0.78, 0.73),
])  # fmt: skip

SEGMENTS = (  # which STROKES each digit from 0 to 9 has, as on a seven-segment display
    "1110111", "0010010", "1011101", "1011011", "0111010",
    "1101011", "1101111", "1010010", "1111111", "1111011",
)  # fmt: skip
STROKES = (  # extents in x and y: top, upper left and right, middle, lower left and right, bottom
    ((0, 1), (0.84, 1)), ((0, 0.26), (0.5, 1)), ((0.74, 1), (0.5, 1)), ((0, 1), (0.42, 0.58)),
    ((0, 0.26), (0, 0.5)), ((0.74, 1), (0, 0.5)), ((0, 1), (0, 0.16)),
)  # fmt: skip

Dye = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Colour (..., 3), or (3,) for a uniform one, at points of a limb: ``u`` (...) is the share of the
way along it (0..1), ``s`` (...) the position across it (-1..1)."""
HAIR_STYLES = ("short", "short", "long", "tail", "bun", "curls", "cap", "bald")


def solid(colour: np.ndarray) -> Dye:
    """One colour everywhere."""
    return lambda u, s: colour


def digit(number: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where the strokes of a digit are; ``x``, ``y`` in 0..1 from its lower left corner."""
    strokes = zip(SEGMENTS[number], STROKES, strict=True)
    marks = [inside(x, *dx) * inside(y, *dy) for on, (dx, dy) in strokes if on == "1"]
    return np.asarray(np.max(marks, axis=0))


@dataclass(frozen=True, kw_only=True)
class Outfit:
    """Looks and clothes of one person. Colours are float (3,), 0..1."""

    skin: np.ndarray
    hair: np.ndarray
    hair_style: str  # one of HAIR_STYLES
    beard: float  # share of the hair's colour on chin and cheeks
    shirt: np.ndarray
    shirt_second: np.ndarray  # pattern, collar and cuffs, and stripes on trousers and socks
    pattern: str  # pattern of the shirt; names without an entry in `_patterned` are plain
    stripes: float  # density of the pattern
    number: int | None
    sleeves: float  # 0 none, 1 to the elbow, 2 to the wrist
    trouser: np.ndarray
    trousers: float  # 0 none, 1 to the knee, 2 to the ankle
    leg_width: float  # half width of a trouser leg at the ankle, in body heights
    side_stripe: bool
    skirt: float  # length below the hips in body heights, 0 for none
    flare: float  # how much wider than the hips the hem of the skirt is, as a share
    socks: np.ndarray
    sock_top: float  # upper end of the socks: 0 at the knee, 1 at the ankle
    shoe: np.ndarray
    hat: np.ndarray
    bag: bool
    folds: float
    noise: Noise

    def hair_dye(self, u: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Strands of hair."""
        return self.hair * (1 + 0.25 * self.noise(s * 20, u * 4))[..., None]

    def bag_dye(self, u: np.ndarray, s: np.ndarray) -> np.ndarray:
        """A rucksack with a seam across it."""
        return blend(self.hat * 0.8, self.hat * 0.3, np.abs(u - 0.45) < 0.03)

    def shirt_dye(self, *, frontal: bool, front: bool) -> Dye:
        """The torso, with its number if it faces the viewer (``front``) or faces away."""

        def dye(u: np.ndarray, s: np.ndarray) -> np.ndarray:
            colour = self._patterned(u, s)
            colour = blend(colour, self.shirt_second, (u > 0.955) & (np.abs(s) < 0.75))  # collar
            if self.pattern == "jacket" and front and frontal:
                opening = np.abs(s) < 0.10 + 0.18 * np.clip(u - 0.4, 0, 1)
                colour = blend(colour, self.shirt_second, opening)
            if self.number is not None and frontal:
                size, middle = (0.19, 0.62) if front else (0.33, 0.58)
                digits = [int(c) for c in str(self.number)]
                for i, value in enumerate(digits):
                    left = (i - len(digits) / 2) * size * 2.1
                    mark = digit(value, (s - left) / (size * 1.8), (u - middle) / size + 0.5)
                    colour = blend(colour, 1 - np.round(self.shirt.mean()) * np.ones(3), mark)
            return blend(colour, self.shirt * 0.7, 0.7 * (u < 0.05))  # the hem

        return dye

    def _patterned(self, u: np.ndarray, s: np.ndarray) -> np.ndarray:
        """The shirt's colour with its pattern."""
        angle = np.arcsin(np.clip(s, -1, 1))  # so that stripes go around the body
        waves = {
            "stripes": np.sin(angle * self.stripes) > 0,
            "hoops": np.sin(u * self.stripes * 5) > 0.2,
            "checks": (np.sin(angle * self.stripes) * np.sin(u * self.stripes * 3)) > 0,
            "halves": s > 0,
            "sash": np.abs(s * 0.8 - (u - 0.5) * 2) < 0.28,
            "yoke": u > 0.72,
            "print": self.noise(s * 14, u * 22) > 0.6,
            "pinstripes": np.mod(angle * self.stripes * 1.2, 1) < 0.14,
        }
        if self.pattern not in waves:
            return self.shirt
        return blend(self.shirt, self.shirt_second, waves[self.pattern])

    def sleeve_dye(self, u: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Sleeves follow the shirt, with a cuff."""
        colour = self.shirt_second if self.pattern == "halves" else self.shirt
        if self.pattern in ("hoops", "pinstripes", "checks"):
            colour = self._patterned(u * 0.5, s)
        return blend(colour, self.shirt_second, u > 0.88)

    def trouser_dye(self, u: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Trousers or shorts, maybe with a stripe down the side."""
        colour = self.trouser * (1 + 0.08 * self.noise(s * 6, u * 9))[..., None]
        stripe = self.side_stripe & (np.abs(np.abs(s) - 0.75) < 0.12)
        return blend(colour, self.shirt_second, stripe)

    def skirt_dye(self, u: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Pleats that open towards the hem."""
        return np.asarray(self.trouser * (1 + 0.12 * u * np.sin(s * 16))[..., None])

    def shin_dye(self, u: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Skin above, sock below, bands at the sock's top."""
        colour = blend(self.skin, self.socks, u > self.sock_top)
        return blend(colour, self.shirt_second, inside(u, self.sock_top, self.sock_top + 0.06))

    def shoe_dye(self, u: np.ndarray, s: np.ndarray) -> np.ndarray:
        """A shoe with a lighter sole."""
        return blend(self.shoe, self.shoe * 0.4 + 0.45, 0.8 * (np.abs(s) > 0.72))

    def face_dye(self, turn: float) -> Dye:
        """The head turned by ``turn`` radians from the viewer: face, hair line and beard."""

        def dye(u: np.ndarray, s: np.ndarray) -> np.ndarray:
            # The angle around the head from the nose.
            away = np.arcsin(np.clip(s, -0.999, 0.999)) - np.arctan2(np.sin(turn), np.cos(turn))
            away = np.abs(np.mod(away + np.pi, 2 * np.pi) - np.pi)
            eyes = np.hypot((away - 0.42) / 0.15, (u - 0.5) / 0.035) < 1
            brows = inside(away, 0.2, 0.65) * inside(u, 0.565, 0.6)
            mouth = (away < 0.33) & (np.abs(u - 0.2) < 0.02)
            nose = (away < 0.14) & (u > 0.29) & (u < 0.5)
            colour = blend(self.skin, self.skin * 0.82, nose)
            colour = blend(colour, self.skin * np.array([0.75, 0.5, 0.5]), 0.9 * mouth)
            stubble = ((u < 0.3) & (away < 1.3)) & ~(mouth & (u > 0.18))
            colour = blend(colour, self.hair, self.beard * stubble)
            colour = blend(colour, (0.1, 0.08, 0.08), 0.85 * eyes)
            colour = blend(colour, self.hair, 0.8 * brows)
            if self.hair_style == "bald":
                return colour
            line = np.where(away < 1.05, 0.74 + 0.05 * np.cos(away * 6), 0.52)
            line = np.where(away > 1.6, 0.16, line)
            return blend(colour, self.hair, u > line)

        return dye


def dress(rng: np.random.Generator) -> Outfit:
    """Choose random looks and clothes: sports kit, everyday clothes, a jacket or a skirt."""

    def pick(palette: np.ndarray, spread: float = 0.05) -> np.ndarray:
        colour = palette[rng.integers(len(palette))] + rng.normal(0, spread, 3)
        return np.asarray(np.clip(colour, 0.03, 0.95))

    sport = rng.random() < 0.4
    palette = KIT if sport or rng.random() < 0.25 else STREET
    patterns = ["plain", "stripes", "hoops", "checks", "halves", "sash", "yoke"]
    casual = ["plain", "plain", "jacket", "jacket", "hoops", "print", "pinstripes", "yoke"]
    shirt, second = pick(palette), pick(KIT if rng.random() < 0.5 else STREET)
    skirt = not sport and rng.random() < 0.3
    trouser = pick(palette if rng.random() < 0.6 else STREET)
    trousers = float(rng.uniform(0.55, 0.95) if sport else rng.choice([0.9, 1.95, 1.95]))
    return Outfit(
        skin=np.clip(pick(SKIN, 0.02), 0.1, 0.97),
        hair=pick(HAIR, 0.02),
        hair_style=str(rng.choice(HAIR_STYLES)),
        beard=float(rng.choice([0, 0, 0, 0.35, 0.7])),
        shirt=shirt,
        shirt_second=second,
        pattern=str(rng.choice(patterns if sport else casual)),
        stripes=float(rng.uniform(5, 12)),
        number=int(rng.integers(1, 30)) if sport and rng.random() < 0.75 else None,
        sleeves=float(rng.choice([0.65, 0.75, 2.0] if sport else [0, 0.7, 1.9, 2.0, 2.0])),
        trouser=trouser,
        trousers=0.0 if skirt else trousers,
        leg_width=float(rng.uniform(0.024, 0.04)),
        side_stripe=bool(sport and rng.random() < 0.5),
        skirt=float(rng.uniform(0.12, 0.3)) if skirt else 0.0,
        flare=float(rng.uniform(0.1, 0.7)),
        socks=pick(palette),
        sock_top=float(rng.uniform(0.1, 0.4)) if sport else float(rng.uniform(0.75, 1.1)),
        shoe=pick(KIT if sport else STREET),
        hat=pick(KIT if rng.random() < 0.5 else STREET),
        bag=bool(not sport and rng.random() < 0.25),
        folds=float(rng.uniform(0.06, 0.2)),
        noise=Noise(rng, 1.0),
    )
