"""Copies batches from borrowed memory to a GPU while the previous batches are computed on.

Borrowed are the pinned host memory of the FFCV engine and the GPU memory of DALI, which both
engines reuse once it is released. Copies run on a stream of their own. Two rules must hold, and are
tested without a GPU by a fake `Streams`: nothing computes on a batch before its copy has ended, and
no borrowed memory is released before the copy that reads it has ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeVar

import torch

from maskdepth.convert.errors import DataError
from maskdepth.loaders.batch import Batch

Event = TypeVar("Event")


class Streams(Protocol[Event]):
    """What a transfer needs of a device.

    copying: a context in which the copy stream, its value, is the current stream.
    start_copy: starts to copy on the copy stream; returns the tensor on the device at once.
    mark: an event after all copies started so far.
    has_passed: whether the copies before an event have ended; does not wait.
    hand_over: makes the current stream wait for an event, and own the tensors from then on.
    finish: waits for all copies, after which borrowed memory may be released.
    """

    def copying(self) -> AbstractContextManager[object]: ...
    def start_copy(self, borrowed: torch.Tensor) -> torch.Tensor: ...
    def mark(self) -> Event: ...
    def has_passed(self, event: Event) -> bool: ...
    def hand_over(self, event: Event, tensors: tuple[torch.Tensor, ...]) -> None: ...
    def finish(self) -> None: ...


class CudaStreams:
    """A copy stream beside the current stream of one GPU; the methods are those of `Streams`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def copying(self) -> Iterator[torch.cuda.Stream]:
        with torch.cuda.stream(self._stream):
            yield self._stream

    def start_copy(self, borrowed: torch.Tensor) -> torch.Tensor:
        # Asynchronous from pinned and from GPU memory; strides stay the same.
        with self.copying():
            return borrowed.to(self._device, non_blocking=True, copy=True)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def has_passed(self, event: torch.cuda.Event) -> bool:
        return bool(event.query())

    def hand_over(self, event: torch.cuda.Event, tensors: tuple[torch.Tensor, ...]) -> None:
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        for tensor in tensors:
            # Allocated on the copy stream: without this a later copy could get their memory
            # while the current stream still reads it.
            tensor.record_stream(current)

    def finish(self) -> None:
        self._stream.synchronize()


def transfer(
    batches: Iterator[Batch], streams: Streams[Event], ahead: int = 2
) -> Generator[Batch, None, None]:
    """The same batches on the device, copied up to ``ahead`` batches before they are taken.

    An error of ``batches`` is raised in its turn, after the batches before it.
    """
    started: deque[tuple[Batch, Event]] = deque()
    held: deque[tuple[Batch, Event]] = deque()  # borrowed batches that a copy may still read

    def take() -> Batch:
        device, event = started.popleft()
        streams.hand_over(event, tuple(device))
        return device

    failed: DataError | None = None
    try:
        try:
            for borrowed in batches:
                device = Batch(*(streams.start_copy(field) for field in borrowed))
                event = streams.mark()
                started.append((device, event))
                held.append((borrowed, event))
                del borrowed
                while held and streams.has_passed(held[0][1]):
                    held.popleft()
                if len(started) > ahead:
                    yield take()
        except DataError as error:
            failed = error
        while started:
            yield take()
        if failed:
            raise failed
    finally:
        streams.finish()
