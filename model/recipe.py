"""Training recipes: a recipe is a list of stages, built in or read from a user's file."""

from __future__ import annotations

import math
import tomllib
from functools import partial
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from maskdepth.convert.files import read_regular
from maskdepth.convert.limits import LARGEST_BATCH
from maskdepth.convert.schema import Items, Positive, Schema, one_of, parse_json
from maskdepth.model.errors import ModelError
from maskdepth.model.losses import DEPTH_LOSSES, LOGIT_DEPTH, MASK_LOSSES
from maskdepth.model.unet import DOWNSAMPLING, PARTS, Decode

SCHEDULES = ("constant", "onecycle")
OPTIMIZERS = ("sgd", "muon")
WIDEST = 1024
"""Channels at full size: 1.6 thousand million weights."""
WARM_UP = 0.3
"""Share of a one-cycle stage in which the learning rate rises."""

Share = Annotated[float, Field(ge=0, le=1)]


def _is_printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError(f"expected a name of one line, found {ascii(name)[:60]}")
    return name


def _can_train(trains: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(trains)) < len(trains) or not {"mask", "depth"} & set(trains):
        raise ValueError(f"expected mask, depth or both, and no part twice, found {list(trains)}")
    return trains


class Stage(Schema):
    """Some epochs with one image size, batch size, learning rate and set of trained parts."""

    size: Annotated[int, Field(ge=DOWNSAMPLING, le=8192, multiple_of=DOWNSAMPLING)]
    """Height and width in pixels of the network's input; a multiple of 8."""
    batch_size: Annotated[int, Field(ge=1, le=LARGEST_BATCH)]
    """Samples per optimiser step, for each rank with which a run begins."""
    lr: Annotated[float, Field(gt=0)]
    """Learning rate; with the one-cycle schedule, its maximum."""
    trains: Annotated[Items[Annotated[str, one_of(PARTS)]], AfterValidator(_can_train)]
    """Parts that train: encoder, mask, depth. The others are frozen."""
    epochs: Annotated[int, Field(ge=1, le=10**6)] = 1
    """Passes over the training split, or over ``samples`` of it."""
    samples: Positive | None = None
    """Samples of an epoch, rounded down to full batches (at least one); None for the complete
    training split. Each epoch draws again from the complete split, so that a sample can be seen
    in several epochs before another is seen once."""
    schedule: Annotated[str, one_of(SCHEDULES)] = "constant"
    """constant, or onecycle: a linear rise and then half a cosine, once over the stage."""
    mask_loss: Annotated[str, one_of(MASK_LOSSES)] = "bce"
    """bce, dice, bce+dice, ssim or l1; used if the mask decoder trains."""
    depth_loss: Annotated[str, one_of(DEPTH_LOSSES)] = "l1"
    """l1, ssim, bce or densedepth; used if the depth decoder trains."""

    @property
    def decode(self) -> Decode:
        """The decoders that must run: those that train."""
        if "mask" not in self.trains:
            return "depth"
        return "both" if "depth" in self.trains else "mask"

    @property
    def frozen(self) -> tuple[str, ...]:
        """Parts that do not train."""
        return tuple(part for part in PARTS if part not in self.trains)

    def batches(self, available: int) -> int:
        """Batches of an epoch on one rank, of the ``available`` ones of its loader."""
        if self.samples is None:
            return available
        return min(available, max(1, self.samples // self.batch_size))

    def lr_at(self, step: float, steps: int) -> float:
        """Learning rate of step ``step`` (from 0) of the stage's ``steps``.

        A step between two others is one after a change of the size of steps.

        A pure function, so that a resumed run needs no scheduler state.
        """
        if self.schedule == "constant":
            return self.lr
        done = (step + 0.5) / steps
        if done < WARM_UP:
            return self.lr * done / WARM_UP
        return self.lr * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))

    def __str__(self) -> str:
        return (
            f"{'+'.join(self.trains)} at {self.size}x{self.size}, batch {self.batch_size}, "
            f"lr {self.lr:g} {self.schedule}"
        )


class Recipe(Schema):
    """Stages trained in order; the momentum restarts at 0 in each stage."""

    name: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_is_printable)]
    """The name that `--recipe` takes."""
    stages: Annotated[Items[Stage], Field(min_length=1)]
    """The stages in order; at least one."""
    width: Annotated[int, Field(ge=1, le=WIDEST)] = 64
    """Channels at full size, unless `--width` is given."""
    optimizer: Annotated[str, one_of(OPTIMIZERS)] = "sgd"
    """sgd, or muon (`training.optimizer.Muon`), which always uses Nesterov momentum."""
    momentum: Share = 0.9
    """Momentum of the optimiser, in 0..1; below 1 for muon."""
    weight_decay: Share = 1e-5
    """Weight decay, applied to every trained parameter."""
    nesterov: bool = False
    """Whether SGD uses Nesterov momentum."""
    from_difference: bool = False
    """Whether half of the first filters start as fg_bg minus bg; the architecture is the same."""
    flip: Share = 0.0
    """Probability that a training sample is flipped left-right."""
    jitter: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest change of brightness, contrast, saturation and hue in training, 0..0.5."""
    rgb_shift: Share = 0.0
    """Largest value added to each colour channel in training, in 0..1."""
    camera: Share = 0.0
    """Share of the training samples in which bg and fg_bg differ as two photos do, in 0..1."""
    camera_shift: Share = 0.03
    """Largest movement of that camera along each axis, as a share of the side, in 0..1."""
    camera_rotation: Annotated[float, Field(ge=0, le=45)] = 0.5
    """Its largest rotation, in degrees, 0..45."""
    camera_zoom: Share = 0.01
    """Its largest relative change of size, in 0..1."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        if self.optimizer == "muon":
            if self.momentum == 1:
                raise ValueError("momentum must be below 1 for muon, found 1")
            if self.nesterov:
                raise ValueError(
                    "nesterov is for sgd, and muon always uses Nesterov momentum; remove nesterov"
                )
        if len({s.depth_loss in LOGIT_DEPTH for s in self.stages if "depth" in s.trains}) > 1:
            raise ValueError(
                "depth_loss bce makes the depth output a logit; a recipe cannot mix it with others"
            )
        return self

    @property
    def depth_loss(self) -> str:
        """The last depth loss that the recipe trains with; it defines the depth output."""
        return next((s.depth_loss for s in reversed(self.stages) if "depth" in s.trains), "l1")

    @property
    def untrained(self) -> tuple[str, ...]:
        """The decoders, of mask and depth, that no stage trains: they keep their first weights."""
        trained = {part for stage in self.stages for part in stage.trains}
        return tuple(part for part in ("mask", "depth") if part not in trained)


