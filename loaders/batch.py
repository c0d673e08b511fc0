"""What every loader yields."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Batch(NamedTuple):
    """One batch, on the loader's device, safe to keep.

    It holds no backgrounds: ``loader.backgrounds.gather(batch.index)`` returns them.

    fg_bg: uint8 (B, 3, H, W), RGB, 0..255.
    mask: uint8 (B, 1, H, W), 0 or 1.
    depth: uint8 (B, 1, H, W), 0..255.
    index: int64 (B,), position of each sample in the source order.
    """

    fg_bg: torch.Tensor
    mask: torch.Tensor
    depth: torch.Tensor
    index: torch.Tensor  # type: ignore[assignment]  # hides tuple.index, which is not needed
