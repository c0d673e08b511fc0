"""The same job with other libraries, in one run, in turn, each checked first."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import options as cli
from benchmarks.harness.contender import Contender, race
from benchmarks.harness.images import (
    Scale,
    Truth,
    some_samples,
)
from benchmarks.harness.ours import floor_contender, our_contenders, skipped_engines
from benchmarks.harness.results import FLOAT, Result, make_result
from benchmarks.peers.dali import dali_contender
from benchmarks.peers.dataloaders import (
    WriteChunks,
    WriteMDS,
    open_litdata,
    open_pillow,
    open_streaming,
    open_webdataset,
)
from benchmarks.peers.ffcv import WriteBeton, open_ffcv
from benchmarks.peers.source import Files, WriteTars
from benchmarks.peers.spdl import open_spdl
from convert.manifest import read_manifest
from loaders.engines.reference import ReferenceLoader
from loaders.options import LoaderOptions

# FFCV encodes the JPEGs again, and decodes with its fast DCT; FFmpeg's decoder differs from
# libjpeg-turbo in the last bits of the DCT and in how it upsamples chroma.
_LOSSY: dict[str, Any] = {"levels": 160, "mask_share": 1e-3}


@cli.command(
    cli.DATASET,
    cli.SHARDS,
    cli.at_least_1("--slow-share", default=8, help="Pillow reads 1 of so many."),
    cli.option("--only", multiple=True, help="Part of the name of a contender; may be repeated."),
    cli.loading_options,
)
def peers(
    dataset: Path, shards: Path, loading: cli.Loading, slow_share: int, only: tuple[str, ...]
) -> Result:
    """Our engines on SHARDS beside other libraries on files made from DATASET.

    Contenders that decode with Pillow read every SLOW_SHARE-th sample only, so that their epochs
    take about as long as the others.
    """
    samples = read_manifest(shards).layout.samples
    ours = our_contenders(shards, loading)
    floats = our_contenders(shards, loading, normalise=True)
    with tempfile.TemporaryDirectory(prefix="maskdepth-peers-") as folder:
        others = peer_contenders(dataset, shards, Path(folder), loading, slow_share)
        contenders = [*ours, *floats, floor_contender(shards, loading.threads), *others]
        chosen = [
            contender
            for contender in contenders
            if not only or any(part.lower() in contender.name.lower() for part in only)
        ]
        truth = _read_truth(dataset, slow_share)
        cases, skipped = race(chosen, truth, loading.repeats, optional=True)
    return make_result(
        "peers",
        loading.arguments(dataset=dataset.name, samples=samples, slow_share=slow_share),
        cases,
        device=loading.device,
        ours=tuple(one.name for one in (*ours, *floats) if one.name in cases),
        skipped={**skipped_engines(shards), **skipped},
    )


def _read_truth(dataset: Path, slow_share: int) -> Truth:
    """Some of the samples that all contenders read, decoded by Pillow one by one."""
    with ReferenceLoader(dataset, LoaderOptions(batch_size=1)) as reference:
        every = np.arange(0, reference.layout.samples, slow_share)
    indices = every[some_samples(len(every))]
    options = LoaderOptions(batch_size=len(indices), indices=indices, shuffle=False)
    with ReferenceLoader(dataset, options) as loader:
        (batch,) = loader.epoch(0)
        bg = loader.backgrounds.gather(batch.index)
    images = {name: getattr(batch, name).numpy() for name in ("fg_bg", "mask", "depth")}
    return Truth(index=indices, bg=bg.numpy(), **images)


def peer_contenders(
    dataset: Path, shards: Path, folder: Path, loading: cli.Loading, slow_share: int
) -> list[Contender]:
    """All other libraries, in the order in which they take turns.

    folder: where the files that they read are written.
    """
    with ReferenceLoader(dataset, LoaderOptions(batch_size=1)) as reference:
        files = Files(dataset, np.arange(reference.layout.samples))
    some = Files(dataset, files.indices[::slow_share])
    threads, device = loading.threads, loading.device
    fast = partial(Contender, expected=files.indices, threads=threads, device=device)
    slow = partial(Contender, expected=some.indices, threads=threads, device=device)
    on_gpu = torch.device(device).type == "cuda"
    loader_options = {
        "batch_size": loading.batch_size,
        "num_workers": threads,
        "persistent_workers": True,
        "pin_memory": on_gpu,
    }
    workers = {"loader_options": loader_options}
    uint8, unit = Scale(), ((0.0,), (255.0,))
    unit_floats = Scale(bg=unit, fg_bg=unit, depth=255.0, mask_threshold=128 / 255)
    dali = partial(dali_contender, files=files, store=folder / "tars", shards=shards,
                   loading=loading)  # fmt: skip
    return [
        slow(name=f"Pillow + DataLoader, 4 images{FLOAT}", opens=open_pillow,
             options={"files": some, **workers}, scale=unit_floats, levels=0.001),
        fast(name="stock FFCV, 4 RGB JPEG fields", opens=open_ffcv, options=loading.options,
             convert=WriteBeton(files, threads), store=folder / "stock.beton", scale=uint8,
             **_LOSSY),
        dali("stock DALI webdataset, 4 images"),
        dali("stock DALI, 3 images, bg resident", resident=True),
        dali(f"stock DALI, 3 images, bg resident{FLOAT}", resident=True, normalise=True),
        slow(name="webdataset library, Pillow", opens=open_webdataset, options=workers,
             convert=WriteTars(some, 2 * threads), store=folder / "some-tars", scale=uint8),
        slow(name="MosaicML streaming, Pillow", opens=open_streaming, options=workers,
             convert=WriteMDS(some), store=folder / "mds", scale=uint8),
        slow(name="litData, Pillow", opens=open_litdata, options=workers,
             convert=WriteChunks(some, threads), store=folder / "chunks", scale=uint8),
        fast(name="SPDL, FFmpeg", opens=open_spdl,
             options={"files": files, "batch_size": loading.batch_size, "threads": threads},
             scale=uint8, **_LOSSY),
    ]  # fmt: skip
