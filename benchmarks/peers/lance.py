"""LanceDB: its `StreamingDataset`, whose threads read a table and decode it with Pillow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from maskdepth.benchmarks.harness.contender import Epochs
from maskdepth.benchmarks.harness.images import Images
from maskdepth.benchmarks.harness.options import Loading
from maskdepth.benchmarks.peers.source import FIELDS, Files, decode_pillow, to_images

_TABLE = "samples"
_ROWS = 1024  # written at once


def write_table(files: Files, store: Path) -> None:
    """A LanceDB table of the stored bytes of every file, and the index."""
    import lancedb
    import pyarrow

    schema = pyarrow.schema(
        [*((name, pyarrow.binary()) for name in FIELDS), ("index", pyarrow.int64())]
    )

    def batches() -> Iterator[Any]:
        for start in range(0, len(files), _ROWS):
            rows = [files.sample(at) for at in range(start, min(start + _ROWS, len(files)))]
            yield pyarrow.RecordBatch.from_pylist(rows, schema=schema)

    lancedb.connect(str(store)).create_table(_TABLE, batches(), schema=schema)


@contextmanager
def open_lancedb(loading: Loading, store: Path) -> Iterator[Epochs]:
    """Yield epochs in random order; each thread decodes the rows of one batch at a time.

    Every epoch has a new `StreamingDataset`, because that draws the order.
    """
    import lancedb
    from lancedb.streaming import StreamingDataset

    table = lancedb.connect(str(store)).open_table(_TABLE)

    def epoch(number: int) -> Iterator[Images]:
        dataset = StreamingDataset(
            table,
            epoch=number,
            read_batch_size=loading.batch_size,
            transform=_decode,
            transform_parallelism=loading.threads,
        )
        pin = torch.device(loading.device).type == "cuda"
        batches = DataLoader(dataset, batch_size=loading.batch_size, pin_memory=pin)
        yield from map(to_images, batches)

    yield epoch


def _decode(rows: Any) -> list[dict[str, torch.Tensor]]:
    """The samples of a `pyarrow.RecordBatch`: uint8 (H, W, C) by field, and the index."""
    return [
        {
            **{name: decode_pillow(row[name], name) for name in FIELDS},
            "index": torch.tensor(row["index"]),
        }
        for row in rows.to_pylist()
    ]
