"""A small ray caster: the nearest surface at each pixel of a street, and its exact depth.

Street coordinates are in metres: x to the right, y up from the ground, z along the street. The
camera is at (0, height, 0) and looks along z, turned by ``yaw``. Depth is the distance along the
camera's axis, as depth cameras and depth networks define it, not along the ray.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

SKY, GROUND, FIRST = -1, 0, 1  # owners of a pixel; solids count from FIRST, cards after them
NEAR_M = 0.2  # nothing nearer to the camera is seen
FACE_UP = 3  # index of the upper face of a `block`

Bounds = tuple[float, float]  # from and to, in metres


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A level pinhole camera: the vanishing line is the pixel row ``horizon``."""

    size: int  # height and width of the image, pixels
    focal: float  # focal length, pixels
    centre: float  # column that the camera's axis goes through, pixels
    horizon: float  # row of the horizon, pixels from the upper edge
    height: float  # height above the ground, metres
    yaw: float = 0.0  # turn to the right, radians

    def scaled(self, factor: int) -> "Camera":
        """The same view with ``factor`` times as many pixels in each direction."""
        names = ("size", "focal", "centre", "horizon")
        return replace(self, **{name: getattr(self, name) * factor for name in names})

    def slopes(self) -> tuple[np.ndarray, np.ndarray]:
        """Metres to the right (w,) and up (h,) per metre of depth, at pixel centres."""
        pixels = np.arange(self.size, dtype=np.float32) + 0.5
        return (pixels - self.centre) / self.focal, (self.horizon - pixels) / self.focal

    def directions(self) -> np.ndarray:
        """Rays (h, w, 3) in street coordinates, float32, one metre of depth long."""
        right, up = np.meshgrid(*self.slopes())
        cos, sin = np.float32(np.cos(self.yaw)), np.float32(np.sin(self.yaw))
        return np.stack([right * cos + sin, up, cos - right * sin], axis=-1)

    def to_view(self, x: float, z: float) -> tuple[float, float]:
        """Metres to the right of the camera's axis, and depth, of a point on the ground plan."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return float(x * cos - z * sin), float(x * sin + z * cos)

    def window(self, right: ArrayLike, y: ArrayLike, depth: ArrayLike) -> tuple[slice, slice]:
        """Slices (rows, columns) of the image that contain all the given points."""
        near = np.array(depth)
        if near.min() < NEAR_M:
            return np.s_[: self.size, : self.size]
        column = self.centre + self.focal * np.asarray(right) / near
        row = self.horizon - self.focal * (np.asarray(y) - self.height) / near
        low = np.floor([row.min(), column.min()]).clip(0, self.size).astype(int)
        high = np.ceil([row.max(), column.max()]).clip(0, self.size).astype(int)
        return np.s_[low[0] : high[0], low[1] : high[1]]


@dataclass(frozen=True)
class Hits:
    """Points of one surface, in arrays of length k; metres."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    depth: np.ndarray
    face: np.ndarray  # index of the plane of the solid


Paint = Callable[[Hits], np.ndarray]
"""Points of a surface -> colours (k, 3) in 0..1, before lighting."""
Draw = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Metres to the right of a card's middle, and above the ground -> colour (..., 3), opaque (...)."""


