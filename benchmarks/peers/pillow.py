"""The original's way: Pillow in a `torch.utils.data.Dataset`, in worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness.contender import Epochs
from benchmarks.harness.images import Images
from benchmarks.peers.source import FIELDS, Files, decode_pillow


class PillowImages(Dataset):
    """float32 (C, H, W) in 0..1, four images a sample, as torchvision's `ToTensor` makes them."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, ...]:
        paths = self._files.paths(position)
        images = [
            decode_pillow(paths[name], name).permute(2, 0, 1).contiguous().div(255)
            for name in FIELDS
        ]
        return (*images, torch.tensor(self._files.indices[position]))


@contextmanager
def open_pillow(files: Files, loader_options: dict[str, Any]) -> Iterator[Epochs]:
    """Yield epochs of shuffled batches."""
    loader: DataLoader = DataLoader(PillowImages(files), shuffle=True, **loader_options)
    yield lambda number: (Images(*batch) for batch in loader)
