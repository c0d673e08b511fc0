"""Loads a depth network, of whichever kind its name says it is."""

from __future__ import annotations

from pathlib import Path

from maskdepth.convert.dataset.networks.model import DepthModel, ModelOptions
from maskdepth.convert.errors import OptionError

EXPORTED = (".pt2", ".onnx")


def load_model(name: str, options: ModelOptions) -> DepthModel:
    """Load a `.pt2` or `.onnx` file, or a network of `transformers` by its name or its folder.

    Raises DataError for a library that is not installed, a network that cannot be loaded, and one
    of which it is not known what it predicts.
    """
    if name.lower().endswith(EXPORTED):
        from maskdepth.convert.dataset.networks.exported import load_exported

        return load_exported(Path(name), options)
    for option in ("input_size", "normalise"):
        if getattr(options, option) is not None:
            raise OptionError(option, ": is for .pt2 and .onnx files; leave it out")
    from maskdepth.convert.dataset.networks.hub import load_from_hub

    return load_from_hub(name, options)
