"""A UNet with one encoder and two decoders: mask and depth of a composite.

At width 64 it has 6,242,050 parameters. Its layers are those of the original work, so the
original's weights fit once they are renamed (`rename_original`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskdepth.model.errors import ModelError
from maskdepth.model.upsampling import Upsampling, make_upsample

Decode = Literal["both", "mask", "depth"]

PARTS = {"encoder": "encoder", "mask": "mask_decoder", "depth": "depth_decoder"}
"""Name of a part in recipes -> name of the child module."""

DOWNSAMPLING = 8
"""Height and width of an input must be multiples of this, because of three poolings by 2."""

_MOMENTUM = 0.1  # of running statistics: the weight of the newest


class DoubleConv(nn.Sequential):
    """(3x3 convolution with bias, BatchNorm, ReLU) twice; keeps height and width.

    In training, BatchNorm subtracts the mean of each channel, and with it the bias, whose gradient
    is 0 but for rounding. Therefore biases are not trained, and training leaves them out: on a GPU
    they would be added, and their gradients summed, in passes of their own over all images. Running
    means include the bias, which evaluation adds.
    """

    def __init__(self, channels_in: int, channels_out: int, middle: int | None = None) -> None:
        middle = middle or channels_out
        super().__init__(
            nn.Conv2d(channels_in, middle, kernel_size=3, padding=1),
            nn.BatchNorm2d(middle, momentum=_MOMENTUM),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, channels_out, kernel_size=3, padding=1),
            nn.BatchNorm2d(channels_out, momentum=_MOMENTUM),
            nn.ReLU(inplace=True),
        )
        self.fix_biases()

    def fix_biases(self) -> None:
        """Turn the gradients of the biases off."""
        for conv in (self[0], self[3]):
            conv.get_parameter("bias").requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels_out, H, W)."""
        if not self.training:
            result: Tensor = super().forward(images)
            return result
        middle = functional.relu(_normalised(images, self[0], self[1]), inplace=True)
        return functional.relu(_normalised(middle, self[3], self[4]), inplace=True)


