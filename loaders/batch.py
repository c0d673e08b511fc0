"""What every loader yields, and what every loader is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from convert.errors import RecordError
from convert.layout import Layout
from convert.moments import Statistics

if TYPE_CHECKING:
    from loaders.backgrounds import Backgrounds


class Batch(NamedTuple):
    """One batch, on the loader's device, safe to keep.

    fg_bg: uint8 (B, 3, H, W), RGB, 0..255.
    mask: uint8 (B, 1, H, W), 0 or 1.
    depth: uint8 (B, 1, H, W), 0..255.
    index: int64 (B,), position of each sample in the source order.
    """

    fg_bg: torch.Tensor
    mask: torch.Tensor
    depth: torch.Tensor
    index: torch.Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs


class Loader(Protocol):
    """Batches of a shard folder in our order, whatever the engine.

    layout: which sample shows which background and person.
    statistics: exact mean and std of bg, fg_bg, mask and depth, in 0..1 (may be computed when
        first asked for).
    backgrounds: all backgrounds, resident on the device.
    """

    layout: Layout
    backgrounds: Backgrounds
    device: torch.device

    @property
    def skipped(self) -> list[RecordError]:
        """An error for each bad record that was skipped so far, in the order of meeting them."""
        ...

    @property
    def statistics(self) -> Statistics:
        """Moments of bg, fg_bg, mask and depth."""
        ...

    def __len__(self) -> int:
        """Batches of an epoch on this rank."""
        ...

    def epoch(self, n: int, start: int = 0) -> Iterator[Batch]:
        """Batches ``start`` to the end of epoch ``n``; the same for every engine."""
        ...

    def close(self) -> None:
        """End every thread and process of this loader."""
        ...

    def __enter__(self) -> Loader:
        """Use a loader in a ``with`` block: it is closed at the end."""
        ...

    def __exit__(self, *_: object) -> None:
        """Close, whatever ended the block."""
        ...