@dataclass(frozen=True, kw_only=True)
class Solid:
    """A convex body: all points p with ``normals @ p <= offsets``."""

    normals: np.ndarray  # outward unit normals (n, 3)
    offsets: np.ndarray  # distances of the planes (n,), metres
    corners: np.ndarray  # points (m, 3) whose hull contains the body, to bound it in the image
    paint: Paint

    def enter(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Depth at which rays (..., 3) enter, inf where they miss, and the index of the face.

        Rays from inside miss too; the camera is never inside a body.
        """
        shape = direction.shape[:-1]
        first, last = np.full(shape, NEAR_M, np.float32), np.full(shape, np.inf, np.float32)
        face = np.full(shape, -1, np.int8)
        for i, (normal, offset) in enumerate(zip(self.normals, self.offsets, strict=True)):
            speed = np.zeros(shape, np.float32)
            for axis in np.flatnonzero(normal):
                speed += direction[..., axis] * np.float32(normal[axis])
            speed[np.abs(speed) < 1e-9] = 1e-9
            reach = np.float32(offset - origin @ normal) / speed
            entering = speed < 0
            later = entering & (reach > first)
            np.copyto(first, reach, where=later)
            face[later] = i
            np.minimum(last, reach, out=last, where=~entering)
        first[(face < 0) | (first >= last)] = np.inf
        return first, face


@dataclass(frozen=True, kw_only=True)
class Card:
    """A flat picture that faces the camera at one depth: a tree, a lamp post."""

    right: float  # where the picture's middle is, in metres to the right of the camera's axis
    depth: float
    half_width: float
    height: float
    draw: Draw


@dataclass(frozen=True)
class View:
    """What a camera sees, in arrays (h, w)."""

    depth: np.ndarray  # metres, inf for the sky
    owner: np.ndarray  # SKY, GROUND, or the number of a solid or card
    face: np.ndarray  # index of the plane of the solid
    colour: np.ndarray  # (h, w, 3): colours of cards, 0 elsewhere


def cast(camera: Camera, solids: Sequence[Solid], cards: Sequence[Card]) -> View:
    """Find the nearest surface for each pixel centre."""
    direction = camera.directions()
    down = np.minimum(direction[..., 1], -1e-9)
    depth = np.where(direction[..., 1] < 0, -camera.height / down, np.inf).astype(np.float32)
    owner = np.where(np.isfinite(depth), GROUND, SKY).astype(np.int16)
    view = View(depth, owner, np.zeros(depth.shape, np.int8), np.zeros_like(direction))
    for i, solid in enumerate(solids):
        _cast_solid(camera, direction, solid, i + FIRST, view)
    for i, card in enumerate(cards):
        _cast_card(camera, card, i + FIRST + len(solids), view)
    return view


def _cast_solid(camera: Camera, rays: np.ndarray, solid: Solid, owner: int, view: View) -> None:
    right, depth = zip(*(camera.to_view(x, z) for x, _, z in solid.corners), strict=True)
    if max(depth) < NEAR_M:
        return
    box = camera.window(right, solid.corners[:, 1], depth)
    if not (view.depth[box] > min(depth)).any():  # outside the image, or hidden
        return
    origin = np.array([0, camera.height, 0], np.float32)
    reach, face = solid.enter(origin, rays[box])
    closer = reach < view.depth[box]
    for kept, found in ((view.depth, reach), (view.owner, owner), (view.face, face)):
        np.copyto(kept[box], found, where=closer)


def _cast_card(camera: Camera, card: Card, owner: int, view: View) -> None:
    if card.depth < NEAR_M:
        return
    sides = (card.right - card.half_width, card.right + card.half_width)
    box = camera.window(sides, (0, card.height), (card.depth, card.depth))
    right, up = camera.slopes()
    across = right[box[1]] * card.depth - card.right
    above = camera.height + up[box[0]] * card.depth
    colour, opaque = card.draw(*np.meshgrid(across, above))
    closer = opaque & (card.depth < view.depth[box])
    view.depth[box][closer] = card.depth
    view.owner[box][closer] = owner
    view.colour[box][closer] = colour[closer]


def block(x: Bounds, y: Bounds, z: Bounds, paint: Paint) -> Solid:
    """A box between two bounds on each axis; faces in order -x, +x, -y, +y, -z, +z."""
    return Solid(
        normals=np.repeat(np.eye(3), 2, axis=0) * np.tile([-1, 1], 3)[:, None],
        offsets=(np.array([x, y, z], float) * [-1, 1]).ravel(),
        corners=np.array([(a, b, c) for a in x for b in y for c in z], float),
        paint=paint,
    )


def taper(solid: Solid, planes: Sequence[tuple[ArrayLike, ArrayLike]]) -> Solid:
    """Cut a solid by more planes, each given by its outward normal and a point on it."""
    normals = np.array([n for n, _ in planes], float)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    points = np.array([p for _, p in planes], float)
    return replace(
        solid,
        normals=np.concatenate([solid.normals, normals]),
        offsets=np.concatenate([solid.offsets, (normals * points).sum(1)]),
    )
