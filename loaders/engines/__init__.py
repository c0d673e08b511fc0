"""The engines that read and decode shards; each is imported only when it is chosen.

To add one, write its module and add a line to the registry.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch

from maskdepth.convert.errors import DataError, OptionError
from maskdepth.convert.manifest import read_manifest
from maskdepth.loaders.base import Loader
from maskdepth.loaders.folder import is_dataset
from maskdepth.loaders.options import LoaderOptions


class Engine(NamedTuple):
    """Module of this package and class of an engine, and which package it needs (empty: none)."""

    module: str
    loader: str
    needs: str


REGISTRY = {
    "ffcv": Engine("ffcv", "FFCVLoader", "ffcv"),
    "dali": Engine("dali", "DALILoader", "nvidia.dali"),
    "dali-stream": Engine("dali_stream", "DALIStreamLoader", "nvidia.dali"),
    "resident": Engine("resident", "ResidentLoader", ""),
    "reference": Engine("reference", "ReferenceLoader", ""),
}
ENGINES = tuple(REGISTRY)
DECODING_ON_GPU = ("dali", "dali-stream")
"""Engines that decode on the GPU if the batches are needed there."""


def open_loader(engine: str, shards: str | Path, options: LoaderOptions) -> Loader:
    """A loader of an engine by name; for "auto" of the first of `possible_engines`."""
    if engine == "auto":
        engine = possible_engines(shards)[0]
    if engine not in REGISTRY:
        expected = f"auto or one of {', '.join(ENGINES)}"
        raise OptionError("engine", f": found {engine!r}, expected {expected}")
    on_gpu = torch.device(options.device).type == "cuda"
    if options.hw_decoder_load is not None and not (on_gpu and engine in DECODING_ON_GPU):
        raise DataError(
            f"hw_decoder_load: found the engine {engine} on {options.device}, expected "
            f"{' or '.join(DECODING_ON_GPU)} on a GPU; leave it out"
        )
    module = importlib.import_module(f"{__name__}.{REGISTRY[engine].module}")
    make: Callable[[str | Path, LoaderOptions], Loader] = getattr(module, REGISTRY[engine].loader)
    return make(shards, options)


def possible_engines(shards: str | Path) -> tuple[str, ...]:
    """The engines among which "auto" chooses: installed, and able to read the folder.

    "reference" for a data set folder. For shards "ffcv", which reads its own file, and "dali",
    which reads tar shards or an FFCV file of JPEGs. "ffcv" is first, because it takes less time of
    the CPU (README.md). If neither is possible, "dali", whose error says why. "resident" and
    "dali-stream" are for special cases, and used only where they are named.
    """
    if is_dataset(shards):
        return ("reference",)
    manifest = read_manifest(shards)
    readable = {"ffcv": "ffcv" in manifest.formats, "dali": manifest.jpeg_format is not None}
    possible = (
        name for name, can in readable.items() if can and is_installed(REGISTRY[name].needs)
    )
    return tuple(possible) or ("dali",)


def is_installed(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False
