"""The camera of the augmentation: one of two images changes, and the targets go with fg_bg."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from maskdepth.convert.errors import DataError
from maskdepth.loaders.camera import COLUMNS, DRAWS, Camera, _save_as_jpeg
from maskdepth.loaders.draws import uniform
from maskdepth.loaders.preprocess import Inputs

SIDE = 48
NOTHING = dict.fromkeys(
    ("shift", "rotation", "zoom", "gain", "offset", "gamma", "gradient", "blur", "noise"), 0.0
) | {"shadow": 0.0, "recolour": 0.0, "share": 1.0, "quality": 100}


def scene(count: int, seed: int = 0) -> Inputs:
    """Smooth backgrounds with a bright disc."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    images = []
    for _ in range(count):
        noise = rng.random((SIDE, SIDE, 3)).astype(np.float32)
        bg = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0.1, 0.7, cv2.NORM_MINMAX)
        y, x = rng.integers(12, SIDE - 12, 2)
        mask = ((rows - y) ** 2 + (columns - x) ** 2 < 64).astype(np.float32)
        fg_bg = np.where(mask[..., None] > 0, np.float32(0.9), bg)
        images.append((bg, fg_bg, mask[..., None], 1 - mask[..., None] / 2))
    stacked = [torch.from_numpy(np.stack(field)) for field in zip(*images, strict=True)]
    return Inputs(*(field.permute(0, 3, 1, 2) for field in stacked))


def draws(count: int, epoch: int = 0) -> Tensor:
    return uniform(torch.arange(count), epoch, 0, COLUMNS)


def test_without_a_share_nothing_changes() -> None:
    before = scene(4)
    for old, new in zip(before, Camera(share=0)(*before, draws(4)), strict=True):
        torch.testing.assert_close(new, old, atol=1e-5, rtol=0)


def test_the_share_of_changed_samples() -> None:
    bg, fg_bg, mask, depth = scene(1)
    many = Inputs(*(field.expand(400, -1, -1, -1) for field in (bg, fg_bg, mask, depth)))
    new_bg, new_fg_bg, *_ = Camera(share=0.75)(*many, draws(400))
    changed = ((new_bg - bg).abs() + (new_fg_bg - fg_bg).abs()).amax((1, 2, 3)) > 1e-3
    assert 0.7 < changed.float().mean() < 0.8


def test_a_sample_changes_alike_in_every_batch_and_its_inputs_are_kept() -> None:
    fields = scene(6)
    kept = [field.clone() for field in fields]
    together = Camera()(*fields, draws(6))
    for old, now in zip(kept, fields, strict=True):
        assert torch.equal(old, now)
    for row in range(6):
        one = Inputs(*(field[row : row + 1] for field in fields))
        alone = Camera()(*one, draws(6)[row : row + 1])
        for mine, all_ in zip(alone, together, strict=True):
            torch.testing.assert_close(mine[0], all_[row], atol=1e-6, rtol=0)


