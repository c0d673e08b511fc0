"""The configuration of a training run: checked when built and saved with the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

from model.errors import ModelError
from model.files import replace_bytes
from model.recipe import Recipe

CHANGEABLE = (
    "shards", "engine", "device", "workers", "max_bad", "check",
    "amp", "compile", "save_minutes", "tensorboard",
)  # fmt: skip
"""Options that a resumed run may change: they decide where and how fast it runs and, but for
rounding, not its results. The folder of the data may move or hold another format, because
`RunConfig.fingerprint` identifies its content. `engine` may not change to or from `OWN_ORDER`.
"""

OWN_ORDER = "dali-stream"
"""The engine whose epochs have another order than those of all other engines."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data is read, by which engine, and how it is split."""

    shards: str
    """Folder written by `pack`; for the reference engine the data set folder."""
    engine: str = "ffcv"
    """Engine that reads and decodes: ffcv, dali, dali-stream, resident or reference."""
    split: str = "random"
    """What validation holds out: random samples, bg, fg or both."""
    split_seed: int = 42
    """Seed of the split; 42 is the original's."""
    validation: float = 0.3
    """Share of the samples (or groups) that is held out for validation, between 0 and 1."""
    seed: int = 0
    """Seed of the order of samples and, in training, of the first weights and the augmentation."""
    device: str = "auto"
    """Device of the batches: auto, cpu, cuda or cuda:N."""
    workers: int | None = None
    """Decoding threads; None means one per core, divided by the ranks of a machine."""
    max_bad: int = 0
    """Corrupt records that each loader may skip; above 0, `check` is on."""
    check: bool | None = None
    """Whether the checksum of every record is verified before it is decoded; None: for DALI on a
    GPU alone."""

    def __post_init__(self) -> None:
        _require_at_least(self, max_bad=0, workers=1)
        if not 0 < self.validation < 1:
            raise ModelError(f"validation must be between 0 and 1, found {self.validation}")
        if not 0 <= self.seed < 2**63:
            raise ModelError(f"seed must be from 0 to 2**63 - 1, found {self.seed}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what `train.py fit` does."""

    data: DataConfig
    """The data, its split and the engine."""
    recipe: Recipe
    """Stages, learning rates and losses."""
    width: int = 64
    """Channels of the network at full size."""
    amp: str = "auto"
    """Mixed precision: auto, off, tf32, bf16 or fp16."""
    compile: str = "auto"
    """off, a mode of torch.compile (default, reduce-overhead, max-autotune), or auto."""
    tensorboard: bool = False
    """Whether scalars and pictures are also written to RUN_DIR/tensorboard."""
    world_size: int = 1
    """Processes that train together; each takes batches of the recipe's size."""
    save_minutes: float = 5.0
    """Minutes between two saved states within an epoch; 0 saves after every step."""
    fingerprint: str = ""
    """Fingerprint of the data set (`provenance.fingerprint`); empty until the data is open."""

    def __post_init__(self) -> None:
        _require_at_least(self, width=1, save_minutes=0)

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> RunConfig:
        """The configuration for options of the data and of the run by name."""
        names = {field.name for field in fields(DataConfig)}
        data = {name: value for name, value in options.items() if name in names}
        rest = {name: value for name, value in options.items() if name not in names}
        return cls(data=DataConfig(**data), **rest)  # type: ignore[arg-type]  # click checks types


def _require_at_least(config: DataConfig | RunConfig, **lowest: int) -> None:
    for name, low in lowest.items():
        if (found := getattr(config, name)) is not None and found < low:
            raise ModelError(f"{name} must be at least {low}, found {found}")


def write_config(path: Path, config: RunConfig) -> None:
    """Save the configuration together with the versions of the libraries."""
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    text = json.dumps({"config": asdict(config), "versions": versions}, indent=1) + "\n"
    replace_bytes(path, text.encode())


def read_config(path: Path) -> RunConfig:
    """The configuration of an earlier run. Raises ModelError if the file is corrupt."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))["config"]
        value.pop("save_every", None)  # version 0.1 counted steps
        parsed = {"data": DataConfig(**value["data"]), "recipe": Recipe.from_json(value["recipe"])}
        return RunConfig(**(value | parsed))
    except (OSError, TypeError, KeyError, ValueError, ModelError) as error:
        raise ModelError(f"{path}: not the configuration of a run: {error}") from None


def resumed_config(saved: RunConfig, given: Mapping[str, object], folder: Path) -> RunConfig:
    """The saved configuration with the options that the resuming command line sets.

    Raises ModelError if an option would change what the run computes.
    """
    if "world_size" in given and given["world_size"] != saved.world_size:
        raise ModelError(
            f"{folder} was started on {saved.world_size} ranks, now {given['world_size']}: its "
            "epochs would have other steps; start as many ranks, or use a new RUN_DIR"
        )
    options = {**vars(saved), **vars(saved.data)}
    del options["data"]
    for name, value in given.items():
        before = options[name]
        reordered = name == "engine" and OWN_ORDER in (before, value)
        if value != before and (name not in CHANGEABLE or reordered):
            old, new = (v.name if isinstance(v, Recipe) else v for v in (before, value))
            option = "loader" if name == "engine" else name.replace("_", "-")
            raise ModelError(
                f"{folder} was started with another --{option} ({old!r}, now {new!r}): leave the "
                "option out, or use a new RUN_DIR"
            )
    return RunConfig.from_options({**options, **given})
