"""Draws streets in the light of a random day, with the true depth that the ray caster finds."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from maskdepth.convert.dataset.scenes.districts import DISTRICTS
from maskdepth.convert.dataset.scenes.raycast import (
    FIRST,
    GROUND,
    SKY,
    Camera,
    Hits,
    Solid,
    View,
    cast,
)
from maskdepth.convert.dataset.scenes.street import Street
from maskdepth.convert.dataset.scenes.textures import Noise, blend

FAR_M = 40.0  # depth of the sky, and the largest depth of a street
OVERSAMPLING = 2  # a colour is the average of 2x2 rays; depth is taken at the pixel's centre
STREAM_BG = 1  # random stream of a seed; `people` uses 2 and `compose.place` 3
SHADOW_RANGE_M = 45  # ground that is farther away gets no shadows


@dataclass(frozen=True)
class Scene:
    """A drawn street."""

    image: np.ndarray  # uint8 (size, size, 3), RGB
    depth: np.ndarray  # float32 (size, size), metres along the camera's axis, at most FAR_M
    camera: Camera


@dataclass(frozen=True, kw_only=True)
class Light:
    """Sun, sky and air of one picture."""

    sun: np.ndarray  # unit vector towards the sun, street coordinates
    strength: float  # direct sunlight: 0 under an overcast sky, 1 at its hardest
    warmth: np.ndarray  # colour of the sunlight
    zenith: np.ndarray  # colour of the sky straight up
    haze: np.ndarray  # colour of the sky at the horizon
    fog_m: float  # distance at which the haze replaces 63 % of a surface's colour, metres
    cover: float  # share of clouds: 0 clear, 1 overcast


def ground_depth(
    size: int, horizon: float, focal: float | None = None, height: float = 1.6
) -> np.ndarray:
    """Depth of flat ground for a level camera: float32 (size, size), metres.

    ``horizon``: row of the horizon; ``focal``: focal length in pixels, by default ``size``;
    ``height``: of the camera, metres. The depth of a pixel centre v rows below the horizon is
    focal * height / v, at most FAR_M; above the horizon it is FAR_M.
    """
    below = np.maximum(np.arange(size) + 0.5 - horizon, 1e-6)
    depth = np.minimum((focal or size) * height / below, FAR_M)
    return np.repeat(depth[:, None], size, axis=1).astype(np.float32)


def draw_background(seed: int, index: int, size: int = 224) -> Scene:
    """Draw street ``index`` of ``seed`` with its depth, ``size`` pixels square."""
    rng = np.random.default_rng([seed, STREAM_BG, index])
    district = DISTRICTS[str(rng.choice(list(DISTRICTS)))]
    camera = Camera(
        size=size,
        focal=size * rng.uniform(0.75, 1.15),
        centre=size * rng.uniform(0.4, 0.6),
        horizon=size * rng.uniform(0.4, 0.6),
        height=rng.uniform(1.4, 2.3),
        yaw=rng.uniform(-1, 1) * district.yaw,
    )
    street = Street(rng, camera, district)
    light = _draw_light(rng)
    depth = cast(camera, street.solids, street.cards).depth
    image = _render(rng, camera, street, light)
    return Scene(_photograph(rng, image), np.minimum(depth, np.float32(FAR_M)), camera)


def _draw_light(rng: np.random.Generator) -> Light:
    cover = float(np.clip(rng.normal(0.5, 0.35), 0, 1))
    turn, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1.1)
    sun = np.array([np.cos(turn) * np.cos(height), np.sin(height), np.sin(turn) * np.cos(height)])
    gray = rng.uniform(0.72, 0.95)
    blue = np.array([0.32, 0.52, 0.82]) * rng.uniform(0.8, 1.15)
    overcast = np.array([0.70, 0.73, 0.78]) * rng.uniform(0.8, 1.2)
    return Light(
        sun=sun,
        strength=(1 - cover) * rng.uniform(0.6, 1),
        warmth=np.array([1.0, rng.uniform(0.86, 1), rng.uniform(0.66, 0.98)]),
        zenith=np.clip(blue + (overcast - blue) * cover, 0, 1),
        haze=np.clip(gray * np.array([1, 1, rng.uniform(0.92, 1.06)]), 0, 1),
        fog_m=rng.uniform(60, 260),
        cover=cover,
    )


def _render(rng: np.random.Generator, camera: Camera, street: Street, light: Light) -> np.ndarray:
    """Colours (size, size, 3) in 0..1, averaged over the rays of each pixel."""
    fine = camera.scaled(OVERSAMPLING)
    view = cast(fine, street.solids, street.cards)
    colour = view.colour
    sky = view.owner == SKY
    colour[sky] = _sky(rng, fine, sky, light)
    direction = fine.directions()
    shadow = _shadows(camera, street, light)
    for owner, at in _pixels_by_owner(view.owner):
        if owner >= FIRST + len(street.solids):
            colour[at] *= (0.62 + 0.38 * light.warmth * (0.4 + 0.6 * light.strength)).astype("f4")
        elif owner > SKY:
            solid = street.solids[owner - FIRST] if owner >= FIRST else None
            colour[at] = _surface(fine, street, solid, view, direction, at, light, shadow)
    near = view.owner > SKY
    share = 1 - np.exp(-view.depth[near] / light.fog_m)
    colour[near] = blend(colour[near], light.haze, share)
    shape = camera.size, OVERSAMPLING, camera.size, OVERSAMPLING, 3
    return np.asarray(colour.reshape(shape).mean(axis=(1, 3)))


def _pixels_by_owner(owner: np.ndarray) -> Iterator[tuple[int, tuple]]:
    """Each owner with the (rows, columns) of its pixels."""
    order = np.argsort(owner, axis=None, kind="stable")
    values, starts = np.unique(owner.ravel()[order], return_index=True)
    for value, pixels in zip(values, np.split(order, starts[1:]), strict=True):
        yield int(value), np.unravel_index(pixels, owner.shape)


def _sky(rng: np.random.Generator, camera: Camera, sky: np.ndarray, light: Light) -> np.ndarray:
    """Colours (k, 3) of the pixels that a mask (h, w) marks as sky: haze, blue and clouds."""
    wind, noise = rng.uniform(0, 256, 2), Noise(rng, 1.7)
    rows, columns = np.nonzero(sky)
    right, up = camera.slopes()
    height = np.clip(up[rows], 0.02, None)
    haze = np.asarray(light.haze, np.float32)
    colour = blend(haze, light.zenith, np.clip(height / 0.55, 0, 1) ** 0.7)
    far = 1 / (height + 0.14)
    billow = noise(right[columns] * far * 17 + wind[0], far * 24 + wind[1])
    share = np.clip((billow + 2.2 * light.cover - 1.1) * 0.8, 0, 1) * np.clip(height / 0.1, 0, 1)
    bright = 0.93 - 0.13 * np.clip(billow, -1, 2) * light.cover
    return blend(colour, bright[:, None] * np.array([1, 1, 1.02]), share * 0.9)


def _surface(
    camera: Camera, street: Street, solid: Solid | None, view: View, direction: np.ndarray,
    at: tuple, light: Light, shadow: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Lit colours (k, 3) of a solid, or of the ground (``solid`` None), at the pixels ``at``."""
    depth, face = view.depth[at], view.face[at]
    x, y, z = (direction[at] * depth[:, None]).T
    if solid is None:
        albedo = street.ground(x, z, depth)
        rows, columns = at
        lit = 1 - shadow[rows // OVERSAMPLING, columns // OVERSAMPLING]
        facing = np.full(len(x), light.sun[1])
    else:
        albedo = solid.paint(Hits(x, y + camera.height, z, depth, face))
        facing = np.maximum(solid.normals @ light.sun, 0)[face]
        # Less of the sky is visible from near the ground, so it is darker there.
        lit = np.clip(0.75 + 0.08 * (y + camera.height), 0, 1).astype(np.float64)
    direct = (light.strength * facing * lit)[:, None] * light.warmth
    ambient = (1 - 0.42 * light.strength) * (0.82 + 0.18 * lit)
    return np.asarray(albedo * (ambient[:, None] + 0.85 * direct))


def _shadows(camera: Camera, street: Street, light: Light) -> np.ndarray:
    """Shadow (size, size) on the ground, 0..1: cast by solids, and soft next to them."""
    ground = cast(camera, [], [])
    shadow = np.zeros(ground.depth.shape, np.float32)
    at = (ground.owner == GROUND) & (ground.depth < SHADOW_RANGE_M)
    points = camera.directions()[at] * ground.depth[at][:, None]
    points[:, 1] = 0
    covered, gloom = np.zeros(len(points), bool), np.zeros(len(points), np.float32)
    for solid in street.solids:
        if light.strength > 0.1:
            covered |= _blocked(solid, points, light.sun.astype(np.float32))
        low, high = solid.corners.min(0), solid.corners.max(0)
        if low[1] < 0.5:
            out = np.maximum(np.maximum(low - points, points - high), 0)
            gloom = np.maximum(gloom, np.exp(-np.hypot(out[:, 0], out[:, 2]) / 0.45))
    shadow[at] = np.maximum(covered, 0.85 * gloom)
    return shadow


def _blocked(solid: Solid, points: np.ndarray, sun: np.ndarray) -> np.ndarray:
    """Which points (k, 3) have the solid between them and the sun."""
    first = np.zeros(len(points), np.float32)
    last = np.full(len(points), np.inf, np.float32)
    for normal, offset in zip(solid.normals, solid.offsets, strict=True):
        speed = float(sun @ normal)
        speed = speed if abs(speed) > 1e-9 else 1e-9
        reach = (offset - points @ normal.astype(np.float32)) / speed
        if speed < 0:
            first = np.maximum(first, reach)
        else:
            last = np.minimum(last, reach)
    return first < last


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Add what a camera adds: exposure, contrast, tint, blur and noise. Returns uint8 RGB."""
    size = image.shape[0]
    image = image * 1.08 * np.exp(rng.normal(0, 0.12)) * (1 + rng.normal(0, 0.03, 3))
    image = 0.5 + (image - 0.5) * rng.uniform(1, 1.4)
    gray = image.mean(axis=2, keepdims=True)
    image = gray + (image - gray) * rng.uniform(0.7, 1.25)
    edge = np.linspace(-1, 1, size) ** 2
    image = image * (1 - rng.uniform(0, 0.12) * (edge[:, None] + edge)[..., None])
    picture = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6) * size / 224))
    grain = rng.standard_normal((size, size, 1)) * rng.uniform(1, 4)
    return np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)
