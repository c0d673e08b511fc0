"""The FFCV engine: FFCV's file, pipeline graph and reader thread; our decoders and order.

The only module that imports `ffcv`. Stock FFCV decodes with a fast but inexact DCT, cannot
make gray images, ignores decoding errors, hangs when its thread raises and hands out buffers
that it will overwrite; what stands here instead is each of these done right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any

import numba
import numpy as np
import torch

from convert.beton import check_structure
from convert.errors import DataError, RecordError
from convert.shards import Shards
from loaders.base import ShardLoader
from loaders.batch import Batch
from loaders.buffers import BufferPool
from loaders.masks import unpack_records
from loaders.transfer import CudaStreams, transfer
from loaders.turbojpeg import decode_batch, free_handles, new_handles

# FFCV's build brings TBB along, which aborts beside torch's own workers. Set here, not by an
# environment variable: numba may have been imported long before.
numba.config.THREADING_LAYER = "omp"

_torch_threads = torch.get_num_threads()
try:
    from ffcv.fields.bytes import BytesDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader as StockLoader
    from ffcv.loader.epoch_iterator import IS_CUDA, EpochIterator
    from ffcv.pipeline import Compiler, PipelineSpec
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.graph import Graph
    from ffcv.pipeline.state import State
    from ffcv.reader import Reader
    from ffcv.transforms import ToTensor
except ImportError as error:
    raise DataError(
        f"FFCV cannot be imported ({error}); `make install` says how to install it, "
        "or use another --loader"
    ) from None
finally:
    torch.set_num_threads(_torch_threads)  # `import ffcv` sets it to 1

_AHEAD = 3
_POLL_S = 0.05
_THRESHOLD = 128


class _Decoder(ABC):
    """What our decoder operations share: the mapped file, and who is told of a bad record."""

    def __init__(self, shards: Shards, name: str, channels: int) -> None:
        super().__init__()
        layout, records = shards.manifest.layout, shards.records[name]
        self._shards, self._name = shards, name
        self._shape = (layout.height, layout.width, channels)
        self._pixels = layout.height * layout.width
        self._file = np.asarray(shards.files[0])
        self._offsets = np.ascontiguousarray(records["offset"]).astype(np.int64)
        self._sizes = np.ascontiguousarray(records["size"])

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        """One uint8 image (H, W, C) a sample."""
        dtype = np.dtype("u1")
        state = replace(previous_state, jit_mode=True, shape=self._shape, dtype=dtype)
        return state, AllocationQuery(self._shape, dtype)

    def generate_code(self) -> Callable[..., np.ndarray]:
        """FFCV's calling convention; where the records lie we know from the index."""

        def decode(
            indices: np.ndarray, out: np.ndarray, metadata: np.ndarray, state: None
        ) -> np.ndarray:
            good = np.empty(len(indices), np.bool_)
            self._decode(self._offsets[indices], self._sizes[indices], out, good)
            if not good.all():
                index = int(indices[np.argmin(good)])
                where = self._shards.where(index, self._name)
                raise RecordError(index, self._name, where, "does not decode")
            return out

        return decode

    @abstractmethod
    def _decode(
        self, offsets: np.ndarray, sizes: np.ndarray, out: np.ndarray, good: np.ndarray
    ) -> None:
        """Decode records into ``out`` and say in ``good`` which of them decode."""


class _DecodeJpeg(_Decoder, SimpleRGBImageDecoder):
    """JPEG to RGB or luma, exactly as Pillow decodes it."""

    def __init__(self, shards: Shards, name: str, channels: int, handles: np.ndarray) -> None:
        super().__init__(shards, name, channels)
        self._handles = handles

    def _decode(
        self, offsets: np.ndarray, sizes: np.ndarray, out: np.ndarray, good: np.ndarray
    ) -> None:
        decode_batch(self._file, offsets, sizes, out, self._handles, good)


class _DecodeMaskJpeg(_DecodeJpeg):
    """JPEG to a mask: luma of at least 128 is 1."""

    def _decode(
        self, offsets: np.ndarray, sizes: np.ndarray, out: np.ndarray, good: np.ndarray
    ) -> None:
        super()._decode(offsets, sizes, out, good)
        np.greater_equal(out, _THRESHOLD, out=out.view(np.bool_))


