"""The same job with other libraries, in one run, in turn, each checked first."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maskdepth.benchmarks.harness import options as cli
from maskdepth.benchmarks.harness.contender import Contender, race
from maskdepth.benchmarks.harness.images import Scale, Truth, some_of, spread_indices
from maskdepth.benchmarks.harness.ours import (
    compared,
    floor_contender,
    jpeg_contender,
    our_contenders,
    skipped_engines,
)
from maskdepth.benchmarks.harness.results import FLOAT, CaseResult, Result, make_result
from maskdepth.benchmarks.peers import dataloaders
from maskdepth.benchmarks.peers.dali import dali_contender
from maskdepth.benchmarks.peers.ffcv import SOURCE_QUALITY, open_ffcv, write_beton
from maskdepth.benchmarks.peers.grain import open_grain, write_records
from maskdepth.benchmarks.peers.lance import open_lancedb, write_table
from maskdepth.benchmarks.peers.source import Files, write_tars
from maskdepth.benchmarks.peers.spdl import open_spdl
from maskdepth.benchmarks.peers.torchcodec import open_torchcodec
from maskdepth.benchmarks.peers.turbo import open_turbo, write_field_tars
from maskdepth.convert.source import read_source
from maskdepth.loaders.engines.reference import ReferenceLoader
from maskdepth.loaders.options import LoaderOptions

# FFCV encodes the JPEGs again, and decodes with its fast DCT; FFmpeg's decoder differs from
# libjpeg-turbo in the last bits of the DCT and in how it upsamples chroma.
_LOSSY: dict[str, Any] = {"levels": 160, "mask_share": 1e-3}


@cli.command(
    cli.DATASET,
    cli.SHARDS,
    cli.at_least_1("--slow-share", default=8, help="Pillow reads 1 of so many."),
    cli.option("--only", multiple=True, help="Part of the name of a contender; may be repeated."),
    cli.SAMPLES,
    cli.loading_options,
)
def peers(
    dataset: Path,
    shards: Path,
    loading: cli.Loading,
    slow_share: int,
    only: tuple[str, ...],
    samples: int,
) -> Result:
    """Our engines on SHARDS beside other libraries on files made from DATASET.

    Contenders that decode with Pillow read every SLOW_SHARE-th sample only, so that their epochs
    take about as long as the others.
    """
    every = read_source(dataset).layout.samples
    files = Files(dataset, np.array(spread_indices(every, samples)))
    some = Files(dataset, files.indices[::slow_share])
    ours = our_contenders(shards, loading, samples)
    floats = our_contenders(shards, loading, samples, normalise=True)
    with tempfile.TemporaryDirectory(prefix="maskdepth-peers-") as folder:
        others = _peer_contenders(files, some, shards, Path(folder), loading)
        as_jpegs = jpeg_contender(dataset, Path(folder) / "jpegs", loading, files.indices)
        floor = floor_contender(shards, loading, samples)
        contenders = [*ours, *floats, as_jpegs, floor, *others]
        chosen = [
            contender
            for contender in contenders
            if not only or any(part.lower() in contender.name.lower() for part in only)
        ]
        truth = _read_truth(some)

        def result(cases: dict[str, CaseResult], skipped: dict[str, str]) -> Result:
            return make_result(
                "peers",
                loading.arguments(dataset=dataset.name, samples=len(files), slow_share=slow_share),
                cases,
                device=loading.device,
                ours=tuple(name for name in compared((*ours, *floats)) if name in cases),
                skipped={**skipped_engines(shards), **skipped},
            )

        return result(
            *race(
                chosen, truth, loading, optional=True,
                after_round=lambda cases, skipped: cli.keep(result(cases, skipped)),
            )
        )  # fmt: skip


def _read_truth(files: Files) -> Truth:
    """Some of the samples that all contenders read, decoded by Pillow one by one."""
    indices = some_of(files.indices)
    options = LoaderOptions(batch_size=len(indices), indices=indices, shuffle=False)
    with ReferenceLoader(files.dataset, options) as loader:
        (batch,) = loader.epoch(0)
        bg = loader.backgrounds.gather(batch.index)
    images = {name: getattr(batch, name).numpy() for name in ("fg_bg", "mask", "depth")}
    return Truth(index=indices, bg=bg.numpy(), **images)


def _peer_contenders(
    files: Files, some: Files, shards: Path, folder: Path, loading: cli.Loading
) -> list[Contender]:
    """All other libraries, in turn; those that decode with Pillow read only ``some`` files."""
    threads = loading.threads
    fast = partial(Contender, loading=loading, expected=files.indices, scale=Scale())
    slow = partial(fast, expected=some.indices)
    unit = ((0.0,), (255.0,))
    unit_floats = Scale(bg=unit, fg_bg=unit, depth=255.0, mask_threshold=128 / 255)
    dali = partial(dali_contender, files=files, store=folder / "tars", shards=shards,
                   loading=loading)  # fmt: skip
    return [
        slow(name=f"Pillow + DataLoader, 4 images{FLOAT}", opens=dataloaders.open_pillow,
             options={"files": some}, scale=unit_floats, levels=0.001),
        fast(name="stock FFCV, 4 RGB JPEG fields", opens=open_ffcv,
             convert=partial(write_beton, files, threads, SOURCE_QUALITY),
             store=folder / "stock.beton", **_LOSSY),
        dali("stock DALI webdataset, 4 images"),
        dali("stock DALI, 3 images, bg resident", resident=True),
        dali(f"stock DALI, 3 images, bg resident{FLOAT}", resident=True, normalise=True),
        slow(name="webdataset library, Pillow", opens=dataloaders.open_webdataset,
             convert=partial(write_tars, some, 2 * threads), store=folder / "some-tars"),
        slow(name="MosaicML streaming, Pillow", opens=dataloaders.open_streaming,
             convert=partial(dataloaders.write_mds, some), store=folder / "mds"),
        slow(name="litData, Pillow", opens=dataloaders.open_litdata,
             convert=partial(dataloaders.write_chunks, some, threads), store=folder / "chunks"),
        slow(name="LanceDB, Pillow", opens=open_lancedb,
             convert=partial(write_table, some), store=folder / "lance"),
        slow(name="Grain, Pillow", opens=open_grain,
             convert=partial(write_records, some), store=folder / "samples.array_record"),
        fast(name="torchcodec + DataLoader, 4 images", opens=open_torchcodec,
             options={"files": files}),
        fast(name="SPDL, FFmpeg", opens=open_spdl, options={"files": files}, **_LOSSY),
        fast(name="TurboLoader, 4 JPEG tars", opens=open_turbo,
             convert=partial(write_field_tars, files), store=folder / "field-tars", **_LOSSY),
    ]  # fmt: skip
