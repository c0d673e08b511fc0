"""The FFCV engine: FFCV's file, pipeline graph and reader thread; our decoders and order.

The only module that imports `ffcv`. Stock FFCV decodes with a fast but inexact DCT, cannot
make gray images, ignores decoding errors, hangs when its thread raises and hands out buffers
that it will overwrite; what stands here instead is each of these done right.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, NamedTuple

import numpy as np
import torch

from convert.beton import check_structure
from convert.errors import DataError, RecordError
from convert.layout import FIELDS
from convert.shards import Shards
from loaders.base import ShardLoader
from loaders.batch import Batch
from loaders.buffers import BufferPool
from loaders.options import LoaderOptions
from loaders.threads import Pending, ThreadTeam
from loaders.transfer import CudaStreams, transfer
from loaders.turbojpeg import decode_samples, free_handles, new_handles

_torch_threads = torch.get_num_threads()
try:
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader as StockLoader
    from ffcv.loader.epoch_iterator import IS_CUDA, EpochIterator
    from ffcv.pipeline import Compiler, PipelineSpec
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.graph import Graph
    from ffcv.pipeline.state import State
    from ffcv.reader import Reader
except ImportError as error:
    raise DataError(
        f"FFCV cannot be imported ({error}); `make install` says how to install it, "
        "or use another --loader"
    ) from None
finally:
    torch.set_num_threads(_torch_threads)  # `import ffcv` sets it to 1

_AHEAD = 3
_POLL_S = 0.05
_CHANNELS = {"fg_bg": 3, "mask": 1, "depth": 1}


class _Decoding(NamedTuple):
    """A batch that is being decoded: where to, and what of it was good when it is done."""

    indices: np.ndarray
    fields: tuple[np.ndarray, ...]  # uint8 (B, H, W, C) each, in the order of FIELDS
    good: np.ndarray  # bool (B, fields)
    pending: Pending


class _DecodeSamples(SimpleRGBImageDecoder):
    """All fields of a batch, exactly as Pillow decodes them, in one FFCV operation.

    Stands in the pipeline of fg_bg and decodes mask and depth along: then a thread has one piece
    of work a batch instead of three. It begins the work and does not wait for it.

    is_bad: whether some samples are damaged; they are then not decoded, and none is good.
    team: the threads that decode; set at the start of an epoch.
    """

    team: ThreadTeam

    def __init__(
        self,
        shards: Shards,
        handles: np.ndarray,
        is_bad: Callable[[np.ndarray], bool],
    ) -> None:
        super().__init__()
        layout = shards.manifest.layout
        self._shape = (layout.height, layout.width)
        self._mask_is_jpeg = shards.manifest.codecs["mask"] != "runs"
        self._shards, self._handles, self._is_bad = shards, handles, is_bad

    def declare_state_and_memory(
        self, previous_state: State
    ) -> tuple[State, tuple[AllocationQuery, ...]]:
        """One uint8 image (H, W, C) a field and sample."""
        shapes = [(*self._shape, _CHANNELS[name]) for name in FIELDS]
        state = replace(previous_state, jit_mode=True, shape=shapes[0], dtype=np.dtype("u1"))
        return state, tuple(AllocationQuery(shape, np.dtype("u1")) for shape in shapes)

    def generate_code(self) -> Callable[..., _Decoding]:
        """FFCV's calling convention; where the records lie we know from the index."""

        def decode(
            indices: np.ndarray, out: tuple[np.ndarray, ...], metadata: np.ndarray, state: None
        ) -> _Decoding:
            file, records = np.asarray(self._shards.files[0]), self._shards.records[indices]
            offsets, sizes = (
                np.stack([records[name][what].astype(np.int64) for name in FIELDS], 1)
                for what in ("offset", "size")
            )
            good = np.zeros(offsets.shape, np.bool_)

            def work(thread: int, first: int, last: int) -> None:
                if self._is_bad(indices[first:last]):
                    return
                decode_samples(
                    self._handles[thread], file, offsets, sizes, first, last,
                    self._shape, self._mask_is_jpeg, out, good,
                )  # fmt: skip

            return _Decoding(indices, out, good, self.team.start(work, len(indices)))

        return decode


class _Header(Reader):
    """FFCV's reader without its allocation table: nothing of ours asks it for sizes."""

    def read_allocation_table(self) -> None:
        """Leave it in the file: 29 MB at 400,000 samples."""


class _Slots:
    """Lets FFCV's graph take a free buffer where it would take one of a fixed rotation."""

    def __init__(self, pool: BufferPool) -> None:
        self._pool = pool

    def __getitem__(self, slot: int) -> np.ndarray:
        return self._pool.take()


