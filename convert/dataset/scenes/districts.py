"""Kinds of streets: the ranges of sizes, and the chances, from which a street is drawn."""

from dataclasses import dataclass

from maskdepth.convert.dataset.scenes.raycast import Bounds


@dataclass(frozen=True, kw_only=True)
class District:
    """One kind of street: ranges in metres, and chances from 0 to 1."""

    half_road: Bounds  # half width of the road
    walk: Bounds  # width of each pavement
    setback: Bounds  # between pavement and houses
    front: Bounds  # width of a house along the street
    height: Bounds  # height of a house
    gap: float  # chance of a gap after a house
    gable: float  # chance of a pitched roof
    shops: float  # chance of shops on the ground floor
    cars: float  # chance of a parked car in each space of 6.5 m
    trees: float  # chance of a tree every 7 m
    grassy: float  # chance of grass beyond the pavements
    yaw: float  # largest turn of the camera, radians
    closed: float  # chance that a house closes the end of the street


DISTRICTS = {
    "centre": District(
        half_road=(3, 4.5), walk=(1.8, 3.5), setback=(0, 0), front=(6, 14), height=(7, 17),
        gap=0.06, gable=0.35, shops=0.75, cars=0.45, trees=0.12, grassy=0, yaw=0.22, closed=0.6,
    ),
    "suburb": District(
        half_road=(2.7, 3.6), walk=(1.2, 2), setback=(3, 6), front=(8, 13), height=(4, 7),
        gap=0.9, gable=0.9, shops=0.03, cars=0.3, trees=0.5, grassy=1, yaw=0.3, closed=0.4,
    ),
    "corner": District(
        half_road=(3, 4), walk=(1.5, 2.5), setback=(0, 0.5), front=(9, 18), height=(4.5, 12),
        gap=0.15, gable=0.5, shops=0.5, cars=0.3, trees=0.2, grassy=0.3, yaw=0.65, closed=0.5,
    ),
    "square": District(
        half_road=(6, 9), walk=(3, 6), setback=(2, 9), front=(12, 24), height=(8, 24),
        gap=0.3, gable=0.1, shops=0.6, cars=0.25, trees=0.3, grassy=0.3, yaw=0.35, closed=0.8,
    ),
    "lane": District(
        half_road=(1.7, 2.4), walk=(0.4, 0.9), setback=(0, 0), front=(4, 8), height=(5, 11),
        gap=0.03, gable=0.2, shops=0.85, cars=0.06, trees=0.05, grassy=0, yaw=0.12, closed=0.8,
    ),
    "park": District(
        half_road=(2, 3), walk=(0.8, 1.5), setback=(9, 16), front=(10, 20), height=(6, 14),
        gap=0.6, gable=0.4, shops=0.1, cars=0.08, trees=0.95, grassy=1, yaw=0.3, closed=0.5,
    ),
}  # fmt: skip
