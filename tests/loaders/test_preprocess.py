"""Preprocess against plain float64 arithmetic, and augmentation that keeps images together."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from maskdepth.convert.errors import DataError
from maskdepth.convert.layout import Layout
from maskdepth.convert.moments import Moments, Statistics
from maskdepth.loaders.backgrounds import Backgrounds
from maskdepth.loaders.batch import Batch
from maskdepth.loaders.camera import Camera
from maskdepth.loaders.preprocess import Augment, Inputs, Preprocess

SIDE = 24
SIZES = [None, 24, 12, 8, 10, 23, 36]


def moments(means: tuple[float, ...], stds: tuple[float, ...]) -> Moments:
    """Close to these in 0..1; what counts is what `.mean` and `.std` then say."""
    values = 10**6
    return Moments(
        values=values,
        sums=tuple(round(m * 255 * values) for m in means),
        squares=tuple(
            round((m**2 + s**2) * 255**2 * values) for m, s in zip(means, stds, strict=True)
        ),
        scale=255,
    )


STATISTICS: Statistics = {
    "bg": moments((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)),
    "fg_bg": moments((0.6, 0.45, 0.2), (0.22, 0.15, 0.35)),
}


def random_batch(seed: int = 0, count: int = 5, device: str = "cpu") -> Batch:
    rng = np.random.default_rng(seed)
    draw = {"fg_bg": (256, 3), "mask": (2, 1), "depth": (256, 1)}
    fields = {
        name: torch.from_numpy(
            rng.integers(0, high, (count, channels, SIDE, SIDE), dtype=np.uint8)
        ).to(device)
        for name, (high, channels) in draw.items()
    }
    return Batch(**fields, index=torch.from_numpy(rng.permutation(12)[:count]).to(device))


@pytest.fixture
def backgrounds() -> Backgrounds:
    array = np.random.default_rng(9).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    starts = np.arange(4, dtype=np.int64) * 4
    layout = Layout(height=SIDE, width=SIDE, group_starts=starts, samples_per_fg=2)
    return Backgrounds.from_numpy(array, layout)


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_batch_of_another_size_wants_a_size(
    backgrounds: Backgrounds, channels_last: bool
) -> None:
    batch = random_batch()
    halved = Batch(*(field[..., ::2, ::2] if field.dim() == 4 else field for field in batch))
    preprocess = Preprocess(backgrounds, STATISTICS, channels_last=channels_last)
    message = "found 12x12 pixels beside backgrounds of 24x24, .* give Preprocess size="
    with pytest.raises(DataError, match=message):
        preprocess(halved)


def weights(size: int) -> np.ndarray:
    """float64 (size, SIDE): how much each stored pixel counts in each new one, on one axis."""
    matrix = np.zeros((size, SIDE))
    for new in range(size):
        if size <= SIDE:
            first, last = new * SIDE // size, math.ceil((new + 1) * SIDE / size)
            matrix[new, first:last] = 1 / (last - first)
        else:
            centre = max((new + 0.5) * SIDE / size - 0.5, 0)
            left = min(int(centre), SIDE - 1)
            matrix[new, left] += 1 - (centre - left)
            matrix[new, min(left + 1, SIDE - 1)] += centre - left
    return matrix


def plain(image: np.ndarray, size: int | None) -> np.ndarray:
    """The resized image in float64, by the definition."""
    matrix = weights(SIDE if size is None else size)
    return matrix @ image.astype(np.float64) @ matrix.T


def plain_normalised(image: np.ndarray, size: int | None, name: str) -> np.ndarray:
    mean, std = (
        np.array(x).reshape(3, 1, 1) for x in (STATISTICS[name].mean, STATISTICS[name].std)
    )
    return (plain(image, size) / 255 - mean) / std


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_equals_plain_arithmetic(
    backgrounds: Backgrounds, size: int | None, channels_last: bool
) -> None:
    batch = random_batch()
    stored = Batch(*(x.clone() for x in batch))
    found = Preprocess(backgrounds, STATISTICS, size=size, channels_last=channels_last)(batch)
    side = size or SIDE
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for images in (found.bg, found.fg_bg):
        assert tuple(images.shape) == (5, 3, side, side)
        assert images.is_contiguous(memory_format=memory_format)
    bg = backgrounds.images[batch.index // 4].numpy()
    expected_bg = plain_normalised(bg, size, "bg")
    expected_fg_bg = plain_normalised(batch.fg_bg.numpy(), size, "fg_bg")
    # Larger: torch rounds the weights of the interpolation to float32 too.
    close = 3e-6 if side <= SIDE else 2e-5
    np.testing.assert_allclose(found.bg.numpy(), expected_bg, atol=close)
    np.testing.assert_allclose(found.fg_bg.numpy(), expected_fg_bg, atol=close)
    expected_depth = plain(batch.depth.numpy(), size) / 255
    np.testing.assert_allclose(found.depth.numpy(), expected_depth, atol=close)
    share = plain(batch.mask.numpy(), size)
    clear = abs(share - 0.5) > 1e-6  # at exactly half, rounding decides where areas are odd
    assert np.array_equal(found.mask.numpy()[clear], (share >= 0.5)[clear])
    assert set(found.mask.unique().tolist()) == {0.0, 1.0}
    assert {x.dtype for x in found} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(batch, stored, strict=True))


def test_half_a_mask_pixel_is_one(backgrounds: Backgrounds) -> None:
    batch = random_batch(count=1)
    batch.mask.zero_()
    batch.mask[0, 0, :2, :2] = torch.tensor([[1, 0], [0, 1]])
    batch.mask[0, 0, :2, 2:4] = torch.tensor([[1, 0], [0, 0]])
    found = Preprocess(backgrounds, STATISTICS, size=12)(batch)
    assert found.mask.sum() == found.mask[0, 0, 0, 0] == 1


def test_each_input_has_its_own_statistics(backgrounds: Backgrounds) -> None:
    # The original normalised fg_bg with the statistics of bg.
    batch = random_batch()
    batch = batch._replace(fg_bg=backgrounds.gather(batch.index))
    found = Preprocess(backgrounds, STATISTICS)(batch)
    for images, name in ((found.bg, "bg"), (found.fg_bg, "fg_bg")):
        mean = torch.tensor(STATISTICS[name].mean).view(3, 1, 1)
        std = torch.tensor(STATISTICS[name].std).view(3, 1, 1)
        restored = (images * std + mean) * 255
        torch.testing.assert_close(restored, batch.fg_bg.float(), atol=1e-3, rtol=0)
    assert not torch.allclose(found.bg, found.fg_bg)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_rounded_once(backgrounds: Backgrounds, dtype: torch.dtype) -> None:
    batch = random_batch()
    exact = Preprocess(backgrounds, STATISTICS, size=12)(batch)
    found = Preprocess(backgrounds, STATISTICS, size=12, dtype=dtype)(batch)
    assert torch.equal(found.bg, exact.bg.to(dtype))
    assert torch.equal(found.fg_bg, exact.fg_bg.to(dtype))
    assert torch.equal(found.mask, exact.mask)
    assert torch.equal(found.depth, exact.depth)


def test_the_memory_layout_of_the_batch_does_not_matter(backgrounds: Backgrounds) -> None:
    batch = random_batch()
    other = batch._replace(fg_bg=batch.fg_bg.contiguous(memory_format=torch.channels_last))
    for size in SIZES:
        preprocess = Preprocess(backgrounds, STATISTICS, size=size)
        for a, b in zip(preprocess(batch), preprocess(other), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("augment", [None, Augment()])
@pytest.mark.parametrize("size", [None, 12, 10, 36])
def test_runs_on_the_device_of_the_batch(
    backgrounds: Backgrounds, size: int | None, augment: Augment | None
) -> None:
    preprocess = Preprocess(backgrounds, STATISTICS, size=size, augment=augment).to("meta")
    found = preprocess(random_batch(device="meta"))
    assert {x.device.type for x in found} == {"meta"}
    assert tuple(found.depth.shape) == (5, 1, size or SIDE, size or SIDE)
    assert preprocess.backgrounds.device.type == "meta"
    assert backgrounds.device.type == "cpu"


@pytest.mark.parametrize("camera", [None, Camera()])
def test_compiles_in_one_piece(backgrounds: Backgrounds, camera: Camera | None) -> None:
    preprocess = Preprocess(backgrounds, STATISTICS, size=12, augment=Augment(camera=camera))
    compiled = torch.compile(preprocess, backend="eager", fullgraph=True)
    for epoch in range(3):
        plainly = preprocess(random_batch(epoch), epoch)
        for a, b in zip(compiled(random_batch(epoch), epoch), plainly, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("augment", [None, Augment(camera=Camera())])
def test_backgrounds_may_be_given(
    backgrounds: Backgrounds, size: int | None, augment: Augment | None
) -> None:
    preprocess = Preprocess(backgrounds, STATISTICS, size=size, augment=augment)
    batch = random_batch()
    given = preprocess(batch, 1, bg=backgrounds.gather(batch.index))
    for a, b in zip(given, preprocess(batch, 1), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_a_given_background_of_another_size_is_refused(backgrounds: Backgrounds) -> None:
    with pytest.raises(DataError, match="expected one size"):
        Preprocess(backgrounds, STATISTICS)(random_batch(), bg=torch.zeros(5, 3, 8, 8).byte())


def test_a_camera_leaves_the_other_draws_alone(backgrounds: Backgrounds) -> None:
    """With a camera that changes nothing, flips and colours are those without one."""
    batch = random_batch()
    still = Augment(camera=Camera(share=0))
    found = Preprocess(backgrounds, STATISTICS, augment=still)(batch, 3)
    expected = Preprocess(backgrounds, STATISTICS, augment=Augment())(batch, 3)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=0)


def test_statistics_are_no_part_of_a_checkpoint(backgrounds: Backgrounds) -> None:
    assert not Preprocess(backgrounds, STATISTICS).state_dict()


def test_wrong_arguments_are_named(backgrounds: Backgrounds) -> None:
    with pytest.raises(DataError, match="image size: found 0, expected 1 or more"):
        Preprocess(backgrounds, STATISTICS, size=0)
    flat = STATISTICS | {"fg_bg": moments((0.5, 0.5, 0.5), (0.1, 0.0, 0.1))}
    with pytest.raises(DataError, match="fg_bg: found standard deviations"):
        Preprocess(backgrounds, flat)
    for wrong in ({"flip": 1.1}, {"jitter": 0.6}, {"rgb_shift": -0.1}, {"seed": -1}):
        with pytest.raises(DataError, match=r"found .* expected 0 to"):
            Augment(**wrong)


def unit_inputs(batch: Batch, backgrounds: Backgrounds) -> Inputs:
    """Before normalising: colours in 0..1."""
    return Inputs(
        backgrounds.gather(batch.index) / 255, batch.fg_bg / 255, batch.mask / 1, batch.depth / 255
    )


def test_a_flip_turns_all_images_of_a_sample(backgrounds: Backgrounds) -> None:
    batch = random_batch(count=12)
    inputs = unit_inputs(batch, backgrounds)
    augment = Augment(jitter=0, rgb_shift=0)
    flips = 0
    for epoch in range(50):
        found = augment(inputs, batch.index, epoch)
        for sample in range(12):
            same = [torch.equal(a[sample], b[sample]) for a, b in zip(found, inputs, strict=True)]
            turned = [
                torch.equal(a[sample], b[sample].flip(-1))
                for a, b in zip(found, inputs, strict=True)
            ]
            assert all(same) or all(turned)
            flips += all(turned)
    assert abs(flips - 300) < 5 * math.sqrt(150)
    for probability, expected in ((0, inputs), (1, Inputs(*(x.flip(-1) for x in inputs)))):
        found = Augment(flip=probability, jitter=0, rgb_shift=0)(inputs, batch.index, 0)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_colours_change_alike_where_images_are_alike(backgrounds: Backgrounds) -> None:
    batch = random_batch()
    inputs = unit_inputs(batch, backgrounds)
    person = batch.mask.bool().expand(-1, 3, -1, -1)
    inputs = inputs._replace(fg_bg=torch.where(person, inputs.fg_bg, inputs.bg))
    found = Augment(flip=0)(inputs, batch.index, 0)
    assert torch.equal(found.bg[~person], found.fg_bg[~person])
    assert not torch.allclose(found.bg, inputs.bg, atol=0.02)
    assert torch.equal(found.mask, inputs.mask)
    assert torch.equal(found.depth, inputs.depth)
    assert min(found.bg.min(), found.fg_bg.min()) >= 0
    assert max(found.bg.max(), found.fg_bg.max()) <= 1


def test_each_knob_works_alone(backgrounds: Backgrounds) -> None:
    batch = random_batch()
    inputs = unit_inputs(batch, backgrounds)
    off: dict[str, Any] = {"flip": 0.0, "jitter": 0.0, "rgb_shift": 0.0}
    for knob, value in (("flip", 1.0), ("jitter", 0.2), ("rgb_shift", 0.2)):
        found = Augment(**off | {knob: value})(inputs, batch.index, 0)
        assert not torch.equal(found.bg, inputs.bg)
    shifted = Augment(**off | {"rgb_shift": 0.2})(inputs, batch.index, 0).bg
    assert (shifted - inputs.bg).abs().max() <= 0.2 + 1e-6


def test_a_sample_changes_alike_in_every_batch(backgrounds: Backgrounds) -> None:
    preprocess = Preprocess(backgrounds, STATISTICS, augment=Augment(seed=3))
    batch = random_batch()
    whole = preprocess(batch, 2)
    for sample in range(5):
        alone = preprocess(Batch(*(x[sample : sample + 1] for x in batch)), 2)
        for a, b in zip(alone, whole, strict=True):
            torch.testing.assert_close(a[0], b[sample], atol=1e-6, rtol=0)


def test_changes_differ_by_seed_epoch_and_sample(backgrounds: Backgrounds) -> None:
    batch = random_batch()
    inputs = unit_inputs(batch, backgrounds)
    images = inputs.bg[:1].expand(5, -1, -1, -1)
    inputs = Inputs(images, images, inputs.mask, inputs.depth)
    found = [
        image
        for seed, epoch in itertools.product((0, 1), (0, 1))
        for image in Augment(seed=seed)(inputs, batch.index, epoch).bg
    ]
    for a, b in itertools.combinations(found, 2):
        assert not torch.allclose(a, b, atol=1e-3)


def test_nothing_changes_by_default(backgrounds: Backgrounds) -> None:
    batch = random_batch()
    preprocess = Preprocess(backgrounds, STATISTICS)
    for a, b in zip(preprocess(batch, 0), preprocess(batch, 1), strict=True):
        assert torch.equal(a, b)


def test_any_function_can_augment(backgrounds: Backgrounds) -> None:
    """It takes and gives values before they are normalised, and knows samples and epoch."""
    batch, seen = random_batch(), []

    def darker(inputs: Inputs, index: torch.Tensor, epoch: int) -> Inputs:
        seen.append((index.tolist(), epoch))
        assert 0 <= inputs.fg_bg.min() <= inputs.fg_bg.max() <= 1
        return inputs._replace(fg_bg=inputs.fg_bg / 2)

    plain = Preprocess(backgrounds, STATISTICS)(batch)
    found = Preprocess(backgrounds, STATISTICS, augment=darker)(batch, 3)
    mean, std = (
        torch.tensor(values).view(3, 1, 1)
        for values in (STATISTICS["fg_bg"].mean, STATISTICS["fg_bg"].std)
    )
    torch.testing.assert_close(found.fg_bg, (plain.fg_bg * std + mean) / 2 / std - mean / std)
    torch.testing.assert_close(found.bg, plain.bg)
    assert seen == [(batch.index.tolist(), 3)]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: None, "augment: found a result of type NoneType, expected Inputs"),
        (lambda x: x[:3], "augment: found a result of type tuple"),
        (lambda x: x._replace(bg=x.bg[:, :1]), r"found bg of torch.float32 \(\d+, 1, .*expected"),
        (lambda x: x._replace(mask=x.mask > 0), "found mask of torch.bool"),
        (lambda x: x._replace(depth=3), "found depth of <class 'int'>"),
    ],
)
def test_what_a_function_returns_is_checked(
    backgrounds: Backgrounds, result: Any, message: str
) -> None:
    preprocess = Preprocess(backgrounds, STATISTICS, augment=lambda inputs, *_: result(inputs))
    with pytest.raises(DataError, match=message):
        preprocess(random_batch())
