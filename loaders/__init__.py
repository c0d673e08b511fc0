"""Shards to batches on the device: `build_loader`, `Preprocess`, and who is in which split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import distributed

from convert.errors import DataError, RecordError
from convert.layout import Layout
from convert.manifest import read_manifest
from convert.source import read_source
from loaders.backgrounds import Backgrounds
from loaders.batch import Batch, Loader
from loaders.order import Order, distributed_rank
from loaders.preprocess import Inputs, Preprocess
from loaders.split import SPLITS, split_indices

if TYPE_CHECKING:
    import numpy as np

ENGINES = ("ffcv", "dali", "dali-stream", "reference")
DECODE_SIZES = ("full", "half")

__all__ = [
    "DECODE_SIZES",
    "ENGINES",
    "SPLITS",
    "Backgrounds",
    "Batch",
    "DataError",
    "Inputs",
    "Layout",
    "Loader",
    "Order",
    "Preprocess",
    "RecordError",
    "build_loader",
    "distributed_rank",
    "read_layout",
    "shard_formats",
    "split_indices",
]


def build_loader(
    engine: str,
    shards: str | Path,
    *,
    batch_size: int = 64,
    indices: np.ndarray | None = None,
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
    num_workers: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    max_bad: int = 0,
    check: bool = False,
    decode_size: str = "full",
) -> Loader:
    """A loader that yields the same batches whatever the engine, but for "dali-stream".

    engine: "ffcv", "dali", or "reference" (slow, plain Pillow: what the others are tested
        against). "dali-stream" reads shards larger than memory, or far away, from front to back
        and shuffles within a window: the same samples in an order of its own.
    shards: folder that `pack` wrote; for "reference" the data set folder itself.
    batch_size: samples a batch on this rank.
    indices: int64, the samples to visit (see `split_indices`); None means all.
    shuffle: one permutation per (seed, epoch); False visits ``indices`` as they stand.
    drop_last: leave out the last batch of an epoch where it is smaller.
    device: where batches and backgrounds are.
    num_workers: decoding threads; None means one a core (for "reference": the calling thread).
    rank, world_size: this process among all; None takes those of `torch.distributed` where it
        is initialised, or RANK and WORLD_SIZE as torchrun sets them.
    max_bad: bad records to skip, and list in ``skipped``, before one ends the epoch. In the
        place of each stands the next good one of the epoch's order. Above 0, ``check`` is on.
    check: hold every record against its checksum before it is decoded, so that no damage can
        lead to wrong pixels; not for "reference", which reads files that have none.
    decode_size: "full", or "half": "ffcv" alone decodes fg_bg and depth at half the size without
        having had them whole, which is faster and close to the mean of 2x2 pixels, not equal (see
        docs/guide.md); masks are exactly as `Preprocess` would halve them. Backgrounds stay
        whole: `Preprocess` brings all to one size.

    Raises DataError for a user's mistake, and where the engine is not installed.
    """
    if rank is None or world_size is None:
        if rank is not world_size:
            raise DataError("give both rank and world_size, or neither")
        rank, world_size = _this_rank()
    options = {
        "batch_size": batch_size,
        "indices": indices,
        "shuffle": shuffle,
        "drop_last": drop_last,
        "seed": seed,
        "device": device,
        "num_workers": num_workers,
        "rank": rank,
        "world_size": world_size,
        "max_bad": max_bad,
        "check": check,
    }
    if decode_size not in DECODE_SIZES:
        raise DataError(
            f"decode size: found {decode_size!r}, expected one of {', '.join(DECODE_SIZES)}"
        )
    if decode_size != "full" and engine in ENGINES and engine != "ffcv":
        raise DataError(
            f"decode size {decode_size}: only the ffcv loader decodes at another size; "
            f"with {engine} let Preprocess resize"
        )
    # Each engine is imported where it is chosen: none is needed to use another.
    if engine == "reference":
        from loaders.engines.reference import ReferenceLoader

        return ReferenceLoader(shards, **options)  # type: ignore[arg-type]
    if engine == "ffcv":
        from loaders.engines.ffcv import FFCVLoader

        return FFCVLoader(shards, decode_size=decode_size, **options)
    if engine == "dali-stream":
        from loaders.engines.dali_stream import DALIStreamLoader

        return DALIStreamLoader(shards, **options)
    if engine == "dali":
        from loaders.engines.dali import DALILoader

        return DALILoader(shards, **options)
    raise DataError(f"loader: found {engine!r}, expected one of {', '.join(ENGINES)}")


def _this_rank() -> tuple[int, int]:
    # A process group may have been made without the variables, as by `torch.multiprocessing`:
    # ranks that each took themselves for the only one would all read everything.
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return distributed_rank()


def shard_formats(shards: str | Path) -> tuple[str, ...]:
    """Formats of a shard folder, "ffcv" or "dali" or both; DataError if it is none."""
    return tuple(read_manifest(shards).formats)


def read_layout(path: str | Path) -> Layout:
    """Layout of a shard folder, or of a data set folder; DataError if it is neither."""
    if (Path(path) / "fg_bg").is_dir():
        return read_source(path).layout
    return read_manifest(path).layout
