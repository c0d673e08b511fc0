"""The `webdataset` library: tar shards, Pillow, worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.contender import Epochs
from benchmarks.harness.images import Images
from benchmarks.peers.source import FIELDS, decode_pillow, to_images

_WINDOW = 1000  # as in the library's documentation


def _index(data: bytes) -> int:
    return int.from_bytes(data, "little")


@contextmanager
def open_webdataset(store: Path, loader_options: dict[str, Any]) -> Iterator[Epochs]:
    """Yield epochs that are shuffled by shard and in a window; the workers make the batches."""
    import webdataset

    urls = sorted(str(path) for path in store.glob("*.tar"))
    gray = [
        webdataset.handle_extension(f"{name}.jpg", partial(decode_pillow, name=name))
        for name in ("mask", "depth")
    ]
    fields = [f"{name}.jpg" for name in FIELDS]
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0)
        .shuffle(_WINDOW)
        .decode(*gray, webdataset.handle_extension("index", _index), "rgb8")
        .to_tuple(*fields, "index")
        .batched(loader_options["batch_size"])
    )
    loader = webdataset.WebLoader(dataset, **{**loader_options, "batch_size": None})

    def epoch(number: int) -> Iterator[Images]:
        for batch in loader:
            tensors = [torch.as_tensor(field) for field in batch]
            yield to_images(dict(zip((*FIELDS, "index"), tensors, strict=True)))

    yield epoch
