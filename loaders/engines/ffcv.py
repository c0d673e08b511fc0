"""The FFCV engine: FFCV's file and pipeline graph with our decoders, threads and order.

The only module that imports `ffcv`. Stock FFCV decodes with a fast but inexact DCT, cannot
make gray images, ignores decoding errors, hangs when its thread raises and hands out buffers
that it will overwrite. This module replaces each of these parts.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numba.typed
import numpy as np
import torch

from maskdepth.convert.beton import check_structure
from maskdepth.convert.errors import DataError, RecordError
from maskdepth.convert.jpeg.difference import NO_RECORDS, Decoding
from maskdepth.convert.layout import CHANNELS, FIELDS
from maskdepth.convert.shards import Shards
from maskdepth.convert.storage import CODECS
from maskdepth.loaders.base import ShardLoader
from maskdepth.loaders.batch import Batch
from maskdepth.loaders.buffers import BufferPool
from maskdepth.loaders.options import LoaderOptions
from maskdepth.loaders.threads import Pending, ThreadTeam
from maskdepth.loaders.transfer import CudaStreams, transfer
from maskdepth.loaders.turbojpeg import decode_samples, free_handles, new_handles

_torch_threads, _TypedDict = torch.get_num_threads(), numba.typed.Dict
# `import ffcv` fills a typed dictionary of two entries, which FFCV reads in Python alone. Numba
# would compile it in each process: 5 s of CPU time.
numba.typed.Dict = dict
try:
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
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
    numba.typed.Dict = _TypedDict
    torch.set_num_threads(_torch_threads)  # `import ffcv` sets it to 1

_AHEAD = 4  # batches that are decoded while the user has one
_SMALLEST_PIECE = 16
"""Samples of a batch that a thread decodes at once, at least. Starting a piece takes Python about
15 us, in which no other thread runs Python. Threads without a piece of a batch take the next one.
"""


class _Decoding(NamedTuple):
    """A batch that is being decoded; `fields` and `valid` are filled when `pending` is done."""

    indices: np.ndarray
    fields: tuple[np.ndarray, ...]  # uint8 (B, H, W, C) each, in the order of FIELDS
    valid: np.ndarray  # bool (B, fields): whether each field decoded
    pending: Pending


class _DecodeSamples(SimpleRGBImageDecoder):
    """All fields of a batch, exactly as Pillow decodes them, in one FFCV operation.

    It takes the place of the decoder of fg_bg and decodes mask and depth too: so a thread has
    one piece of work for each batch instead of three. It starts the work without waiting for it.

    fails_check: whether some samples fail their checksums; then none of them is decoded.
    team: the threads that decode; set at the start of an epoch.
    """

    team: ThreadTeam

    def __init__(
        self, shards: Shards, handles: np.ndarray, fails_check: Callable[[np.ndarray], bool]
    ) -> None:
        super().__init__()
        self._shape = (shards.manifest.layout.height, shards.manifest.layout.width)
        self._mask_is_jpeg = CODECS[shards.codecs["mask"]].is_jpeg
        self._shards, self._handles, self._fails_check = shards, handles, fails_check
        # Each thread has decoders of its own, and all share the decoded bases.
        shared = [_decoding(shards, name) for name in ("fg_bg", "depth")]
        self._decodings = [tuple(d.of_thread() for d in shared) for _ in handles]

    def declare_state_and_memory(
        self, previous_state: State
    ) -> tuple[State, tuple[AllocationQuery, ...]]:
        """One uint8 image (H, W, C) for each field and sample."""
        shapes = [(*self._shape, CHANNELS[name]) for name in FIELDS]
        state = replace(previous_state, jit_mode=True, shape=shapes[0], dtype=np.dtype("u1"))
        return state, tuple(AllocationQuery(shape, np.dtype("u1")) for shape in shapes)

    def generate_code(self) -> Callable[..., _Decoding]:
        """A function with FFCV's calling convention; our index says where the records are."""

        def decode(
            indices: np.ndarray, out: tuple[np.ndarray, ...], metadata: np.ndarray, state: None
        ) -> _Decoding:
            file, records = np.asarray(self._shards.files[0]), self._shards.records
            backgrounds = self._shards.manifest.layout.background_of(indices)
            valid = np.zeros((len(indices), len(FIELDS)), np.bool_)

            def work(thread: int, first: int, last: int) -> None:
                if self._fails_check(indices[first:last]):
                    return
                decode_samples(
                    self._handles[thread], self._decodings[thread], file, records, indices,
                    backgrounds, first, last, self._shape, self._mask_is_jpeg, out, valid,
                )  # fmt: skip

            pending = self.team.start(work, len(indices), _SMALLEST_PIECE)
            return _Decoding(indices, out, valid, pending)

        return decode


