"""One stage of a training recipe: its size, rate, trained parts and losses, checked."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from model.losses import DEPTH_LOSSES, MASK_LOSSES
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
