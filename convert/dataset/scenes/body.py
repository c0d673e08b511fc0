"""The jointed body of a person in a random pose, as round limbs in the picture plane.

Joints are computed in three dimensions (x to the person's left, y up, z forward; the body's
height is 1) and turned about the vertical axis. Limbs are listed from far to near.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskdepth.convert.dataset.scenes.wardrobe import Dye, Outfit, solid

Pair = tuple[float, float]
Profile = Sequence[Pair]
"""Points (share of the way along a limb, half width in body heights)."""


@dataclass(frozen=True)
class Pose:
    """Angles of the joints (left, right) in radians; a spread is sideways, all others forward."""

    thigh: Pair
    knee: Pair
    arm: Pair
    elbow: Pair
    leg_spread: Pair
    arm_spread: Pair
    lean: float


@dataclass(frozen=True)
class Limb:
    """A round piece of the body between two points (x, y) of the picture."""

    start: np.ndarray
    end: np.ndarray
    profile: Profile
    dye: Dye
    nearness: float  # larger is nearer to the viewer; decides which limbs are drawn later
    bluntness: Pair = (1.0, 1.0)  # how flat start and end are: 1 is a half circle, more is flatter
    folds: float = 0.0  # strength of the folds of cloth, 0 for none


def draw_pose(rng: np.random.Generator) -> Pose:
    """Choose a random way to stand, walk, run, kick, cheer or wave."""
    kind = rng.choice(["stand", "walk", "run", "kick", "cheer", "wave", "hips"])
    first = float(rng.choice([-1, 1]))

    def pair(value: float, spread: float, mirror: float = 0.0) -> Pair:
        left, right = rng.normal(0, spread, 2) + value
        return float(left + mirror * first), float(right - mirror * first)

    stride = {"walk": 0.45, "run": 0.75, "kick": 0.6}.get(kind, 0.06)
    bend = {"walk": 0.35, "run": 1.1, "kick": 0.6}.get(kind, 0.08)
    knee = pair(bend, 0.15, -0.6 * bend)
    arm, elbow, spread = pair(0, 0.15, -0.9 * stride), pair(0.35, 0.2), pair(0.15, 0.08)
    if kind == "run":
        elbow = pair(1.5, 0.2)
    elif kind == "kick":
        spread = pair(0.8, 0.3)
    elif kind == "cheer":
        arm, elbow, spread = pair(2.7, 0.25), pair(0.3, 0.3), pair(0.35, 0.2)
    elif kind == "wave":
        arm, elbow = (float(rng.uniform(1.2, 2.8)), arm[1]), (float(rng.uniform(0.2, 1.4)), 0.2)
        spread = (0.6, spread[1])
    elif kind == "hips":
        arm, elbow, spread = pair(-0.45, 0.1), pair(1.5, 0.15), pair(0.75, 0.1)
    return Pose(
        thigh=pair(0.1 if kind in ("run", "kick") else 0, 0.07, stride),
        knee=(abs(knee[0]), abs(knee[1])),
        arm=arm,
        elbow=(abs(elbow[0]), abs(elbow[1])),
        leg_spread=pair(0.09, 0.04),
        arm_spread=(abs(spread[0]), abs(spread[1])),
        lean=float(rng.normal(0.18 if kind == "run" else 0.03, 0.05)),
    )


class Body:
    """Joints and limbs of one person, turned to a random side."""

    def __init__(self, rng: np.random.Generator, pose: Pose, outfit: Outfit) -> None:
        self._pose, self._outfit, self._skin = pose, outfit, solid(outfit.skin)
        self._turn = float(rng.choice([0, 0, np.pi, np.pi / 2, -np.pi / 2]) + rng.normal(0, 0.4))
        self._build = float(rng.uniform(0.88, 1.22))
        self._head = float(rng.uniform(0.98, 1.14))
        self._legs = float(rng.uniform(0.94, 1.06))
        self._hip = np.array([0, 0.5 * self._legs, 0])
        self._sees_front = bool(np.cos(self._turn) > 0)

    def limbs(self) -> list[Limb]:
        """All limbs in the order of drawing: far arms, legs, torso, head, near arms.

        Clothes follow the limb that they cover. Shirts hang over trousers in every pose.
        """
        arms = sorted((self._arm(0), self._arm(1)), key=_nearness)
        legs = sorted((self._leg(0), self._leg(1)), key=_nearness)
        head = sorted(self._head_parts(), key=lambda limb: limb.nearness)
        bag = self._bag()
        groups = [arm for arm in arms if _nearness(arm) < 0]
        groups += [[limb for limb in head if limb.nearness < 0]]
        groups += [bag, *legs, self._torso()] if self._sees_front else [*legs, self._torso(), bag]
        groups += [[limb for limb in head if limb.nearness >= 0]]
        groups += [arm for arm in arms if _nearness(arm) >= 0]
        return [limb for group in groups for limb in group]

    def _see(self, point: np.ndarray) -> np.ndarray:
        """A point of the body as the viewer sees it: right, up, towards the viewer.

        The viewer looks slightly down, so nearer points appear lower.
        """
        cos, sin = np.cos(self._turn), np.sin(self._turn)
        right, near = point[0] * cos + point[2] * sin, point[2] * cos - point[0] * sin
        return np.array([right, point[1] - 0.16 * near, near])

    def _limb(
        self, start: np.ndarray, end: np.ndarray, profile: Profile, dye: Dye, *,
        lift: float = 0.0, bluntness: Pair = (1.0, 1.0), folds: float = 0.0,
    ) -> Limb:  # fmt: skip
        """A limb between two points of the body; ``lift`` draws it later than its depth would."""
        a, b = self._see(start), self._see(end)
        profile = [(u, w * self._build**0.7) for u, w in profile]
        return Limb(a[:2], b[:2], profile, dye, (a[2] + b[2]) / 2 + lift, bluntness, folds)

    def _breadth(self, wide: float, deep: float) -> float:
        """Half width of a body part as the viewer sees it, from its half width and half depth."""
        return float(np.hypot(wide * np.cos(self._turn), deep * np.sin(self._turn)))

    def _up(self, share: float) -> np.ndarray:
        """Point of the spine: 0 at the hips, 1 at the base of the neck."""
        lean = self._pose.lean
        return self._hip + 0.33 * share * np.array([0, np.cos(lean), np.sin(lean)])

    def _torso(self) -> list[Limb]:
        hips, waist = self._breadth(0.09, 0.066), self._breadth(0.076, 0.055)
        chest, shoulder = self._breadth(0.098, 0.066), self._breadth(0.098, 0.055)
        profile = [(0, hips * 1.04), (0.15, hips), (0.35, waist), (0.7, chest)]
        profile += [(0.9, shoulder), (1, shoulder * 0.62)]
        outfit, neck = self._outfit, [(0, 0.03), (1, 0.027)]
        frontal = abs(np.cos(self._turn)) > 0.75
        shirt = outfit.shirt_dye(frontal=frontal, front=self._sees_front)
        ends = self._up(-0.06), self._up(1)
        return [
            *self._lower(hips, waist),
            self._limb(self._up(0.95), self._up(1.2), neck, self._skin),
            self._limb(*ends, profile, shirt, bluntness=(5, 2.2), folds=outfit.folds),
        ]

    def _lower(self, hips: float, waist: float) -> list[Limb]:
        """Skirt, or the seat of the trousers."""
        outfit, folds = self._outfit, self._outfit.folds
        if not outfit.skirt:
            seat = [(0, hips * 0.9), (1, hips * 0.98)]
            ends = self._up(-0.1), self._up(0.07)
            return [self._limb(*ends, seat, outfit.trouser_dye, folds=folds)]
        hem = self._up(0) - np.array([0, outfit.skirt, 0])
        cut = [(0, waist), (0.3, hips * 1.05), (1, hips * (1 + outfit.flare))]
        ends = self._up(0.25), hem
        return [self._limb(*ends, cut, outfit.skirt_dye, bluntness=(1, 9), folds=folds * 1.3)]

    def _leg(self, side: int) -> list[Limb]:
        pose, outfit, sign = self._pose, self._outfit, 1 - 2 * side
        hip = self._hip + np.array([sign * 0.041, -0.01, 0])
        swing, spread = pose.thigh[side], pose.leg_spread[side]
        knee = hip + 0.235 * self._legs * _direction(swing, sign * spread)
        ankle = knee + 0.225 * self._legs * _direction(swing - pose.knee[side], sign * spread * 0.6)
        tilt = 0.5 * min(swing - pose.knee[side], 0)
        heel = ankle + np.array([0, -0.018, -0.015])
        toe = ankle + 0.095 * np.array([sign * 0.25, tilt - 0.12, 0.95])
        parts = [
            self._limb(hip, knee, [(0, 0.052), (0.5, 0.048), (1, 0.035)], self._skin),
            self._limb(knee, ankle, [(0, 0.033), (0.3, 0.037), (1, 0.02)], outfit.shin_dye),
            self._limb(heel, toe, [(0, 0.022), (0.5, 0.023), (1, 0.018)], outfit.shoe_dye),
        ]
        cut = [(0, 0.05), (0.4, 0.053), (1, 0.043)], [(0, 0.042), (1, outfit.leg_width)]
        return parts + self._tube((hip, knee, ankle), cut, outfit.trousers, outfit.trouser_dye)

    def _tube(
        self, joints: tuple[np.ndarray, ...], profiles: tuple[Profile, ...], length: float, dye: Dye
    ) -> list[Limb]:
        """A sleeve or trouser leg over two limbs; ``length`` 1 ends at the middle joint."""
        if not length:
            return []
        first, middle, last = joints
        folds = self._outfit.folds
        end = first + (middle - first) * min(length, 1)
        blunt = (1.0, 1.0 if length > 1 else 7.0)
        parts = [self._limb(first, end, profiles[0], dye, bluntness=blunt, folds=folds)]
        if length > 1:
            end = middle + (last - middle) * (length - 1)
            parts.append(self._limb(middle, end, profiles[1], dye, bluntness=(1, 6), folds=folds))
        return parts

    def _arm(self, side: int) -> list[Limb]:
        pose, outfit, sign = self._pose, self._outfit, 1 - 2 * side
        shoulder = self._up(0.87) + np.array([sign * 0.094 * self._build, 0, 0])
        swing, spread = pose.arm[side], pose.arm_spread[side]
        elbow = shoulder + 0.165 * _direction(swing, sign * spread)
        bent = swing + pose.elbow[side]
        wrist = elbow + 0.145 * _direction(bent, sign * (spread - 0.7 * pose.elbow[side] * spread))
        tip = wrist + 0.05 * _direction(bent + 0.2, sign * spread * 0.5)
        lift = 0.03 if abs(np.cos(self._turn)) > 0.5 else 0.0
        parts = [
            self._limb(shoulder, elbow, [(0, 0.033), (1, 0.025)], self._skin, lift=lift),
            self._limb(elbow, wrist, [(0, 0.026), (0.3, 0.026), (1, 0.017)], self._skin, lift=lift),
            self._limb(wrist, tip, [(0, 0.016), (0.5, 0.021), (1, 0.012)], self._skin, lift=lift),
        ]
        cut = [(0, 0.037), (1, 0.034)], [(0, 0.032), (1, 0.024)]
        return parts + self._tube((shoulder, elbow, wrist), cut, outfit.sleeves, outfit.sleeve_dye)

    def _head_parts(self) -> list[Limb]:
        base, size = self._up(1.0), self._head
        tilt = np.array([0, 1, 0.25 * self._pose.lean + 0.05])
        chin, crown = base + 0.055 * tilt, base + (0.055 + 0.115 * size) * tilt
        skull = self._breadth(0.047, 0.053) * size / self._build**0.7
        face = self._outfit.face_dye(self._turn)
        profile = [(0, skull * 0.62), (0.3, skull * 0.92), (0.62, skull), (1, skull * 0.66)]
        parts = [self._limb(chin, crown, profile, face, lift=0.06, bluntness=(1.9, 1.9))]
        for sign in (-1, 1):
            ear = (chin + crown) / 2 + np.array([sign * 0.049 * size, 0.0, 0])
            lobe, shape = ear - np.array([0, 0.018, 0]), [(0, 0.009), (1, 0.007)]
            parts.append(self._limb(ear, lobe, shape, self._skin, lift=0.055))
        return parts + self._hair(chin, crown, skull)

    def _hair(self, chin: np.ndarray, crown: np.ndarray, skull: float) -> list[Limb]:
        """Hair with a shape of its own, or a hat; short hair is part of `Outfit.face_dye`."""
        outfit, dye, front = self._outfit, self._outfit.hair_dye, self._sees_front
        middle, back = (chin + crown) / 2, np.array([0, 0, -1.0])
        match outfit.hair_style:
            case "long":
                ends = middle - np.array([0, 0.12, 0]) + 0.02 * back
                thick, lift = [(0, skull * 0.9), (1, skull * 1.06)], -0.03 if front else 0.14
                return [self._limb(ends, crown + 0.01 * back, thick, dye, lift=lift, folds=0.15)]
            case "tail":
                root, end = crown + 0.045 * back, middle + 0.07 * back - np.array([0, 0.09, 0])
                return [self._limb(root, end, [(0, 0.018), (1, 0.01)], dye, lift=0.05, folds=0.1)]
            case "bun":
                bun = crown + np.array([0, 0.012, -0.03])
                return [self._limb(bun, bun + 1e-3, [(0, 0.024), (1, 0.024)], dye, lift=0.03)]
            case "curls":
                top = crown + np.array([0, -0.012, -0.006])
                wide, lift = [(0, skull * 1.2), (1, skull * 1.1)], 0.0 if front else 0.12
                return [self._limb(middle + 0.01 * back, top, wide, dye, lift=lift, folds=0.25)]
            case "cap":
                hat, rim = solid(outfit.hat), crown - np.array([0, 0.045, 0])
                peak, brim = crown + np.array([0, -0.045, 0.085]), [(0, skull * 0.95), (1, 0.014)]
                dome = [(0, skull * 1.1), (1, skull * 0.8)]
                return [
                    self._limb(rim, peak, brim, hat, lift=0.03),
                    self._limb(rim, crown, dome, hat, lift=0.2, bluntness=(2, 2)),
                ]
        return []

    def _bag(self) -> list[Limb]:
        """A rucksack."""
        if not self._outfit.bag:
            return []
        back = np.array([0, 0, -0.085])
        wide = self._breadth(0.075, 0.045)
        shape = [(0, wide), (0.8, wide), (1, wide * 0.8)]
        low, high = self._up(0.25) + back, self._up(0.85) + back
        return [self._limb(low, high, shape, self._outfit.bag_dye, bluntness=(2, 2), folds=0.1)]


def _nearness(group: list[Limb]) -> float:
    """Nearness of an arm or leg: the mean of its bare limbs, which come first."""
    return float(np.mean([limb.nearness for limb in group[:3]]))


def _direction(swing: float, spread: float) -> np.ndarray:
    """Unit vector of a limb that hangs down, swung forward and spread sideways."""
    cos = np.cos(spread)
    return np.array([np.sin(spread), -cos * np.cos(swing), cos * np.sin(swing)])
