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

from convert.errors import DataError
from convert.manifest import read_manifest
from loaders.base import Loader
from loaders.folder import is_dataset
from loaders.options import LoaderOptions


class Engine(NamedTuple):
    """Where an engine is implemented, and which package it needs (empty: none)."""

    module: str
    loader: str
    needs: str


REGISTRY = {
    "ffcv": Engine("loaders.engines.ffcv", "FFCVLoader", "ffcv"),
    "dali": Engine("loaders.engines.dali", "DALILoader", "nvidia.dali"),
    "dali-stream": Engine("loaders.engines.dali_stream", "DALIStreamLoader", "nvidia.dali"),
    "resident": Engine("loaders.engines.resident", "ResidentLoader", ""),
    "reference": Engine("loaders.engines.reference", "ReferenceLoader", ""),
}
ENGINES = tuple(REGISTRY)


def open_loader(engine: str, shards: str | Path, options: LoaderOptions) -> Loader:
    """A loader of an engine by name, or of the one that `choose_engine` selects for "auto"."""
    if engine == "auto":
        engine = choose_engine(shards, options.device)
    if engine not in REGISTRY:
        raise DataError(f"engine: found {engine!r}, expected auto or one of {', '.join(ENGINES)}")
    module = importlib.import_module(REGISTRY[engine].module)
    make: Callable[[str | Path, LoaderOptions], Loader] = getattr(module, REGISTRY[engine].loader)
    return make(shards, options)


def choose_engine(shards: str | Path, device: str | torch.device) -> str:
    """The engine for a folder and a device.

    "reference" for a data set folder. For shards "dali" on a GPU, because it decodes there, and
    "ffcv" on a CPU, or the other if one is not installed or cannot read the folder: DALI reads tar
    shards or an FFCV file of JPEGs, FFCV its own file.
    """
    if is_dataset(shards):
        return "reference"
    manifest = read_manifest(shards)
    ffcv = is_installed("ffcv") and "ffcv" in manifest.formats
    dali = is_installed("nvidia.dali") and manifest.jpeg_format is not None
    on_gpu = torch.device(device).type == "cuda"
    return "ffcv" if ffcv and not (on_gpu and dali) else "dali"


def is_installed(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False
