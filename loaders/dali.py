"""The DALI engine: our order and bytes, DALI's decoders, on the CPU or (`mixed`) on the GPU.

The only module that imports `nvidia.dali`. Batches are fed to an external source, so order,
resume and the last batch are ours; DALI works ``_AHEAD`` batches ahead.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from convert.errors import DataError
from convert.manifest import FIELDS, read_manifest
from convert.shards import Shards
from loaders.base import ShardLoader
from loaders.batch import Batch
from loaders.masks import pad_runs, runs_fill, unpack_batch

try:
    from nvidia.dali import fn, pipeline_def, types
except ImportError as error:
    raise DataError(
        f"DALI cannot be imported ({error}); install it with `pip install .[dali-cu13]` "
        "(or dali-cu12 for an older driver), or use another --loader"
    ) from None

_AHEAD = 2
_THRESHOLD = 128


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


class DALILoader(ShardLoader):
    """Batches decoded by DALI; see `loaders.build_loader` for the arguments.

    Works on either format of the folder, as both have a per-record index; on the GPU the
    JPEGs are decoded there and the masks unpacked there.
    """

    def __init__(self, shards: str | Path, **options: Any) -> None:
        formats = read_manifest(shards).formats
        form = "dali" if "dali" in formats else next(iter(formats))
        super().__init__(Shards(shards, form), **options)
        self._mask_is_jpeg = self.shards.manifest.codecs["mask"] != "runs"
        self._files = [np.asarray(file) for file in self.shards.files]
        self._plan: Iterator[np.ndarray] = iter(())
        self._fed: deque[tuple[np.ndarray, bool]] = deque()
        self._pipeline = self._build()

    def _build(self) -> Any:
        on_gpu = self.device.type == "cuda"
        pipeline = _graph(
            source=self._stored_batch,
            device="mixed" if on_gpu else "cpu",
            mask_is_jpeg=self._mask_is_jpeg,
            height=self.layout.height,
            width=self.layout.width,
            batch_size=self.order.batch_size,
            num_threads=self.num_workers,
            device_id=self.device.index if on_gpu else None,
            prefetch_queue_depth=_AHEAD,
        )
        pipeline.build()
        return pipeline

    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        steps = range(start, len(self))
        batches = (self._samples(epoch, k) for k in steps)
        self._plan = (indices for indices in batches if len(indices))
        try:
            self._pipeline.schedule_run()
            for k in steps:
                # Only the last step can be too small to give every rank a sample.
                last_is_empty = k == len(self) - 1 and not len(self._samples(epoch, k))
                if last_is_empty:
                    yield self.empty_batch()
                else:
                    batch = self._take()
                    self._pipeline.schedule_run()
                    yield batch
        finally:
            self._drain()

    def _stored_batch(self) -> list[Any]:
        """What DALI asks for next: the stored fields of one batch; StopIteration at the end.

        Also in front of a batch that is known to be bad: DALI never sees it, and `_take` raises
        when its turn has come, as DALI works ahead.
        """
        indices = next(self._plan)
        records = self.shards.records[indices]
        fields: list[Any] = []
        good = not self._is_bad(indices)
        for name in FIELDS:
            column = records[name]
            spans = zip(
                column["file"].tolist(),
                column["offset"].tolist(),
                column["size"].tolist(),
                strict=True,
            )
            stored = [self._files[file][at : at + size] for file, at, size in spans]
            is_runs = name == "mask" and not self._mask_is_jpeg
            fields.append(pad_runs(stored) if is_runs else stored)
            if is_runs:
                # Sums of some hundred bytes, here on the host: on the GPU they would cost a sync.
                good &= runs_fill(fields[-1], self.layout.height * self.layout.width)
        self._fed.append((indices, good))
        if not good:
            raise StopIteration
        return fields

    def _take(self) -> Batch:
        indices, good = self._fed.popleft()
        if not good:
            raise DataError("a record of this batch is damaged")  # which: `_fault` finds out
        try:
            outputs = self._pipeline.outputs()
        except RuntimeError as error:
            first = str(error).strip().splitlines()[0]
            where = f"{self.shards.folder}: samples {indices.tolist()}"
            raise DataError(f"{where}: DALI failed: {first}") from None
        fg_bg, mask, depth = (from_dlpack(output.as_tensor()) for output in outputs)
        if self._mask_is_jpeg:
            mask = (mask.permute(0, 3, 1, 2) >= _THRESHOLD).to(torch.uint8)
        else:
            mask = unpack_batch(mask, self.layout.height, self.layout.width)
        return Batch(
            fg_bg=fg_bg.permute(0, 3, 1, 2),
            mask=mask,
            depth=depth.permute(0, 3, 1, 2),
            index=self._index(indices),
        )

    def _index(self, indices: np.ndarray) -> torch.Tensor:
        index = torch.from_numpy(indices)
        if self.device.type == "cuda":
            index = index.pin_memory()  # torch keeps pinned memory until its copies have ended
        return index.to(self.device, non_blocking=True)

    def _drain(self) -> None:
        """Take what is still in the pipeline, so that the next epoch starts with its own."""
        if sys.is_finalizing():
            return
        self._plan = iter(())
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
