"""The DALI engine for shards to be read in order because they are remote or larger than memory.

DALI's webdataset reader reads the tar shards from front to back and shuffles within a window.
That mixes well because `pack` writes the shards in a seeded permutation. We choose which part of
the shards each rank reads. So splits, equal steps on all ranks and "every sample once" hold as
for the other engines; only the order within an epoch differs.
"""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import crc32c
import numpy as np

from maskdepth.convert.errors import DataError, RecordError
from maskdepth.convert.files import read_regular
from maskdepth.convert.interrupts import interrupt_later
from maskdepth.convert.layout import FIELDS
from maskdepth.convert.program import CONVERT
from maskdepth.convert.shards import Shards
from maskdepth.convert.tarshards import dali_index_name, extensions
from maskdepth.loaders.batch import Batch
from maskdepth.loaders.engines.dali import (
    DALILoader,
    Pipeline,
    Stored,
    built,
    first_line,
    reading_graph,
    shut_down,
)
from maskdepth.loaders.options import LoaderOptions
from maskdepth.loaders.order import Order, permute
from maskdepth.loaders.position import Position

WINDOW = 1024
"""Samples among which the reader shuffles."""

_OTHER_FILES = 100
"""Files that a process has open beside the tar shards, at most."""


class StreamOrder:
    """What a rank reads in an epoch: a slice of the concatenated shards.

    If ``order`` shuffles, each epoch permutes the shards. The slices of the ranks do not overlap
    and have the lengths that the steps of `Order` need.

    order: how many samples each rank visits. shard, offset: (samples,), where each record begins.
    stored: samples of each shard, whether they are visited or not.
    """

    def __init__(self, order: Order, shard: np.ndarray, offset: np.ndarray) -> None:
        self._order = order
        indices = order.options.indices
        self.wanted = np.full(order.n, indices is None)
        if indices is not None:
            self.wanted[indices] = True
        self.stored = np.bincount(shard)
        ends = np.cumsum(self.stored)
        to_read = self.wanted[np.lexsort((offset, shard))]
        # Rows of each shard that are to be read, in the order of the shard.
        self._rows = [np.flatnonzero(rows) for rows in np.split(to_read, ends[:-1])]

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


