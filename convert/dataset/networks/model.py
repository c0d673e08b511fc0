"""What a depth network is for the rest of the program, and how it can be loaded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from maskdepth.convert.errors import OptionError

Predicts = Literal["inverse", "depth", "metric"]
"""What values grow with: nearness (inverse), or distance, without a unit (depth) or in metres."""
Amp = Literal["auto", "off", "fp16", "bf16"]
"""Precision on a GPU: auto is fp16 there and off on a CPU."""
Normalise = Literal["imagenet", "half", "none"]
"""Inputs of an exported network: 0..1, of which the mean and deviation of ImageNet, or 0.5 and
0.5, are subtracted and divided by, or neither."""

MEANING = {
    "inverse": "inverse depth (larger is nearer)",
    "depth": "depth without a unit (larger is farther)",
    "metric": "metres (larger is farther)",
}
"""What a model predicts, in words."""


def _same(image: np.ndarray) -> Any:  # what the model takes
    return image


@dataclass(frozen=True)
class DepthModel:
    """A loaded network, and how `dataset.json` describes it.

    predict: what `prepare` made of images of one size -> a float map (h, w) of each, in the
        network's unit. Several threads may call both.
    prepare: one image, uint8 (H, W, 3), RGB 0..255 -> what `predict` takes.
    reason: why it is taken to predict that.
    made: what decides its values: library, revision, device, precision.
    at_once: calls of `predict` at one time that use the device well.
    working: entered while maps are predicted.
    """

    name: str
    predict: Callable[[list[Any]], list[np.ndarray]]
    predicts: Predicts
    prepare: Callable[[np.ndarray], Any] = _same
    reason: str = "as --predicts says"
    made: tuple[tuple[str, str], ...] = ()
    at_once: int = 1
    working: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def about(self) -> dict[str, object]:
        """How `dataset.json` describes it."""
        return {"name": self.name, "predicts": self.predicts, **dict(self.made)}


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How a network is loaded.

    predicts: by default what its configuration or its name says.
    device: as torch names it ("cpu", "cuda:1"); by default the first GPU, or the CPU.
    input_size, normalise: of exported files alone: height and width of its input in pixels, by
        default what the file says; and how it takes its input.
    """

    predicts: Predicts | None = None
    device: str | None = None
    amp: Amp = "auto"
    input_size: int | None = None
    normalise: Normalise | None = None

    def __post_init__(self) -> None:
        if self.input_size is not None and not 8 <= self.input_size <= 4096:
            raise OptionError("input_size", f": found {self.input_size}, expected 8 to 4096")
