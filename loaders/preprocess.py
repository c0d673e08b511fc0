"""From a batch of stored pixels to the model's inputs and targets, on the device.

Gathers the background of each sample, resizes, augments, normalises and casts. Pixels are
normalised nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskdepth.convert.errors import DataError
from maskdepth.loaders.backgrounds import Backgrounds
from maskdepth.loaders.batch import Batch
from maskdepth.loaders.camera import COLUMNS, Camera
from maskdepth.loaders.draws import uniform
from maskdepth.loaders.fused import Fused
from maskdepth.loaders.options import expect


class Inputs(NamedTuple):
    """The inputs of the model (bg, fg_bg) and its targets (mask, depth).

    bg, fg_bg: ``dtype`` (B, 3, S, S), each normalised with its own mean and std.
    mask: float32 (B, 1, S, S), exactly 0 or 1.
    depth: float32 (B, 1, S, S), 0..1.
    """

    bg: Tensor
    fg_bg: Tensor
    mask: Tensor
    depth: Tensor


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of a sample, drawn on the device.

    The flip and the colours change all its images alike; the camera changes one of them.

    flip: probability of a left-right flip.
    jitter: largest change of brightness (added), contrast (factor 1 - jitter to 1 + jitter),
        saturation (the same) and hue (this part of a turn), 0 to 0.5.
    rgb_shift: largest value added to each colour channel, in 0..1.
    camera: differences between bg and fg_bg, or None.
    seed: 0 or more. The change of a sample depends on (seed, epoch, index) alone, so it is
        the same on every device, in every batch and on every rank.

    Raises DataError for values out of range.
    """

    flip: float = 0.5
    jitter: float = 0.1
    rgb_shift: float = 0.1
    camera: Camera | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        expect("flip", self.flip, 0, 1)
        expect("jitter", self.jitter, 0, 0.5)
        expect("rgb_shift", self.rgb_shift, 0, 1)
        expect("seed of augmentation", self.seed, 0, 2**63 - 1)

    def __call__(self, inputs: Inputs, index: Tensor, epoch: int) -> Inputs:
        """Changed copies of inputs that are not normalised yet: bg and fg_bg float in 0..1.

        index: int64 (B,), the samples. Without a camera, a pixel's new colour depends only on
        its old colour, so fg_bg still equals bg where it did.
        """
        chance = uniform(index, epoch, self.seed, 8)
        flipped = chance[:, 0].lt(self.flip)[:, None, None, None]
        bg, fg_bg, mask, depth = (torch.where(flipped, x.flip(-1), x) for x in inputs)
        signed = chance.mul(2).sub(1)
        bg, fg_bg = self._colours(bg, signed), self._colours(fg_bg, signed)
        if self.camera is not None:
            draws = uniform(index, epoch, self.seed, 8 + COLUMNS)[:, 8:]
            bg, fg_bg, mask, depth = self.camera(bg, fg_bg, mask, depth, draws)
        return Inputs(bg, fg_bg, mask, depth)

    def _colours(self, image: Tensor, signed: Tensor) -> Tensor:
        """Jitter and shift of images in 0..1; ``signed`` is (B, 8) in -1..1."""
        # Imported here because it takes a second and only augmentation needs it.
        from kornia import enhance

        if self.jitter:
            change = signed * self.jitter
            image = enhance.adjust_brightness(image, change[:, 1])
            image = enhance.adjust_contrast(image, 1 + change[:, 2])
            image = enhance.adjust_saturation(image, 1 + change[:, 3])
            image = enhance.adjust_hue(image, change[:, 4] * (2 * torch.pi))
        if self.rgb_shift:
            red, green, blue = (signed[:, 5:] * self.rgb_shift).unbind(1)
            image = enhance.shift_rgb(image, red, green, blue)
        return image


Augmentation = Callable[[Inputs, Tensor, int], Inputs]
"""Changes inputs that are not normalised yet, bg and fg_bg float in 0..1, as `Augment` does.

Called with the inputs, the samples, int64 (B,), and the epoch. It returns the same shapes.
"""


class MeanAndStd(Protocol):
    """Mean and standard deviation of each channel of a field, in 0..1."""

    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...