def _decoding(shards: Shards, name: str) -> Decoding:
    """What the records of a field are decoded with; of no background if it has JPEGs alone."""
    return shards.bases[name].decoding() if name in shards.bases else NO_RECORDS


class _HeaderReader(Reader):
    """FFCV's reader without its allocation table (29 MB at 400,000 samples), which is not used."""

    def read_allocation_table(self) -> None:
        """Do not read it."""


class _FreeBuffers(BufferPool):
    """Lets FFCV's graph take a free buffer where it would take the next of a fixed rotation."""

    def __getitem__(self, slot: int) -> np.ndarray:
        return self.take()


class _Pipeline:
    """FFCV's graph with our operation, built once for all epochs.

    The operation calls a kernel that numba caches on disk. So FFCV's own compilation, which takes
    1 to 2 s for each loader, is switched off while the graph is made.
    """

    def __init__(
        self, path: Path, batch_size: int, operation: _DecodeSamples, pinned: bool
    ) -> None:
        self.operation = operation
        reader = _HeaderReader(str(path))
        specs = {FIELDS[0]: PipelineSpec(FIELDS[0], decoder=operation)}
        places = {name: place for place, name in enumerate(reader.handlers)}
        graph = Graph(specs, reader.handlers, places, reader.metadata, None)
        Compiler.set_enabled(False)
        try:
            queries, stages = graph.collect_requirements()
            code = graph.codegen_all(stages)
        finally:
            Compiler.set_enabled(True)
        buffers = {
            node: tuple(
                _FreeBuffers((batch_size, *field.shape), field.dtype, pinned=pinned)
                for field in fields
            )
            for node, fields in queries["operation"].items()
        }
        self._state = SimpleNamespace(
            loader=SimpleNamespace(code=code),
            metadata=reader.metadata,
            # FFCV announces each batch to its memory manager. Our file is memory-mapped instead.
            memory_context=SimpleNamespace(start_batch=lambda batch: None),
            memory_allocations={"operation": buffers, "shared": dict.fromkeys(buffers)},
            storage_state=None,
            # FFCV expects a stream where there is a GPU; none of our work runs on it.
            cuda_streams=[torch.cuda.current_stream() if IS_CUDA else None],
        )

    def start(self, indices: np.ndarray) -> _Decoding:
        """Start to decode a batch: FFCV's step for one, without the thread that it runs in."""
        decoded: tuple[_Decoding] = EpochIterator.run_pipeline(self._state, 0, indices, 0, None)
        return decoded[0]


class FFCVLoader(ShardLoader):
    """Batches decoded by our operation in FFCV's pipeline."""

    def __init__(self, shards: str | Path, options: LoaderOptions) -> None:
        opened = Shards(shards, "ffcv")
        for problem in check_structure(opened):
            raise DataError(f"{problem}; pack again")
        super().__init__(opened, options)
        self._handles = new_handles(self.num_workers)
        operation = _DecodeSamples(opened, self._handles, self._fails_check)
        # Freed with the operation, because all pending work refers to it. Not at exit, when
        # threads may still be decoding.
        self._free = weakref.finalize(operation, free_handles, self._handles)
        self._free.atexit = False
        path, pinned = opened.folder / opened.names[0], self.device.type == "cuda"
        self._pipeline = _Pipeline(path, options.batch_size, operation, pinned)

    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        on_gpu = self.device.type == "cuda"
        with closing(self._host_batches(epoch, start)) as host:
            yield from transfer(host, CudaStreams(self.device)) if on_gpu else host

    def _host_batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        samples = (self._samples(epoch, k) for k in range(start, len(self.steps)))
        started = map(self._pipeline.start, samples)
        with closing(ThreadTeam(self.num_workers, "maskdepth-decode")) as team:
            self._pipeline.operation.team = team
            ahead = deque(islice(started, _AHEAD))
            while ahead:
                ahead.extend(islice(started, 1))
                decoding = ahead.popleft()
                decoding.pending.wait()
                self.shards.require_complete(decoding.indices)
                if not decoding.valid.all():
                    row, field = np.argwhere(~decoding.valid)[0].tolist()
                    sample, name = int(decoding.indices[row]), FIELDS[field]
                    where = self.shards.where(sample, name)
                    raise RecordError(sample, name, where, "does not decode")
                fg_bg, mask, depth = (
                    torch.from_numpy(field).permute(0, 3, 1, 2) for field in decoding.fields
                )
                index = torch.from_numpy(decoding.indices)
                if self.device.type == "cuda":
                    index = index.pin_memory()
                del decoding
                yield Batch(fg_bg, mask, depth, index)
                del fg_bg, mask, depth  # so that their buffers are free for the next batch

    def close(self) -> None:
        if not self._closed:
            super().close()
            self._free()