@pytest.mark.parametrize("moves_fg_bg", [True, False])
def test_movement_is_that_of_opencv(moves_fg_bg: bool) -> None:
    bg, fg_bg, mask, depth = scene(1)
    named = {
        "strength": [0.99999994], "moves_fg_bg": [0.0 if moves_fg_bg else 0.9],
        "rotation": [0.9], "zoom": [0.2], "shift": [0.8, 0.4],
    }  # fmt: skip
    values = torch.tensor([[v for n, c in DRAWS.items() for v in named.get(n, [0.5] * c)]])
    camera = Camera(**NOTHING | {"rotation": 10, "zoom": 0.1, "shift": 0.1})
    found = camera(bg, fg_bg, mask, depth, values)

    angle, zoom = np.radians(0.8 * 10), 1 - 0.6 * 0.1
    matrix = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre, shift = np.full(2, (SIDE - 1) / 2), np.array([0.6, -0.2]) * 0.1 * SIDE
    affine = np.column_stack([matrix, centre + shift - matrix @ centre])
    moved = cv2.warpAffine(
        (fg_bg if moves_fg_bg else bg)[0].permute(1, 2, 0).numpy(), affine, (SIDE, SIDE),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    expected = torch.from_numpy(moved).permute(2, 0, 1)
    # OpenCV rounds places to 1/32 of a pixel, which matters at the edge of the disc.
    assert (found[moves_fg_bg][0] - expected).abs().mean() < 3e-3
    if moves_fg_bg:
        assert not torch.equal(found[2], mask)
        disc = (found[1] > 0.8).all(1, keepdim=True)
        assert (disc != found[2].bool()).float().mean() < 0.01
        assert (found[3][found[2] > 0] < 0.76).all()
    else:
        for old, new in zip((fg_bg, mask, depth), found[1:], strict=True):
            assert torch.equal(old, new)


def test_light_and_noise_change_one_of_the_images() -> None:
    count = 64
    bg, fg_bg, mask, depth = scene(count)
    camera = Camera(**NOTHING | {"gain": 0.2, "offset": 0.1, "gamma": 0.3, "noise": 0.05})
    new_bg, new_fg_bg, *targets = camera(bg, fg_bg, mask, depth, draws(count))
    bg_changed = (new_bg - bg).abs().amax((1, 2, 3)) > 1e-3
    fg_changed = (new_fg_bg - fg_bg).abs().amax((1, 2, 3)) > 1e-3
    assert not (bg_changed & fg_changed).any()
    assert (bg_changed | fg_changed).float().mean() > 0.8
    assert 0.3 < fg_changed.float().mean() < 0.7
    assert torch.equal(targets[0], mask)
    torch.testing.assert_close(targets[1], depth)


def test_the_strength_of_a_sample_is_the_square_of_its_draw() -> None:
    gray = torch.full((4, 3, 16, 16), 0.5)
    named = {"exposes_fg_bg": 0.0, "offset": 0.99999994}  # added in full to fg_bg
    values = torch.full((4, COLUMNS), 0.5)
    for name, value in named.items():
        at = list(DRAWS).index(name)
        first = sum(list(DRAWS.values())[:at])
        values[:, first : first + DRAWS[name]] = value
    values[:, 0] = torch.tensor([0.0, 0.2, 0.4, 0.9])  # the first column; half of them is changed
    camera = Camera(**NOTHING | {"offset": 0.2, "share": 0.5})
    target = torch.zeros(4, 1, 16, 16)
    _, found, *_ = camera(gray, gray, target, target, values)
    added = torch.tensor([0, 0.2 * 0.4**2, 0.2 * 0.8**2, 0])
    torch.testing.assert_close(found.mean((1, 2, 3)) - 0.5, added, atol=1e-5, rtol=0)


@pytest.mark.parametrize("quality", [10, 50, 75])
def test_the_jpeg_is_that_of_pillow(quality: int) -> None:
    pixels = (scene(1).bg[0, :, :44, :].permute(1, 2, 0) * 255).round().byte()  # 44: half a block
    stream = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(stream, "JPEG", quality=quality, subsampling=0)
    expected = torch.from_numpy(np.array(Image.open(stream))).float()
    image = pixels.permute(2, 0, 1)[None] / 255
    found = _save_as_jpeg(image, torch.full((1, 1, 1, 1), float(quality)))[0].permute(1, 2, 0) * 255
    # libjpeg rounds to integers between the steps, which can also move a coefficient by one.
    assert (found - expected).abs().mean() < 1
    assert (found - expected).abs().max() < 25
    assert (pixels - expected).abs().mean() > 1.5 * (found - expected).abs().mean()


def test_the_shadow_darkens_the_ground_alone() -> None:
    bg, fg_bg, mask, depth = scene(32)
    camera = Camera(**NOTHING | {"shadow": 1.0})
    new_bg, new_fg_bg, *_ = camera(bg, fg_bg, mask, depth, draws(32))
    torch.testing.assert_close(new_bg, bg, atol=1e-5, rtol=0)
    darker = fg_bg - new_fg_bg
    assert darker.min() > -1e-5
    assert darker.max() > 0.2
    assert (darker * mask).abs().max() < 1e-5


def test_the_foreground_alone_takes_other_colours() -> None:
    bg, fg_bg, mask, depth = scene(8)
    _, new, *_ = Camera(**NOTHING | {"recolour": 0.5})(bg, fg_bg, mask, depth, draws(8))
    difference = (new - fg_bg).abs()
    assert (difference * (1 - mask)).max() < 1e-5
    assert (difference * mask).amax((2, 3)).max() > 0.1


@given(
    st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=COLUMNS, max_size=COLUMNS),
    st.floats(0, 1),
)
def test_any_draw_gives_images(values: list[float], size: float) -> None:
    names = [name for name in NOTHING if name not in ("share", "quality")]
    camera = Camera(share=1, quality=100 - 99 * size, **dict.fromkeys(names, size))
    bg, fg_bg, mask, depth = camera(*scene(1), torch.tensor([values]))
    for image in (bg, fg_bg, depth):
        assert image.min() >= 0
        assert image.max() <= 1
    assert set(mask.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("field", ["share", "shift", "noise", "quality"])
@pytest.mark.parametrize("value", [-0.1, 100.5, float("nan")])
def test_values_out_of_range(field: str, value: float) -> None:
    with pytest.raises(DataError, match=f"{field} of the camera"):
        Camera(**{field: value})


def test_the_draws_of_a_sample_never_change() -> None:
    """Otherwise a run that is resumed by another version trains on other changes."""
    found = uniform(torch.tensor([0, 5, 2**40 - 1]), 3, 7, 2)
    expected = [[1191936, 12900476], [4569018, 1296542], [15491985, 881191]]
    assert (found * 2**24).to(torch.int64).tolist() == expected
    assert sum(DRAWS.values()) == COLUMNS == 27