class Preprocess(nn.Module):
    """Batch -> Inputs on the device of the batch; pure, so that it can be compiled.

    backgrounds: of the data set, on the device.
    statistics: of the data set, from the manifest; bg and fg_bg are used.
    size: side S of the result; None keeps the stored size. A smaller side takes the mean of
        the area of each new pixel (exact where S is half), a larger one is bilinear. The mask
        is 1 where its mean is 0.5 or more.
    dtype: of bg and fg_bg. Arithmetic is in float32 and rounded once, at the end.
    channels_last: memory format of bg and fg_bg.
    augment: random changes, or None: an `Augment`, or any function that is an `Augmentation`. Its
        results are normalised after it.

    Raises DataError for a size below 1 or statistics with a standard deviation of 0.
    """

    bg_scale: Tensor
    bg_shift: Tensor
    fg_bg_scale: Tensor
    fg_bg_shift: Tensor

    def __init__(
        self,
        backgrounds: Backgrounds,
        statistics: Mapping[str, MeanAndStd],
        *,
        size: int | None = None,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = True,
        augment: Augmentation | None = None,
    ) -> None:
        super().__init__()
        if size is not None:
            expect("image size", size, 1)
        self.size = size
        self.augment = augment
        self._take_backgrounds(backgrounds)
        self._fused = Fused(*self._resized.shape[1:3])
        self.dtype = dtype
        self.channels_last = channels_last
        for name in ("bg", "fg_bg"):
            scale, shift = _scale_and_shift(statistics, name)
            if not channels_last:
                scale, shift = scale.view(-1, 1, 1), shift.view(-1, 1, 1)
            # Not in checkpoints: they belong to the data set, not to what was learned.
            self.register_buffer(f"{name}_scale", scale.to(backgrounds.device), persistent=False)
            self.register_buffer(f"{name}_shift", shift.to(backgrounds.device), persistent=False)

    def forward(self, batch: Batch, epoch: int = 0, bg: Tensor | None = None) -> Inputs:
        """Model input and targets of a batch; see `Inputs`.

        epoch: of the training run; only the augmentation depends on it.
        bg: uint8 (B, 3, H, W), backgrounds in place of those of the data set.

        Raises DataError if no size was given and the batch has another than the backgrounds.
        """
        if bg is not None:
            bg, bg_pixels_per_value = _resize(bg, self.size)
            bg_full_scale = 255 * bg_pixels_per_value
        elif self._fits_fused(batch):
            return self._fused_inputs(batch)
        else:
            numbers = self.backgrounds.numbers(batch.index)
            bg = self._resized.index_select(0, numbers).permute(0, 3, 1, 2)
            bg_full_scale = self._bg_full_scale
        fg_bg, pixels_per_value = _resize(batch.fg_bg, self.size)
        mask, depth = (_resize(field, self.size)[0] for field in (batch.mask, batch.depth))
        found, expected = fg_bg.shape[2:], bg.shape[2:]
        if found != expected:
            raise DataError(
                f"batch: found {found[1]}x{found[0]} pixels beside backgrounds of "
                f"{expected[1]}x{expected[0]}, expected one size; give Preprocess size=, the "
                "side that both shall have"
            )
        mask = mask.mul(2).ge(pixels_per_value).to(torch.float32)
        depth = depth.to(torch.float32).mul_(1 / (255 * pixels_per_value))
        fg_bg_full_scale = 255 * pixels_per_value
        if self.augment is not None:
            bg = bg.to(torch.float32).mul(1 / bg_full_scale)
            fg_bg = fg_bg.to(torch.float32).mul(1 / fg_bg_full_scale)
            before = Inputs(bg, fg_bg, mask, depth)
            after = self.augment(before, batch.index, epoch)
            bg, fg_bg, mask, depth = _checked(after, before)
            bg_full_scale = fg_bg_full_scale = 1
        bg = self._normalise(bg, self.bg_scale, self.bg_shift, bg_full_scale)
        fg_bg = self._normalise(fg_bg, self.fg_bg_scale, self.fg_bg_shift, fg_bg_full_scale)
        return Inputs(bg, fg_bg, mask, depth)

    def _fits_fused(self, batch: Batch) -> bool:
        """Whether `Fused` supports this: on a CPU, at the stored size or half of it."""
        if batch.fg_bg.device.type != "cpu" or torch.compiler.is_compiling():
            return False
        side, stored = self._resized.shape[1:3], batch.fg_bg.shape[2:]
        same = side == stored or (2 * side[0], 2 * side[1]) == stored
        exact = self._resized.dtype != torch.float32
        return same and exact and self.channels_last and self.augment is None

    def _fused_inputs(self, batch: Batch) -> Inputs:
        pixels_per_value = 1 if self._resized.shape[1:3] == batch.fg_bg.shape[2:] else 4
        bg_scale = self.bg_scale / self._bg_full_scale
        fg_bg_scale = self.fg_bg_scale / (255 * pixels_per_value)
        factors = (bg_scale, self.bg_shift, fg_bg_scale, self.fg_bg_shift)
        numbers = self.backgrounds.numbers(batch.index)
        bg, fg_bg, mask, depth = self._fused(
            self._resized, numbers, batch[:3], factors, pixels_per_value
        )
        return Inputs(bg.to(self.dtype), fg_bg.to(self.dtype), mask, depth)

    def _normalise(self, image: Tensor, scale: Tensor, shift: Tensor, full_scale: int) -> Tensor:
        """(image / full_scale - mean) / std as one multiply-add; full_scale: the white value."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        values = image.to(torch.float32, memory_format=layout)
        # In place: allocating a 40 MB result costs more than the arithmetic. Through a view
        # without gaps, because torch.compile accepts no other `out`.
        pixels = values.permute(0, 2, 3, 1) if self.channels_last else values
        torch.addcmul(shift, pixels, scale / full_scale, out=pixels)
        return values.to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Preprocess:
        """Move the backgrounds along when the module moves to another device."""
        super()._apply(fn, recurse)
        self._take_backgrounds(self.backgrounds.to(self.bg_scale.device))
        return self

    def _take_backgrounds(self, backgrounds: Backgrounds) -> None:
        """Resize all backgrounds once, instead of those of every batch."""
        self.backgrounds = backgrounds
        resized, pixels_per_value = _resize(backgrounds.images, self.size)
        self._resized = resized.permute(0, 2, 3, 1).contiguous()
        self._bg_full_scale = 255 * pixels_per_value
        if isinstance(self.augment, Augment) and self.augment.camera is not None:
            self.augment.camera.prepare(self._resized.device, *self._resized.shape[1:3])


def _checked(found: object, before: Inputs) -> Inputs:
    """What an augmentation has returned. Raises DataError unless it is like its inputs."""
    if not isinstance(found, tuple) or len(found) != len(before):
        raise DataError(
            f"augment: found a result of type {type(found).__name__}, expected Inputs(bg, fg_bg, "
            "mask, depth)"
        )
    for name, one, like in zip(Inputs._fields, found, before, strict=True):
        if not isinstance(one, Tensor) or (one.shape, one.dtype) != (like.shape, like.dtype):
            what = f"{one.dtype} {tuple(one.shape)}" if isinstance(one, Tensor) else type(one)
            raise DataError(
                f"augment: found {name} of {what}, expected {like.dtype} {tuple(like.shape)}"
            )
    return Inputs(*found)


def _scale_and_shift(statistics: Mapping[str, MeanAndStd], name: str) -> tuple[Tensor, Tensor]:
    """float32 (3,) each: (x - mean) / std is x * scale + shift, for x in 0..1."""
    mean = torch.tensor(statistics[name].mean, dtype=torch.float64)
    std = torch.tensor(statistics[name].std, dtype=torch.float64)
    if not bool((std > 0).all()):
        raise DataError(
            f"statistics of {name}: found standard deviations {std.tolist()}, expected more "
            "than 0 in each channel; are all images one colour?"
        )
    scale, shift = 1 / std, -mean / std
    return scale.float(), shift.float()


def _resize(image: Tensor, size: int | None) -> tuple[Tensor, int]:
    """uint8 (B, C, H, W) -> (values, pixels_per_value); their quotient is the resized image.

    At half the size, values are int16 sums of four pixels: exact, and several times faster
    than pooling floats, because only bytes are read. Other sizes are float32.
    """
    height, width = image.shape[-2:]
    if size is None or (height, width) == (size, size):
        return image, 1
    if (height, width) == (2 * size, 2 * size):
        rows = image[:, :, ::2].to(torch.int16) + image[:, :, 1::2]
        return rows[..., ::2] + rows[..., 1::2], 4
    values = image.to(torch.float32)
    if size <= height and size <= width:
        return functional.interpolate(values, size=(size, size), mode="area"), 1
    shape = (size, size)
    return functional.interpolate(values, size=shape, mode="bilinear", antialias=True), 1
