"""The configuration of a training run: checked when built, saved with the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from model.errors import ModelError
from model.files import replace_text
from model.recipe import Recipe

MAY_CHANGE = (
    "shards", "loader", "device", "amp", "compile", "workers", "save_every", "tensorboard",
    "max_bad", "check",
)  # fmt: skip
"""What a resumed run may set anew: where and how fast it runs; but for rounding not its results.

An end at a bad record may be mended by `max_bad`. `loader` may not change to or from one with an
order of its own (`OWN_ORDER`).
The folder of the data may move or hold another format; `data` says what must be in it.
"""

OWN_ORDER = "dali-stream"
"""The loader whose epochs have another order than those of all others."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what `train.py fit` does."""

    shards: str
    """Folder of `pack`; for the reference loader the data set folder."""
    recipe: Recipe
    """Stages, rates, losses."""
    loader: str = "ffcv"
    """Engine that reads: ffcv, dali, dali-stream or reference."""
    split: str = "random"
    """What validation has not seen: random samples, bg, fg or both."""
    split_seed: int = 42
    """Seed of the split; 42 is the original's."""
    validation: float = 0.3
    """Share of the samples (or groups) that is kept for validation."""
    width: int = 64
    """Channels at full size."""
    seed: int = 0
    """Seed of the first weights, of the order of samples and of their augmentation."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    amp: str = "auto"
    """auto, off, tf32, bf16 or fp16."""
    compile: str = "off"
    """off, or a mode of torch.compile: default, reduce-overhead (CUDA graphs), max-autotune."""
    tensorboard: bool = False
    """Whether scalars and pictures go to RUN_DIR/tensorboard as well."""
    world_size: int = 1
    """Processes that train together; each takes a batch of the recipe's size."""
    workers: int | None = None
    """Threads or processes of the loader; None lets it choose."""
    max_bad: int = 0
    """Bad records that each loader may skip; above 0, `check` is on."""
    check: bool = False
    """Whether every record is held against its checksum before it is decoded."""
    save_every: int = 500
    """Steps between two states on disk within an epoch."""
    data: str = ""
    """Fingerprint of the data set (`model.training.provenance`); empty until it is open."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1, found {self.width}")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation must be between 0 and 1, found {self.validation}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2**63 - 1, found {self.seed}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, found {self.workers}")
        if self.max_bad < 0:
            raise ValueError(f"max_bad must be at least 0, found {self.max_bad}")
        if self.save_every < 1:
            raise ValueError(f"save_every must be at least 1, found {self.save_every}")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunConfig:
        """The inverse of `dataclasses.asdict`; raises TypeError, KeyError or ValueError."""
        return cls(**{**value, "recipe": Recipe.from_json(value["recipe"])})


def write_config(path: Path, config: RunConfig, versions: Mapping[str, str]) -> None:
    """Save the configuration, with the versions of the libraries that ran it."""
    text = json.dumps({"config": asdict(config), "versions": dict(versions)}, indent=1) + "\n"
    replace_text(path, text)


def read_config(path: Path) -> RunConfig:
    """The configuration of an earlier run. Raises ModelError if it is damaged."""
    try:
        return RunConfig.from_json(json.loads(path.read_text(encoding="utf-8"))["config"])
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise ModelError(f"{path}: damaged configuration of a run: {error}") from None


def resumed_config(saved: RunConfig, given: Mapping[str, Any], where: Path) -> RunConfig:
    """The saved configuration with the options given anew.

    Raises ModelError if a given option would change what the run computes.
    """
    if "world_size" in given and given["world_size"] != saved.world_size:
        raise ModelError(
            f"{where} was started on {saved.world_size} ranks, now {given['world_size']}: an epoch "
            "has other steps then; start as many, or use a new RUN_DIR"
        )
    for name, value in given.items():
        before = getattr(saved, name)
        reordered = name == "loader" and OWN_ORDER in (before, value)
        if value != before and (name not in MAY_CHANGE or reordered):
            shown = (before.name, value.name) if isinstance(value, Recipe) else (before, value)
            raise ModelError(
                f"{where} was started with another --{name.replace('_', '-')} "
                f"({shown[0]!r}, now {shown[1]!r}): leave the option out, or use a new RUN_DIR"
            )
    return replace(saved, **{name: given[name] for name in MAY_CHANGE if name in given})
