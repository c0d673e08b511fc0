"""The DALI engine for shards that want to be read in order: larger than memory, or far away.

DALI's webdataset reader reads the tar shards from front to back and shuffles within a window.
That is a good shuffle because `pack` writes the shards in a seeded permutation. What is ours:
which part of the shards a rank reads, so that splits, equal steps on all ranks and "every
sample once" hold as for the other engines; only the order within an epoch is another.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import crc32c
import numpy as np

from convert.errors import DataError, RecordError
from convert.layout import FIELDS
from convert.shards import Shards
from convert.tarshards import dali_index_name, extensions
from loaders.batch import Batch
from loaders.engines.dali import DALILoader, Stored, reading_graph
from loaders.options import LoaderOptions
from loaders.order import Order, permute

WINDOW = 1024
"""Samples that the reader shuffles among."""


class StreamOrder:
    """What a rank reads in an epoch: a slice of all shards put one behind the other.

    The shards come in an order of their own in each epoch where ``order`` shuffles; the slices
    of the ranks do not overlap, and are as long as the steps of `Order` need.

    order: who visits how many samples. shard, offset: (samples,) where each record begins.
    """

    def __init__(self, order: Order, shard: np.ndarray, offset: np.ndarray) -> None:
        self._order = order
        self.wanted = np.ones(order.n, np.bool_)
        if order.options.indices is not None:
            self.wanted[:] = False
            self.wanted[order.options.indices] = True
        stored = np.lexsort((offset, shard))
        self._stored = np.bincount(shard)
        ends = np.cumsum(self._stored)
        # Rows of each shard that are to be read, in the order in which they lie there.
        self._rows = [np.flatnonzero(rows) for rows in np.split(self.wanted[stored], ends[:-1])]

    def stored_in(self, shard: int) -> int:
        """Samples of a shard, wanted or not."""
        return int(self._stored[shard])

    def parts(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """(shard, rows) that this rank reads one after the other; rows int64, ascending."""
        order = self._order
        shards = np.arange(len(self._rows), dtype=np.int64)
        if order.options.shuffle:
            shards = permute(shards, len(shards), order.options.seed, epoch)
        shares = [self._share(rank) for rank in range(order.options.rank + 1)]
        begin, end = sum(shares[:-1]), sum(shares)
        at, found = 0, []
        for shard in shards.tolist():
            rows = self._rows[shard][max(begin - at, 0) : max(end - at, 0)]
            at += len(self._rows[shard])
            if len(rows):
                found.append((shard, rows))
        return found

    def _share(self, rank: int) -> int:
        """Samples of a rank in an epoch: all steps but the last are full."""
        steps = len(self._order)
        if not steps:
            return 0
        return (steps - 1) * self._order.options.batch_size + self._order.size(steps - 1, rank)


def _chosen(read: Stored, rows: list[int], faults: list[RecordError]) -> Stored:
    """Some rows of a batch, in some order."""
    return Stored(
        read.indices[rows], [[field[row] for row in rows] for field in read.fields], faults
    )


class DALIStreamLoader(DALILoader):
    """Batches in the order in which shards are read.

    Differs from the other loaders in this: the order of an epoch, which depends on (seed,
    epoch, rank, world_size, batch_size); with ``shuffle=False`` it is that of the shards, not of
    ``indices``. To start from batch k, what comes before is read and not decoded. The next good
    record of the same batch, going round, stands in for a bad one; where all are bad, the last good
    one of the batch before.
    """

    def __init__(self, shards: str | Path, options: LoaderOptions) -> None:
        super().__init__(Shards(shards, "webdataset"), options)
        # Any field will do: a sample's fields lie side by side.
        records = self.shards.records[FIELDS[0]]
        self._stream = StreamOrder(self.order, records["file"], records["offset"])
        self._taken: list[int] = []

    def _stored(self, epoch: int, start: int) -> Generator[Stored, None, None]:
        steps = [k for k in range(len(self)) if self.order.size(k)]
        reader = self._open(epoch) if steps else None
        unseen = self._stream.wanted.copy()
        before: Stored | None = None
        for k in steps:
            keep = k >= start - 1  # of the batch before `start`, a record may have to stand in
            read = self._read(reader, self.order.size(k), unseen, keep=keep)
            if k >= start:
                yield self._without_bad(read, before)
            before = read

    def _open(self, epoch: int) -> Any:
        """DALI's reader of this rank's part of an epoch."""
        order = self.order
        entropy = np.random.SeedSequence(order.options.seed, spawn_key=(epoch, order.options.rank))
        # DALI's index files with the lines of this rank alone: so the reader knows of no others.
        with tempfile.TemporaryDirectory(prefix="maskdepth-") as scratch:
            parts = self._stream.parts(epoch)
            index_paths = [self._write_lines(Path(scratch), *part) for part in parts]
            reader = reading_graph(
                paths=[str(self.shards.folder / self.shards.names[shard]) for shard, _ in parts],
                index_paths=index_paths,
                extensions=list(extensions(self.shards.manifest.codecs).values()),
                window=WINDOW if order.options.shuffle else 0,
                window_seed=int(entropy.generate_state(1)[0] >> 1),
                batch_size=order.options.batch_size,
                num_threads=1,
                device_id=None,
                prefetch_queue_depth=2,
            )
            try:
                reader.build()
            except RuntimeError as error:
                raise self._unreadable(error) from None
        return reader

    def _write_lines(self, scratch: Path, shard: int, rows: np.ndarray) -> str:
        """The lines of some rows of a shard's DALI index as an index file of their own."""
        path = self.shards.folder / dali_index_name(shard)
        try:
            _, *lines = path.read_bytes().splitlines(keepends=True)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); pack again") from None
        if len(lines) != (expected := self._stream.stored_in(shard)):
            raise DataError(f"{path}: lists {len(lines)} samples, expected {expected}; pack again")
        chosen = [lines[row] for row in rows.tolist()]
        own = scratch / path.name
        own.write_bytes(b"".join([b"v1.2 %d\n" % len(chosen), *chosen]))
        return str(own)

    def _unreadable(self, error: Exception) -> DataError:
        first = str(error).strip().splitlines()[0]
        return DataError(f"{self.shards.folder}: DALI cannot read the tar shards: {first}")

    def _read(self, reader: Any, size: int, unseen: np.ndarray, *, keep: bool) -> Stored:
        """The reader's next batch, of which ``size`` are ours; keep its fields, or none."""
        try:
            *columns, index = reader.run()
            indices = index.as_array()[:size].copy().view("<i8")[:, 0]
        except (RuntimeError, ValueError) as error:
            raise self._unreadable(error) from None
        known = (indices >= 0) & (indices < len(unseen))
        # A batch of all kinds of damage could hold an index twice.
        if not known.all() or not unseen[indices].all() or len(set(indices.tolist())) < size:
            raise DataError(
                f"{self.shards.folder}: the shards hold samples that were not to be read, or hold "
                "them twice; run `python -m convert verify` and pack again"
            )
        unseen[indices] = False
        fields = [[column.at(i) for i in range(size)] for column in columns] if keep else []
        return Stored(indices, fields, [])

    def _without_bad(self, read: Stored, before: Stored | None) -> Stored:
        """A batch in which good records stand in for the bad ones.

        Those of the same batch, or where none of it is good the last good one of the batch before:
        so a batch depends on nothing but these two, wherever an epoch was begun.
        """
        good, faults = self._good_rows(read)
        if len(good) == len(read.indices):
            return read
        if good:
            count = len(read.indices)
            rows = [good[np.searchsorted(good, row) % len(good)] for row in range(count)]
            return _chosen(read, rows, faults)
        if not self._bad.max_bad:
            raise faults[0]
        spare = self._good_rows(before)[0] if before else []
        if before is None or not spare:
            raise DataError(
                f"all {len(read.indices)} records of a batch are bad, and no record of the batch "
                f"before can stand in; first {faults[0]}"
            )
        return _chosen(before, [spare[-1]] * len(read.indices), faults)

    def _good_rows(self, read: Stored) -> tuple[list[int], list[RecordError]]:
        """Rows that may be shown, and what is wrong with others."""
        faults = self._damaged(read.indices, read.fields) if self._check else []
        bad = self._bad.indices | {fault.index for fault in faults}
        return [row for row, index in enumerate(read.indices.tolist()) if index not in bad], faults

    def _damaged(self, indices: np.ndarray, fields: list[list[np.ndarray]]) -> list[RecordError]:
        """The first field of each sample whose bytes, as read, are not those of the index."""
        records = self.shards.records[indices]
        expected = [records[name]["crc32c"].tolist() for name in FIELDS]
        faults = []
        for row, index in enumerate(indices.tolist()):
            for name, column, crcs in zip(FIELDS, fields, expected, strict=True):
                if crc32c.crc32c(column[row].data) != crcs[row]:
                    where = self.shards.where(index, name)
                    reason = f"found bytes without the checksum {crcs[row]:08x}: damaged"
                    faults.append(RecordError(index, name, where, reason))
                    break
        return faults

    def _take(self) -> Batch:
        stored, _ = self._fed[0]
        self._taken = [] if stored is None else stored.indices.tolist()
        return super()._take()

    def _faults(self, epoch: int, k: int) -> Iterator[RecordError]:
        return filter(None, map(self._fault, self._taken))
