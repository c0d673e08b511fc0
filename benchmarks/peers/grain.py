"""Grain: threads that read samples from an ArrayRecord file and decode them with Pillow."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maskdepth.benchmarks.harness.contender import Epochs
from maskdepth.benchmarks.harness.options import Loading
from maskdepth.benchmarks.peers.source import Files, decode_stored


def write_records(files: Files, store: Path) -> None:
    """An ArrayRecord file of pickled samples, one to a group, as Grain's documentation has it."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(store), "group_size:1")
    for position in range(len(files)):
        writer.write(pickle.dumps(files.sample(position)))
    writer.close()


@contextmanager
def open_grain(loading: Loading, store: Path) -> Iterator[Epochs]:
    """Yield epochs in random order; each thread reads and decodes one batch at a time.

    Threads, not the processes of `mp_prefetch`: those start again with each iterator, and Pillow
    decodes without Python's lock.
    """
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # before the import, which warns that there is no JAX
    import grain

    source = grain.sources.ArrayRecordDataSource(str(store))
    reading = grain.ReadOptions(
        num_threads=loading.threads, prefetch_buffer_size=2 * loading.threads
    )
    yield (
        lambda number: (
            grain.MapDataset.source(source)
            .shuffle(seed=number)
            .map(pickle.loads)
            .batch(loading.batch_size, batch_fn=decode_stored)
            .to_iter_dataset(reading)
        )
    )
