"""What every loader yields."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import torch
from torch.utils.data._utils.collate import default_collate_fn_map

from maskdepth.convert.errors import DataError


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


def _refuse_to_stack(batches: list[Batch], **_: Any) -> NoReturn:
    raise DataError(
        f"DataLoader: found a batch size of {len(batches)} (1 by default), but a loader yields "
        "batches already, which would be stacked; use DataLoader(loader, batch_size=None), or the "
        "loader without it"
    )


# The table that `torch.utils.data.default_collate` documents for types of one's own.
default_collate_fn_map[Batch] = _refuse_to_stack