class _Engine(StockLoader):
    """FFCV's loader with our operation, built once for the whole run.

    The operation calls a kernel that numba keeps compiled on disk, so FFCV's own compilation,
    1 to 2 s for each loader, is switched off while the graph is made.
    """

    def __init__(
        self, path: Path, batch_size: int, operation: _DecodeSamples, pinned: bool
    ) -> None:
        self.batch_size, self.operation = batch_size, operation
        self.reader = _Header(str(path))
        names = list(self.reader.handlers)
        self.pipeline_specs = {FIELDS[0]: PipelineSpec(FIELDS[0], decoder=operation)}
        places = {name: place for place, name in enumerate(names)}
        self.graph = Graph(
            self.pipeline_specs, self.reader.handlers, places, self.reader.metadata, None
        )
        Compiler.set_enabled(False)
        try:
            self.generate_code()
        finally:
            Compiler.set_enabled(True)
        queries, _ = self.graph.collect_requirements()
        self.pools = {
            node: tuple(
                _Slots(BufferPool((batch_size, *query.shape), query.dtype, pinned=pinned))
                for query in fields
            )
            for node, fields in queries["operation"].items()
        }


class _Epoch(EpochIterator):
    """FFCV's reader thread, made safe: errors come over, no thread stays, no buffer is reused.

    batches: indices of each batch, taken as they are needed.
    """

    def __init__(self, engine: _Engine, batches: Iterator[np.ndarray], threads: int) -> None:
        Thread.__init__(self, daemon=True, name="maskdepth-ffcv")
        self.loader, self.metadata = engine, engine.reader.metadata
        self._batches = batches
        self.memory_context, self.storage_state = _NoMemory(), None
        self.memory_allocations = {
            "operation": engine.pools,
            "shared": dict.fromkeys(engine.pools),
        }
        # FFCV wants a stream where there is a GPU; nothing of ours runs on it.
        self.cuda_streams = [torch.cuda.current_stream() if IS_CUDA else None]
        self.output_queue: Queue[Any] = Queue(_AHEAD)
        self.terminate_event = Event()
        self.closed = False
        self._team = engine.operation.team = ThreadTeam(threads, "maskdepth-decode")
        self.start()

    def run(self) -> None:
        """The thread: begin to decode ahead, hand over, and hand over whatever went wrong."""
        try:
            for number, indices in enumerate(self._batches):
                (decoding,) = self.run_pipeline(number, indices, 0, None)
                if not self._put(decoding):
                    return
                del decoding
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: object) -> bool:
        while not self.terminate_event.is_set():
            try:
                self.output_queue.put(item, timeout=_POLL_S)
            except Full:
                continue
            return True
        return False

    def __next__(self) -> _Decoding:
        """The next batch, decoded."""
        item = self.output_queue.get()
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        item.pending.wait()
        return item

    def close(self) -> None:
        """End the threads and wait for them."""
        self.terminate_event.set()
        while True:
            try:
                self.output_queue.get_nowait()
            except Empty:
                break
        if self.ident is not None:
            self.join()
        self._team.close()

    def __del__(self) -> None:
        """Nothing: FFCV's own would close an epoch that Ctrl-C left half made."""


class _NoMemory:
    """FFCV tells its memory manager of each batch; ours is the memory map, it needs no telling."""

    def start_batch(self, batch: int) -> None:
        """Nothing to load."""


class FFCVLoader(ShardLoader):
    """Batches decoded by our operation in FFCV's pipeline."""

    def __init__(self, shards: str | Path, options: LoaderOptions) -> None:
        opened = Shards(shards, "ffcv")
        for fault in check_structure(opened):
            raise DataError(f"{fault}; pack again")
        super().__init__(opened, options)
        self._handles = new_handles(self.num_workers)
        operation = _DecodeSamples(opened, self._handles, self._is_bad)
        # Of the operation, which every piece of work holds: nothing decodes when it is gone. At
        # exit something may.
        self._free = weakref.finalize(operation, free_handles, self._handles)
        self._free.atexit = False
        path = opened.folder / opened.names[0]
        pinned = self.device.type == "cuda"
        self._engine = _Engine(path, options.batch_size, operation, pinned)

    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        host = self._host_batches(epoch, start)
        try:
            if self.device.type == "cuda":
                yield from transfer(host, CudaStreams(self.device))
            else:
                yield from host
        finally:
            host.close()

    def _host_batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        batches = (self._samples(epoch, k) for k in range(start, len(self)))
        running = _Epoch(self._engine, batches, self.num_workers)
        try:
            for decoding in running:
                if not decoding.good.all():
                    raise self._first_bad(decoding)
                fg_bg, mask, depth = (
                    torch.from_numpy(field).permute(0, 3, 1, 2) for field in decoding.fields
                )
                index = torch.from_numpy(decoding.indices)
                if self.device.type == "cuda":
                    index = index.pin_memory()
                del decoding
                yield Batch(fg_bg=fg_bg, mask=mask, depth=depth, index=index)
                del fg_bg, mask, depth  # so that their buffers are free for the next
        finally:
            running.close()

    def _first_bad(self, decoding: _Decoding) -> RecordError:
        place, field = np.argwhere(~decoding.good)[0].tolist()
        index, name = int(decoding.indices[place]), FIELDS[field]
        return RecordError(index, name, self.shards.where(index, name), "does not decode")

    def close(self) -> None:
        """End the threads and give back libjpeg-turbo's handles."""
        if not self._closed:
            super().close()
            self._free()
