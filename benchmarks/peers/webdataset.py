"""The `webdataset` library: tar shards, Pillow, worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.contender import Epochs
from benchmarks.harness.images import Images
from benchmarks.peers.source import FIELDS, to_images

_WINDOW = 1000  # the library's documentation


def _gray(data: bytes) -> np.ndarray:
    """uint8 (H, W, 1)."""
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))[..., None]


def _index(data: bytes) -> int:
    return int.from_bytes(data, "little")


@contextmanager
def open_webdataset(
    store: Path, batch_size: int, workers: int, pin_memory: bool
) -> Iterator[Epochs]:
    """Shuffled by shard and in a window; batches are made in the workers."""
    import webdataset

    urls = sorted(str(path) for path in store.glob("*.tar"))
    gray = [webdataset.handle_extension(f"{name}.jpg", _gray) for name in ("mask", "depth")]
    index = webdataset.handle_extension("index", _index)
    fields = [f"{name}.jpg" for name in FIELDS]
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0)
        .shuffle(_WINDOW)
        .decode(*gray, index, "rgb8")
        .to_tuple(*fields, "index")
        .batched(batch_size)
    )
    loader = webdataset.WebLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=pin_memory,
    )

    def epoch(number: int) -> Iterator[Images]:
        for batch in loader:
            tensors = [torch.as_tensor(field) for field in batch]
            yield to_images(dict(zip((*FIELDS, "index"), tensors, strict=True)))

    yield epoch
