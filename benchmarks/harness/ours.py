"""This project's loaders as contenders, and the floor: JPEG decoding alone."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from maskdepth.benchmarks.harness.contender import Contender, Epochs
from maskdepth.benchmarks.harness.images import (
    Images,
    Scale,
    allowed_levels,
    normalised_scale,
    spread_indices,
)
from maskdepth.benchmarks.harness.options import Loading
from maskdepth.benchmarks.harness.results import FLOAT
from maskdepth.convert.errors import DataError
from maskdepth.convert.manifest import read_manifest
from maskdepth.convert.pack import PackConfig, pack
from maskdepth.convert.shards import Shards
from maskdepth.loaders import Preprocess, build_loader
from maskdepth.loaders.engines import REGISTRY, is_installed

DECODING = {"ours, FFCV": "ffcv", "ours, DALI": "dali"}
"""Name of a contender -> its engine; these decode in every epoch, as other libraries do."""
ENGINES = {**DECODING, "ours, resident": "resident"}
"""With the engine that decodes before the clock starts; others are not compared with it."""

_ACCURATE_DCT = 4096  # TJFLAG_ACCURATEDCT of turbojpeg.h: what exact pixels need
_RGB, _GRAY = 0, 6
_CHUNK = 64


@contextmanager
def open_ours(
    loading: Loading, engine: str, shards: Path, indices: np.ndarray, normalise: bool
) -> Iterator[Epochs]:
    """Yield epochs of uint8 bg, fg_bg, mask and depth on the device, or of normalised floats."""
    with build_loader(
        engine, shards, batch_size=loading.batch_size, num_workers=loading.threads,
        device=loading.device, indices=indices, rank=0, world_size=1,
    ) as loader:  # fmt: skip
        prepare = Preprocess(loader.backgrounds, loader.statistics)

        def epoch(number: int) -> Iterator[Images]:
            for batch in loader.epoch(number):
                if normalise:
                    bg, fg_bg, mask, depth = prepare(batch)
                else:
                    bg, (fg_bg, mask, depth, _) = loader.backgrounds.gather(batch.index), batch
                yield Images(bg, fg_bg, mask, depth, batch.index)

        yield epoch


def our_contenders(
    shards: Path,
    loading: Loading,
    samples: int = 2**40,
    *,
    normalise: bool = False,
    engines: Mapping[str, str] = ENGINES,
) -> list[Contender]:
    """Each of our ``engines`` that can be measured, on so many samples; see `skipped_engines`."""
    manifest = Shards(shards).manifest
    indices = np.array(spread_indices(manifest.layout.samples, samples))
    scale, exact, ending = Scale(mask_threshold=1), 0.0, ""
    if normalise:
        scale, exact, ending = normalised_scale(manifest.statistics, 0.5), 0.01, FLOAT
    skipped = skipped_engines(shards)
    return [
        Contender(
            name=name + ending,
            opens=open_ours,
            loading=loading,
            options={
                "engine": engine, "shards": shards, "indices": indices, "normalise": normalise,
            },
            expected=indices,
            scale=scale,
            # DALI's engine decodes on the device, the others on the CPU for any device.
            levels=allowed_levels(loading.device, exact) if engine == "dali" else exact,
        )
        for name, engine in engines.items()
        if name not in skipped
    ]  # fmt: skip


def compared(contenders: Iterable[Contender]) -> tuple[str, ...]:
    """Names of our contenders with which others are compared: those that decode in every epoch."""
    return tuple(one.name for one in contenders if one.options["engine"] in DECODING.values())


def skipped_engines(shards: Path) -> dict[str, str]:
    """Names of our contenders that cannot be measured, and why."""
    reasons, manifest = {}, read_manifest(shards)
    for name, engine in ENGINES.items():
        needs = REGISTRY[engine].needs
        if engine == "ffcv" and engine not in manifest.formats:
            reasons[name] = "the folder holds no files of this format"
        if engine == "dali" and manifest.jpeg_format is None:
            reasons[name] = "the folder stores images as differences"
        if needs and not is_installed(needs):
            reasons[name] = f"{needs} is not installed"
    return reasons


def open_jpegs(shards: Path) -> Shards:
    """The shards of a folder that store images as JPEGs; DataError if none do."""
    form = read_manifest(shards).jpeg_format
    if form is None:
        raise DataError(f"{shards}: stores no JPEGs to compare with; pack both formats")
    return Shards(shards, form)


@contextmanager
def open_floor(loading: Loading, shards: Path, indices: np.ndarray) -> Iterator[Epochs]:
    """Decode each sample's JPEGs once with the system's libjpeg-turbo, into the same warm memory.

    There is no order, batch, tensor or check of return codes. Masks, which are not JPEGs, are
    left out.
    """
    opened = open_jpegs(shards)
    files = [file.ctypes.data for file in opened.files]

    def epoch(number: int) -> Iterator[int]:
        chunks = (indices[at : at + _CHUNK] for at in range(0, len(indices), _CHUNK))
        with ThreadPoolExecutor(loading.threads) as pool:
            yield from pool.map(partial(_decode_chunk, opened, files), chunks)

    yield epoch


def _decode_chunk(shards: Shards, files: list[int], chunk: np.ndarray) -> int:
    library = ctypes.CDLL("libturbojpeg.so.0")
    library.tjInitDecompress.restype = ctypes.c_void_p
    decompress = library.tjDecompress2
    decompress.argtypes = [
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p,
        *[ctypes.c_int] * 5,
    ]  # fmt: skip
    layout = shards.manifest.layout
    height, width = layout.height, layout.width
    pixels = np.empty((height, width, 3), np.uint8)
    into = pixels.ctypes.data
    handle = ctypes.c_void_p(library.tjInitDecompress())
    records = shards.records[chunk]
    for name, form in (("fg_bg", _RGB), ("depth", _GRAY)):
        column = records[name]
        for file, at, size in zip(
            column["file"].tolist(), column["offset"].tolist(), column["size"].tolist(), strict=True
        ):
            decompress(handle, files[file] + at, size, into, width, 0, height, form, _ACCURATE_DCT)
    library.tjDestroy(handle)
    return len(records)


def jpeg_contender(dataset: Path, store: Path, loading: Loading, indices: np.ndarray) -> Contender:
    """Our FFCV engine on an FFCV file that stores JPEGs, which it packs from the data set.

    indices: int64, the samples of an epoch.
    """
    config = PackConfig(formats=("ffcv",), codec="jpeg")
    return Contender(
        name="ours, FFCV, stored as JPEGs",
        opens=_open_packed,
        loading=loading,
        options={"indices": indices},
        convert=partial(_pack, dataset, config),
        store=store,
        expected=indices,
        scale=Scale(mask_threshold=1),
    )


def _pack(dataset: Path, config: PackConfig, store: Path) -> None:
    pack(dataset, store, config=config, progress=False)


def _open_packed(
    loading: Loading, indices: np.ndarray, store: Path
) -> AbstractContextManager[Epochs]:
    return open_ours(loading, "ffcv", store, indices, normalise=False)


def floor_contender(shards: Path, loading: Loading, samples: int = 2**40) -> Contender:
    """The floor of so many samples as a contender; it runs on the CPU for any device."""
    indices = np.array(spread_indices(len(Shards(shards)), samples))
    return Contender(
        name="floor: libjpeg-turbo alone",
        opens=open_floor,
        loading=replace(loading, device="cpu"),
        options={"shards": shards, "indices": indices},
        expected=indices,
    )
