"""The slow, plain loader: Pillow over the data set folder. All other loaders are tested against it.

It shares no code with an engine or with `pack` except for the names of the files, the order of an
epoch and the layout: two independent ways of decoding check each other.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from maskdepth.convert.errors import DataError, RecordError
from maskdepth.convert.files import why_irregular
from maskdepth.convert.layout import FIELDS, MASK_THRESHOLD
from maskdepth.convert.manifest import depth_source
from maskdepth.convert.moments import Moments, Statistics
from maskdepth.convert.names import FOLDERS
from maskdepth.convert.source import read_source
from maskdepth.loaders.backgrounds import Backgrounds
from maskdepth.loaders.base import Loader
from maskdepth.loaders.batch import Batch
from maskdepth.loaders.options import LoaderOptions

# The channels of each kind of image, as Pillow names them.
_MODES = {"fg_bg": "RGB", "bg": "RGB", "mask": "L", "depth": "L"}


class ReferenceLoader(Loader):
    """Batches of a data set folder.

    dataset: folder of bg, fg_bg, fg_bg_mask and fg_bg_depth.
    options: ``num_workers`` None or 0 decodes in the calling thread. A record is corrupt if Pillow
        cannot read one of its images. ``check`` is refused: the folder has no checksums.

    fg_bg is as Pillow converts it to RGB, mask is the luma plane thresholded at 128, depth is
    the luma plane. Raises DataError for an invalid folder or option, and RecordError for a
    corrupt image when it is read.
    """

    def __init__(self, dataset: str | Path, options: LoaderOptions) -> None:
        if options.check:
            raise DataError(f"{dataset}: a data set folder has no checksums; pack it to check it")
        self._source = read_source(Path(dataset))
        # Listed once, so that a file that disappears later does not shift the names after it.
        self._names = [self._source.names(group) for group in range(len(self._source.bg))]
        super().__init__(self._source.layout, options)
        first_samples = zip(self.layout.group_starts[:-1].tolist(), self._source.bg, strict=True)
        self._bg = np.stack([self._read(index, "bg", path) for index, path in first_samples])
        self.backgrounds = Backgrounds.from_numpy(self._bg, self.layout, self.device)
        self._pool = ThreadPoolExecutor(options.num_workers) if options.num_workers else None

    def _batches(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        for k in range(start, len(self.steps)):
            index = self._samples(epoch, k)
            fg_bg, mask, depth = (self._stack(field, index) for field in FIELDS)
            yield Batch(fg_bg, mask, depth, torch.from_numpy(index).to(self.device))

    def _record_error(self, index: int) -> RecordError | None:
        for field in FIELDS:
            try:
                self._read_field(index, field)
            except RecordError as error:
                return error
        return None

    @property
    def depth_source(self) -> str:
        return depth_source(self._source.metadata)

    @cached_property
    def statistics(self) -> Statistics:
        """Moments of bg, fg_bg, mask and depth over the complete data set, read on first use.

        A background counts once for each of its samples; a skipped corrupt record does not count.
        This takes as long as an epoch on one thread.
        """
        histograms = {name: np.zeros((len(mode), 256), np.int64) for name, mode in _MODES.items()}
        for pixels, samples in zip(self._bg, np.diff(self.layout.group_starts), strict=True):
            histograms["bg"] += samples * _histogram(pixels)
        for index in range(self.layout.samples):
            try:
                images = {name: self._read_field(index, name) for name in FIELDS}
            except RecordError as error:
                self._corrupt.skip(error)
                continue
            for name, pixels in images.items():
                histograms[name] += _histogram(pixels)
        values = np.arange(256)
        return {
            name: Moments(
                values=int(histogram[0].sum()),
                sums=tuple((histogram @ values).tolist()),
                squares=tuple((histogram @ values**2).tolist()),
                scale=1 if name == "mask" else 255,
            )
            for name, histogram in histograms.items()
        }

    def close(self) -> None:
        super().close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _stack(self, field: str, index: np.ndarray) -> torch.Tensor:
        """uint8 (B, C, H, W) on the device: one field of some samples."""
        shape = (len(index), self.layout.height, self.layout.width, len(_MODES[field]))
        pixels = np.empty(shape, np.uint8)
        mapped = map if self._pool is None else self._pool.map
        for row, image in enumerate(mapped(lambda i: self._read_field(i, field), index.tolist())):
            pixels[row] = image
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device)

    def _read_field(self, index: int, field: str) -> np.ndarray:
        group = int(self.layout.background_of(np.asarray(index)))
        name = self._names[group][index - int(self.layout.group_starts[group])]
        folder = self._source.folder / FOLDERS[field] / self._source.bg[group].stem
        return self._read(index, field, folder / name)

    def _read(self, index: int, field: str, path: Path) -> np.ndarray:
        """uint8 (H, W, C) of one file; RecordError if it is not such an image."""
        try:
            if reason := why_irregular(path.stat().st_mode):
                raise ValueError(reason)
            with Image.open(path) as image:
                width, height = self.layout.width, self.layout.height
                if image.size != (width, height):
                    found = f"{image.width}x{image.height}"
                    raise ValueError(f"found {found} pixels, expected {width}x{height}")
                if image.mode not in ("L", "RGB"):
                    raise ValueError(f"found mode {image.mode}, expected RGB or L (gray)")
                if _MODES[field] == "L":
                    # The luma plane of a JPEG stored as RGB, not a mixture of R, G and B.
                    image.draft("L", image.size)
                pixels = np.asarray(image.convert(_MODES[field]))
        # Pillow's decoders raise almost any exception on corrupt bytes.
        except Exception as error:
            reason = f"{_reason(error)}; fix or replace the file"
            raise RecordError(index, field, str(path), reason) from error
        pixels = pixels.reshape(height, width, -1)
        return (pixels >= MASK_THRESHOLD).astype(np.uint8) if field == "mask" else pixels


def _reason(error: Exception) -> str:
    """What is wrong with a file, without its path, which the RecordError names."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read; expected a JPEG"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _histogram(pixels: np.ndarray) -> np.ndarray:
    """How often each value occurs: uint8 (H, W, C) -> int64 (C, 256)."""
    channels = pixels.reshape(-1, pixels.shape[-1]).T
    return np.stack([np.bincount(channel, minlength=256) for channel in channels])
