"""The DALI engine: our order and bytes, DALI's decoders, on the CPU or (`mixed`) on the GPU.

The only module that imports `nvidia.dali`. Batches are fed to an external source, so the order,
resuming and the last batch are ours; DALI works ``_AHEAD`` batches ahead.

Corrupt bytes should not reach its decoder on a GPU: nvJPEG 13.4 Update 1 "fixed parsing issues that
could cause crashes or hangs when decoding malformed JPEG bitstreams" (its release notes), and
`constraints.txt` has 13.3. A crash or a hang cannot be turned into an error that names the record.
"""

from __future__ import annotations

import ctypes
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from maskdepth.convert.errors import DataError, RecordError
from maskdepth.convert.interrupts import interrupt_later
from maskdepth.convert.layout import FIELDS, MASK_THRESHOLD
from maskdepth.convert.manifest import read_manifest
from maskdepth.convert.shards import Shards
from maskdepth.convert.storage import CODECS
from maskdepth.loaders.base import ShardLoader
from maskdepth.loaders.batch import Batch
from maskdepth.loaders.buffers import BufferPool
from maskdepth.loaders.engines.dali_memory import (
    DECODER_THREADS,
    DecoderMemory,
    buffer_bytes,
    predict_memory,
    require_memory,
)
from maskdepth.loaders.masks import pad_runs, unpack_batch
from maskdepth.loaders.memory import free_bytes
from maskdepth.loaders.options import LoaderOptions
from maskdepth.loaders.threads import default_threads, local_ranks
from maskdepth.loaders.transfer import CudaStreams, transfer

try:
    from nvidia.dali import Pipeline as Pipeline  # dali_stream imports it from here
    from nvidia.dali import backend, fn, pipeline_def, types
    from nvidia.dali.tensors import TensorListCPU, TensorListGPU
except ImportError as error:
    _cuda = (torch.version.cuda or "13").split(".")[0]  # a build without CUDA fits either
    raise DataError(
        f"DALI cannot be imported ({error}); install it for the CUDA of torch with "
        f"`pip install 'maskdepth[dali-cu{_cuda}]'`, or use another --loader"
    ) from None

CORRUPT = "a record of this batch is corrupt"  # `CorruptRecords.walk` finds out which one
_AHEAD = 2


def _gpu_options(height: int, width: int, hw_decoder_load: float | None) -> dict[str, float]:
    """Options that only decoders on a GPU have: memory for images of this size, and the load."""
    buffer = buffer_bytes(height, width)
    load = {} if hw_decoder_load is None else {"hw_decoder_load": hw_decoder_load}
    return {
        "preallocate_width_hint": width, "preallocate_height_hint": height,
        "device_memory_padding": buffer, "host_memory_padding": buffer, **load,
    }  # fmt: skip


@pipeline_def
def _graph(
    source: Callable[[], list], device: str, mask_is_jpeg: bool, height: int, width: int,
    hw_decoder_load: float | None = None,
) -> tuple[object, ...]:  # fmt: skip
    """fg_bg (H, W, 3); the mask, decoded to (H, W, 1) or as run lengths; depth (H, W, 1).

    source: returns the stored fields of the next batch, in the order of `FIELDS`.
    device: "cpu", or "mixed" for decoding on the GPU.
    hw_decoder_load: see `LoaderOptions`; not used on the CPU.
    """
    # Fancy upsampling and no rotation, as in Pillow and in the CPU decoder, on every device.
    decode = partial(
        fn.decoders.image, device=device, adjust_orientation=False, jpeg_fancy_upsampling=True,
        **(_gpu_options(height, width, hw_decoder_load) if device == "mixed" else {}),
    )  # fmt: skip
    fg_bg, mask, depth = fn.external_source(
        source, num_outputs=len(FIELDS), batch=True, dtype=types.UINT8
    )
    if mask_is_jpeg:
        mask = decode(mask, output_type=types.GRAY)
    elif device == "mixed":
        mask = mask.gpu()
    gray = decode(depth, output_type=types.GRAY)
    return decode(fg_bg, output_type=types.RGB), mask, gray


