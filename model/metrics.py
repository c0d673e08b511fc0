"""Metrics of a whole data set, and the baselines that need no network.

A table on the device accumulates sums per sample and is read once at the end. A score is a ratio
of sums, not a mean of batch means, so it does not depend on the batch size. With one row per
sample, scores of any group (a background, a foreground) come from the same table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from maskdepth.model.distributed import is_distributed

SUM_COLUMNS = (
    "seen",
    "mask_pixels", "mask_bce", "intersection", "union",
    "depth_pixels", "depth_abs", "depth_square", "valid", "within_125", "log", "log_square",
)  # fmt: skip
"""The sums over the pixels of a sample; see `sample_sums`."""
VALID_DEPTH = 0.05
"""delta1 and SILog are ratios, so they count only pixels whose target is at least this."""
LOWEST_DEPTH = 1e-3
"""Predictions are raised to this before their logarithm is taken."""
RATIOS = {"mask_iou": ("intersection", "union"), "depth_rmse": ("depth_square", "depth_pixels")}
"""Score -> its numerator and denominator; depth_rmse is the root of the ratio."""
RESAMPLED = 2000
"""Number of bootstrap draws for an interval."""
DIFFERENCE_LEVELS = 40
"""The difference rule: |fg_bg - bg| of some channel exceeds this, in levels of 0..255."""
BASELINE_SAMPLES = 10_000
"""Largest number of training samples for the means: 100 for each of 100 backgrounds."""


def sample_sums(
    mask_logits: Tensor | None, depth: Tensor | None, mask: Tensor, depth_target: Tensor
) -> Tensor:
    """Sums over the pixels of each sample; float64 (B, len(SUM_COLUMNS)), no host sync.

    mask_logits, depth: float (B, 1, H, W), or None if that decoder did not run: its sums are 0.
    mask: float (B, 1, H, W), 0 or 1. depth_target: float (B, 1, H, W) in 0..1.
    """

    def total(values: Tensor) -> Tensor:
        return values.flatten(1).sum(dim=1, dtype=torch.float64)

    ones = torch.ones(len(mask), dtype=torch.float64, device=mask.device)
    pixels = ones * mask[0].numel()
    sums = {"seen": ones}
    if mask_logits is not None:
        logits, found, truth = mask_logits.float(), mask_logits > 0, mask > 0.5
        bce = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
        sums |= {"mask_pixels": pixels, "mask_bce": total(bce)}
        sums |= {"intersection": total(found & truth), "union": total(found | truth)}
    if depth is not None:
        error = depth.float() - depth_target
        valid = depth_target >= VALID_DEPTH
        log = depth.float().clamp(min=LOWEST_DEPTH).log()
        log = (log - depth_target.clamp(min=VALID_DEPTH).log()) * valid
        # max(a / b, b / a) < 1.25 is |log a - log b| < log 1.25
        close = (log.abs() < float(np.log(1.25))) & valid
        sums |= {"depth_pixels": pixels, "valid": total(valid), "within_125": total(close)}
        sums |= {"depth_abs": total(error.abs()), "depth_square": total(error.square())}
        sums |= {"log": total(log), "log_square": total(log.square())}
    zeros = torch.zeros_like(ones)
    return torch.stack([sums.get(name, zeros) for name in SUM_COLUMNS], dim=1)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores over all pixels of a set; None if that decoder did not run.

    mask_bce: nats per pixel. mask_iou: intersection over union at a threshold of 0.5.
    depth_l1, depth_rmse: in 0..1; depth_rmse_x10 is the original's score, on values times 10.
    delta1: share of valid pixels whose ratio to the target is below 1.25. silog: 100 x standard
    deviation of the log ratio within an image (Eigen et al. 2014 with lambda 1), averaged over
    images. A pixel is valid if its target is at least VALID_DEPTH.
    """

    samples: int
    mask_bce: float | None = None
    mask_iou: float | None = None
    depth_l1: float | None = None
    depth_rmse: float | None = None
    depth_rmse_x10: float | None = None
    delta1: float | None = None
    silog: float | None = None


class SampleTable:
    """Sums of every sample of a data set, accumulated on the device.

    ``samples`` is the size of the whole data set, because a row is addressed by its index.
    """

    def __init__(self, samples: int, device: torch.device | str) -> None:
        self.rows = torch.zeros(samples, len(SUM_COLUMNS), dtype=torch.float64, device=device)

    def add(self, index: Tensor, sums: Tensor) -> None:
        """Add `sample_sums` of a batch; ``index`` int64 (B,) on the device. No host sync."""
        self.rows.index_add_(0, index, sums)

    def collect(self) -> dict[str, np.ndarray]:
        """Return the columns by name, summed over all ranks; "seen" is 1 for a measured sample.

        A sample that was seen twice (ranks are padded to equal length) counts once.
        """
        rows = self.rows.clone()
        if is_distributed():
            dist.all_reduce(rows)
        table = rows.cpu().numpy()  # host sync: once per evaluation
        table = table / np.maximum(table[:, :1], 1)
        return dict(zip(SUM_COLUMNS, table.T, strict=True))


def pooled_scores(table: Mapping[str, np.ndarray], rows: np.ndarray | None = None) -> Scores:
    """Scores over all measured samples, or over those that ``rows`` (bool or index) selects."""
    chosen = {name: column if rows is None else column[rows] for name, column in table.items()}
    total = {name: float(column.sum()) for name, column in chosen.items()}
    figures: dict[str, float] = {}
    if total["mask_pixels"]:
        figures["mask_bce"] = total["mask_bce"] / total["mask_pixels"]
        # With no foreground in the targets and none predicted, the IoU is 1.
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


