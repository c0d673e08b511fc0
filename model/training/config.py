"""The configuration of a training run: checked when built and saved with the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import AfterValidator, Field, model_validator

from maskdepth.convert.errors import DataError, OptionError
from maskdepth.convert.files import read_regular
from maskdepth.convert.limits import LARGEST_BATCH, MOST_WORKERS
from maskdepth.convert.schema import Count, Items, Positive, Schema, one_of, parse_table
from maskdepth.model.errors import ModelError
from maskdepth.model.files import replace_bytes
from maskdepth.model.precision import AMP, COMPILE, CUDA_GRAPHS
from maskdepth.model.recipe import WIDEST, Recipe, Stage
from maskdepth.model.training.logs import LOGS
from maskdepth.model.training.steps import StepSize

CHANGEABLE = (
    "shards", "engine", "device", "workers", "max_bad", "check",
    "amp", "compile", "save_minutes", "logs", "world_size", "accumulate",
)  # fmt: skip
"""Options that a resumed run may change: they decide where and how fast it runs and, but for
rounding, not its results. `accumulate` and `world_size` also decide over how many samples BatchNorm
computes its statistics, and where the ranks do not divide a step, `world_size` changes its size
(`StepSize`). The folder of the data may move or hold another format, because
`RunConfig.fingerprint` identifies its content. `engine` may not change to or from `OWN_ORDER`.
"""

OWN_ORDER = "dali-stream"
"""The engine whose epochs have another order than those of all other engines."""


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


class DataConfig(Schema):
    """Which data is read, by which engine, and how it is split."""

    shards: str
    """Folder written by `pack`; for the reference engine the data set folder."""
    engine: str = "ffcv"
    """Engine that reads and decodes: ffcv, dali, dali-stream, resident or reference."""
    split: str = "random"
    """What validation holds out: random samples, bg, fg or both."""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of the split; 42 is the original's."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the samples (or groups) that is held out for validation, between 0 and 1."""
    seed: Count = 0
    """Seed of the order of samples and, in training, of the first weights and the augmentation."""
    device: str = "auto"
    """Device of the batches: auto, cpu, cuda or cuda:N."""
    workers: Annotated[int, Field(ge=1, le=MOST_WORKERS)] | None = None
    """Decoding threads; None means one per core, divided by the ranks of a machine."""
    max_bad: Count = 0
    """Corrupt records that each loader may skip; above 0, `check` is on."""
    check: bool | None = None
    """Whether the checksum of every record is verified before it is decoded; None: for DALI on a
    GPU alone."""

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> Self:
        """The configuration for options by name; OptionError for a value out of range."""
        try:
            return cls.from_json(options)
        except ValueError as error:
            raise _wrong_option(cls, error) from None


