"""What all loaders share: the interface, the order, the corrupt records, the shard folder."""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import NoReturn

import numpy as np
import torch
from torch.utils.data import IterableDataset

from maskdepth.convert.errors import DataError, RecordError
from maskdepth.convert.layout import Layout
from maskdepth.convert.moments import Statistics
from maskdepth.convert.schema import LARGEST
from maskdepth.convert.shards import Shards
from maskdepth.loaders.backgrounds import Backgrounds
from maskdepth.loaders.batch import Batch
from maskdepth.loaders.corrupt import CorruptRecords
from maskdepth.loaders.options import LoaderOptions, expect, whole
from maskdepth.loaders.order import Order
from maskdepth.loaders.position import Position
from maskdepth.loaders.threads import default_threads


class Loader(IterableDataset[Batch], AbstractContextManager["Loader"], ABC):
    """Batches of a data set in our order, whatever the engine.

    Iterating over it yields the next epoch, and `epoch` any one. One runs at a time: starting
    another one ends it. A ``with`` block closes the loader. It is for the process that built it, in
    which its threads are, and for one thread at a time: workers of a DataLoader raise DataError.

    layout: of the data set: which sample shows which background and foreground.
    backgrounds: all backgrounds, resident on the device; set by the subclass.
    device: where batches and backgrounds are.
    order: the samples of each batch.
    steps: those of the running epoch, which may continue in the middle.
    """

    backgrounds: Backgrounds
    streamed = False
    """Whether the order depends on the batch size and the number of ranks."""

    def __init__(self, layout: Layout, options: LoaderOptions) -> None:
        self.layout = layout
        self.device = torch.device(options.device)
        self.order = self.steps = Order(layout.samples, options)
        # Where the next pass begins, and what has been taken since.
        self._begin = self._position = self._first = Position.first(
            self.order, streamed=self.streamed
        )
        self._corrupt = CorruptRecords(options.max_bad)
        self._running: weakref.ref[Generator[Batch, None, None]] | None = None
        self._closed = False
        self._process = os.getpid()

    @property
    @abstractmethod
    def statistics(self) -> Statistics:
        """Moments of bg, fg_bg, mask and depth, in 0..1."""

    @property
    def depth_source(self) -> str:
        """Where the depth maps come from: "true", "given", "estimated", "prior", or "" if unknown.

        "prior": a ground-plane prior, which nothing has measured.
        """
        return ""

    @property
    def skipped(self) -> list[RecordError]:
        """An error for each corrupt record skipped so far, in the order of meeting them."""
        return list(self._corrupt.skipped.values())

    def __len__(self) -> int:
        """Batches of an epoch on this rank."""
        return len(self.order)

    def epoch(self, n: int, start: int = 0, first: int = 0) -> Iterator[Batch]:
        """Batches ``start`` to the end of epoch ``n``.

        first: samples at the start of the epoch, of all ranks together, that are left out: batches
            begin after them. Not with "dali-stream".

        Raises DataError if there is no such batch, if another epoch or `close` ended this one
        before its last batch, in another process than the loader's, and in a thread while another
        takes a batch; RecordError at a corrupt record that may not be skipped.
        """
        n = whole("epoch", n, 0, LARGEST)
        expect("samples to leave out", first, 0, self.order.samples)
        if first and self.streamed:
            raise DataError("dali-stream: an epoch cannot begin within; start from a batch instead")
        steps = replace(self.order, first=first)
        expect("batch to start from", start, 0, len(steps))
        return self._start(n, steps, start, lambda k: None)

    def __iter__(self) -> Iterator[Batch]:
        """Batches of the next epoch, or of the rest of one after `load_state_dict`.

        An epoch counts once its last batch is taken, also if the iterator is not exhausted then.
        One that was left before starts again. Raises as `epoch` does.
        """
        begin = self._begin
        steps, start = self._rest(begin)

        def taken(k: int) -> None:
            """Note that batch ``k`` is the last one that was taken."""
            self._position = begin.changed(seen=steps.seen(k))
            if k + 1 >= len(steps):
                self._begin = self._position = begin.changed(epoch=begin.epoch + 1, seen=0)

        running = self._start(begin.epoch, steps, start, taken)
        self._begin, self._position = begin.changed(seen=0), begin
        if start >= len(steps):
            taken(start)  # the rest is less than a step, and `drop_last` leaves it out
        return running

    def set_epoch(self, epoch: int) -> None:
        """Iterate over this epoch next: from its start, unless a loaded state is within it."""
        epoch = whole("epoch", epoch, 0, LARGEST)
        if epoch != self._begin.epoch:
            self._begin = self._begin.changed(epoch=epoch, seen=0)
        self._position = self._begin

    def state_dict(self) -> dict[str, int | bool]:
        """Where iterating over this loader is: equal on all ranks, after the same batch.

        It holds for another batch size, number of ranks and engine. Within an epoch, a state of
        "dali-stream" holds for that engine alone, with the same batch size and number of ranks.
        """
        return self._position.model_dump()

    def load_state_dict(self, state: Mapping[str, int | bool]) -> None:
        """Iterate next over the samples that had not been seen when ``state`` was saved.

        Raises DataError for a state of other samples, another seed or another order.
        """
        self._begin = self._position = self._first.moved(state)

    def _rest(self, position: Position) -> tuple[Order, int]:
        """The steps of the rest of an epoch, and the first of them to take."""
        return replace(self.order, first=position.seen), 0

    def _start(
        self, n: int, steps: Order, start: int, taken: Callable[[int], None]
    ) -> Iterator[Batch]:
        """Batches from ``start`` on; taken: is called with the number of each."""
        self._require_own_process()
        if self._closed:
            raise DataError("this loader is closed; build another")
        self._end_running()
        self.steps = steps
        batches, errors = partial(self._batches, n), partial(self._record_errors, n)
        running = self._corrupt.walk(start, batches, errors)
        # A weak reference: an epoch and its threads end as soon as the user drops its iterator.
        self._running = weakref.ref(running)
        return _Epoch(running, range(start, len(steps)), self._require_own_process, taken)

    @abstractmethod
    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        """Batches ``start`` to the end of ``epoch``; closing it ends all work for them."""

    @abstractmethod
    def _record_error(self, index: int) -> RecordError | None:
        """Why a sample is corrupt; None if it is valid."""

    def _samples(self, epoch: int, k: int) -> np.ndarray:
        """Samples of batch ``k``: int64, with a replacement for each skipped one."""
        return self.steps.batch(epoch, k, self._corrupt.skipped)

    def _record_errors(self, epoch: int, k: int) -> Iterator[RecordError]:
        return filter(None, map(self._record_error, self._samples(epoch, k).tolist()))

    def _end_running(self) -> None:
        if self._running and (running := self._running()):
            with _in_one_thread():
                running.close()

    def _require_own_process(self) -> None:
        """DataError in another process: a child of `os.fork` has none of the decoding threads."""
        if self._process != os.getpid():
            raise DataError(
                "this loader was built in another process; build one in each process, with its "
                "rank and world_size, or iterate over it without workers of a DataLoader: it has "
                "threads of its own that decode"
            )

    def __reduce__(self) -> NoReturn:
        raise DataError(
            "a loader cannot be copied or sent to another process; build one where it is used"
        )

    def close(self) -> None:
        """End every thread of this loader; it yields no more batches."""
        self._end_running()
        self._closed = True

    def __exit__(self, *_: object) -> None:
        self.close()


