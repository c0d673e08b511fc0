"""The resident engine: all samples, decoded once, in the memory of the device.

For data that fit, and many epochs over them. A batch is a few operations of torch on the device:
in an epoch the host reads and decodes nothing. `loaders.differences` says how samples are stored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tqdm import tqdm

from maskdepth.convert.errors import DataError, RecordError
from maskdepth.convert.layout import FIELDS
from maskdepth.convert.shards import Shards
from maskdepth.loaders.base import ShardLoader
from maskdepth.loaders.batch import Batch
from maskdepth.loaders.buffers import BufferPool
from maskdepth.loaders.differences import (
    Differences,
    EncodedSamples,
    Reserve,
    WordLayout,
    encode,
    majority,
)
from maskdepth.loaders.memory import free_bytes
from maskdepth.loaders.options import LoaderOptions

BASE_SAMPLES = 9
"""Samples of a background, evenly spread, from which its base is made."""
PROBED = 4096
"""Samples, drawn at random, from which the memory of all is predicted."""
_CHUNK = 64  # samples that a thread decodes at a time
_AHEAD = 64  # chunks that wait, run or are done before they are taken
_GIB = 2**30

Task = TypeVar("Task")
Result = TypeVar("Result")


class ResidentLoader(ShardLoader):
    """Batches of samples in the memory of the device, from either format.

    Building it decodes all samples in ``indices`` with ``num_workers`` threads. Each rank holds all
    of them, because every epoch divides them differently. A record that is corrupt then is
    reported when its batch is reached.

    predicted_bytes: memory of the device for the samples, from the size of some of them.
    stored_bytes: what they take.

    Raises DataError if they do not fit into the free memory of the device.
    """

    def __init__(self, shards: str | Path, options: LoaderOptions) -> None:
        super().__init__(Shards(shards), options)
        indices = options.indices
        self._visited = np.arange(len(self.shards)) if indices is None else np.sort(indices)
        self._visited_on_device = torch.from_numpy(self._visited).to(self.device)
        self._words = WordLayout(self.layout)
        self._pool = BufferPool((0,), self._words.dtype)
        decoder = _Decoder(self.shards, self._words, self._visited, check=self._check)
        self._failed = decoder.failed
        with ThreadPoolExecutor(self.num_workers, "maskdepth-resident") as threads:
            decoder.make_bases(threads)
            reserve = decoder.predict(threads)
            self.predicted_bytes = Differences.predict_bytes(
                self._words, len(decoder.bases), len(self._visited), reserve
            )
            if (free := free_bytes(self.device)) < self.predicted_bytes:
                raise self._too_large(free)
            try:
                self._stored = self._load(decoder, reserve, threads)
            except torch.OutOfMemoryError:  # taken by others, or more than was predicted
                raise self._too_large(free_bytes(self.device)) from None
        self.shards.require_complete(self._visited)
        self.stored_bytes = self._stored.stored_bytes

    def _too_large(self, free: int) -> DataError:
        return DataError(
            f"{self.shards.folder}: {len(self._visited):,} samples need "
            f"{self.predicted_bytes / _GIB:.2f} GiB of {self.device}, found {free / _GIB:.2f} GiB "
            "free; use another --loader, fewer samples or smaller images"
        )

    def _load(self, decoder: _Decoder, reserve: Reserve, threads: Executor) -> Differences:
        stored = Differences(self._words, decoder.bases, reserve, self.device)
        with self._bar() as bar:
            for encoded in decoder.encode_all(threads):
                stored.append(encoded)
                bar.update(len(encoded.counts))
        stored.finish()
        return stored

    def _bar(self) -> tqdm:
        """A progress bar that shows the memory; on a terminal only, and on the first rank."""
        title = f"resident: {self.predicted_bytes / _GIB:.2f} GiB of {self.device}"
        if self.order.options.world_size > 1:
            title += " on each rank"
        hidden = True if self.order.options.rank else None
        return tqdm(total=len(self._visited), unit=" samples", desc=title, disable=hidden)

    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        for k in range(start, len(self.steps)):
            samples = self._samples(epoch, k)
            if failed := self._failed.keys() & set(samples.tolist()):
                raise self._failed[min(failed)]
            yield self._gather(samples)

    def _gather(self, samples: np.ndarray) -> Batch:
        index, count = self._upload(samples), len(samples)
        out = self._allocate(count * self._words.words)
        self._stored.gather(
            np.searchsorted(self._visited, samples),
            torch.searchsorted(self._visited_on_device, index),
            self.backgrounds.numbers(index),
            out,
        )
        fg_bg, mask, depth = self._words.images(out, count)
        return Batch(fg_bg, mask, depth, index)

    def _upload(self, samples: np.ndarray) -> torch.Tensor:
        index = torch.from_numpy(samples)
        if self.device.type == "cuda":
            index = index.pin_memory()
        return index.to(self.device, non_blocking=True)

    def _allocate(self, words: int) -> torch.Tensor:
        """Memory for a batch. On a CPU it is reused: new memory costs more than the batch."""
        if self.device.type == "cpu":
            return torch.from_numpy(self._pool.take(words))
        return torch.empty(words, dtype=self._words.torch_dtype, device=self.device)

    def close(self) -> None:
        if not self._closed:
            super().close()
            del self._stored


class _Decoder:
    """Decodes samples and encodes them as differences, with the threads of an executor.

    visited: samples, ascending. check: whether to compare each record with its checksum.
    bases: (n_bg, words), from `make_bases`. failed: the error of each corrupt sample.
    """

    def __init__(
        self, shards: Shards, words: WordLayout, visited: np.ndarray, *, check: bool
    ) -> None:
        self._shards, self._words, self._visited, self._check = shards, words, visited, check
        self._numbers = shards.manifest.layout.background_of(visited)
        self.bases = np.zeros((len(shards.manifest.backgrounds), words.words), words.dtype)
        self.failed: dict[int, RecordError] = {}

    def _decode(self, sample: int) -> np.ndarray:
        """The words of a sample; none if a record is corrupt."""
        try:
            if self._check:
                for name in FIELDS:
                    self._shards.check(sample, name)
            return self._words.join([self._shards.decode(sample, name) for name in FIELDS])
        except RecordError as error:
            self.failed[sample] = error
            return np.empty(0, self._words.dtype)

    def make_bases(self, threads: Executor) -> None:
        """Make the base of each background that is visited."""

        def make(number: int) -> None:
            first, end = np.searchsorted(self._numbers, [number, number + 1])
            rows = np.unique(np.linspace(first, end - 1, BASE_SAMPLES).astype(int))
            samples = [self._decode(sample) for sample in self._visited[rows].tolist()]
            if valid := [words for words in samples if len(words)]:
                self.bases[number] = majority(np.stack(valid))

        for _ in _run_in_order(threads, make, np.unique(self._numbers).tolist()):
            pass

    def predict(self, threads: Executor) -> Reserve:
        """Runs and values of all samples, estimated from `PROBED` of them."""
        samples, probed = len(self._visited), min(len(self._visited), PROBED)
        rows = np.sort(np.random.default_rng(0).choice(samples, probed, replace=False))
        chunks = np.array_split(rows, -(-probed // _CHUNK))
        found = [one.counts for one in _run_in_order(threads, self._encode, chunks)]
        return Reserve.estimate(np.concatenate(found).sum(axis=1), samples)

    def encode_all(self, threads: Executor) -> Iterator[EncodedSamples]:
        """All samples in ascending order."""
        starts = range(0, len(self._visited), _CHUNK)
        rows = (np.arange(at, min(at + _CHUNK, len(self._visited))) for at in starts)
        return _run_in_order(threads, self._encode, rows)

    def _encode(self, rows: np.ndarray) -> EncodedSamples:
        samples = [self._decode(sample) for sample in self._visited[rows].tolist()]
        bases = [self.bases[number] for number in self._numbers[rows].tolist()]
        return encode(samples, bases, self._words)


def _run_in_order(
    threads: Executor, function: Callable[[Task], Result], tasks: Iterable[Task]
) -> Iterator[Result]:
    """Results in the order of the tasks, with a few of them waiting or running at a time."""
    started = (threads.submit(function, task) for task in tasks)
    ahead = deque(islice(started, _AHEAD))
    while ahead:
        result = ahead.popleft().result()
        ahead.extend(islice(started, 1))
        yield result
