"""Training recipes as data: the built-in ones, and a user's own from a file."""

from __future__ import annotations

import json
import math
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from model.errors import ModelError
from model.losses import DEPTH_LOSSES, LOGIT_DEPTH, MASK_LOSSES
from model.unet import DOWNSAMPLING, PARTS, Decode

SCHEDULES = ("constant", "onecycle")
WARM_UP = 0.3
"""Share of a one-cycle stage in which the rate rises."""


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_whole(config: object, *names: str) -> None:
    """Raise ValueError unless these attributes are whole numbers of at least 1."""
    for name in names:
        value = getattr(config, name)
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        require(whole, f"{name} must be a whole number >= 1, found {value!r}")


def require_number(config: object, name: str, low: float, high: float) -> None:
    """Raise ValueError unless the attribute is a number in low..high, both included."""
    value = getattr(config, name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    require(
        number and low <= value <= high,
        f"{name} must be a number from {low} to {high}, found {value!r}",
    )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Some epochs with one size, batch size, rate and choice of trained parts."""

    size: int
    """Height and width in pixels of the network's input; a multiple of 8."""
    batch_size: int
    """Samples per optimiser step, on each rank."""
    lr: float
    """Learning rate; the highest one where the schedule is not constant."""
    trains: tuple[str, ...]
    """Parts that train: encoder, mask, depth; everything else is frozen."""
    epochs: int = 1
    """Passes over the training split."""
    schedule: str = "constant"
    """constant, or onecycle: linear rise, then half a cosine down, once over the stage."""
    mask_loss: str = "bce"
    """bce, dice, bce+dice, ssim or l1; used where the mask decoder trains."""
    depth_loss: str = "l1"
    """l1, ssim, bce or densedepth; used where the depth decoder trains."""

    def __post_init__(self) -> None:
        require_whole(self, "size", "batch_size", "epochs")
        require(
            self.size % DOWNSAMPLING == 0,
            f"size must be a multiple of {DOWNSAMPLING}, found {self.size}",
        )
        require_number(self, "lr", 0, math.inf)
        finite = 0 < self.lr <= sys.float_info.max
        require(finite, f"lr must be a finite number above 0, found {self.lr!r}")
        parts: object = self.trains
        require(
            isinstance(parts, list | tuple)
            and all(isinstance(part, str) and part in PARTS for part in parts)
            and len(set(parts)) == len(parts),
            f"trains must list some of {', '.join(PARTS)}, found {self.trains!r}",
        )
        object.__setattr__(self, "trains", tuple(self.trains))
        require(
            bool({"mask", "depth"} & set(self.trains)),
            f"trains must name mask or depth, else there is no loss; found {self.trains!r}",
        )
        for name, known in (
            ("schedule", SCHEDULES),
            ("mask_loss", MASK_LOSSES),
            ("depth_loss", DEPTH_LOSSES),
        ):
            value = getattr(self, name)
            require(
                isinstance(value, str) and value in known,
                f"{name} must be one of {', '.join(known)}, found {value!r}",
            )

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

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of step ``step`` (from 0) of the stage's ``steps``.

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


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Stages in order, trained with SGD; each stage starts with fresh momentum."""

    name: str
    """What `--recipe` calls it."""
    stages: tuple[Stage, ...]
    """At least one."""
    width: int = 64
    """Channels at full size, where `--width` does not say otherwise."""
    momentum: float = 0.9
    """Of SGD, in 0..1."""
    weight_decay: float = 1e-5
    """Of SGD, on every trained parameter."""
    nesterov: bool = False
    """Nesterov's form of the momentum."""
    from_difference: bool = False
    """Whether half of the first filters start as fg_bg minus bg; the architecture is the same."""
    flip: float = 0.0
    """Probability that a training sample is flipped left-right."""
    jitter: float = 0.0
    """Largest change of brightness, contrast, saturation and hue in training, 0..0.5."""
    rgb_shift: float = 0.0
    """Largest value added to each colour channel in training, in 0..1."""

    def __post_init__(self) -> None:
        name: object = self.name
        require(isinstance(name, str) and bool(name), f"name must be a text, found {name!r}")
        require_whole(self, "width")
        require(bool(self.stages), "stages: at least one is needed")
        object.__setattr__(self, "stages", tuple(self.stages))
        highest = {"momentum": 1, "weight_decay": 1, "flip": 1, "jitter": 0.5, "rgb_shift": 1}
        for field, high in highest.items():
            require_number(self, field, 0, high)
        for field in ("nesterov", "from_difference"):
            chosen = getattr(self, field)
            require(isinstance(chosen, bool), f"{field} must be true or false, found {chosen!r}")
        require(not self.nesterov or self.momentum > 0, "nesterov needs a momentum above 0")
        logit = {s.depth_loss in LOGIT_DEPTH for s in self.stages if "depth" in s.trains}
        require(
            len(logit) <= 1,
            "depth_loss bce makes the depth output a logit; a recipe cannot mix it with others",
        )

    @property
    def augments(self) -> bool:
        """Whether training samples are changed at random."""
        return bool(self.flip or self.jitter or self.rgb_shift)

    @property
    def depth_loss(self) -> str:
        """The last depth loss trained with; it says what the depth output means."""
        return next((s.depth_loss for s in reversed(self.stages) if "depth" in s.trains), "l1")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Recipe:
        """From plain values, as in a file or in `dataclasses.asdict`; ValueError on nonsense."""
        require(isinstance(value, Mapping), f"expected a table, found {type(value).__name__}")
        stages = value.get("stages")
        require(isinstance(stages, list | tuple) and bool(stages), "stages: expected a list")
        built = []
        for number, stage in enumerate(stages or (), start=1):
            try:
                require(isinstance(stage, Mapping), f"expected a table, found {stage!r}")
                built.append(Stage(**_checked_keys(Stage, stage)))
            except ValueError as error:
                raise ValueError(f"stage {number}: {error}") from None
        return cls(**{**_checked_keys(cls, value), "stages": tuple(built)})


def _checked_keys(kind: type, value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The value itself, once it has no unknown and no missing key."""
    known = {field.name: field for field in fields(kind)}
    unknown = [key for key in value if key not in known]
    require(not unknown, f"unknown key {unknown}; known are {', '.join(known)}")
    required = ("size", "batch_size", "lr", "trains") if kind is Stage else ("name", "stages")
    missing = [key for key in required if key not in value]
    require(not missing, f"missing key {missing}")
    return value


def _original() -> Recipe:
    """The original work's two parts (depth, then mask), each at 112 and then at 224."""
    depth, mask = ("encoder", "depth"), ("mask",)
    small = partial(Stage, size=112, batch_size=128)
    large = partial(Stage, size=224, batch_size=32)
    return Recipe(
        name="original",
        stages=(
            small(trains=depth, lr=0.01),
            small(trains=depth, lr=0.001, epochs=2),
            large(trains=depth, lr=0.01),
            large(trains=depth, lr=0.001),
            large(trains=depth, lr=0.0001),
            small(trains=mask, lr=0.01),
            small(trains=mask, lr=0.001),
            large(trains=mask, lr=0.01),
            large(trains=mask, lr=0.0001),
        ),
    )


def _joint() -> Recipe:
    """Both decoders at once: one pass over the data where `original` needs two."""
    every = ("encoder", "mask", "depth")
    small = partial(Stage, size=112, batch_size=128)
    large = partial(Stage, size=224, batch_size=32)
    return Recipe(
        name="joint",
        stages=(
            small(trains=every, lr=0.01),
            small(trains=every, lr=0.001, epochs=2),
            large(trains=every, lr=0.01),
            large(trains=every, lr=0.001),
            large(trains=every, lr=0.0001),
        ),
    )


def _fast() -> Recipe:
    """Two passes where `original` makes ten.

    Both decoders at once, a rate that rises and falls, Dice beside BCE for the mask, BCE for the
    depth (least at the mean, as RMSE is; L1 is at the median), and first filters that look at the
    difference of the images.
    """
    every = ("encoder", "mask", "depth")
    cycle = partial(
        Stage, trains=every, schedule="onecycle", mask_loss="bce+dice", depth_loss="bce"
    )
    return Recipe(
        name="fast",
        nesterov=True,
        from_difference=True,
        stages=(
            cycle(size=112, batch_size=64, lr=0.1),
            cycle(size=224, batch_size=32, lr=0.03),
        ),
    )


def _small() -> Recipe:
    """`fast` for about 1,000 composites and a CPU; figures in docs/training.md."""
    at_112, _ = _fast().stages
    return Recipe(
        name="small",
        width=12,
        nesterov=True,
        from_difference=True,
        stages=(
            # Small batches: with so few samples the number of steps limits the result.
            replace(at_112, batch_size=4, epochs=16),
        ),
    )


def _demo() -> Recipe:
    """For two CPU cores and about 1,000 training composites: some two minutes."""
    every = ("encoder", "mask", "depth")
    return Recipe(
        name="demo",
        width=12,
        nesterov=True,
        stages=(
            # Many small steps: with so few samples their number limits the result.
            Stage(size=112, batch_size=8, trains=every, lr=0.15, epochs=5, schedule="onecycle"),
        ),
    )


RECIPES = {recipe.name: recipe for recipe in (_original(), _joint(), _fast(), _small(), _demo())}


def load_recipe(name: str) -> Recipe:
    """A built-in recipe by name, or a user's from a `.toml` or `.json` file.

    Raises ModelError that names the file, the stage and the key.
    """
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.suffix not in (".toml", ".json"):
        raise ModelError(
            f"recipe {name!r}: no such recipe; there are {', '.join(RECIPES)}, "
            "or give a .toml or .json file"
        )
    try:
        text = path.read_text(encoding="utf-8")
        value = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        return Recipe.from_json(value)
    except OSError as error:
        raise ModelError(f"recipe {path}: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"recipe {path}: {error}") from None