@pipeline_def
def reading_graph(
    paths: list[str], index_paths: list[str], extensions: list[str], window: int, window_seed: int
) -> tuple[object, ...]:
    """Stored bytes of the fields of webdataset shards, read one after the other.

    window: samples among which DALI shuffles as it reads; 0 keeps the order of the shards.
    """
    # Without a memory map, because a mapped network file is read page by page.
    fields = fn.readers.webdataset(
        paths=paths, index_paths=index_paths, ext=extensions, missing_component_behavior="error",
        random_shuffle=window > 0, initial_fill=max(window, 1), seed=window_seed,
        dont_use_mmap=True,
    )  # fmt: skip
    assert fields is not None
    return tuple(fields)


class Stored(NamedTuple):
    """The stored bytes of one batch.

    indices: int64 (B,). fields: for each of `FIELDS` B arrays, uint8 and flat.
    replaced: errors of the records for which others are in the batch.
    failed: why the batch cannot be decoded; raised when it is its turn.
    """

    indices: np.ndarray
    fields: list[list[np.ndarray]]
    replaced: list[RecordError]
    failed: DataError | None = None


class DALILoader(ShardLoader):
    """Batches decoded by DALI from tar shards, or from an FFCV file of JPEGs."""

    def __init__(self, shards: Shards | str | Path, options: LoaderOptions) -> None:
        if not isinstance(shards, Shards):
            form = read_manifest(shards).jpeg_format
            if form is None:
                raise DataError(
                    f"{shards}: stores images as differences, which DALI cannot decode; pack again "
                    "with --codec jpeg or --format webdataset, or use --loader ffcv"
                )
            shards = Shards(shards, form)
        super().__init__(shards, options)
        self._mask_is_jpeg = CODECS[self.shards.codecs["mask"]].is_jpeg
        self._plan: Generator[Stored, None, None] | None = None
        self._fed: deque[Stored] = deque()
        self._drained = True
        shape = (options.batch_size, 1, self.layout.height, self.layout.width)
        self._masks = BufferPool(shape, np.dtype(np.uint8))
        self._streams = CudaStreams(self.device) if self.device.type == "cuda" else None
        if self.device.type == "cuda":
            self._require_memory()
        self._pipeline = self._build()

    def _default_workers(self) -> int:
        on_gpu = self.device.type == "cuda"
        return min(default_threads(), DECODER_THREADS) if on_gpu else default_threads()

    def _require_memory(self) -> None:
        needed = predict_memory(
            self.layout.height, self.layout.width, decoders=3 if self._mask_is_jpeg else 2,
            threads=self.num_workers, batch_size=self.order.options.batch_size, ahead=_AHEAD,
            ranks=local_ranks(),
        )  # fmt: skip
        torch.cuda.empty_cache()  # DALI cannot use what torch keeps for itself
        free = DecoderMemory(free_bytes(self.device), free_bytes(torch.device("cpu")))
        where = f"{self.shards.folder} on {self.device}"
        require_memory(needed, free, self.num_workers, where)

    def _build(self) -> Pipeline:
        on_gpu = self.device.type == "cuda"
        pipeline = _graph(
            source=self._next_fields, device="mixed" if on_gpu else "cpu",
            mask_is_jpeg=self._mask_is_jpeg, height=self.layout.height, width=self.layout.width,
            hw_decoder_load=self.order.options.hw_decoder_load,
            batch_size=self.order.options.batch_size, num_threads=self.num_workers,
            device_id=self.device.index if on_gpu else None, prefetch_queue_depth=_AHEAD,
        )  # fmt: skip
        return built(pipeline)

    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        decoded = self._decoded(epoch, start)
        # On a GPU DALI reuses the memory of a batch as soon as Python drops it, even if torch has
        # not read it yet; on a CPU no reader is asynchronous. `ahead=0`: DALI prefetches.
        ours = transfer(decoded, self._streams, ahead=0) if self._streams else decoded
        with closing(decoded), closing(ours):
            for batch in ours:
                yield batch._replace(mask=self._mask(batch.mask)) if len(batch.index) else batch

    def _decoded(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        """Batches in DALI's memory, ``mask`` as the graph outputs it."""
        if not self._drained:  # Ctrl-C or a failure left the pipeline in the middle of a step
            self._end_plan()
            shut_down(self._pipeline)
            self._pipeline = self._build()
        self._plan = self._stored(epoch, start)
        self._drained = False
        try:
            self._pipeline.schedule_run()
            for k in range(start, len(self.steps)):
                # Only the last step can be too small to give every rank a sample.
                if self.steps.size(k):
                    batch = self._take()
                    self._pipeline.schedule_run()
                    yield batch
                else:
                    yield self._empty_batch()
        except (DataError, GeneratorExit):
            self._drain()
            raise
        else:
            self._drain()

    def _empty_batch(self) -> Batch:
        height, width = self.layout.height, self.layout.width
        images = torch.empty(0, 3, height, width, dtype=torch.uint8, device=self.device)
        index = torch.empty(0, dtype=torch.int64, device=self.device)
        return Batch(images, images[:, :1], images[:, :1], index)

    def _stored(self, epoch: int, start: int) -> Generator[Stored, None, None]:
        """Stored bytes of the batches from ``start`` on; DataError at a corrupt record."""
        files = [np.asarray(file) for file in self.shards.files]
        for k in range(start, len(self.steps)):
            indices = self._samples(epoch, k)
            if self._fails_check(indices):
                raise DataError(CORRUPT)
            records = self.shards.records[indices]
            fields = []
            for name in FIELDS:
                columns = (records[name][key].tolist() for key in ("file", "offset", "size"))
                spans = zip(*columns, strict=True)
                fields.append([files[file][at : at + size] for file, at, size in spans])
            if len(indices):
                yield Stored(indices, fields, [])

    def _next_fields(self) -> list[np.ndarray | list[np.ndarray]]:
        """The external source of DALI: the stored fields of the next batch, or StopIteration."""
        stored = Stored(np.empty(0, np.int64), [], [])
        try:
            stored = next(self._plan or iter(()))
            fields: list[np.ndarray | list[np.ndarray]] = [*stored.fields]
            if not self._mask_is_jpeg:
                place = FIELDS.index("mask")
                fields[place] = runs = pad_runs(stored.fields[place])
                # Summed here on the host: on the GPU the check would cost a synchronisation.
                pixels = self.layout.height * self.layout.width
                if (runs.sum(axis=1, dtype=np.int64) != pixels).any():
                    raise DataError(CORRUPT)
        except DataError as error:
            # DALI works ahead: `_take` raises the error when it is the turn of this batch.
            self._fed.append(stored._replace(failed=error))
            raise StopIteration from None
        self._fed.append(stored)
        return fields

    def _take(self) -> Batch:
        """The outputs of the graph, in DALI's memory; the host waits for no GPU."""
        stored = self._fed.popleft()
        if stored.failed:
            raise stored.failed
        with self._streams.copying() if self._streams else nullcontext() as stream:
            try:
                outputs = self._pipeline.outputs(cuda_stream=stream)
            except RuntimeError as failure:
                where = f"{self.shards.folder}: samples {stored.indices.tolist()}"
                raise DataError(f"{where}: DALI failed: {first_line(failure)}") from None
            self.shards.require_complete(stored.indices)
            self._check_sizes(outputs, stored.indices)
            fg_bg, mask, depth = (_to_torch(output, stream) for output in outputs)
        for error in stored.replaced:
            self._corrupt.skip(error)
        index = torch.from_numpy(stored.indices)
        if self.device.type == "cuda":
            index = index.pin_memory()
        return Batch(fg_bg.permute(0, 3, 1, 2), mask, depth.permute(0, 3, 1, 2), index)

    def _mask(self, mask: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 1, H, W), 0 or 1, from the output of the graph."""
        if self._mask_is_jpeg:
            return (mask.permute(0, 3, 1, 2) >= MASK_THRESHOLD).to(torch.uint8)
        return unpack_batch(mask, self.layout.height, self.layout.width, self._masks)

    def _check_sizes(
        self, outputs: Sequence[TensorListCPU | TensorListGPU], indices: np.ndarray
    ) -> None:
        """RecordError for an image whose header has another size: DALI decodes any size."""
        height, width = self.layout.height, self.layout.width
        for name, output in zip(FIELDS, outputs, strict=True):
            if name == "mask" and not self._mask_is_jpeg:
                continue
            for index, shape in zip(indices.tolist(), output.shape(), strict=True):
                if shape[:2] != (height, width):
                    found = f"found {shape[1]}x{shape[0]} pixels, expected {width}x{height}"
                    raise RecordError(index, name, self.shards.where(index, name), found)

    def _drain(self) -> None:
        """Discard what is left in the pipeline, so that the next epoch starts with its own."""
        # If a loader is dropped in a reference cycle and not closed, its pipeline may go first.
        if sys.is_finalizing() or self._pipeline._pipe is None:
            return
        self._end_plan()
        try:
            self._pipeline.schedule_run()
            while True:
                self._pipeline.outputs()
        except StopIteration:
            self._pipeline.reset()
            self._drained = True
        except RuntimeError:
            pass  # the next epoch builds another pipeline

    def _end_plan(self) -> None:
        if self._plan is not None:
            self._plan.close()
        self._fed.clear()

    def close(self) -> None:
        if not self._closed:
            super().close()
            self._end_plan()
            shut_down(self._pipeline)
            with interrupt_later():
                del self._pipeline
            if self._process == os.getpid():  # else a thread that is not here may hold its lock
                # Pools of freed blocks stay otherwise. DALI's type stub lacks the function.
                backend.ReleaseUnusedMemory()  # type: ignore[attr-defined]


_live: weakref.WeakSet[Pipeline] = weakref.WeakSet()
"""Pipelines that are built; those of a parent process are not among them."""


def built(pipeline: Pipeline) -> Pipeline:
    """The pipeline, built, with its threads."""
    pipeline.build()
    _live.add(pipeline)
    return pipeline


def _abandon_pipelines() -> None:
    """In a forked child, take the pipelines from DALI, which would wait for the parent's threads.

    It would do so when they are dropped or the child exits, and so hang or abort the process.
    """
    for pipeline in _live:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(pipeline._pipe))  # never destroyed
        pipeline._pipe = None
    _live.clear()


os.register_at_fork(after_in_child=_abandon_pipelines)


def shut_down(pipeline: Pipeline) -> None:
    """End the threads of a pipeline, which can take some milliseconds.

    Its ``__del__`` would do so, too, but Python ignores a KeyboardInterrupt in ``__del__``, and in
    the callback of a `WeakSet`.
    """
    pipeline._shutdown()
    _live.discard(pipeline)


def _to_torch(
    output: TensorListCPU | TensorListGPU, stream: torch.cuda.Stream | None
) -> torch.Tensor:
    """An output of equal shapes as one tensor in DALI's memory; ``stream``: where a GPU reads it.

    The capsule is asked for here: to do so itself, torch compares an enum of DALI with one of its
    own. pybind11 then looks up attributes of torch's class, which runs Python code of `enum`, and
    ignores whatever that raises. A Ctrl-C at that moment was lost.
    """
    on_stream = {} if stream is None else {"stream": stream.cuda_stream}
    tensor: Any = output.as_tensor()  # DALI's type stub lacks `__dlpack__`
    return from_dlpack(tensor.__dlpack__(**on_stream))


def first_line(error: Exception) -> str:
    """The first line of one of DALI's long messages that says what failed."""
    text = str(error)
    *_, reason = text.partition("encountered:") if "encountered:" in text else [text]
    return (reason.strip() or type(error).__name__).splitlines()[0]
