"""Bad records: stop at the first, or skip some and say which.

What stands in the place of a skipped record is said by `loaders.order.Order.batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

from convert.errors import DataError, RecordError
from loaders.batch import Batch


class TooManyCorruptRecords(RecordError):
    """A bad record that is one more than may be skipped."""


class CorruptRecords:
    """The bad records that a loader has met, and how many it may skip.

    max_bad: records to skip over the life of the loader; DataError below 0. A record counts
        once, however often an epoch comes to it.
    skipped: an error for each skipped record, in the order in which they were met.
    indices: samples that were skipped.
    """

    def __init__(self, max_bad: int) -> None:
        if max_bad < 0:
            raise DataError(f"bad records to skip: found {max_bad}, expected 0 or more")
        self.max_bad = max_bad
        self.skipped: list[RecordError] = []
        self.indices: set[int] = set()

    def skip(self, fault: RecordError) -> None:
        """Note a bad record; raises it where no more may be skipped."""
        if fault.index in self.indices:
            return
        if len(self.skipped) == self.max_bad:
            raise self._too_many(fault)
        self.skipped.append(fault)
        self.indices.add(fault.index)

    def _too_many(self, fault: RecordError) -> RecordError:
        if not self.max_bad:
            return fault
        reason = f"{fault.reason}; bad record {self.max_bad + 1}, expected {self.max_bad} at most"
        return TooManyCorruptRecords(fault.index, fault.field, fault.where, reason)

    def walk(
        self,
        start: int,
        batches: Callable[[int], Generator[Batch, None, None]],
        faults: Callable[[int], Iterable[RecordError]],
    ) -> Generator[Batch, None, None]:
        """Batches ``start`` to the end of an epoch, without the bad records.

        batches: the engine's, from some batch on, without the samples of ``indices``. It may
            raise any DataError for a batch with a bad record, when it is that batch's turn.
        faults: what is wrong with the records of one batch, in the order of the batch.

        So all engines list and skip the same records, whichever of them an engine met first.
        """
        k = start
        while True:
            running = batches(k)
            try:
                for batch in running:
                    k += 1
                    yield batch
                return
            except TooManyCorruptRecords:
                raise
            except DataError as error:
                failed = error
            finally:
                running.close()
            found = list(faults(k))
            if not found and isinstance(failed, RecordError):
                found = [failed]
            if all(fault.index in self.indices for fault in found):
                raise failed  # skipping changes nothing
            for fault in found:
                self.skip(fault)
            del failed, found  # else each error would hold the frames that hold it
