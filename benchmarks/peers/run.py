"""The same job with what one would use otherwise, in one run, in turn, each checked first.

python -m benchmarks peers DATASET SHARDS
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness.contender import Contender, race
from benchmarks.harness.images import Scale, Truth, allowed_levels
from benchmarks.harness.loading import Loading
from benchmarks.harness.ours import floor_contender, our_contenders, skipped_engines
from benchmarks.harness.results import CaseResult, Result, make_result
from benchmarks.loader import some_samples
from benchmarks.peers.dali import normalised, open_dali
from benchmarks.peers.ffcv import WriteBeton, open_ffcv
from benchmarks.peers.litdata import WriteChunks, open_litdata
from benchmarks.peers.pillow import open_pillow
from benchmarks.peers.source import Files, WriteTars
from benchmarks.peers.spdl import open_spdl
from benchmarks.peers.streaming import WriteMDS, open_streaming
from benchmarks.peers.webdataset import open_webdataset
from loaders.engines.reference import ReferenceLoader
from loaders.options import LoaderOptions

PILLOW = "Pillow + DataLoader, 4 images, float"
STOCK_FFCV = "stock FFCV, 4 RGB JPEG fields"
DALI_4 = "stock DALI webdataset, 4 images"
DALI_3 = "stock DALI, 3 images, bg resident"
DALI_FLOAT = "stock DALI, 3 images, bg resident, float"
# FFCV encodes the JPEGs again, and decodes with its fast DCT; FFmpeg's decoder differs from
# libjpeg-turbo in the last bits of the DCT and in how it upsamples chroma.
_LOSSY: dict[str, Any] = {"levels": 160, "mask_share": 1e-3}


def run(
    dataset: Path,
    shards: Path,
    loading: Loading,
    *,
    slow_share: int,
    only: tuple[str, ...] = (),
    say: Callable[[str], None],
) -> Result:
    """Time shuffled epochs of everybody.

    only: parts of names; others than those are left out.
    slow_share: those that decode with Pillow read every ``slow_share``-th sample only, so that
        an epoch of theirs takes about as long as one of ours.
    """
    ours = our_contenders(shards, loading)
    floats = our_contenders(shards, loading, normalise=True)
    with tempfile.TemporaryDirectory(prefix="maskdepth-peers-") as folder:
        field = _Field(dataset, shards, Path(folder), loading, slow_share)
        contenders = [*ours, *floats, floor_contender(shards, loading.threads), *field.all()]
        contenders = [one for one in contenders if chosen(one.name, only)]
        truth = _truth(dataset, slow_share)
        found = race(contenders, truth, loading.repeats, optional=True, say=say)
    cases = {
        name: CaseResult.of(found.repeats[name], figures=found.figures[name])
        for name in found.repeats
    }
    arguments = loading.arguments(
        dataset=dataset.name, samples=len(field.everything), slow_share=slow_share
    )
    names = tuple(one.name for one in (*ours, *floats) if one.name in cases)
    skipped = {**skipped_engines(shards), **found.skipped}
    return make_result(
        "peers", arguments, cases, device=loading.device, ours=names, skipped=skipped
    )


def chosen(name: str, only: tuple[str, ...]) -> bool:
    """Whether a contender's name contains one of the parts asked for; all do if there are none."""
    return not only or any(part.lower() in name.lower() for part in only)


def _truth(dataset: Path, slow_share: int) -> Truth:
    """Some of the samples that everybody reads, decoded by Pillow one by one."""
    with ReferenceLoader(dataset, LoaderOptions(batch_size=1)) as reference:
        every = np.arange(0, reference.layout.samples, slow_share)
        indices = every[some_samples(len(every))]
    with ReferenceLoader(
        dataset, LoaderOptions(batch_size=len(indices), indices=indices, shuffle=False)
    ) as loader:
        (batch,) = loader.epoch(0)
        bg = loader.backgrounds.gather(batch.index)
    names = ("fg_bg", "mask", "depth")
    images = {name: getattr(batch, name).numpy() for name in names}
    return Truth(index=indices, bg=bg.numpy(), **images)


class _Field:
    """Everybody but us, with the files they read."""

    def __init__(
        self, dataset: Path, shards: Path, folder: Path, loading: Loading, slow_share: int
    ) -> None:
        with ReferenceLoader(dataset, LoaderOptions(batch_size=1)) as reference:
            self.everything = Files(dataset, np.arange(reference.layout.samples))
        self._some = Files(dataset, self.everything.indices[::slow_share])
        self._folder, self._shards = folder, shards
        self._loading = loading

    def all(self) -> list[Contender]:
        """In the order in which they take turns."""
        batch, threads = self._loading.batch_size, self._loading.threads
        common: Any = {"threads": threads, "device": self._loading.device}
        fast = partial(Contender, expected=self.everything.indices, **common)
        slow = partial(Contender, expected=self._some.indices, **common)
        on_gpu = torch.device(self._loading.device).type == "cuda"
        workers = {"batch_size": batch, "workers": threads, "pin_memory": on_gpu}
        some, folder, uint8 = self._some, self._folder, Scale()
        unit = ((0.0,), (255.0,))
        floats = Scale(bg=unit, fg_bg=unit, depth=255.0, mask_threshold=128 / 255)
        tars = WriteTars(some, 2 * threads)
        return [
            slow(name=PILLOW, opens=open_pillow, options={"files": some, **workers},
                 scale=floats, levels=0.001),
            fast(name=STOCK_FFCV, opens=open_ffcv,
                 options=self._loading.options,
                 convert=WriteBeton(self.everything, threads), store=folder / "stock.beton",
                 scale=uint8, **_LOSSY),
            self._dali(DALI_4, fast, resident=False, normalise=False),
            self._dali(DALI_3, fast, resident=True, normalise=False),
            self._dali(DALI_FLOAT, fast, resident=True, normalise=True),
            slow(name="webdataset library, Pillow", opens=open_webdataset, options=workers,
                 convert=tars, store=folder / "some-tars", scale=uint8),
            slow(name="MosaicML streaming, Pillow", opens=open_streaming, options=workers,
                 convert=WriteMDS(some), store=folder / "mds", scale=uint8),
            slow(name="litData, Pillow", opens=open_litdata, options=workers,
                 convert=WriteChunks(some, threads), store=folder / "chunks", scale=uint8),
            fast(name="SPDL, FFmpeg", opens=open_spdl,
                 options={"files": self.everything, "batch_size": batch, "threads": threads},
                 scale=uint8, **_LOSSY),
        ]  # fmt: skip

    def _dali(
        self, name: str, contender: Callable[..., Contender], *, resident: bool, normalise: bool
    ) -> Contender:
        asked = {"shards": self._shards, "resident": resident, "normalise": normalise}
        return contender(
            name=name,
            opens=open_dali,
            options={**self._loading.options, **asked},
            convert=WriteTars(self.everything, self._loading.threads),
            store=self._folder / "tars",
            scale=normalised(self._shards) if normalise else Scale(),
            levels=allowed_levels(self._loading.device, 0.01 if normalise else 0.0),
        )
