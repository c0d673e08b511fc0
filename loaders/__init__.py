"""Shards to batches on the device: `build_loader`, `Preprocess`, splits and epoch orders.

`loaders.backgrounds` has the background of each sample, `loaders.corrupt` says what happens on a
corrupt record, and `loaders.engines` is the registry of the engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import get_worker_info

from maskdepth.convert.errors import Commands, DataError, RecordError
from maskdepth.convert.layout import Layout
from maskdepth.loaders.backgrounds import Backgrounds
from maskdepth.loaders.base import Loader
from maskdepth.loaders.batch import Batch
from maskdepth.loaders.camera import Camera
from maskdepth.loaders.engines import ENGINES, open_loader, possible_engines
from maskdepth.loaders.folder import read_layout
from maskdepth.loaders.options import LoaderOptions
from maskdepth.loaders.order import Order, distributed_rank
from maskdepth.loaders.pair import DataSource, open_pair
from maskdepth.loaders.preprocess import Augment, Augmentation, Inputs, Preprocess
from maskdepth.loaders.split import SPLITS, split_indices

__all__ = [
    "ENGINES", "SPLITS", "Augment", "Augmentation", "Backgrounds", "Batch", "Camera", "Commands",
    "DataError", "DataSource", "Inputs", "Layout", "Loader", "LoaderOptions", "Order", "Preprocess",
    "RecordError", "build_loader", "distributed_rank", "open_pair", "possible_engines",
    "read_layout", "split_indices",
]  # fmt: skip


def build_loader(
    engine: str,
    shards: str | Path,
    *,
    batch_size: int = 64,
    indices: np.ndarray | None = None,
    weights: np.ndarray | Sequence[float] | None = None,
    draws: int | None = None,
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
    num_workers: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    max_bad: int = 0,
    check: bool | None = None,
    hw_decoder_load: float | None = None,
) -> Loader:
    """A loader that yields the same batches with every engine except "dali-stream".

    engine: "ffcv", "dali", or "reference" (slow, plain Pillow, against which the others are
        tested). "resident" decodes all samples once, into the memory of the device, while it is
        built. "dali-stream" reads shards that are remote or larger than memory from front to
        back and shuffles within a window: the same samples in an order of its own. "auto" is
        the first of `possible_engines`; `train.py fit` times them instead.
    shards: folder that `pack` wrote; for "reference" the data set folder itself.
    rank, world_size: this process among all; None takes those of `distributed_rank`.

    The other arguments are the fields of `LoaderOptions`.

    Raises DataError for invalid arguments or files, if the engine is not installed, and without
    ``rank`` in one of several workers of a DataLoader, each of which would yield every sample.
    """
    if rank is None or world_size is None:
        if rank is not world_size:
            raise DataError("give both rank and world_size, or neither")
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise DataError(
                f"each of the {worker.num_workers} workers of this DataLoader would yield every "
                "sample; give each its rank and world_size, or iterate over a loader without "
                "DataLoader: it has threads of its own that decode"
            )
        rank, world_size = distributed_rank()
    options = LoaderOptions(
        batch_size=batch_size, indices=indices, weights=weights, draws=draws, shuffle=shuffle,
        drop_last=drop_last, seed=seed, device=device, num_workers=num_workers, rank=rank,
        world_size=world_size, max_bad=max_bad, check=check, hw_decoder_load=hw_decoder_load,
    )  # fmt: skip
    return open_loader(engine, shards, options)


if __name__ == "loaders":  # the old name
    from maskdepth.old_names import redirect

    redirect(__name__)
