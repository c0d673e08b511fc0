"""litData: chunks of stored JPEG bytes, Pillow, worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.contender import Epochs
from benchmarks.peers.source import Files, decode_stored


@dataclass(frozen=True)
class WriteChunks:
    """litData's `optimize`: the stored bytes of every file, in chunks."""

    files: Files
    workers: int

    def __call__(self, store: Path) -> None:
        from litdata import optimize

        # `optimize` empties its cache folders when it begins and ends. By default they are `data`
        # and `chunks` in the system's folder for temporary files, where a user may have files.
        for name in ("DATA_OPTIMIZER_CACHE_FOLDER", "DATA_OPTIMIZER_DATA_CACHE_FOLDER"):
            os.environ[name] = str(store.with_name(f"{store.name}-{name.lower()}"))
        optimize(
            fn=self._sample,
            inputs=list(range(len(self.files))),
            output_dir=str(store),
            chunk_bytes="64MB",
            num_workers=self.workers,
        )

    def _sample(self, position: int) -> dict[str, Any]:
        return {**self.files.stored(position), "index": int(self.files.indices[position])}


@contextmanager
def open_litdata(store: Path, loader_options: dict[str, Any]) -> Iterator[Epochs]:
    """Yield epochs that are shuffled by chunk and within chunks, as `StreamingDataset` does."""
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(str(store), shuffle=True, drop_last=False, seed=0)
    loader = StreamingDataLoader(dataset, collate_fn=decode_stored, **loader_options)
    yield lambda number: loader
