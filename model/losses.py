"""Losses as pure functions of a decoder's raw output and its target, one table per decoder.

All take (B, 1, H, W) float tensors and return a scalar, the mean over the batch. Mask targets
are exactly 0 or 1, depth targets are in 0..1. No loss makes the host wait for the device. For
that reason SSIM and the Sobel gradients are implemented here and tested against kornia, which
copies its small kernels to the device at every call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from maskdepth.model.contract import Inputs

Loss = Callable[[Tensor, Tensor], Tensor]

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
"""Taps and sigma of the Gaussian window, as in Wang et al. 2004."""


def mask_dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - soft Dice of the foreground, per image and then averaged (Milletari et al. 2016)."""
    probability, over = logits.sigmoid(), (1, 2, 3)
    overlap = (probability * target).sum(over)
    # Above 0 even if neither the target nor the prediction has a foreground.
    sizes = (probability + target).sum(over) + 1e-6
    return (1 - 2 * overlap / sizes).mean()


def mask_bce_dice(logits: Tensor, target: Tensor) -> Tensor:
    """BCE + Dice: BCE rates each pixel's probability, Dice the overlap of the regions (IoU)."""
    return F.binary_cross_entropy_with_logits(logits, target) + mask_dice(logits, target)


def mask_ssim(logits: Tensor, target: Tensor) -> Tensor:
    """(1 - SSIM) / 2 of the probability map, in 0..1."""
    return depth_ssim(logits.sigmoid(), target)


def mask_l1(logits: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the probability."""
    return F.l1_loss(logits.sigmoid(), target)


def depth_ssim(depth: Tensor, target: Tensor) -> Tensor:
    """(1 - SSIM) / 2 at a data range of 1, in 0..1."""
    return (1 - ssim_map(depth, target).mean()) / 2


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of each pixel at a data range of 1; float (B, 1, H, W), H and W above 5.

    Wang et al. 2004, equation 13, with C1 = 0.01**2 and C2 = 0.03**2; borders are reflected.
    """
    moments = torch.cat([a, b, a * a, b * b, a * b], dim=1)
    mean_a, mean_b, square_a, square_b, product = _blur(moments).split(1, dim=1)
    var_a, var_b = square_a - mean_a.square(), square_b - mean_b.square()
    covariance = product - mean_a * mean_b
    above = (2 * mean_a * mean_b + 0.01**2) * (2 * covariance + 0.03**2)
    below = (mean_a.square() + mean_b.square() + 0.01**2) * (var_a + var_b + 0.03**2)
    ssim: Tensor = above / below
    return ssim


def _blur(images: Tensor) -> Tensor:
    """Gaussian blur of each channel, rows then columns."""
    half, channels = SSIM_WINDOW // 2, images.shape[1]
    # Created on the device, so that nothing is copied to it.
    offsets = torch.arange(-half, half + 1, device=images.device, dtype=images.dtype)
    weights = torch.softmax(-offsets.square() / (2 * SSIM_SIGMA**2), dim=0)
    row = weights.view(1, 1, 1, -1).expand(channels, -1, -1, -1)
    padded = F.pad(images, (half, half, half, half), mode="reflect")
    return F.conv2d(F.conv2d(padded, row, groups=channels), row.mT, groups=channels)


def depth_edges(depth: Tensor, target: Tensor) -> Tensor:
    """L1 between the Sobel gradients (x and y) of the prediction and of the target."""
    return F.l1_loss(gradients(depth), gradients(target))


def gradients(images: Tensor) -> Tensor:
    """Sobel gradients, divided by 8 so that a ramp gives its slope; (B, 2, H, W), x then y.

    images: float (B, 1, H, W); borders are replicated.
    """
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    x = padded[..., 2:] - padded[..., :-2]
    y = padded[..., 2:, :] - padded[..., :-2, :]
    x = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
    y = y[..., :-2] + 2 * y[..., 1:-1] + y[..., 2:]
    return torch.cat([x, y], dim=1) / 8


def depth_densedepth(depth: Tensor, target: Tensor) -> Tensor:
    """0.1 L1 + (1 - SSIM) / 2 + edges, equations 1 to 4 of Alhashim and Wonka 2018."""
    return 0.1 * F.l1_loss(depth, target) + depth_ssim(depth, target) + depth_edges(depth, target)


MASK_LOSSES: dict[str, Loss] = {
    "bce": F.binary_cross_entropy_with_logits,  # in nats per pixel
    "dice": mask_dice,
    "bce+dice": mask_bce_dice,
    "ssim": mask_ssim,
    "l1": mask_l1,
}
DEPTH_LOSSES: dict[str, Loss] = {
    "l1": F.l1_loss,
    "ssim": depth_ssim,
    "bce": F.binary_cross_entropy_with_logits,  # takes the depth as a probability
    "densedepth": depth_densedepth,
}
LOGIT_DEPTH = frozenset({"bce"})
"""Depth losses with which the network's depth output is a logit instead of the depth itself."""


def depth_values(output: Tensor, loss: str) -> Tensor:
    """Depth from the raw output: its sigmoid if ``loss`` is in LOGIT_DEPTH, else itself."""
    return output.sigmoid() if loss in LOGIT_DEPTH else output


class ChosenLosses(Protocol):
    """Keys of `MASK_LOSSES` and `DEPTH_LOSSES`; a `model.recipe.Stage` has them."""

    @property
    def mask_loss(self) -> str: ...
    @property
    def depth_loss(self) -> str: ...


def training_loss(
    stage: ChosenLosses, inputs: Inputs, mask_logits: Tensor | None, depth: Tensor | None
) -> Tensor:
    """Sum of the stage's losses of the decoders that ran; a scalar, computed in float32.

    mask_logits, depth: float (B, 1, S, S) of any precision; None where a decoder did not run.
    """
    terms = []
    if mask_logits is not None:
        terms.append(MASK_LOSSES[stage.mask_loss](mask_logits.float(), inputs.mask))
    if depth is not None:
        terms.append(DEPTH_LOSSES[stage.depth_loss](depth.float(), inputs.depth))
    return torch.stack(terms).sum()
