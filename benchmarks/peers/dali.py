"""Stock DALI: its webdataset reader and decoders, on the CPU or (`mixed`) on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.dlpack import from_dlpack

from benchmarks.harness.contender import Contender, Epochs
from benchmarks.harness.images import Images, MeanStd, Scale, allowed_levels, normalised_scale
from benchmarks.harness.options import Loading
from benchmarks.peers.source import FIELDS, Files, write_tars
from convert.manifest import read_manifest
from convert.moments import Statistics
from convert.shards import Shards
from loaders.backgrounds import Backgrounds

_WINDOW = 1024  # the reader's own default


@contextmanager
def open_dali(
    store: Path,
    shards: Path,
    batch_size: int,
    threads: int,
    device: str,
    resident: bool,
    normalise: bool,
    load: float | None = None,
) -> Iterator[Epochs]:
    """Yield epochs that are shuffled in a window, as DALI can.

    resident: the backgrounds are kept on the device and gathered, as ours are, not read.
    normalise: by `crop_mirror_normalize`, with the statistics of the shard folder.
    load: ``hw_decoder_load`` of the decoders on a GPU; None: DALI's default.
    """
    opened = Shards(shards)
    names = FIELDS[1:] if resident else FIELDS
    moments = _moments(opened.manifest.statistics) if normalise else None
    paths = sorted(store.glob("*.tar"))
    decoder: dict[str, Any] = {} if load is None else {"hw_decoder_load": load}
    pipeline = _pipeline(paths, names, batch_size, threads, device, moments, decoder)
    pipeline.build()
    layout = opened.manifest.layout
    backgrounds = _backgrounds(opened, device, moments) if resident else None
    batches = -(-layout.samples // batch_size)

    def epoch(number: int) -> Iterator[Images]:
        left = layout.samples
        for _ in range(batches):
            outputs: Any = pipeline.run()
            *pixels, index = (from_dlpack(output.as_tensor()) for output in outputs)
            # The last batch is filled up with repeated samples.
            fields = dict(zip(names, (field[:left] for field in pixels), strict=True))
            if not normalise:
                fields = {name: field.permute(0, 3, 1, 2) for name, field in fields.items()}
            index = index[:left].flatten().to(device)
            left -= batch_size
            if backgrounds is not None:
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
) -> Contender:
    """Stock DALI on tar shards that are written into ``store``; see `open_dali`."""
    statistics, threshold = read_manifest(shards).statistics, 128 / 255
    return Contender(
        name=name,
        opens=open_dali,
        options={
            **loading.options, "shards": shards, "resident": resident, "normalise": normalise,
            "load": load,
        },
        convert=partial(write_tars, files, loading.threads),
        store=store,
        expected=files.indices,
        scale=normalised_scale(statistics, threshold) if normalise else Scale(),
        levels=allowed_levels(loading.device, 0.01 if normalise else 0.0),
        threads=loading.threads,
        device=loading.device,
    )  # fmt: skip


def _moments(statistics: Statistics) -> dict[str, MeanStd]:
    """Mean and std in 0..255, by field."""
    scale = normalised_scale(statistics, mask_threshold=128 / 255)
    unit = ((0.0,), (255.0,))
    return {"bg": scale.bg, "fg_bg": scale.fg_bg, "mask": unit, "depth": unit}


def _backgrounds(opened: Shards, device: str, moments: dict[str, MeanStd] | None) -> torch.Tensor:
    """(n_bg, 3, H, W), normalised once where there are moments."""
    images = Backgrounds.from_numpy(opened.backgrounds, opened.manifest.layout, device).images
    if moments is None:
        return images
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in moments["bg"])
    return (images.float() - mean) / std


def _pipeline(
    paths: list[Path],
    names: tuple[str, ...],
    batch_size: int,
    threads: int,
    device: str,
    moments: dict[str, MeanStd] | None,
    decoder: dict[str, Any],
) -> Any:
    from nvidia.dali import fn, pipeline_def, types

    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:  # as all others interpolate chroma; DALI's default on a GPU repeats its pixels
        decoder = {**decoder, "jpeg_fancy_upsampling": True}

    @pipeline_def
    def graph() -> tuple[Any, ...]:
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
            where = "mixed" if on_gpu else "cpu"
            image = fn.decoders.image(data, device=where, output_type=form, **decoder)
            if moments is not None:
                mean, std = moments[name]
                image = fn.crop_mirror_normalize(
                    image, dtype=types.FLOAT, output_layout="CHW", mean=list(mean), std=list(std)
                )
            decoded.append(image)
        return (*decoded, fn.reinterpret(index, dtype=types.INT64))

    return graph(
        batch_size=batch_size,
        num_threads=threads,
        device_id=(torch.device(device).index or 0) if on_gpu else None,
        prefetch_queue_depth=2,
    )
