"""The DALI engine: our order and bytes, DALI's decoders, on the CPU or (`mixed`) on the GPU.

The only module that imports `nvidia.dali`. Batches are fed to an external source, so order,
resume and the last batch are ours; DALI works ``_AHEAD`` batches ahead.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from convert.errors import DataError, RecordError
from convert.layout import FIELDS, MASK_THRESHOLD
from convert.manifest import read_manifest
from convert.shards import Shards
from loaders.base import ShardLoader
from loaders.batch import Batch
from loaders.buffers import BufferPool
from loaders.masks import pad_runs, runs_fill, unpack_batch
from loaders.options import LoaderOptions
from loaders.transfer import CudaStreams, Streams, transfer

try:
    from nvidia.dali import fn, pipeline_def, types
except ImportError as error:
    raise DataError(
        f"DALI cannot be imported ({error}); install it with `pip install .[dali-cu13]` "
        "(or dali-cu12 for an older driver), or use another --loader"
    ) from None

# Of a batch; which of its records, the walk over the epoch finds out.
DAMAGED = "a record of this batch is damaged"
_AHEAD = 2


@pipeline_def
def _graph(
    source: Callable[[], list], device: str, mask_is_jpeg: bool, height: int, width: int
) -> tuple[Any, ...]:
    """fg_bg (H, W, 3); the mask, decoded to (H, W, 1) or as run lengths; depth (H, W, 1).

    source: gives the stored fields of the next batch, in the order of `FIELDS`.
    device: "cpu", or "mixed" for decoding on the GPU.
    """
    # Fancy upsampling and no rotation: what Pillow and the CPU decoder do, on every device.
    options: dict[str, Any] = {"device": device, "adjust_orientation": False}
    options["jpeg_fancy_upsampling"] = True
    if device == "mixed":
        options |= {"preallocate_width_hint": width, "preallocate_height_hint": height}
    fg_bg, mask, depth = fn.external_source(
        source, num_outputs=len(FIELDS), batch=True, dtype=types.UINT8
    )
    pixels = fn.decoders.image(fg_bg, output_type=types.RGB, **options)
    if mask_is_jpeg:
        mask = fn.decoders.image(mask, output_type=types.GRAY, **options)
    elif device == "mixed":
        mask = mask.gpu()
    return pixels, mask, fn.decoders.image(depth, output_type=types.GRAY, **options)


@pipeline_def
def reading_graph(
    paths: list[str], index_paths: list[str], extensions: list[str], window: int, window_seed: int
) -> tuple[Any, ...]:
    """Stored bytes of the fields of webdataset shards, read one after the other.

    window: samples that DALI shuffles among as it reads; 0 keeps the order of the shards.
    """
    fields: Any = fn.readers.webdataset(
        paths=paths,
        index_paths=index_paths,
        ext=extensions,
        missing_component_behavior="error",
        random_shuffle=window > 0,
        initial_fill=max(window, 1),
        seed=window_seed,
        dont_use_mmap=True,  # a map of a network file reads it page by page
    )
    return tuple(fields)


class Stored(NamedTuple):
    """The stored bytes of one batch.

    indices: int64 (B,). fields: for each of `FIELDS` B arrays, uint8 and flat.
    faults: records that others stand in for.
    """

    indices: np.ndarray
    fields: list[list[np.ndarray]]
    faults: list[RecordError]


class DALILoader(ShardLoader):
    """Batches decoded by DALI.

    Works on either format of the folder, as both have a per-record index; on the GPU the
    JPEGs are decoded there and the masks unpacked there.
    """

    def __init__(self, shards: Shards | str | Path, options: LoaderOptions) -> None:
        if not isinstance(shards, Shards):
            formats = read_manifest(shards).formats
            form = "webdataset" if "webdataset" in formats else next(iter(formats))
            shards = Shards(shards, form)
        super().__init__(shards, options)
        self._mask_is_jpeg = self.shards.manifest.codecs["mask"] != "runs"
        self._plan: Generator[Stored, None, None] | None = None
        self._fed: deque[tuple[Stored | None, DataError | None]] = deque()
        shape = (options.batch_size, 1, self.layout.height, self.layout.width)
        self._masks = BufferPool(shape, np.dtype(np.uint8))
        on_gpu = self.device.type == "cuda"
        self._streams: Streams | None = CudaStreams(self.device) if on_gpu else None
        self._pipeline = self._build()

    def _build(self) -> Any:
        on_gpu = self.device.type == "cuda"
        pipeline = _graph(
            source=self._next_fields,
            device="mixed" if on_gpu else "cpu",
            mask_is_jpeg=self._mask_is_jpeg,
            height=self.layout.height,
            width=self.layout.width,
            batch_size=self.order.options.batch_size,
            num_threads=self.num_workers,
            device_id=self.device.index if on_gpu else None,
            prefetch_queue_depth=_AHEAD,
        )
        pipeline.build()
        return pipeline

    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        decoded = self._decoded(epoch, start)
        # On a GPU DALI gives memory to its next batch once Python lets go of it, whatever torch
        # has still to compute from it; on the CPU nothing reads it later. DALI works ahead itself.
        ours = transfer(decoded, self._streams, ahead=0) if self._streams else decoded
        try:
            for batch in ours:
                yield batch._replace(mask=self._mask(batch.mask)) if len(batch.index) else batch
        finally:
            ours.close()
            decoded.close()

    def _decoded(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        """Batches in DALI's memory, ``mask`` as the graph gives it."""
        self._plan = self._stored(epoch, start)
        try:
            self._pipeline.schedule_run()
            for k in range(start, len(self)):
                # Only the last step can be too small to give every rank a sample.
                if not self.order.size(k):
                    yield self.empty_batch()
                else:
                    batch = self._take()
                    self._pipeline.schedule_run()
                    yield batch
        finally:
            self._drain()

    def _stored(self, epoch: int, start: int) -> Generator[Stored, None, None]:
        """Stored bytes of the batches from ``start`` on; DataError for one with a bad record."""
        files = [np.asarray(file) for file in self.shards.files]
        for k in range(start, len(self)):
            indices = self._samples(epoch, k)
            if self._is_bad(indices):
                raise DataError(DAMAGED)
            records = self.shards.records[indices]
            fields = []
            for name in FIELDS:
                columns = (records[name][key].tolist() for key in ("file", "offset", "size"))
                spans = zip(*columns, strict=True)
                fields.append([files[file][at : at + size] for file, at, size in spans])
            if len(indices):
                yield Stored(indices, fields, [])

    def _next_fields(self) -> list[Any]:
        """What DALI asks for: the stored fields of the next batch; StopIteration at the end.

        Also in front of a bad batch: DALI never sees it, and `_take` raises when its turn has
        come, as DALI works ahead.
        """
        stored = None
        try:
            stored = next(self._plan or iter(()))
            fields: list[Any] = list(stored.fields)
            if not self._mask_is_jpeg:
                place = FIELDS.index("mask")
                fields[place] = pad_runs(fields[place])
                # Sums of some hundred bytes, here on the host: on the GPU they would cost a sync.
                if not runs_fill(fields[place], self.layout.height * self.layout.width):
                    raise DataError(DAMAGED)
        except DataError as error:
            self._fed.append((stored, error))
            raise StopIteration from None
        self._fed.append((stored, None))
        return fields

    def _take(self) -> Batch:
        stored, error = self._fed.popleft()
        if stored is None or error is not None:
            raise error or DataError(DAMAGED)
        fg_bg, mask, depth = self._outputs(stored.indices)
        for fault in stored.faults:
            self._bad.skip(fault)
        index = torch.from_numpy(stored.indices)
        if self.device.type == "cuda":
            index = index.pin_memory()
        return Batch(fg_bg.permute(0, 3, 1, 2), mask, depth.permute(0, 3, 1, 2), index)

    def _outputs(self, indices: np.ndarray) -> list[torch.Tensor]:
        """What the graph gives for a batch, in DALI's memory; the host waits for no GPU."""
        with self._streams.copying() if self._streams else nullcontext() as stream:
            try:
                outputs = self._pipeline.outputs(cuda_stream=stream)
            except RuntimeError as failure:
                first = str(failure).strip().splitlines()[0]
                where = f"{self.shards.folder}: samples {indices.tolist()}"
                raise DataError(f"{where}: DALI failed: {first}") from None
            self._check_sizes(outputs, indices)
            return [from_dlpack(output.as_tensor()) for output in outputs]

    def _mask(self, mask: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 1, H, W), 0 or 1, of what the graph gives."""
        if self._mask_is_jpeg:
            return (mask.permute(0, 3, 1, 2) >= MASK_THRESHOLD).to(torch.uint8)
        return unpack_batch(mask, self.layout.height, self.layout.width, self._masks)

    def _check_sizes(self, outputs: Sequence[Any], indices: np.ndarray) -> None:
        """RecordError for an image whose header tells another size: DALI decodes any.

        The host knows the shapes, also of what a GPU has still to decode.
        """
        height, width = self.layout.height, self.layout.width
        for name, output in zip(FIELDS, outputs, strict=True):
            if name == "mask" and not self._mask_is_jpeg:
                continue
            for index, shape in zip(indices.tolist(), output.shape(), strict=True):
                if shape[:2] != (height, width):
                    found = f"found {shape[1]}x{shape[0]} pixels, expected {width}x{height}"
                    raise RecordError(index, name, self.shards.where(index, name), found)

    def _drain(self) -> None:
        """Take what is still in the pipeline, so that the next epoch starts with its own."""
        # A loader that was dropped unclosed, in a reference cycle, may lose its pipeline first.
        if sys.is_finalizing() or self._pipeline._pipe is None:
            return
        if self._plan is not None:
            self._plan.close()
        self._fed.clear()
        try:
            self._pipeline.schedule_run()
            while True:
                self._pipeline.outputs()
        except StopIteration:
            self._pipeline.reset()
        except RuntimeError:
            self._pipeline = self._build()

    def close(self) -> None:
        """End DALI's threads."""
        super().close()
        self._pipeline = None
