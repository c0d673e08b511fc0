"""Validation images as another photo: seeded, the targets move along, cameras have names."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskdepth.loaders.batch import Batch
from maskdepth.model.errors import ModelError
from maskdepth.model.training.disturbance import (
    DISTURBANCES,
    UNDISTURBED,
    Disturbance,
    align_backgrounds,
    disturb,
    load_disturbance,
    moved_by,
)
from tests.pictures import texture, with_disc

SIDE = 224


def batch(count: int = 3) -> Batch:
    """Discs on textures; the mask is the disc, the depth is 50 inside and 200 outside."""
    images = np.stack([with_disc(texture(SIDE, SIDE, seed)) for seed in range(count)])
    disc = with_disc(np.zeros((SIDE, SIDE, 3), np.uint8)).max(axis=2) > 0
    mask = np.repeat(disc[None, :, :, None].astype(np.uint8), count, axis=0)
    depth = np.where(mask > 0, np.uint8(50), np.uint8(200))
    first, second, third = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in (images, mask, depth))
    return Batch(first, second, third, torch.arange(count))


def test_no_camera_changes_nothing() -> None:
    stored = batch()
    same = disturb(stored, UNDISTURBED)
    for field in ("fg_bg", "mask", "depth", "index"):
        assert torch.equal(getattr(same, field), getattr(stored, field))


def test_a_sample_is_the_same_in_every_batch() -> None:
    stored = batch()
    together = disturb(stored, DISTURBANCES["strong"])
    fg_bg, mask, depth, index = (field[2:] for field in stored)
    last = disturb(Batch(fg_bg, mask, depth, index), DISTURBANCES["strong"])
    for field in ("fg_bg", "mask", "depth"):
        assert torch.equal(getattr(last, field)[0], getattr(together, field)[2])
    assert not torch.equal(together.fg_bg[0], together.fg_bg[1])


def test_mask_and_depth_move_with_the_image() -> None:
    stored = batch()
    photo = disturb(stored, Disturbance(shift=10))
    assert not torch.equal(photo.mask, stored.mask)
    disc = (photo.fg_bg[:, 0] > 180) & (photo.fg_bg[:, 1] < 80)
    assert (disc != photo.mask[:, 0].bool()).float().mean() < 0.005
    # Interpolated at the edge of the disc.
    assert (photo.depth[photo.mask > 0] < 125).float().mean() > 0.95
    assert (photo.mask.dtype, photo.depth.dtype, photo.fg_bg.dtype) == (torch.uint8,) * 3
    assert set(photo.mask.unique().tolist()) == {0, 1}


def test_changes_grow_with_the_movement() -> None:
    stored = batch()
    errors = [
        (disturb(stored, moved_by(px)).fg_bg.float() - stored.fg_bg.float()).abs().mean()
        for px in (0, 0.5, 1, 2, 3)
    ]
    assert errors[0] == 0
    assert errors == sorted(errors)
    noise = disturb(stored, Disturbance(noise=5)).fg_bg.float() - stored.fg_bg.float()
    assert noise.std() == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize(
    ("change", "largest"),
    [
        (Disturbance(gain=0.2), 0.2 * 100), (Disturbance(offset=10), 10),
        (Disturbance(gamma=0.1), 255 * ((100 / 255) ** 0.9 - 100 / 255)),
    ],
)  # fmt: skip
def test_light_changes_by_up_to_the_largest_value(change: Disturbance, largest: float) -> None:
    gray = torch.full((60, 3, 8, 8), 100, dtype=torch.uint8)
    mask = torch.zeros(60, 1, 8, 8, dtype=torch.uint8)
    photo = disturb(Batch(gray, mask, mask, torch.arange(60)), change).fg_bg.float()
    assert (photo.amax((2, 3)) == photo.amin((2, 3))).all()
    differences = photo[:, :, 0, 0] - 100
    assert differences.abs().max() <= largest + 0.5
    assert differences.max() > 0.8 * largest - 0.5
    assert differences.min() < -0.8 * largest + 0.5


def test_aligning_removes_the_difference() -> None:
    bg = torch.from_numpy(np.stack([texture(SIDE, SIDE, seed) for seed in range(3)]))
    bg = bg.permute(0, 3, 1, 2)
    photo = disturb(batch(), DISTURBANCES["handheld"])
    outside = photo.mask.expand(-1, 3, -1, -1) == 0

    def difference(a: torch.Tensor) -> torch.Tensor:
        return (a.float() - photo.fg_bg.float()).abs()[outside].mean()

    assert difference(align_backgrounds(bg, photo.fg_bg)) < difference(bg) / 2


def test_cameras_by_name_or_pixels() -> None:
    assert load_disturbance("mild") == load_disturbance("1") == moved_by(1)
    assert str(load_disturbance("2")) == "shift 2 px, gain 10.0%, noise 6 levels"
    for name in ("shaky", "-1", "17", "nan", ""):
        with pytest.raises(ModelError, match="expected one of none, mild, strong, handheld"):
            load_disturbance(name)
