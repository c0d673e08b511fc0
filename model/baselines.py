"""What no network is needed for: the figures that a score must beat to mean anything.

- mask: a pixel belongs to the person where some channel of fg_bg differs from bg by more
  than 40 of 255 levels (JPEG noise lies below); and a constant probability.
- depth: the mean training depth map of the sample's background; and that of all samples.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

DIFFERENCE_LEVELS = 40
"""Of 255; the largest difference among the three channels must exceed it."""

BASELINE_SAMPLES = 10_000
"""Training samples that the means are taken from, at most: 100 for each of 100 backgrounds."""

DECIDED = 10.0
"""Logit that stands for a yes of the difference rule; only its sign matters to IoU."""


def difference_logits(bg: Tensor, fg_bg: Tensor, size: int) -> Tensor:
    """The difference rule as logits, -10 or 10; float32 (B, 1, size, size).

    bg, fg_bg: uint8 (B, 3, H, W), as decoded: the rule is about stored levels. Where ``size``
    differs from H, a pixel is a yes if at least half of its area is.
    """
    levels = (fg_bg.short() - bg.short()).abs().amax(dim=1, keepdim=True)
    found = (levels > DIFFERENCE_LEVELS).float()
    if found.shape[-1] != size or found.shape[-2] != size:
        found = F.interpolate(found, size=(size, size), mode="area")
    return torch.where(found >= 0.5, DECIDED, -DECIDED)


class TrainingMeans:
    """Mean mask and mean depth map of a training split, per background and overall."""

    def __init__(self, group_starts: Tensor, size: int) -> None:
        """``group_starts``: int64 (n_bg + 1,) on the device; see the layout of the shards."""
        n_bg = group_starts.numel() - 1
        self.group_ends = group_starts[1:]
        zeros = partial(torch.zeros, dtype=torch.float64, device=group_starts.device)
        self.depth = zeros((n_bg, size, size))
        self.count = zeros((n_bg,))
        self.mask_sum = zeros(())

    def add(self, index: Tensor, mask: Tensor, depth: Tensor) -> None:
        """Add targets: mask and depth float (B, 1, size, size), index int64 (B,)."""
        background = torch.bucketize(index, self.group_ends, right=True)
        self.depth.index_add_(0, background, depth[:, 0].double())
        self.count.index_add_(0, background, torch.ones_like(index, dtype=torch.float64))
        self.mask_sum += mask.sum(dtype=torch.float64)

    def prior_logit(self, like: Tensor) -> Tensor:
        """Logit of the share of mask pixels, everywhere; float32 of the shape of ``like``."""
        pixels = self.count.sum() * self.depth[0].numel()
        share = (self.mask_sum / pixels.clamp(min=1)).clamp(1e-6, 1 - 1e-6)
        return torch.logit(share).float().expand_as(like)

    def overall_depth(self, index: Tensor) -> Tensor:
        """Mean depth map of all training samples; float32 (B, 1, size, size)."""
        mean = self.depth.sum(dim=0) / self.count.sum().clamp(min=1)
        return mean.float().expand(index.numel(), 1, -1, -1)

    def background_depth(self, index: Tensor) -> Tensor:
        """Mean depth map of each sample's background; the overall one where it has none."""
        background = torch.bucketize(index, self.group_ends, right=True)
        count = self.count[background].view(-1, 1, 1, 1)
        own = self.depth[background].unsqueeze(1) / count.clamp(min=1)
        return torch.where(count > 0, own.float(), self.overall_depth(index))
