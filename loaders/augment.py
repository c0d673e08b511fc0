"""The augmentation that a recipe asks for, for all that train one."""

from __future__ import annotations

from typing import Protocol

from maskdepth.loaders.camera import Camera
from maskdepth.loaders.preprocess import Augment


class Changes(Protocol):
    """How far training samples are changed at random, as in `model.recipe.Recipe`.

    flip, jitter, rgb_shift: as in `Augment`. camera: `Camera.share`, 0 for none.
    camera_shift, camera_rotation, camera_zoom: how far that camera moves.
    """

    @property
    def flip(self) -> float: ...
    @property
    def jitter(self) -> float: ...
    @property
    def rgb_shift(self) -> float: ...
    @property
    def camera(self) -> float: ...
    @property
    def camera_shift(self) -> float: ...
    @property
    def camera_rotation(self) -> float: ...
    @property
    def camera_zoom(self) -> float: ...


def make_augment(changes: Changes, seed: int) -> Augment | None:
    """The augmentation with these changes; None if there are none."""
    if not (changes.flip or changes.jitter or changes.rgb_shift or changes.camera):
        return None
    return Augment(
        flip=changes.flip,
        jitter=changes.jitter,
        rgb_shift=changes.rgb_shift,
        camera=_make_camera(changes) if changes.camera else None,
        seed=seed,
    )


def _make_camera(changes: Changes) -> Camera:
    return Camera(
        share=changes.camera,
        shift=changes.camera_shift,
        rotation=changes.camera_rotation,
        zoom=changes.camera_zoom,
    )