def sample_scores(table: Mapping[str, np.ndarray]) -> dict[str, list]:
    """index, mask_iou and depth_rmse of each measured sample, in the order of samples.

    A score is None where its decoder did not run. Each is that of `pooled_scores` of one sample.
    """
    index = np.flatnonzero(table["seen"])
    chosen = {name: column[index] for name, column in table.items()}
    union, pixels = chosen["union"], chosen["depth_pixels"]
    iou = np.where(union > 0, chosen["intersection"] / np.maximum(union, 1), 1.0)
    rmse = np.sqrt(chosen["depth_square"] / np.maximum(pixels, 1))
    scores = ((iou, chosen["mask_pixels"]), (rmse, pixels))
    mask, depth = (
        [value if count else None for value, count in zip(values.tolist(), counts, strict=True)]
        for values, counts in scores
    )
    return {"index": index.tolist(), "mask_iou": mask, "depth_rmse": depth}


class FigureSpread(NamedTuple):
    """Worst, mean and best score of a group.

    interval: 95 % interval of the pooled score for other groups of the kind; None where training
    has seen one of the groups, or may have.
    """

    worst: float
    mean: float
    best: float
    interval: tuple[float, float] | None


class GroupSpread(NamedTuple):
    """The number of groups, and how mask_iou and depth_rmse vary between them.

    seen: how many of the groups training has seen; None if unknown.
    """

    groups: int
    seen: int | None
    figures: dict[str, FigureSpread]

    def as_dict(self) -> dict[str, object]:
        """Return the number of "groups", those "seen", and the spread of each score by name."""
        figures = {name: figure._asdict() for name, figure in self.figures.items()}
        return {"groups": self.groups, "seen": self.seen, **figures}


def group_spread(
    table: Mapping[str, np.ndarray], group: np.ndarray, known: np.ndarray | None
) -> GroupSpread:
    """Compute how the scores vary between groups of samples that have been measured.

    group: int64 (samples,), the background or the foreground of each sample. known: the groups
    that training has seen; None if that is unknown. Groups that were trained on say nothing about
    others, so there is an interval only where all were held out.
    """
    seen = table["seen"] > 0
    names, number = np.unique(group[seen], return_inverse=True)
    table = {name: column[seen] for name, column in table.items()}
    each = [pooled_scores(table, number == place) for place in range(len(names))]
    known_groups = None if known is None else len(np.intersect1d(names, known))
    figures = {}
    for name in RATIOS:
        values = [v for v in (getattr(scores, name) for scores in each) if v is not None]
        if values:
            worst, best = (min, max) if name == "mask_iou" else (max, min)
            interval = _bootstrap_interval(table, number, name) if known_groups == 0 else None
            mean = float(np.mean(values))
            figures[name] = FigureSpread(worst(values), mean, best(values), interval)
    return GroupSpread(groups=len(each), seen=known_groups, figures=figures)


def _bootstrap_interval(
    table: Mapping[str, np.ndarray], number: np.ndarray, figure: str
) -> tuple[float, float] | None:
    """95 % percentile interval of a pooled score; None for fewer than two groups."""
    above, below = (np.bincount(number, table[column]) for column in RATIOS[figure])
    if len(above) < 2:
        return None
    # The cluster bootstrap of Davison and Hinkley (1997): samples of one group resemble each
    # other, so complete groups are drawn, with replacement.
    draws = np.random.default_rng(0).integers(len(above), size=(RESAMPLED, len(above)))
    ratio = above[draws].sum(axis=1) / np.maximum(below[draws].sum(axis=1), 1)
    values = np.sqrt(ratio) if figure == "depth_rmse" else ratio
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def difference_logits(bg: Tensor, fg_bg: Tensor, size: int) -> Tensor:
    """Mask of the difference rule as logits, -10 or 10; float32 (B, 1, size, size).

    bg, fg_bg: uint8 (B, 3, H, W), as decoded. At another size than H, a pixel counts as
    foreground if at least half of its area does. Only the sign matters to the IoU.
    """
    levels = (fg_bg.short() - bg.short()).abs().amax(dim=1, keepdim=True)
    found = (levels > DIFFERENCE_LEVELS).float()
    share = F.interpolate(found, size=(size, size), mode="area")
    return torch.where(share >= 0.5, 10.0, -10.0)


class TrainingMeans:
    """Mean mask and mean depth map of a training split, per background and overall.

    group_starts: int64 (n_bg + 1,) on the device, the first sample of each background.
    """

    def __init__(self, group_starts: Tensor, size: int) -> None:
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
        """Logit of the share of foreground pixels; float32, expanded to the shape of ``like``."""
        pixels = self.count.sum() * self.depth[0].numel()
        share = (self.mask_sum / pixels.clamp(min=1)).clamp(1e-6, 1 - 1e-6)
        return torch.logit(share).float().expand_as(like)

    def overall_depth(self, index: Tensor) -> Tensor:
        """Mean depth map of all training samples; float32 (B, 1, size, size)."""
        mean = self.depth.sum(dim=0) / self.count.sum().clamp(min=1)
        return mean.float().expand(index.numel(), 1, -1, -1)

    def background_depth(self, index: Tensor) -> Tensor:
        """Mean depth map of each sample's background, or the overall one if it has none."""
        background = torch.bucketize(index, self.group_ends, right=True)
        count = self.count[background].view(-1, 1, 1, 1)
        own = self.depth[background].unsqueeze(1) / count.clamp(min=1)
        return torch.where(count > 0, own.float(), self.overall_depth(index))
