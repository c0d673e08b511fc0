"""Processes that torchrun starts share the work; alone, a process is the only rank."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from maskdepth.convert.errors import DataError

T = TypeVar("T")
_LONGEST = timedelta(days=30)  # a rank may wait for another until all is done


@dataclass(frozen=True)
class Ranks:
    """This process among those of torchrun."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first rank makes, on every rank. All must call this.

        If the first rank fails, it raises its error and the others end silently.
        """
        if self.count == 1:
            return make()
        failure: BaseException | None = None
        values: list[T | None] = [None, None]  # whether it was made, and what
        if self.is_first:
            try:
                values = [True, make()]  # type: ignore[list-item]
            except BaseException as error:
                failure = error
        self._broadcast(values)
        if failure is not None:
            raise failure
        if not values[0]:
            sys.exit(2)
        return values[1]  # type: ignore[return-value]

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self.count > 1:
            self._broadcast_from_all()

    def _broadcast(self, values: list[T | None]) -> None:
        import torch.distributed as dist

        with _ended_rank():
            dist.broadcast_object_list(values)

    def _broadcast_from_all(self) -> None:
        import torch.distributed as dist

        with _ended_rank():
            dist.barrier()


@contextmanager
def _ended_rank() -> Iterator[None]:
    """Translate the error of a group of which another rank has ended."""
    try:
        yield
    except RuntimeError:
        raise DataError(
            "another rank has ended; fix what it says, and run again with --resume"
        ) from None


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the group that torchrun's environment describes; without one, be the only rank.

    After an error the group is left as it is: to end it would wait for ranks that wait for this
    one. torchrun ends them.
    """
    found = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE")]
    if found == [None, None]:
        yield Ranks()
        return
    try:
        ranks = Ranks(int(found[0] or ""), int(found[1] or ""))
    except ValueError:
        raise DataError(
            "environment: found RANK or WORLD_SIZE without the other, or no number; start with "
            "torchrun"
        ) from None
    if ranks.count == 1:
        yield ranks
        return
    import torch.distributed as dist

    try:
        dist.init_process_group("gloo", rank=ranks.rank, world_size=ranks.count, timeout=_LONGEST)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"environment: {reason}; start with torchrun") from None
    yield ranks
    dist.destroy_process_group()