class DALIStreamLoader(DALILoader):
    """Batches in the order in which shards are read.

    It differs from the other loaders in the order of an epoch, which depends on (seed, epoch,
    rank, world_size, batch_size); with ``shuffle=False`` it is that of the shards, not of
    ``indices``. To start from batch k, the batches before it are read but not decoded. The
    replacement of a corrupt record is the next valid record of the same batch, wrapping around;
    if all are corrupt, the last valid record of the batch before.
    """

    streamed = True

    def __init__(self, shards: str | Path, options: LoaderOptions) -> None:
        if options.weights is not None:
            raise DataError(
                "weights: dali-stream reads each sample once, in the order of the shards; use "
                "another engine"
            )
        super().__init__(Shards(shards, "webdataset"), options)
        # The same for any field: the fields of a sample are adjacent.
        records = self.shards.records[FIELDS[0]]
        self._stream = StreamOrder(self.order, records["file"], records["offset"])
        self._taken: list[int] = []

    def _rest(self, position: Position) -> tuple[Order, int]:
        step = position.batch_size * position.world_size
        return self.order, -(-position.seen // step)

    def _stored(self, epoch: int, start: int) -> Generator[Stored, None, None]:
        steps = [k for k in range(len(self.steps)) if self.steps.size(k)]
        if not steps:
            return
        reader = self._open(epoch)
        try:
            unseen = self._stream.wanted.copy()
            before: Stored | None = None
            for k in steps:
                keep = k >= start - 1  # the batch before `start` may have to give a replacement
                read = self._read(reader, self.steps.size(k), unseen, keep=keep)
                if k >= start:
                    yield self._replace_corrupt(read, before)
                before = read
        finally:
            shut_down(reader)
            with interrupt_later():  # of its `__del__`
                del reader

    def _open(self, epoch: int) -> Pipeline:
        """DALI's reader of this rank's part of an epoch."""
        order, parts = self.order.options, self._stream.parts(epoch)
        needed, limit = len(parts) + _OTHER_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if 0 <= limit < needed:
            raise DataError(
                f"{self.shards.folder}: DALI opens its {len(parts)} tar shards at once, found "
                f"`ulimit -n` {limit}, expected {needed} or more; raise it, pack again with a "
                "larger --samples-per-shard, or use --loader dali"
            )
        entropy = np.random.SeedSequence(order.seed, spawn_key=(epoch, order.rank))
        # Index files with the lines of this rank alone restrict the reader to its samples.
        with tempfile.TemporaryDirectory(prefix="maskdepth-") as scratch:
            index_paths = [self._write_lines(Path(scratch), *part) for part in parts]
            reader = reading_graph(
                paths=[str(self.shards.folder / self.shards.names[shard]) for shard, _ in parts],
                index_paths=index_paths,
                extensions=list(extensions(self.shards.codecs).values()),
                window=WINDOW if order.shuffle else 0,
                window_seed=int(entropy.generate_state(1)[0] >> 1),
                batch_size=order.batch_size, num_threads=1, device_id=None, prefetch_queue_depth=2,
            )  # fmt: skip
            try:
                return built(reader)
            except RuntimeError as error:
                raise self._unreadable(error) from None

    def _write_lines(self, scratch: Path, shard: int, rows: np.ndarray) -> str:
        """The lines of some rows of a shard's DALI index as an index file of their own."""
        path = self.shards.folder / dali_index_name(shard)
        try:
            _, *lines = read_regular(path).splitlines(keepends=True)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); pack again") from None
        if len(lines) != (expected := int(self._stream.stored[shard])):
            raise DataError(f"{path}: lists {len(lines)} samples, expected {expected}; pack again")
        chosen = [lines[row] for row in rows.tolist()]
        own = scratch / path.name
        own.write_bytes(b"".join([b"v1.2 %d\n" % len(chosen), *chosen]))
        return str(own)

    def _unreadable(self, error: Exception) -> DataError:
        # They name the file, as DALI does not.
        self.shards.check_files(self.shards.names, hashed=False)
        names = map(dali_index_name, range(len(self.shards.names)))
        self.shards.check_files(name for name in names if name in self.shards.manifest.files)
        reason = first_line(error)
        return DataError(f"{self.shards.folder}: DALI cannot read the tar shards: {reason}")

    def _read(self, reader: Pipeline, size: int, unseen: np.ndarray, *, keep: bool) -> Stored:
        """The first ``size`` samples of the reader's next batch; ``keep`` their fields or none."""
        try:
            *columns, index = reader.run()
            indices = index.as_array()[:size].copy().view("<i8")[:, 0]
        except (RuntimeError, ValueError) as error:
            raise self._unreadable(error) from None
        known = (indices >= 0) & (indices < len(unseen))
        # Corrupt shards could hold an index twice.
        if not known.all() or not unseen[indices].all() or len(set(indices.tolist())) < size:
            raise DataError(
                f"{self.shards.folder}: the shards hold samples that should not be read, or hold "
                f"them twice; run `{CONVERT} verify` and pack again"
            )
        unseen[indices] = False
        fields = [[column.at(i) for i in range(size)] for column in columns] if keep else []
        return Stored(indices, fields, [])

    def _replace_corrupt(self, read: Stored, before: Stored | None) -> Stored:
        """Replace corrupt records from these two batches alone, wherever the epoch started."""
        valid, errors = self._valid_rows(read)
        count = len(read.indices)
        if len(valid) == count:
            return read
        if valid:
            rows = [valid[np.searchsorted(valid, row) % len(valid)] for row in range(count)]
        elif not self._corrupt.max_bad:
            raise errors[0]
        else:
            spare = self._valid_rows(before)[0] if before else []
            if before is None or not spare:
                raise DataError(
                    f"all {count} records of a batch are corrupt, and the batch before has no "
                    f"replacement; first {errors[0]}"
                )
            read, rows = before, [spare[-1]] * count
        fields = [[field[row] for row in rows] for field in read.fields]
        return Stored(read.indices[rows], fields, errors)

    def _valid_rows(self, read: Stored) -> tuple[list[int], list[RecordError]]:
        """Rows of a batch that are not corrupt, and the errors of the others."""
        errors = self._checksum_errors(read) if self._check else []
        corrupt = self._corrupt.skipped.keys() | {error.index for error in errors}
        rows = enumerate(read.indices.tolist())
        return [row for row, index in rows if index not in corrupt], errors

    def _checksum_errors(self, read: Stored) -> list[RecordError]:
        """For each sample its first field whose bytes, as read, do not have their checksum."""
        records = self.shards.records[read.indices]
        expected = [records[name]["crc32c"].tolist() for name in FIELDS]
        errors = []
        for row, index in enumerate(read.indices.tolist()):
            for name, column, crcs in zip(FIELDS, read.fields, expected, strict=True):
                if crc32c.crc32c(column[row].data) != crcs[row]:
                    where = self.shards.where(index, name)
                    reason = f"found bytes without the checksum {crcs[row]:08x}: corrupt"
                    errors.append(RecordError(index, name, where, reason))
                    break
        return errors

    def _take(self) -> Batch:
        self._taken = self._fed[0].indices.tolist()
        return super()._take()

    def _record_errors(self, epoch: int, k: int) -> Iterator[RecordError]:
        return filter(None, map(self._record_error, self._taken))
