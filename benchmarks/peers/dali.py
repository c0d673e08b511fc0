"""Stock DALI: its webdataset reader and decoders, on the CPU or (`mixed`) on the GPU.

The command `hardware` sweeps ``hw_decoder_load``, the share that the GPU's own decoder takes, and
whether the decoders of the fields work at once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from maskdepth.benchmarks.harness.contender import Contender, Epochs, Unavailable, race
from maskdepth.benchmarks.harness.images import (
    Images,
    MeanStd,
    Scale,
    allowed_levels,
    normalised_scale,
    read_truth,
    some_of,
    spread_indices,
)  # fmt: skip
from maskdepth.benchmarks.harness.options import (
    DATASET,
    SAMPLES,
    SHARDS,
    Loading,
    command,
    keep,
    loading_options,
)
from maskdepth.benchmarks.harness.results import CaseResult, Result, make_result
from maskdepth.benchmarks.peers.source import FIELDS, Files, write_tars
from maskdepth.convert.errors import DataError
from maskdepth.convert.manifest import read_manifest
from maskdepth.convert.shards import Shards
from maskdepth.loaders.backgrounds import Backgrounds

LOADS = (0.0, 0.12, 0.25, 0.5, 0.65, 0.8, 0.9, 1.0)
"""Values of ``hw_decoder_load``: 0.65 is DALI's default, 0.12 that of NVIDIA's tests on Hopper."""
AT_ONCE = (0.12, 0.65)
"""Values that are also tried with decoders that do not wait for each other."""
_WINDOW = 1024  # the reader's own default
_MASK_THRESHOLD = 128 / 255  # of floats


@contextmanager
def open_dali(
    loading: Loading,
    store: Path,
    shards: Path,
    samples: int,
    resident: bool,
    normalise: bool,
    load: float | None = None,
    at_once: bool = False,
) -> Iterator[Epochs]:
    """Yield epochs that are shuffled in a window, as DALI can.

    samples: number in the tar files of ``store``.
    resident: the backgrounds are kept on the device and gathered, as ours are, not read.
    normalise: by `crop_mirror_normalize`, with the statistics of the shard folder.
    load: ``hw_decoder_load`` of the decoders on a GPU; None: DALI's default.
    at_once: the decoders of a batch do not wait for each other (`OperatorConcurrency.FULL`); by
        default DALI runs operators for the same device one after the other.
    """
    opened, device, batch_size = Shards(shards), loading.device, loading.batch_size
    layout, names = opened.manifest.layout, FIELDS[1:] if resident else FIELDS
    scale = normalised_scale(opened.manifest.statistics, _MASK_THRESHOLD)
    unit = ((0.0,), (255.0,))
    moments = {"bg": scale.bg, "fg_bg": scale.fg_bg, "mask": unit, "depth": unit}
    on_gpu = torch.device(device).type == "cuda"
    decoder: dict[str, Any] = {} if load is None else {"hw_decoder_load": load}
    if on_gpu:  # as all others interpolate chroma; DALI's default on a GPU repeats its pixels
        decoder["jpeg_fancy_upsampling"] = True
    graph = _graph(sorted(store.glob("*.tar")), names, moments if normalise else None, decoder)
    pipeline = graph(
        "mixed" if on_gpu else "cpu",
        batch_size=batch_size,
        num_threads=loading.threads,
        device_id=(torch.device(device).index or 0) if on_gpu else None,
        prefetch_queue_depth=2,
        **_concurrency(at_once),
    )
    pipeline.build()
    if resident:
        backgrounds = Backgrounds.from_numpy(opened.backgrounds, layout, device).images
        if normalise:
            mean, std = (torch.tensor(one, device=device).view(-1, 1, 1) for one in scale.bg)
            backgrounds = (backgrounds.float() - mean) / std

    def epoch(number: int) -> Iterator[Images]:
        left = samples
        for _ in range(-(-samples // batch_size)):
            outputs: Any = pipeline.run()
            *pixels, index = (from_dlpack(output.as_tensor()) for output in outputs)
            # The last batch is filled up with repeated samples.
            fields = dict(zip(names, (field[:left] for field in pixels), strict=True))
            if not normalise:
                fields = {name: field.permute(0, 3, 1, 2) for name, field in fields.items()}
            index = index[:left].flatten().to(device)
            left -= batch_size
            if resident:
                group = torch.div(index, layout.samples_per_bg or 1, rounding_mode="floor")
                fields["bg"] = backgrounds.index_select(0, group)
            yield Images(index=index, **fields)

    yield epoch


def dali_contender(
    name: str,
    *,
    files: Files,
    store: Path,
    shards: Path,
    loading: Loading,
    resident: bool = False,
    normalise: bool = False,
    load: float | None = None,
    at_once: bool = False,
) -> Contender:
    """Stock DALI on tar shards that are written into ``store``; see `open_dali`."""
    statistics = read_manifest(shards).statistics
    return Contender(
        name=name,
        opens=open_dali,
        loading=loading,
        options={
            "shards": shards,
            "samples": len(files),
            "resident": resident,
            "normalise": normalise,
            "load": load,
            "at_once": at_once,
        },
        convert=partial(write_tars, files, loading.threads),
        store=store,
        expected=files.indices,
        scale=normalised_scale(statistics, _MASK_THRESHOLD) if normalise else Scale(),
        levels=allowed_levels(loading.device, 0.01 if normalise else 0.0),
    )


def _concurrency(at_once: bool) -> dict[str, Any]:
    """The pipeline's option for it. An ImportError of an older DALI is reported with the case."""
    if not at_once:
        return {}
    from nvidia.dali.pipeline import OperatorConcurrency

    return {"concurrency": OperatorConcurrency.FULL}


