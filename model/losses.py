"""Losses as pure functions of logits or raw output and target, one table per decoder.

All take (B, 1, H, W) float tensors and return a scalar, the mean over the batch. Mask
targets are exactly 0 or 1, depth targets lie in 0..1. The host waits for the device in SSIM
and in DenseDepth alone: kornia copies their small kernels there at every call.

kornia is imported where it is used: the default losses do without, and it takes a second.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]

SSIM_WINDOW = 11
"""Taps of the Gaussian window (sigma 1.5), as in Wang et al. 2004."""


def mask_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy in nats per pixel."""
    return F.binary_cross_entropy_with_logits(logits, target)


def mask_dice(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice of the person, soft, per image and then averaged (Milletari et al. 2016)."""
    from kornia.losses import dice_loss

    # kornia takes a softmax over classes, constant for one: softmax of (0, x) is sigmoid(x).
    classes = torch.cat([torch.zeros_like(logits), logits], dim=1)
    # [0, 1]: the person alone counts. arange is made on the device; a list would be copied.
    weight = torch.arange(2, device=logits.device, dtype=logits.dtype)
    return dice_loss(classes, target[:, 0].long(), weight=weight, ignore_index=None)


def mask_bce_dice(logits: Tensor, target: Tensor) -> Tensor:
    """BCE + Dice: the one says how sure a pixel is, the other counts whole people (IoU)."""
    return mask_bce(logits, target) + mask_dice(logits, target)


def mask_ssim(logits: Tensor, target: Tensor) -> Tensor:
    """(1 - SSIM) / 2 of the probability map, in 0..1."""
    return depth_ssim(logits.sigmoid(), target)


def mask_l1(logits: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the probability."""
    return F.l1_loss(logits.sigmoid(), target)


def depth_l1(depth: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error."""
    return F.l1_loss(depth, target)


def depth_ssim(depth: Tensor, target: Tensor) -> Tensor:
    """(1 - SSIM) / 2 at a data range of 1, in 0..1."""
    from kornia.losses import ssim_loss

    return ssim_loss(depth, target, SSIM_WINDOW)


def depth_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy with the depth as a probability; the output is its logit."""
    return F.binary_cross_entropy_with_logits(logits, target)


def depth_edges(depth: Tensor, target: Tensor) -> Tensor:
    """L1 between the Sobel gradients (x and y) of the prediction and of the target."""
    from kornia.filters import spatial_gradient

    return F.l1_loss(spatial_gradient(depth), spatial_gradient(target))


def depth_densedepth(depth: Tensor, target: Tensor) -> Tensor:
    """0.1 L1 + (1 - SSIM) / 2 + edges, equations 1 to 4 of Alhashim and Wonka 2018."""
    return 0.1 * depth_l1(depth, target) + depth_ssim(depth, target) + depth_edges(depth, target)


MASK_LOSSES: dict[str, Loss] = {
    "bce": mask_bce,
    "dice": mask_dice,
    "bce+dice": mask_bce_dice,
    "ssim": mask_ssim,
    "l1": mask_l1,
}
DEPTH_LOSSES: dict[str, Loss] = {
    "l1": depth_l1,
    "ssim": depth_ssim,
    "bce": depth_bce,
    "densedepth": depth_densedepth,
}
LOGIT_DEPTH = frozenset({"bce"})
"""Depth losses that make the network's depth output a logit instead of the depth itself."""


def depth_values(output: Tensor, loss: str) -> Tensor:
    """Depth as trained with the named loss: the sigmoid of a logit, else the output itself."""
    return output.sigmoid() if loss in LOGIT_DEPTH else output