class RunConfig(Schema):
    """Everything that decides what `train.py fit` does."""

    data: DataConfig
    """The data, its split and the engine."""
    recipe: Recipe
    """Stages, learning rates and losses."""
    width: Annotated[int, Field(ge=1, le=WIDEST)] = 64
    """Channels of the network at full size."""
    amp: Annotated[str, one_of(AMP)] = "auto"
    """Mixed precision: auto, off, tf32, bf16 or fp16."""
    compile: Annotated[str, one_of(COMPILE)] = "auto"
    """off, a mode of torch.compile (default, reduce-overhead, max-autotune), or auto."""
    logs: Annotated[Items[Annotated[str, one_of(tuple(LOGS))]], AfterValidator(_once)] = ()
    """Where scalars and pictures are also written: tensorboard, wandb, mlflow."""
    world_size: Positive = 1
    """Processes that train together."""
    started_on: Positive | None = None
    """Ranks with which the run began: a step takes the recipe's batch for each of these, however
    many train now. None: `world_size`."""
    accumulate: Annotated[int, Field(ge=1, le=LARGEST_BATCH)] = 1
    """Parts in which a batch of the recipe is computed, one after the other."""
    save_minutes: Annotated[float, Field(ge=0)] = 5.0
    """Minutes between two saved states within an epoch; 0 saves after every step."""
    fingerprint: str = ""
    """Fingerprint of the data set (`provenance.fingerprint`); empty until the data is open."""

    @model_validator(mode="before")
    @classmethod
    def _read_old(cls, value: object) -> object:
        """Runs that were started before there was `logs` have `tensorboard`, true or false."""
        if isinstance(value, Mapping) and isinstance(value.get("tensorboard"), bool):
            rest = {key: entry for key, entry in value.items() if key != "tensorboard"}
            return {"logs": ["tensorboard"] if value["tensorboard"] else [], **rest}
        return value

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        least = min(stage.batch_size for stage in self.recipe.stages)
        if self.accumulate > least:
            raise ValueError(
                f"accumulate: found {self.accumulate} parts, expected at most {least}, the "
                "smallest batch_size of the recipe"
            )
        if self.compile in CUDA_GRAPHS and any(self.parts(s) > 1 for s in self.recipe.stages):
            raise ValueError(
                f"compile: {self.compile} uses CUDA graphs, which overwrite the gradients of a "
                "part by those of the next; with --accumulate, or on fewer ranks, use default"
            )
        return self

    def about_ranks(self) -> str:
        """One line about a run that continues on another number of ranks; empty otherwise."""
        if self.first_ranks == self.world_size:
            return ""
        about = f"started with {_ranks(self.first_ranks)}, now {_ranks(self.world_size)}: "
        sizes = [(self.first_step(s), self.step_size(s).samples) for s in self.recipe.stages]
        if changed := dict.fromkeys((a, b) for a, b in sizes if a != b):
            listed = ", ".join(f"{after} samples in place of {before}" for before, after in changed)
            return f"{about}they do not divide the steps, which take {listed}"
        return f"{about}a step takes as many samples as before"

    @property
    def first_ranks(self) -> int:
        """The ranks with which the run began."""
        return self.started_on or self.world_size

    def first_step(self, stage: Stage) -> int:
        """Samples of a step of a stage when the run began, on all ranks together."""
        return stage.batch_size * self.first_ranks

    def step_size(self, stage: Stage) -> StepSize:
        """What a step of a stage is on the ranks that train now."""
        return StepSize.of(
            stage, started=self.first_ranks, ranks=self.world_size, accumulate=self.accumulate
        )

    def parts(self, stage: Stage) -> int:
        """Parts in which a rank computes its share of a full step of a stage."""
        size = self.step_size(stage)
        return size.parts(size.share)

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> Self:
        """The configuration for options of the data and of the run by name.

        Raises OptionError for a value out of range.
        """
        of_data = DataConfig.model_fields
        data = {name: value for name, value in options.items() if name in of_data}
        rest = {name: value for name, value in options.items() if name not in of_data}
        try:
            return cls.from_json({"data": DataConfig.from_options(data), **rest})
        except ValueError as error:
            raise _wrong_option(cls, error) from None

    def summary(self) -> dict[str, object]:
        """Plain values without further levels, as logs show them."""
        options = {**dict(self.data), **dict(self), "recipe": self.recipe.name}
        del options["data"], options["logs"]
        stages = {f"stage_{n}": str(stage) for n, stage in enumerate(self.recipe.stages, start=1)}
        return {**options, **stages}


def _ranks(count: int) -> str:
    return f"{count} rank" + ("" if count == 1 else "s")


def _wrong_option(schema: type[Schema], error: ValueError) -> DataError:
    """The error for an option, with whose name the text of a `Schema` begins."""
    text = str(error)
    for name in schema.model_fields:
        if text.startswith((f"{name} ", f"{name}: ")):
            return OptionError(name, text.removeprefix(name))
    return DataError(f"options: {text}")


class _ConfigFile(Schema):
    """config.json: the configuration, and the versions of the libraries that began the run."""

    config: RunConfig
    versions: dict[str, str]


def write_config(path: Path, config: RunConfig) -> None:
    """Save the configuration together with the versions of the libraries."""
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    text = json.dumps({"config": config.model_dump(), "versions": versions}, indent=1) + "\n"
    replace_bytes(path, text.encode())


def read_config(path: Path) -> RunConfig:
    """The configuration of an earlier run. Raises ModelError if the file is corrupt."""
    try:
        value: dict[str, Any] = parse_table(read_regular(path))
        if isinstance(value.get("config"), dict):
            value["config"].pop("save_every", None)  # version 0.1 counted steps
        return _ConfigFile.from_json(value).config
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"{path}: not the configuration of a run: {error}") from None


def resumed_config(saved: RunConfig, given: Mapping[str, object], folder: Path) -> RunConfig:
    """The saved configuration with the options that the resuming command line sets.

    Raises ModelError if an option would change what the run computes.
    """
    options = {**dict(saved), **dict(saved.data)}
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
    return RunConfig.from_options({**options, "started_on": saved.first_ranks, **given})