class _Epoch(Iterator[Batch]):
    """The batches that ``running`` yields.

    left: their numbers. require_process: raises in another process. taken: is called with the
    number of each batch before it is handed out.
    """

    def __init__(
        self,
        running: Iterator[Batch],
        left: range,
        require_process: Callable[[], None],
        taken: Callable[[int], None],
    ) -> None:
        self._running, self._left = running, left
        self._require_process, self._taken = require_process, taken

    def __next__(self) -> Batch:
        self._require_process()
        try:
            with _in_one_thread():
                batch = next(self._running, None)
        except _OtherThreadError:
            raise
        except BaseException:
            self._left = range(0)  # this error ended it; there is no other to raise
            raise
        if batch is not None:
            self._taken(self._left[0])
            self._left = self._left[1:]
            return batch
        if self._left:  # it was closed early, which looks like its end
            raise DataError(
                "this epoch was ended: another was asked for, or the loader was closed; open a "
                "second loader to iterate over two epochs at once"
            )
        raise StopIteration


class _OtherThreadError(DataError):
    """The epoch itself continues, in the other thread."""


@contextmanager
def _in_one_thread() -> Iterator[None]:
    """DataError in place of Python's ValueError if another thread executes the same generator."""
    try:
        yield
    except ValueError as error:
        if str(error) != "generator already executing":
            raise
        raise _OtherThreadError(
            "another thread is taking a batch of this loader; iterate in one thread, or build a "
            "loader for each"
        ) from None


class ShardLoader(Loader):
    """A loader of one format of a shard folder."""

    def __init__(self, shards: Shards, options: LoaderOptions) -> None:
        self.shards = shards
        super().__init__(shards.manifest.layout, options)
        workers = options.num_workers
        self.num_workers = self._default_workers() if workers is None else workers
        expect("workers", self.num_workers, 1)
        # Decoders differ in the corruption that they detect; checksums do not. So engines have to
        # check to skip the same records.
        self._check = options.check is not False or options.max_bad > 0
        # Always: a wrong row of the index would show another sample's pixels with a valid checksum.
        shards.check_files(shards.shared)
        self.backgrounds = Backgrounds.from_numpy(shards.backgrounds, self.layout, self.device)
        shards.require_complete_backgrounds()

    @property
    def statistics(self) -> Statistics:
        return self.shards.manifest.statistics

    @property
    def depth_source(self) -> str:
        return self.shards.manifest.depth_source

    def _default_workers(self) -> int:
        """Decoding threads if the options give no number."""
        return default_threads()

    def _record_error(self, index: int) -> RecordError | None:
        return self.shards.find_corruption(index)

    def _fails_check(self, indices: np.ndarray) -> bool:
        """Whether records are checked and one of these does not have its checksum."""
        return self._check and not self.shards.all_intact(indices)

    def close(self) -> None:
        super().close()
        self.shards.close()