def _graph(
    paths: list[Path],
    names: tuple[str, ...],
    moments: dict[str, MeanStd] | None,
    decoder: dict[str, Any],
) -> Any:
    """A function that makes the pipeline, from the device of the decoders and DALI's options."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def
    def graph(where: str) -> tuple[Any, ...]:
        read: Any = fn.readers.webdataset
        *stored, index = read(
            paths=[str(path) for path in paths],
            ext=[*(f"{name}.jpg" for name in names), "index"],
            random_shuffle=True,
            initial_fill=_WINDOW,
            pad_last_batch=True,
            missing_component_behavior="error",
        )
        decoded = []
        for name, data in zip(names, stored, strict=True):
            form = types.RGB if name in ("bg", "fg_bg") else types.GRAY
            image = fn.decoders.image(data, device=where, output_type=form, **decoder)
            if moments is not None:
                mean, std = moments[name]
                image = fn.crop_mirror_normalize(
                    image, dtype=types.FLOAT, output_layout="CHW", mean=list(mean), std=list(std)
                )
            decoded.append(image)
        return (*decoded, fn.reinterpret(index, dtype=types.INT64))

    return graph


@command(DATASET, SHARDS, SAMPLES, loading_options)
def hardware(dataset: Path, shards: Path, loading: Loading, samples: int) -> Result:
    """DALI's hw_decoder_load from 0 to 1, and decoders that work at once, on a GPU.

    Stock DALI decodes three images per sample and gathers resident backgrounds, so that nothing of
    this project counts.
    """
    if torch.device(loading.device).type != "cuda":
        raise DataError(f"device {loading.device}: only a GPU has a JPEG decoder to share with")
    opened = Shards(shards)
    files = Files(dataset, np.array(spread_indices(len(opened), samples)))
    with tempfile.TemporaryDirectory(prefix="maskdepth-hardware-") as folder:
        contenders = [
            dali_contender(
                f"hw_decoder_load {load:g}" + at_once * ", decoders at once",
                files=files, store=Path(folder) / "tars",
                shards=shards, loading=loading, resident=True, load=load, at_once=at_once,
            )
            for at_once, loads in ((False, LOADS), (True, AT_ONCE))
            for load in loads
        ]  # fmt: skip
        truth = read_truth(opened, some_of(files.indices))

        def result(cases: dict[str, CaseResult], skipped: dict[str, str]) -> Result:
            arguments = loading.arguments(dataset=dataset.name, samples=len(files))
            return make_result("hardware", arguments, cases, device=loading.device, skipped=skipped)

        cases, skipped = race(
            contenders, truth, loading, optional=True,
            after_round=lambda cases, skipped: keep(result(cases, skipped)),
        )  # fmt: skip
    if not cases:
        raise Unavailable(f"hw_decoder_load: no value could be measured: {skipped}")
    return result(cases, skipped)
