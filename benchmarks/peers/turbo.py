"""TurboLoader: one loader for each image of a sample, because it yields one image at a time.

One worker each: with several, two loaders yield different orders. Its decoder differs from Pillow's
by some levels.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch

from maskdepth.benchmarks.harness.contender import Epochs
from maskdepth.benchmarks.harness.images import Images
from maskdepth.benchmarks.harness.options import Loading
from maskdepth.benchmarks.peers.source import FIELDS, MODES, Files


def write_field_tars(files: Files, store: Path) -> None:
    """A tar file of the JPEGs of each field, in the same order."""
    store.mkdir(parents=True)
    for name in FIELDS:
        with tarfile.open(store / f"{name}.tar", "w") as archive:
            for position, index in enumerate(files.indices.tolist()):
                stored = files.paths(position)[name].read_bytes()
                info = tarfile.TarInfo(f"{index:09d}.jpg")
                info.size = len(stored)
                archive.addfile(info, io.BytesIO(stored))


@contextmanager
def open_turbo(loading: Loading, store: Path) -> Iterator[Epochs]:
    """Yield epochs that each loader shuffles by the same seed; gray images are decoded to RGB."""
    import turboloader

    with ExitStack() as stack:
        loaders = [
            stack.enter_context(
                closing(
                    turboloader.FastDataLoader(
                        str(store / f"{name}.tar"), batch_size=loading.batch_size, num_workers=1,
                        output_format="numpy", shuffle=True,
                    )
                )
            )
            for name in FIELDS
        ]  # fmt: skip

        def epoch(number: int) -> Iterator[Images]:
            for loader in loaders:
                loader.set_epoch(number)
            for batches in zip(*loaders, strict=True):
                (_, about), *others = batches
                if any(other["filenames"] != about["filenames"] for _, other in others):
                    raise RuntimeError("the loaders of the fields yield different samples")
                images = {
                    name: torch.from_numpy(pixels[..., : len(MODES[name])]).permute(0, 3, 1, 2)
                    for name, (pixels, _) in zip(FIELDS, batches, strict=True)
                }
                index = [int(Path(name).stem) for name in about["filenames"]]
                yield Images(index=torch.tensor(index), **images)

        yield epoch
