"""What every contender delivers, and whether it is right: compared with the truth, then timed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from convert.shards import Shards
from loaders.backgrounds import Backgrounds


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
    """How a contender's values become 0..255: value * std + mean, per channel where it is a list.

    mask: which value of the mask, after scaling, is the threshold.
    """

    bg: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,), (1.0,))
    fg_bg: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,), (1.0,))
    depth: float = 1.0
    mask_threshold: float = 128.0


def read_truth(shards: Shards, indices: np.ndarray) -> Truth:
    """Decode samples of a shard folder one by one."""
    fields: dict[str, list[np.ndarray]] = {"fg_bg": [], "mask": [], "depth": []}
    for index in indices.tolist():
        for name, images in fields.items():
            image = shards.decode(index, name)
            images.append(np.atleast_3d(image).transpose(2, 0, 1))
    bank = Backgrounds.from_numpy(shards.backgrounds, shards.manifest.layout)
    bg = bank.gather(torch.from_numpy(indices)).numpy()
    return Truth(index=indices, bg=bg, **{name: np.stack(value) for name, value in fields.items()})


GPU_LEVELS = 8.0
"""nvJPEG's inverse DCT is not libjpeg's: a few levels off where colours are upsampled."""


def allowed_levels(device: str, on_cpu: float) -> float:
    """Largest allowed difference of what DALI decodes on a device, in 0..255."""
    return max(on_cpu, GPU_LEVELS) if torch.device(device).type == "cuda" else on_cpu


class Wrong(ValueError):
    """A contender does not deliver what it should; not timed then."""


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
    Raises Wrong.
    """
    rows = {int(sample): row for row, sample in enumerate(truth.index)}
    seen: list[np.ndarray] = []
    found, wrong, pixels = 0.0, 0, 0
    for images in batches:
        index = images.index.cpu().numpy()
        seen.append(index.copy())
        for at, sample in enumerate(index.tolist()):
            if sample not in rows:
                continue
            row = rows[sample]
            for name, shift_scale in (("bg", scale.bg), ("fg_bg", scale.fg_bg)):
                found = max(
                    found, _levels(images, name, at, getattr(truth, name)[row], shift_scale)
                )
            depth = images.depth[at, :1].double().cpu().numpy() * scale.depth
            found = max(found, float(np.abs(depth - truth.depth[row]).max()))
            mask = images.mask[at, :1].cpu().numpy() >= scale.mask_threshold
            wrong += int((mask != truth.mask[row]).sum())
            pixels += mask.size
    missing = np.setdiff1d(expected, np.concatenate(seen) if seen else [])
    if len(missing) or not pixels:
        raise Wrong(f"{len(missing)} of {len(expected)} samples never came")
    if found > levels or wrong > mask_share * pixels:
        raise Wrong(
            f"images differ by up to {found:.3g} levels, allowed {levels:g}; "
            f"{wrong} of {pixels} mask pixels differ, allowed {mask_share * pixels:g}"
        )
    return {"largest_difference_levels": found, "mask_pixels_that_differ": wrong / pixels}


def _levels(
    images: Images,
    name: str,
    at: int,
    truth: np.ndarray,
    shift_scale: tuple[tuple[float, ...], tuple[float, ...]],
) -> float:
    mean, std = (np.array(values).reshape(-1, 1, 1) for values in shift_scale)
    image = getattr(images, name)[at].double().cpu().numpy() * std + mean
    return float(np.abs(image - truth).max())