def _normalised(images: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    """norm(conv(images)) in training, without adding the bias to the images."""
    # BatchNorm is about to replace the running mean r by (1 - m) r + m * mean, without the bias.
    # Not afterwards, because autograd has saved the running mean.
    with torch.no_grad():
        running_mean, bias = norm.get_buffer("running_mean"), conv.get_parameter("bias")
        running_mean.add_(bias, alpha=_MOMENTUM / (1 - _MOMENTUM))
    result: Tensor = norm(functional.conv2d(images, conv.get_parameter("weight"), padding=1))
    return result


class Encoder(nn.Module):
    """Turns six channels into four feature maps, at full, half, quarter and eighth size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inc = DoubleConv(6, width)
        self.down1 = DoubleConv(width, 2 * width)
        self.down2 = DoubleConv(2 * width, 4 * width)
        self.down3 = DoubleConv(4 * width, 4 * width)
        self.pool = nn.MaxPool2d(2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 6, H, W) -> widths w, 2w, 4w, 4w at H, H/2, H/4, H/8."""
        full = self.inc(images)
        half = self.down1(self.pool(full))
        quarter = self.down2(self.pool(half))
        eighth = self.down3(self.pool(quarter))
        return full, half, quarter, eighth


class Up(nn.Module):
    """Upsamples x2 (bilinear), concatenates the skip in front, and applies a DoubleConv."""

    def __init__(self, channels_in: int, channels_out: int, upsampling: Upsampling) -> None:
        super().__init__()
        self.up = make_upsample(upsampling)
        self.conv = DoubleConv(channels_in, channels_out, middle=channels_in // 2)

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        """(B, c, H/2, W/2) and the skip (B, c, H, W) -> (B, channels_out, H, W)."""
        result: Tensor = self.conv(torch.cat([skip, self.up(below)], dim=1))
        return result


class Decoder(nn.Module):
    """Turns the encoder's four feature maps into one map at full size."""

    def __init__(self, width: int, upsampling: Upsampling) -> None:
        super().__init__()
        self.up1 = Up(8 * width, 2 * width, upsampling)
        self.up2 = Up(4 * width, width, upsampling)
        self.up3 = Up(2 * width, width, upsampling)
        self.outc = nn.Conv2d(width, 1, kernel_size=1)

    def forward(self, features: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """-> (B, 1, H, W), unbounded."""
        full, half, quarter, eighth = features
        result: Tensor = self.outc(self.up3(self.up2(self.up1(eighth, quarter), half), full))
        return result


class DualDecoderUNet(nn.Module):
    """Predicts mask logits and depth from a background and the same scene with a foreground.

    ``width`` is the number of channels at full size, 64 in the original. The number of
    parameters grows with its square. ``upsampling``: how gradients pass the decoders' upsampling;
    the values and the state dict are the same.
    """

    def __init__(self, width: int = 64, upsampling: Upsampling = "products") -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, found {width}")
        self.width = width
        self.frozen: frozenset[str] = frozenset()
        self.encoder = Encoder(width)
        self.mask_decoder = Decoder(width, upsampling)
        self.depth_decoder = Decoder(width, upsampling)

    def forward(
        self, bg: Tensor, fg_bg: Tensor, decode: Decode = "both"
    ) -> tuple[Tensor | None, Tensor | None]:
        """Run the encoder and the requested decoders; return (mask_logits, depth).

        bg, fg_bg: float (B, 3, H, W), normalised, H and W multiples of 8.
        mask_logits: (B, 1, H, W); the sigmoid is the probability of the foreground.
        depth: (B, 1, H, W); the raw output. Trained with BCE it is the logit of the depth,
        otherwise the depth itself, not clamped (see `model.losses.depth_values`).
        The result of a decoder that did not run is None.
        Raises ValueError for sizes that are not multiples of 8, or an unknown ``decode``.
        """
        if decode not in ("both", "mask", "depth"):
            raise ValueError(f"decode must be both, mask or depth, found {decode!r}")
        if bg.shape[-2] % DOWNSAMPLING or bg.shape[-1] % DOWNSAMPLING:
            raise ValueError(
                f"height and width must be multiples of {DOWNSAMPLING}, found {tuple(bg.shape)}"
            )
        # Not inference_mode: a decoder that trains saves these features for backward.
        with torch.no_grad() if "encoder" in self.frozen else nullcontext():
            features = self.encoder(torch.cat([bg, fg_bg], dim=1))
        mask_logits = self.mask_decoder(features) if decode != "depth" else None
        depth = self.depth_decoder(features) if decode != "mask" else None
        return mask_logits, depth

    def start_from_difference(self) -> DualDecoderUNet:
        """Make half of the first filters compute a difference of fg_bg and bg.

        Their weights for bg become the negated weights for fg_bg, because the foreground is
        where the two images differ. Call it before training, while the weights are random.
        """
        with torch.no_grad():
            filters = self.encoder.inc[0].get_parameter("weight")  # (width, 6, 3, 3), bg first
            half = self.width // 2
            filters[:half, :3] = -filters[:half, 3:]
        return self

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def place(self, device: torch.device | str) -> DualDecoderUNet:
        """Move to a device, with channels_last weights, which are faster on CPUs and GPUs."""
        # torch's type stub lacks memory_format.
        self.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self

    def freeze(self, *parts: str) -> DualDecoderUNet:
        """Freeze these parts (encoder, mask, depth) and no others.

        Frozen parts get no gradient. They stay in eval mode through every later `train()`,
        so their BatchNorm statistics do not change either.
        """
        if unknown := set(parts) - set(PARTS):
            raise ValueError(f"no such part: {sorted(unknown)}; there are {list(PARTS)}")
        self.frozen = frozenset(parts)
        for name, child in PARTS.items():
            self.get_submodule(child).requires_grad_(name not in self.frozen)
        for block in self.modules():
            if isinstance(block, DoubleConv):
                block.fix_biases()
        return self.train(self.training)

    def train(self, mode: bool = True) -> DualDecoderUNet:
        """Set the training mode, but keep frozen parts in eval mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(PARTS[name]).eval()
        return self

    def trained_parameters(self) -> list[nn.Parameter]:
        """Parameters for the optimiser; weight decay would shrink the frozen ones."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def original_name(name: str) -> str:
    """Return the original work's name of one of our parameters or buffers."""
    part, layer, rest = name.split(".", maxsplit=2)
    suffix = "_Depth" if part == "depth_decoder" else ""
    inside = {
        "outc": "conv.", "inc": "double_conv.", "down": "maxpool_conv.1.double_conv.",
        "up": "conv.double_conv.",
    }[layer.rstrip("123")]  # fmt: skip
    return f"{layer}{suffix}.{inside}{rest.removeprefix('conv.')}"


def rename_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights from the original's names to ours; the tensors are the same.

    Accepts DataParallel's `module.` prefix, and `outc.weight` for `outc.conv.weight`. Raises
    ModelError that lists missing and unexpected names.
    """
    found = {name.removeprefix("module."): value for name, value in state_dict.items()}
    for plain in ("outc", "outc_Depth"):
        for leaf in ("weight", "bias"):
            if f"{plain}.{leaf}" in found:
                found[f"{plain}.conv.{leaf}"] = found.pop(f"{plain}.{leaf}")
    with torch.device("meta"):
        names = {original_name(name): name for name in DualDecoderUNet(1).state_dict()}
    missing, unexpected = sorted(names.keys() - found.keys()), sorted(found.keys() - names.keys())
    if missing or unexpected:
        raise ModelError(
            f"these are not the original's weights: {len(missing)} names missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}; expected {len(names)} such as "
            "'inc.double_conv.0.weight' and 'up1_Depth.conv.double_conv.0.weight'"
        )
    return {ours: found[theirs] for theirs, ours in names.items()}
