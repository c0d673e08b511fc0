"""What happens on a corrupt record: it ends the epoch, or it is listed and replaced.

1. An engine raises a DataError at a batch that holds a corrupt record.
2. `CorruptRecords.walk` asks the loader which records of that batch are corrupt.
3. It lists them as skipped. One more than ``max_bad`` is raised as the error of the epoch.
4. It restarts the engine at the same batch. From now on `loaders.order.Order.batch` puts a
   replacement, the next valid record of the epoch's order, where a skipped one would be.

So `ffcv`, `dali`, `resident` and `reference` skip and replace the same records, even if they
detect them in another order. `dali-stream` has no order in advance: its replacement is from the
same batch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

from maskdepth.convert.errors import DataError, RecordError
from maskdepth.convert.interrupts import interrupt_later
from maskdepth.loaders.batch import Batch


class TooManyCorruptRecords(RecordError):
    """One corrupt record more than may be skipped."""


class CorruptRecords:
    """The corrupt records that a loader has skipped.

    max_bad: number of records that may be skipped during the life of the loader. A record counts
        once, however many epochs meet it.
    skipped: the error of each skipped record by its sample, in the order in which they were met.
    """

    def __init__(self, max_bad: int) -> None:
        self.max_bad = max_bad
        self.skipped: dict[int, RecordError] = {}

    def skip(self, error: RecordError) -> None:
        """List a corrupt record as skipped; raises if no more may be skipped."""
        if error.index in self.skipped:
            return
        if not self.max_bad:
            raise error
        if len(self.skipped) == self.max_bad:
            reason = f"corrupt record {self.max_bad + 1}, expected {self.max_bad} at most"
            raise TooManyCorruptRecords(
                error.index, error.field, error.where, f"{error.reason}; {reason}"
            )
        self.skipped[error.index] = error

    def walk(
        self,
        start: int,
        batches: Callable[[int], Generator[Batch, None, None]],
        record_errors: Callable[[int], Iterable[RecordError]],
    ) -> Generator[Batch, None, None]:
        """Batches ``start`` to the end of an epoch, with a replacement for each skipped record.

        batches: runs the engine from a batch on, without the samples in ``skipped``. It may raise
            any DataError for a corrupt record, after the batches before it.
        record_errors: the errors of the records of one batch, in the order of the batch.
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
            except DataError as raised:
                failed = raised
            finally:
                with interrupt_later():
                    running.close()
            found = list(record_errors(k))
            if not found and isinstance(failed, RecordError):
                found = [failed]
            if all(error.index in self.skipped for error in found):
                raise failed  # all are replaced already: retrying would not help
            for error in found:
                self.skip(error)
            del failed, found  # their tracebacks refer to this frame: a cycle
