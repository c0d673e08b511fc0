"""Batches from memory that is lent to memory of torch's own on a GPU, beside the computation.

Lent is the pinned host memory of the FFCV engine and what DALI decodes on the GPU: both are used
again once they are let go of. Copies run on a stream of their own. Two things must hold, and are
tested without a GPU by a fake `Streams`: nobody computes on a batch before its copy has ended, and
no lent memory is given back before the copy that reads it has ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch

from convert.errors import DataError
from loaders.batch import Batch


class Streams(Protocol):
    """What a transfer needs of a device."""

    def copying(self) -> AbstractContextManager[Any]:
        """Within it the copy stream, which it gives, is the current one."""
        ...

    def start_copy(self, lent: torch.Tensor) -> torch.Tensor:
        """Begin to copy on the copy stream; returns the device's tensor at once."""
        ...

    def mark(self) -> Any:
        """An event behind all copies begun so far."""
        ...

    def has_passed(self, event: Any) -> bool:
        """Whether the copies before an event have ended; does not wait."""
        ...

    def hand_over(self, event: Any, tensors: tuple[torch.Tensor, ...]) -> None:
        """Make the computing stream wait for an event, and own the tensors from there on."""
        ...

    def finish(self) -> None:
        """Wait for all copies: what is lent may then be given back."""
        ...


class CudaStreams:
    """A copy stream beside the current stream of one GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def copying(self) -> Iterator[torch.cuda.Stream]:
        """The copy stream as the current one."""
        with torch.cuda.stream(self._stream):
            yield self._stream

    def start_copy(self, lent: torch.Tensor) -> torch.Tensor:
        """Begin to copy, also what is on the GPU; asynchronous from there and from pinned memory.

        Strides stay as they are.
        """
        with self.copying():
            return lent.to(self._device, non_blocking=True, copy=True)

    def mark(self) -> torch.cuda.Event:
        """An event on the copy stream."""
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def has_passed(self, event: torch.cuda.Event) -> bool:
        """Whether the copy stream has come to the event."""
        return event.query()

    def hand_over(self, event: torch.cuda.Event, tensors: tuple[torch.Tensor, ...]) -> None:
        """The host does not wait; the current stream does."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        for tensor in tensors:
            # Made on the copy stream: without this their memory could be given to the next copy
            # while the current stream still reads it.
            tensor.record_stream(current)

    def finish(self) -> None:
        """The host waits for the copy stream."""
        self._stream.synchronize()


def transfer(
    batches: Iterator[Batch], streams: Streams, ahead: int = 2
) -> Generator[Batch, None, None]:
    """The same batches on the device, copied up to ``ahead`` batches before they are taken.

    An error of ``batches`` comes in its turn, behind the batches before it.
    """
    started: deque[tuple[Batch, Any]] = deque()
    held: deque[tuple[Batch, Any]] = deque()  # lent batches whose copy may still be reading
    failed: DataError | None = None
    try:
        for lent in _until_error(batches):
            if isinstance(lent, DataError):
                failed = lent
                break
            device = Batch(*(streams.start_copy(field) for field in lent))
            event = streams.mark()
            started.append((device, event))
            held.append((lent, event))
            del lent
            while held and streams.has_passed(held[0][1]):
                held.popleft()
            if len(started) > ahead:
                yield _hand_over(started, streams)
        while started:
            yield _hand_over(started, streams)
        if failed:
            raise failed
    finally:
        streams.finish()


def _until_error(batches: Iterator[Batch]) -> Iterator[Batch | DataError]:
    try:
        yield from batches
    except DataError as error:
        yield error


def _hand_over(started: deque[tuple[Batch, Any]], streams: Streams) -> Batch:
    device, event = started.popleft()
    streams.hand_over(event, tuple(device))
    return device
