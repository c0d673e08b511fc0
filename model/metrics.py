"""Metrics pooled over a data set: sums per sample on the device, one read-out at the end.

Sums, not averages of batch averages, so a figure does not change with the batch size. One
row per sample, so that any grouping (background, person) can be read from the same table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from model.distributed import several

COLUMNS = (
    "seen",
    "mask_pixels",
    "mask_bce",
    "intersection",
    "union",
    "depth_pixels",
    "depth_abs",
    "depth_square",
    "valid",
    "within_125",
    "log",
    "log_square",
)
VALID_DEPTH = 0.05
"""delta1 and SILog are ratios: they count pixels whose target is at least this."""
RATIOS = {"mask_iou": ("intersection", "union"), "depth_rmse": ("depth_square", "depth_pixels")}
"""Figure -> the two columns that it is a ratio of, or the root of one."""
RESAMPLED = 2000
"""Times that groups are drawn for an interval."""
LOWEST_DEPTH = 1e-3
"""Predictions are raised to this before their logarithm."""


def sample_sums(
    mask_logits: Tensor | None, depth: Tensor | None, mask: Tensor, depth_target: Tensor
) -> Tensor:
    """Sums over the pixels of each sample; float64 (B, len(COLUMNS)), no host sync.

    mask_logits, depth: float (B, 1, H, W), or None where that decoder did not run.
    mask: float (B, 1, H, W), 0 or 1. depth_target: float (B, 1, H, W) in 0..1.
    """
    batch = mask.shape[0]
    pixels = float(mask[0].numel())
    ones = torch.ones(batch, dtype=torch.float64, device=mask.device)
    empty = torch.zeros_like(ones)

    def total(values: Tensor) -> Tensor:
        return values.flatten(1).sum(dim=1, dtype=torch.float64)

    sums = [ones]
    if mask_logits is None:
        sums += [empty] * 4
    else:
        logits, found, truth = mask_logits.float(), mask_logits > 0, mask > 0.5
        bce = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
        sums += [ones * pixels, total(bce), total(found & truth), total(found | truth)]
    if depth is None:
        sums += [empty] * 6
    else:
        error = depth.float() - depth_target
        valid = depth_target >= VALID_DEPTH
        log = depth.float().clamp(min=LOWEST_DEPTH).log()
        log = (log - depth_target.clamp(min=VALID_DEPTH).log()) * valid
        # max(a / b, b / a) < 1.25 is |log a - log b| < log 1.25
        close = (log.abs() < float(np.log(1.25))) & valid
        sums += [ones * pixels, total(error.abs()), total(error.square())]
        sums += [total(valid), total(close), total(log), total(log.square())]
        return torch.stack(sums, dim=1)
    return torch.stack([*sums, empty], dim=1)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Pooled figures; None where that decoder did not run.

    mask_bce: nats per pixel. mask_iou: intersection over union of all pixels of the set,
    threshold 0.5. depth_l1, depth_rmse: in 0..1; depth_rmse_x10 is the original's figure, on
    values times 10. delta1: share of valid pixels whose ratio to the target is below 1.25.
    silog: 100 x standard deviation of the log ratio within an image (Eigen et al. 2014 with
    lambda 1), averaged over images. Valid are pixels with a target of at least VALID_DEPTH.
    """

    samples: int
    mask_bce: float | None = None
    mask_iou: float | None = None
    depth_l1: float | None = None
    depth_rmse: float | None = None
    depth_rmse_x10: float | None = None
    delta1: float | None = None
    silog: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, in the order above."""
        return asdict(self)


class SampleTable:
    """Sums of every sample of a data set, accumulated on the device."""

    def __init__(self, samples: int, device: torch.device | str) -> None:
        """``samples``: size of the whole data set, so that rows are found by index."""
        self.rows = torch.zeros(samples, len(COLUMNS), dtype=torch.float64, device=device)

    def add(self, index: Tensor, sums: Tensor) -> None:
        """Add `sample_sums` of a batch; ``index`` int64 (B,) on the device. No host sync."""
        self.rows.index_add_(0, index, sums)

    def collect(self) -> dict[str, np.ndarray]:
        """Columns by name over the whole data set, of all ranks; "seen" is 1 where measured.

        A sample that was seen twice (ranks padded to equal length) counts once.
        """
        rows = self.rows.clone()
        if several():
            dist.all_reduce(rows)
        table = rows.cpu().numpy()  # host sync: once per evaluation
        table = table / np.maximum(table[:, :1], 1)
        return dict(zip(COLUMNS, table.T, strict=True))


def pooled_scores(table: Mapping[str, np.ndarray], rows: np.ndarray | None = None) -> Scores:
    """Figures over all measured samples, or over those that ``rows`` (bool or index) names."""
    chosen = {name: column if rows is None else column[rows] for name, column in table.items()}
    total = {name: float(column.sum()) for name, column in chosen.items()}
    figures: dict[str, float] = {}
    if total["mask_pixels"]:
        figures["mask_bce"] = total["mask_bce"] / total["mask_pixels"]
        # no person anywhere and none found: perfect
        union = total["union"]
        figures["mask_iou"] = total["intersection"] / union if union else 1.0
    if pixels := total["depth_pixels"]:
        figures["depth_l1"] = total["depth_abs"] / pixels
        figures["depth_rmse"] = float(np.sqrt(total["depth_square"] / pixels))
        figures["depth_rmse_x10"] = 10 * figures["depth_rmse"]
    if total["valid"]:
        figures["delta1"] = total["within_125"] / total["valid"]
        measured = chosen["valid"] > 0
        valid = chosen["valid"][measured]
        mean = chosen["log"][measured] / valid
        variance = chosen["log_square"][measured] / valid - mean**2
        figures["silog"] = float(100 * np.sqrt(np.maximum(variance, 0)).mean())
    return Scores(samples=int(total["seen"]), **figures)


def group_spread(table: Mapping[str, np.ndarray], group: np.ndarray) -> dict[str, Any]:
    """How the scores vary between groups: worst, mean and best of each group's own figure.

    "interval": where the pooled figure would lie with other groups (`bootstrap_interval`).
    group: int64 (samples,), the background or the person of each sample. Groups without a
    measured sample do not count.
    """
    seen = table["seen"] > 0
    each = [pooled_scores(table, seen & (group == name)) for name in np.unique(group[seen])]
    spread: dict[str, Any] = {"groups": len(each)}
    for figure, low_is_good in (("mask_iou", False), ("depth_rmse", True)):
        values = [v for v in (getattr(scores, figure) for scores in each) if v is not None]
        if values:
            worst, best = (max, min) if low_is_good else (min, max)
            spread[figure] = {
                "worst": worst(values),
                "mean": float(np.mean(values)),
                "best": best(values),
                "interval": bootstrap_interval(table, group, figure),
            }
    return spread


def bootstrap_interval(
    table: Mapping[str, np.ndarray], group: np.ndarray, figure: str
) -> tuple[float, float] | None:
    """95 % interval of the pooled mask_iou or depth_rmse over the choice of groups.

    Samples of one group resemble each other, so whole groups are drawn, with replacement,
    RESAMPLED times, seeded: the cluster bootstrap of Davison and Hinkley (1997), percentiles.
    None with fewer than two groups: one says nothing of others.
    """
    seen = table["seen"] > 0
    names, number = np.unique(group[seen], return_inverse=True)
    if len(names) < 2:
        return None
    above, below = RATIOS[figure]
    sums = [np.bincount(number, table[name][seen]) for name in (above, below)]
    draws = np.random.default_rng(0).integers(len(names), size=(RESAMPLED, len(names)))
    ratio = sums[0][draws].sum(axis=1) / np.maximum(sums[1][draws].sum(axis=1), 1)
    values = np.sqrt(ratio) if figure == "depth_rmse" else ratio
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


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
