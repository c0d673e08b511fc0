"""What all peers read: the files of a data set folder, four images per sample."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from maskdepth.benchmarks.harness.images import Images
from maskdepth.convert.source import read_source

FIELDS = ("bg", "fg_bg", "mask", "depth")
MODES = {"bg": "RGB", "fg_bg": "RGB", "mask": "L", "depth": "L"}
"""Field -> its mode in Pillow."""

_list_once = cache(read_source)  # in each process


@dataclass(frozen=True)
class Files:
    """Paths and stored bytes of some samples of a data set folder; cheap to send to a process.

    dataset: the folder. indices: int64, the samples.
    """

    dataset: Path
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def paths(self, position: int) -> dict[str, Path]:
        """bg, fg_bg, mask and depth of one sample."""
        source, index = _list_once(self.dataset), int(self.indices[position])
        group = int(source.layout.background_of(np.asarray(index)))
        paths = (source.bg[group], *source.paths(index))
        return dict(zip(FIELDS, paths, strict=True))

    def sample(self, position: int) -> dict[str, Any]:
        """The content of `paths`, and the index."""
        stored = {name: path.read_bytes() for name, path in self.paths(position).items()}
        return {**stored, "index": int(self.indices[position])}


def write_tars(files: Files, shards: int, store: Path) -> None:
    """Write webdataset shards of four JPEGs and the index, in a seeded random order.

    The order on disk is random because both of its readers shuffle in a window only.
    shards: at least the number of processes that will read, as each reads complete shards.
    """
    store.mkdir(parents=True)
    order = np.random.default_rng(0).permutation(len(files))
    for number, positions in enumerate(np.array_split(order, shards)):
        with tarfile.open(store / f"samples-{number:05d}.tar", "w") as archive:
            for position in positions.tolist():
                sample = files.sample(position)
                index = sample.pop("index")
                stored = {"index": index.to_bytes(8, "little")}
                stored |= {f"{name}.jpg": data for name, data in sample.items()}
                for suffix, data in stored.items():
                    info = tarfile.TarInfo(f"{index:09d}.{suffix}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))


def decode_pillow(data: bytes | memoryview | Path, name: str) -> torch.Tensor:
    """uint8 (H, W, C): one field of one sample, from its bytes or its file."""
    file = data if isinstance(data, Path) else io.BytesIO(data)
    pixels = np.array(Image.open(file).convert(MODES[name]))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1))


def decode_stored(samples: list[dict[str, Any]]) -> Images:
    """A batch from the stored bytes of its samples; for a `DataLoader`'s ``collate_fn``."""
    fields = {
        name: torch.stack([decode_pillow(sample[name], name) for sample in samples])
        for name in FIELDS
    }
    return to_images({**fields, "index": torch.tensor([int(one["index"]) for one in samples])})


def to_images(sample: dict[str, torch.Tensor]) -> Images:
    """From (B, H, W, C) tensors by name, as decoders return them; no pixel is copied."""
    pixels = {name: sample[name].permute(0, 3, 1, 2) for name in FIELDS}
    return Images(index=sample["index"].flatten(), **pixels)
