"""Stock FFCV: four RGB JPEG fields, written by its own `DatasetWriter` and read by its `Loader`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from maskdepth.benchmarks.harness.contender import Epochs
from maskdepth.benchmarks.harness.options import Loading
from maskdepth.benchmarks.peers.source import FIELDS, Files, to_images

SOURCE_QUALITY = 65
"""JPEG quality of the source. FFCV encodes again, and a higher quality would make it slower."""


class _Pixels(Files):
    """What FFCV's writer takes: four decoded RGB images and the index of a sample."""

    def __getitem__(self, position: int) -> tuple[Any, ...]:
        paths = self.paths(position)
        images = [np.asarray(Image.open(paths[name]).convert("RGB")) for name in FIELDS]
        return (*images, int(self.indices[position]))


def write_beton(files: Files, workers: int, jpeg_quality: int, store: Path) -> None:
    """FFCV's `DatasetWriter` as its documentation uses it: four JPEG fields, and the index."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    image = partial(RGBImageField, write_mode="jpg", jpeg_quality=jpeg_quality)
    fields = {**{name: image() for name in FIELDS}, "index": IntField()}
    writer = DatasetWriter(str(store), fields, num_workers=workers)
    writer.from_indexed_dataset(_Pixels(files.dataset, files.indices))


@contextmanager
def open_ffcv(loading: Loading, store: Path) -> Iterator[Epochs]:
    """Yield epochs of uint8 in random order; FFCV itself copies to a GPU."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToDevice, ToTensor

    device = torch.device(loading.device)
    moved = [ToDevice(device, non_blocking=True)] if device.type != "cpu" else []
    pipelines = {name: [SimpleRGBImageDecoder(), ToTensor(), *moved] for name in FIELDS}
    pipelines["index"] = [IntDecoder(), ToTensor(), *moved]
    loader = Loader(
        str(store),
        batch_size=loading.batch_size,
        num_workers=loading.threads,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=False,
        pipelines=pipelines,
    )
    names = (*FIELDS, "index")
    yield lambda number: (to_images(dict(zip(names, batch, strict=True))) for batch in loader)