class _UnpackRuns(_Decoder, BytesDecoder):
    """Run lengths to a mask."""

    def _decode(
        self, offsets: np.ndarray, sizes: np.ndarray, out: np.ndarray, good: np.ndarray
    ) -> None:
        unpack_records(self._file, offsets, sizes, out.reshape(len(out), self._pixels), good)


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
    """FFCV's loader with our operations, built once for the whole run.

    The operations call kernels that numba keeps compiled on disk, so FFCV's own compilation,
    1 to 2 s for each loader, is switched off while the graph is made.
    """

    def __init__(
        self, path: Path, batch_size: int, operations: dict[str, _Decoder], pinned: bool
    ) -> None:
        self.batch_size = batch_size
        self.reader = _Header(str(path))
        names = list(self.reader.handlers)
        self.pipeline_specs = {
            name: PipelineSpec(name, decoder=operation, transforms=[ToTensor()])
            for name, operation in operations.items()
        }
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
            node: _Slots(BufferPool((batch_size, *query.shape), query.dtype, pinned=pinned))
            for node, query in queries["operation"].items()
            if query is not None
        }
        self.without_memory = [n for n, query in queries["operation"].items() if query is None]


class _Epoch(EpochIterator):
    """FFCV's reader thread, made safe: errors come over, no thread stays, no buffer is reused.

    batches: indices of each batch, taken as they are needed. Yields (indices, tensors).
    """

    def __init__(self, engine: _Engine, batches: Iterator[np.ndarray], threads: int) -> None:
        Thread.__init__(self, daemon=True, name="maskdepth-ffcv")
        self.loader, self.metadata = engine, engine.reader.metadata
        self._batches, self._threads = batches, threads
        self.memory_context, self.storage_state = _NoMemory(), None
        operation = {**engine.pools, **dict.fromkeys(engine.without_memory)}
        shared = dict.fromkeys(operation)
        self.memory_allocations = {"operation": operation, "shared": shared}
        # FFCV wants a stream where there is a GPU; nothing of ours runs on it.
        self.cuda_streams = [torch.cuda.current_stream() if IS_CUDA else None]
        self.output_queue: Queue[Any] = Queue(_AHEAD)
        self.terminate_event = Event()
        self.closed = False
        self.start()

    def run(self) -> None:
        """The thread: decode ahead, hand over, and hand over whatever went wrong."""
        numba.set_num_threads(min(self._threads, numba.config.NUMBA_NUM_THREADS))
        try:
            for number, indices in enumerate(self._batches):
                if not self._put((indices, self.run_pipeline(number, indices, 0, None))):
                    return
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

    def __next__(self) -> tuple[np.ndarray, tuple[torch.Tensor, ...]]:
        item = self.output_queue.get()
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """End the thread and wait for it."""
        self.terminate_event.set()
        while True:
            try:
                self.output_queue.get_nowait()
            except Empty:
                break
        if self.ident is not None:
            self.join()


class _NoMemory:
    """FFCV tells its memory manager of each batch; ours is the memory map, it needs no telling."""

    def start_batch(self, batch: int) -> None:
        """Nothing to load."""


class FFCVLoader(ShardLoader):
    """Batches decoded by our operations in FFCV's pipeline; arguments as `build_loader`."""

    def __init__(self, shards: str | Path, **options: Any) -> None:
        opened = Shards(shards, "ffcv")
        for fault in check_structure(opened):
            raise DataError(f"{fault}; pack again")
        super().__init__(opened, **options)
        self._handles = new_handles(self.num_workers)
        is_jpeg = opened.manifest.codecs["mask"] != "runs"
        operations: dict[str, _Decoder] = {
            "fg_bg": _DecodeJpeg(opened, "fg_bg", 3, self._handles),
            "mask": _DecodeMaskJpeg(opened, "mask", 1, self._handles)
            if is_jpeg
            else _UnpackRuns(opened, "mask", 1),
            "depth": _DecodeJpeg(opened, "depth", 1, self._handles),
        }
        path = opened.folder / opened.names[0]
        pinned = self.device.type == "cuda"
        self._engine = _Engine(path, self.order.batch_size, operations, pinned)

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
        batches = (self._checked(epoch, k) for k in range(start, len(self)))
        running = _Epoch(self._engine, batches, self.num_workers)
        try:
            for indices, fields in running:
                fg_bg, mask, depth = (field.permute(0, 3, 1, 2) for field in fields)
                index = torch.from_numpy(indices)
                if self.device.type == "cuda":
                    index = index.pin_memory()
                yield Batch(fg_bg=fg_bg, mask=mask, depth=depth, index=index)
                del fg_bg, mask, depth, fields  # so that their buffers are free for the next
        finally:
            running.close()

    def _checked(self, epoch: int, k: int) -> np.ndarray:
        indices = self._samples(epoch, k)
        if self._is_bad(indices):
            raise DataError("a record of this batch is damaged")  # which: `_fault` finds out
        return indices

    def close(self) -> None:
        """End the thread and give back libjpeg-turbo's handles."""
        if not self._closed:
            super().close()
            free_handles(self._handles)
