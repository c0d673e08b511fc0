"""torchcodec: worker processes that decode the files of the data set with its libjpeg-turbo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.data import DataLoader, Dataset

from maskdepth.benchmarks.harness.contender import Epochs, Unavailable
from maskdepth.benchmarks.harness.images import Images
from maskdepth.benchmarks.harness.options import Loading
from maskdepth.benchmarks.peers.dataloaders import worker_options
from maskdepth.benchmarks.peers.source import FIELDS, MODES, Files

_MODES = {"RGB": "RGB", "L": "GRAY"}
"""Mode of Pillow -> mode of torchcodec."""


class CodecImages(Files, Dataset):
    """uint8 (C, H, W), four images per sample, and the index."""

    def __getitem__(self, position: int) -> tuple[torch.Tensor, ...]:
        from torchcodec.decoders import decode_jpeg

        paths = self.paths(position)
        images = (decode_jpeg(paths[name], mode=_MODES[MODES[name]]) for name in FIELDS)
        return (*images, torch.tensor(self.indices[position]))


@contextmanager
def open_torchcodec(loading: Loading, files: Files) -> Iterator[Epochs]:
    """Yield epochs of torch's `DataLoader`, which shuffles."""
    try:
        import torchcodec  # noqa: F401
    except OSError as error:  # its message is a path; its cause names what is missing
        reason = f"torchcodec needs what this build of torch does not have: {error.__cause__}"
        raise Unavailable(reason) from None
    images = CodecImages(files.dataset, files.indices)
    loader: DataLoader = DataLoader(images, shuffle=True, **worker_options(loading))
    yield lambda number: (Images(*batch) for batch in loader)
