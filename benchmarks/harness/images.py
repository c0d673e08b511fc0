"""What every contender delivers, and whether it is correct."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskdepth.convert.moments import Statistics
from maskdepth.convert.shards import Shards
from maskdepth.loaders.backgrounds import Backgrounds

MeanStd = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, or of all channels."""


class Images(NamedTuple):
    """One batch of a contender, on its device.

    bg, fg_bg: (B, 3, H, W). mask: (B, C, H, W), of which channel 0 counts; 0 or 1, or gray.
    depth: (B, C, H, W), of which channel 0 counts. index: int64 (B,).
    """

    bg: Tensor
    fg_bg: Tensor
    mask: Tensor
    depth: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Pixels of some samples, decoded one by one: uint8 (n, C, H, W); mask is 0 or 1."""

    index: np.ndarray
    bg: np.ndarray
    fg_bg: np.ndarray
    mask: np.ndarray
    depth: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How a contender's values become 0..255: value * std + mean.

    depth: the std of depth, whose mean is 0. mask_threshold: the lowest value, as delivered, of
    the foreground in a mask.
    """

    bg: MeanStd = ((0.0,), (1.0,))
    fg_bg: MeanStd = ((0.0,), (1.0,))
    depth: float = 1.0
    mask_threshold: float = 128.0


def normalised_scale(statistics: Statistics, mask_threshold: float) -> Scale:
    """Scale of images that are normalised by the statistics of a shard folder."""
    bg, fg_bg = (
        (tuple(255 * mean for mean in one.mean), tuple(255 * std for std in one.std))
        for one in (statistics["bg"], statistics["fg_bg"])
    )
    return Scale(bg=bg, fg_bg=fg_bg, depth=255.0, mask_threshold=mask_threshold)


class WrongImages(ValueError):
    """A contender does not deliver what it should, and must not be timed."""


def some_of(indices: np.ndarray) -> np.ndarray:
    """At most 256 of these samples, to compare pixel by pixel: a seeded choice, ascending."""
    return np.sort(np.random.default_rng(0).permutation(indices)[:256])


def spread_indices(samples: int, wanted: int) -> list[int]:
    """At most ``wanted`` samples, spread evenly."""
    if wanted >= samples:
        return list(range(samples))
    indices: list[int] = np.unique(np.linspace(0, samples - 1, wanted).astype(int)).tolist()
    return indices


def read_truth(shards: Shards, indices: np.ndarray) -> Truth:
    """Decode samples of a shard folder one by one."""
    fields = {}
    for name in ("fg_bg", "mask", "depth"):
        images = [np.atleast_3d(shards.decode(index, name)) for index in indices.tolist()]
        fields[name] = np.stack(images).transpose(0, 3, 1, 2)
    backgrounds = Backgrounds.from_numpy(shards.backgrounds, shards.manifest.layout)
    bg = backgrounds.gather(torch.from_numpy(indices)).numpy()
    return Truth(index=indices, bg=bg, **fields)


def allowed_levels(device: str, on_cpu: float) -> float:
    """Largest allowed difference of what DALI decodes on a device, in 0..255.

    nvJPEG's inverse DCT is not libjpeg's. A model of it (tests/nvjpeg.py) differs by up to 4 levels
    where chroma is interpolated, as it must be, and by more than 20 where it is repeated.
    """
    return max(on_cpu, 8.0) if torch.device(device).type == "cuda" else on_cpu


def check(
    batches: Iterable[Images],
    expected: np.ndarray,
    truth: Truth,
    scale: Scale,
    levels: float,
    mask_share: float,
) -> dict[str, float]:
    """Compare one epoch with the truth; returns the largest differences found.

    expected: the samples that the epoch must visit, each at least once.
    levels: largest allowed difference of bg, fg_bg and depth, in 0..255.
    mask_share: largest allowed share of mask pixels that differ.
    Raises WrongImages.
    """
    rows = {int(sample): row for row, sample in enumerate(truth.index)}
    scales = {"bg": scale.bg, "fg_bg": scale.fg_bg, "depth": ((0.0,), (scale.depth,))}
    seen: list[np.ndarray] = []
    largest, wrong, pixels = 0.0, 0, 0
    for images in batches:
        index = images.index.cpu().numpy()
        seen.append(index.copy())
        for at, sample in enumerate(index.tolist()):
            if sample not in rows:
                continue
            row = rows[sample]
            for name, moments in scales.items():
                found, right = getattr(images, name)[at], getattr(truth, name)[row]
                # Not Python's max, which drops a nan.
                largest = float(np.maximum(largest, _difference(found, right, moments)))
            mask = images.mask[at, :1].cpu().numpy() >= scale.mask_threshold
            wrong += int((mask != truth.mask[row]).sum())
            pixels += mask.size
    missing = np.setdiff1d(expected, np.concatenate(seen) if seen else [])
    if len(missing) or not pixels:
        raise WrongImages(f"{len(missing)} of {len(expected)} samples are missing")
    if not largest <= levels or wrong > mask_share * pixels:
        raise WrongImages(
            f"images differ by up to {largest:.3g} levels, allowed {levels:g}; "
            f"{wrong} of {pixels} mask pixels differ, allowed {mask_share * pixels:g}"
        )
    return {"largest_difference_levels": largest, "mask_pixels_that_differ": wrong / pixels}


def _difference(image: Tensor, truth: np.ndarray, moments: MeanStd) -> float:
    """Largest difference in 0..255 over the channels of the truth; both (C, H, W)."""
    mean, std = (np.array(values).reshape(-1, 1, 1) for values in moments)
    scaled = image[: len(truth)].double().cpu().numpy() * std + mean
    return float(np.abs(scaled - truth).max())
