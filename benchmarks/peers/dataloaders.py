"""Libraries whose worker processes decode with Pillow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from maskdepth.benchmarks.harness.contender import Epochs
from maskdepth.benchmarks.harness.images import Images
from maskdepth.benchmarks.harness.options import Loading
from maskdepth.benchmarks.peers.source import FIELDS, Files, decode_pillow, decode_stored, to_images

_WINDOW = 1000  # as in the documentation of webdataset


def worker_options(loading: Loading) -> dict[str, Any]:
    """Keyword arguments of torch's `DataLoader`."""
    return {
        "batch_size": loading.batch_size,
        "num_workers": loading.threads,
        "persistent_workers": True,
        "pin_memory": torch.device(loading.device).type == "cuda",
    }


class PillowImages(Files, Dataset):
    """float32 (C, H, W) in 0..1, four images per sample, as torchvision's `ToTensor` makes them."""

    def __getitem__(self, position: int) -> tuple[torch.Tensor, ...]:
        paths = self.paths(position)
        images = [
            decode_pillow(paths[name], name).permute(2, 0, 1).contiguous().div(255)
            for name in FIELDS
        ]
        return (*images, torch.tensor(self.indices[position]))


@contextmanager
def open_pillow(loading: Loading, files: Files) -> Iterator[Epochs]:
    """The original's way: `torch.utils.data.DataLoader` on the files of the data set."""
    images = PillowImages(files.dataset, files.indices)
    loader: DataLoader = DataLoader(images, shuffle=True, **worker_options(loading))
    yield lambda number: (Images(*batch) for batch in loader)


@contextmanager
def open_webdataset(loading: Loading, store: Path) -> Iterator[Epochs]:
    """Yield epochs of webdataset: shards are shuffled, then samples within a window."""
    import webdataset

    urls = sorted(str(path) for path in store.glob("*.tar"))
    gray = [
        webdataset.handle_extension(f"{name}.jpg", partial(decode_pillow, name=name))
        for name in ("mask", "depth")
    ]
    index = partial(int.from_bytes, byteorder="little")
    fields = [f"{name}.jpg" for name in FIELDS]
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0)
        .shuffle(_WINDOW)
        .decode(*gray, webdataset.handle_extension("index", index), "rgb8")
        .to_tuple(*fields, "index")
        .batched(loading.batch_size)
    )
    loader = webdataset.WebLoader(dataset, **{**worker_options(loading), "batch_size": None})

    def epoch(number: int) -> Iterator[Images]:
        for batch in loader:
            tensors = [torch.as_tensor(field) for field in batch]
            yield to_images(dict(zip((*FIELDS, "index"), tensors, strict=True)))

    yield epoch


def write_mds(files: Files, store: Path) -> None:
    """MosaicML's `MDSWriter`: the stored bytes of every file."""
    from streaming import MDSWriter

    columns = {**dict.fromkeys(FIELDS, "bytes"), "index": "int"}
    with MDSWriter(out=str(store), columns=columns) as out:
        for position in range(len(files)):
            out.write(files.sample(position))


@contextmanager
def open_streaming(loading: Loading, store: Path) -> Iterator[Epochs]:
    """MosaicML streaming: shuffled by its own algorithm."""
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=str(store), shuffle=True, batch_size=loading.batch_size)
    loader: DataLoader = DataLoader(dataset, collate_fn=decode_stored, **worker_options(loading))
    yield lambda number: loader


def write_chunks(files: Files, workers: int, store: Path) -> None:
    """litData's `optimize`: the stored bytes of every file, in chunks."""
    from litdata import optimize

    # `optimize` empties its cache folders when it begins and ends. By default they are `data`
    # and `chunks` in the system's folder for temporary files, where a user may have files.
    for name in ("DATA_OPTIMIZER_CACHE_FOLDER", "DATA_OPTIMIZER_DATA_CACHE_FOLDER"):
        os.environ[name] = str(store.with_name(f"{store.name}-{name.lower()}"))
    optimize(
        fn=files.sample,
        inputs=list(range(len(files))),
        output_dir=str(store),
        chunk_bytes="64MB",
        num_workers=workers,
        start_method="fork",  # as its loader; with "spawn" Python warns of its semaphores at exit
        verbose=False,
    )


@contextmanager
def open_litdata(loading: Loading, store: Path) -> Iterator[Epochs]:
    """litData: shuffled by chunk and within chunks."""
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(str(store), shuffle=True, drop_last=False, seed=0)
    loader = StreamingDataLoader(dataset, collate_fn=decode_stored, **worker_options(loading))
    yield lambda number: loader