def load_recipe(name: str) -> Recipe:
    """Return a built-in recipe by name, or read a user's from a `.toml` or `.json` file.

    Raises ModelError that names the file, the stage and the key.
    """
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.suffix not in (".toml", ".json"):
        raise ModelError(
            f"recipe {name!r}: no such recipe; expected one of {', '.join(RECIPES)}, "
            "or a .toml or .json file"
        )
    try:
        text = read_regular(path).decode()
        parse = tomllib.loads if path.suffix == ".toml" else parse_json
        return Recipe.from_json(parse(text))
    except OSError as error:
        raise ModelError(f"recipe {path}: {error.strerror}") from None
    except RecursionError:
        raise ModelError(f"recipe {path}: found tables or lists nested too deep") from None
    except ValueError as error:
        raise ModelError(f"recipe {path}: {error}") from None


_ALL = ("encoder", "mask", "depth")
_at_112 = partial(Stage, size=112, batch_size=128)
_at_224 = partial(Stage, size=224, batch_size=32)

# The original work's two parts (depth, then mask), each at 112 and then at 224.
_ORIGINAL = Recipe(
    name="original",
    stages=(
        _at_112(trains=("encoder", "depth"), lr=0.01),
        _at_112(trains=("encoder", "depth"), lr=0.001, epochs=2),
        _at_224(trains=("encoder", "depth"), lr=0.01),
        _at_224(trains=("encoder", "depth"), lr=0.001),
        _at_224(trains=("encoder", "depth"), lr=0.0001),
        _at_112(trains=("mask",), lr=0.01),
        _at_112(trains=("mask",), lr=0.001),
        _at_224(trains=("mask",), lr=0.01),
        _at_224(trains=("mask",), lr=0.0001),
    ),
)

# The depth stages of `original` with both decoders at once: 6 epochs instead of 10.
_JOINT = Recipe(
    name="joint", stages=tuple(stage.changed(trains=_ALL) for stage in _ORIGINAL.stages[:5])
)

# BCE for the depth: like RMSE it is lowest at the mean, whereas L1 is lowest at the median.
_cycle = partial(Stage, trains=_ALL, schedule="onecycle", mask_loss="bce+dice", depth_loss="bce")

# Two epochs instead of the ten of `original`.
_FAST = Recipe(
    name="fast",
    nesterov=True,
    from_difference=True,
    stages=(_cycle(size=112, batch_size=64, lr=0.1), _cycle(size=224, batch_size=32, lr=0.03)),
)

# `fast` for about 1,000 composites and a CPU; docs/training.md has the measured scores.
# Small batches: with so few samples the number of steps limits the result.
_SMALL = _FAST.changed(
    name="small", width=12, stages=(_cycle(size=112, batch_size=4, lr=0.1, epochs=16),)
)

# The scores of the original work with 1/800 of its FLOPs (docs/training.md), from 6,000 samples.
# At 64x64 the network sees the scene as a whole and learns its depth, at 144x144 it learns
# where edges are.
_cycle_of_8 = partial(_cycle, batch_size=8)
_SPRINT = Recipe(
    name="sprint",
    optimizer="muon",
    weight_decay=0,
    from_difference=True,
    stages=(
        _cycle_of_8(size=64, lr=0.05, samples=4000),
        _cycle_of_8(size=144, lr=0.03, samples=2000),
    ),
)

# For photos: most samples differ as two photos of a place do, and both directions are shown. The
# movement is what is left when `predict` has aligned two photos.
_ROBUST = _SPRINT.changed(
    name="robust",
    camera=0.6,
    camera_shift=0.004,
    camera_rotation=0.15,
    camera_zoom=0.002,
    flip=0.5,
    stages=(
        _cycle_of_8(size=64, lr=0.05, samples=8000, epochs=2),
        _cycle_of_8(size=112, lr=0.04, samples=8000, epochs=2),
        _cycle_of_8(size=160, lr=0.03, samples=6000),
    ),
)

# About seven minutes of CPU time with about 1,000 training composites. Four of its seven epochs are
# at 64x64, where a step takes a third of the time.
_DEMO = Recipe(
    name="demo",
    width=12,
    optimizer="muon",
    weight_decay=0,
    from_difference=True,
    camera=0.8,
    stages=(_cycle_of_8(size=64, lr=0.04, epochs=4), _cycle_of_8(size=112, lr=0.03, epochs=3)),
)

RECIPES = {
    recipe.name: recipe for recipe in (_ORIGINAL, _JOINT, _FAST, _SMALL, _SPRINT, _ROBUST, _DEMO)
}
