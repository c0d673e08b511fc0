"""MosaicML streaming: MDS shards of stored JPEG bytes, Pillow, worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from benchmarks.harness.contender import Epochs
from benchmarks.peers.source import FIELDS, Files, decode_stored


@dataclass(frozen=True)
class WriteMDS:
    """MosaicML's `MDSWriter`: the stored bytes of every file."""

    files: Files

    def __call__(self, store: Path) -> None:
        from streaming import MDSWriter

        columns = {**dict.fromkeys(FIELDS, "bytes"), "index": "int"}
        with MDSWriter(out=str(store), columns=columns) as out:
            for position in range(len(self.files)):
                index = int(self.files.indices[position])
                out.write({**self.files.stored(position), "index": index})


@contextmanager
def open_streaming(store: Path, loader_options: dict[str, Any]) -> Iterator[Epochs]:
    """Yield epochs that are shuffled by the library's own algorithm."""
    from streaming import StreamingDataset

    batch_size = loader_options["batch_size"]
    dataset = StreamingDataset(local=str(store), shuffle=True, batch_size=batch_size)
    loader: DataLoader = DataLoader(dataset, collate_fn=decode_stored, **loader_options)
    yield lambda number: loader
