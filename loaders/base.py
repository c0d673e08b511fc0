"""What loaders have in common: the order, bad records, the folder, the clean end."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import torch

from convert.errors import DataError, RecordError
from convert.layout import Layout
from convert.manifest import BACKGROUNDS
from convert.shards import Shards
from convert.workers import available_cores
from loaders.backgrounds import Backgrounds
from loaders.batch import Batch
from loaders.corrupt import CorruptRecords
from loaders.options import LoaderOptions, expect
from loaders.order import Order


def _no_epoch() -> None:
    """Stands where no epoch is running."""


def _whole(running: Iterator[Batch], count: int) -> Iterator[Batch]:
    """``count`` batches; DataError where ``running`` was ended before, which looks like its end."""
    for batch in running:
        count -= 1
        yield batch
    if count:
        raise DataError(
            "this epoch was ended: another was asked for, or the loader was closed; open a "
            "second loader to walk two at once"
        )


class OrderedLoader(ABC):
    """Batches in the order of an epoch; engines fill in ``_batches`` and ``_fault``.

    One epoch runs at a time: asking for another ends the one before.

    layout: of the data set.
    """

    def __init__(self, layout: Layout, options: LoaderOptions) -> None:
        self.layout = layout
        self.device = torch.device(options.device)
        self.order = Order(layout.samples, options)
        self._bad = CorruptRecords(options.max_bad)
        self._running: Callable[[], Generator[Batch, None, None] | None] = _no_epoch
        self._closed = False

    @property
    def skipped(self) -> list[RecordError]:
        """An error for each record that was skipped so far."""
        return list(self._bad.skipped)

    def __len__(self) -> int:
        """Batches of an epoch on this rank."""
        return len(self.order)

    def epoch(self, n: int, start: int = 0) -> Iterator[Batch]:
        """Batches ``start`` to the end of epoch ``n``.

        Raises DataError where there is no such batch, and from an epoch that another one or
        `close` ended before its last batch; RecordError where a record is bad and may not be
        skipped.
        """
        if self._closed:
            raise DataError("this loader is closed; build another")
        if n < 0:
            raise DataError(f"epoch: found {n}, expected 0 or more")
        if not 0 <= start <= len(self):
            raise DataError(f"batch to start from: found {start}, expected 0 to {len(self)}")
        self._end_running()
        batches, faults = partial(self._batches, n), partial(self._faults, n)
        running = self._bad.walk(start, batches, faults)
        # Weakly: an epoch ends, and its threads with it, as soon as its user lets go of it.
        self._running = weakref.ref(running)
        return _whole(running, len(self) - start)

    @abstractmethod
    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        """Batches ``start`` to the end of ``epoch``; closing it leaves nothing at work."""

    @abstractmethod
    def _fault(self, index: int) -> RecordError | None:
        """What is wrong with a sample; None where nothing is."""

    def _samples(self, epoch: int, k: int) -> np.ndarray:
        """Samples of batch ``k``, without those that are to be skipped."""
        return self.order.batch(epoch, k, self._bad.indices)

    def _faults(self, epoch: int, k: int) -> Iterator[RecordError]:
        for index in self._samples(epoch, k).tolist():
            fault = self._fault(index)
            if fault:
                yield fault

    def _end_running(self) -> None:
        running, self._running = self._running(), _no_epoch
        if running is not None:
            running.close()

    def close(self) -> None:
        """End every thread of this loader; it yields nothing any more."""
        self._end_running()
        self._closed = True

    def __enter__(self) -> Self:
        """A loader that is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close, whatever ended the block."""
        self.close()


class ShardLoader(OrderedLoader):
    """A loader of one format of a shard folder.

    Satisfies `loaders.batch.Loader`.
    """

    def __init__(self, shards: Shards | str | Path, options: LoaderOptions) -> None:
        self.shards = shards if isinstance(shards, Shards) else Shards(shards)
        super().__init__(self.shards.manifest.layout, options)
        self.statistics = self.shards.manifest.statistics
        self.num_workers = available_cores() if options.num_workers is None else options.num_workers
        expect("workers", self.num_workers, 1)
        # Decoders differ in what they let pass; a checksum is the same for all. So engines
        # that shall skip the same records have to check.
        self._check = options.check or options.max_bad > 0
        # Always: a wrong row of the index would show another sample's pixels, checksum and all.
        self.shards.check_files((BACKGROUNDS, self.shards.index_name))
        self.backgrounds = Backgrounds.from_numpy(self.shards.backgrounds, self.layout, self.device)

    def _fault(self, index: int) -> RecordError | None:
        return self.shards.fault(index)

    def _is_bad(self, indices: np.ndarray) -> bool:
        """Whether some of the samples are damaged, as far as this loader looks."""
        return self._check and not self.shards.all_intact(indices)

    def close(self) -> None:
        """End every thread and unmap the shards."""
        super().close()
        self.shards.close()

    def empty_batch(self) -> Batch:
        """A batch of no samples: a rank's share of a last step too small for all ranks."""
        height, width = self.layout.height, self.layout.width
        return Batch(
            fg_bg=torch.empty(0, 3, height, width, dtype=torch.uint8, device=self.device),
            mask=torch.empty(0, 1, height, width, dtype=torch.uint8, device=self.device),
            depth=torch.empty(0, 1, height, width, dtype=torch.uint8, device=self.device),
            index=torch.empty(0, dtype=torch.int64, device=self.device),
        )
