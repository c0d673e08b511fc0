"""What `gpu-check` runs: the commands, their sizes and their order."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Literal

import torch

import maskdepth
from maskdepth.benchmarks.harness.checks import FOLDER, Check
from maskdepth.loaders.engines import REGISTRY, is_installed

NAME: Literal["gpu-check"] = "gpu-check"
ROOT = Path(maskdepth.__file__).parent.parent
"""Folder of the package, for the processes of the checks; that of the tests, in a checkout."""
ENGINES = ("ffcv", "dali", "resident")
FEW = 8000
"""Samples of the checks to which a whole epoch adds nothing."""
BATCHES = {112: 128, 224: 32}
"""Size of images -> batch size, as in the recipe `original`."""
_BACKGROUNDS, _PLACEMENTS = 100, 40


@dataclass(frozen=True)
class Drawn:
    """A data set of at least ``samples`` composites, drawn and packed below a folder once."""

    below: Path
    samples: int

    @property
    def folder(self) -> Path:
        return self.below / f"{self.samples}-samples" / "data"

    @property
    def shards(self) -> Path:
        return self.folder.with_name("shards")

    def checks(self) -> list[Check]:
        """Draws and packs it, where that was not done before."""
        backgrounds = min(_BACKGROUNDS, ceil(self.samples / _PLACEMENTS))
        foregrounds = ceil(self.samples / (backgrounds * _PLACEMENTS))
        counts = (
            "--backgrounds", backgrounds, "--foregrounds", foregrounds, "--placements", _PLACEMENTS
        )  # fmt: skip
        draw = _program("convert", "compose", self.folder, *counts, "--resume")
        pack = _program("convert", "pack", self.folder, self.shards, "--resume")
        return [
            Check(name=f"data-{self.samples}", command=draw, measures=False,
                  makes=self.folder / "dataset.json"),
            Check(name=f"shards-{self.samples}", command=pack, measures=False,
                  makes=self.shards / "manifest.json"),
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is checked, and with what; width: of the network. results: folder of the results."""

    device: str
    samples: int
    width: int
    data: Path
    results: Path

    @cached_property
    def all(self) -> Drawn:
        return Drawn(self.data, self.samples)

    @cached_property
    def few(self) -> Drawn:
        return Drawn(self.data, min(self.samples, FEW))

    @cached_property
    def engine(self) -> str:
        """For what any engine can do: the first that is installed."""
        return next(engine for engine in ENGINES if not _missing(engine))

    @property
    def recipe(self) -> Path:
        return self.results / FOLDER / "recipe.json"

    def recipe_text(self) -> str:
        """One epoch of both decoders."""
        stage = {
            "size": 112, "batch_size": self.batch_size(self.all, 112), "lr": 0.01,
            "trains": ["encoder", "mask", "depth"],
        }  # fmt: skip
        return json.dumps({"name": NAME, "width": self.width, "stages": [stage]})

    def batch_size(self, drawn: Drawn, size: int) -> int:
        """That of the recipe, or half of the training samples if they are fewer."""
        return min(BATCHES[size], max(1, int(0.7 * drawn.samples) // 2))

    def preparation(self) -> list[Check]:
        """The data that the other checks need."""
        sets = dict.fromkeys((self.all, self.few))
        return [check for drawn in sets for check in drawn.checks()]

    def checks(self) -> list[Check]:
        """The most valuable ones first."""
        others = [engine for engine in ENGINES if engine != self.engine]
        return [
            self._check("parity", "parity", self.few.shards),
            *(self._epoch(112, one, compiled) for compiled in (False, True) for one in ENGINES),
            *(self._epoch(224, self.engine, compiled) for compiled in (False, True)),
            self._check("loader", "loader", self.few.shards, "--repeats", 3),
            self._step(112),
            self._step(224),
            self._hardware(),
            self._peers(),
            self._tests(),
            self._speedrun(),
            self._fit(),
            *(self._epoch(224, one, compiled) for compiled in (False, True) for one in others),
            self._step(224, compiled=True),
        ]

    def _check(
        self, name: str, *arguments: object, missing: str = "", publish: bool = True
    ) -> Check:
        command = _program("bench", *arguments, "--device", self.device)
        return Check(name=name, command=command, missing=missing, publish=publish)

    def _epoch(self, size: int, engine: str, compiled: bool) -> Check:
        """The stage with most work; at 224 fewer samples take as long."""
        drawn = self.all if size == 112 else self.few
        return self._check(
            f"epoch-{size}-{engine}" + ("-compiled" if compiled else ""),
            "epoch", drawn.shards, "--stage", "depth", "--size", size,
            "--batch-size", self.batch_size(drawn, size), "--width", self.width,
            "--loader", engine, "--warmup", 0, "--repeats", 1, *(["--compile"] * compiled),
            missing=_missing(engine), publish=False,
        )  # fmt: skip

    def _step(self, size: int, *, compiled: bool = False) -> Check:
        return self._check(
            f"step-{size}" + ("-compiled" if compiled else ""),
            "step", self.few.shards, "--size", size,
            "--batch-size", self.batch_size(self.few, size), "--width", self.width,
            "--loader", self.engine, "--amp", "auto", "--steps", 10, "--repeats", 3,
            *(["--compile"] * compiled),
        )  # fmt: skip

    def _hardware(self) -> Check:
        folders = self.few.folder, self.few.shards
        missing = _missing("dali") or self._missing_gpu()
        return self._check("hardware", "hardware", *folders, "--repeats", 3, missing=missing)

    def _peers(self) -> Check:
        """The stock engines that can decode for a GPU; the others are measured on CPUs."""
        named = {"ffcv": "ours, FFCV", "dali": "ours, DALI", "resident": "ours, resident"}
        return self._check(
            "peers", "peers", self.few.folder, self.few.shards, "--repeats", 3,
            "--only", named[self.engine], "--only", "stock",
        )  # fmt: skip

    def _tests(self) -> Check:
        folder = ROOT / "tests" / "gpu"
        command = _python("-m", "pytest", os.path.relpath(folder), "-q", "--durations", 10)
        missing = "" if is_installed("pytest") else "pytest is not installed"
        if not folder.is_dir():
            missing = "the tests are in a checkout only"
        return Check(
            name="tests", command=command, measures=False, missing=missing or self._missing_gpu()
        )

    def _speedrun(self) -> Check:
        return self._check(
            "speedrun", "speedrun", self.all.shards, "--recipe", "fast", "--seeds", 1,
            "--width", min(16, self.width), "--loader", self.engine, "--limit", 0.1,
            "--points", 3, "--samples", 1000,
            "--batch-size", min(64, self.batch_size(self.all, 112)),
        )  # fmt: skip

    def _fit(self) -> Check:
        """One complete epoch with validation, states that are saved within it, and a report."""
        run = self.results / FOLDER / "fit" / "run"
        command = _program(
            "train", "fit", self.all.shards, run,
            "--recipe", self.recipe, "--device", self.device, "--save-minutes", 0.05,
        )  # fmt: skip
        return Check(name="fit", command=command, measures=False)

    def _missing_gpu(self) -> str:
        return "" if torch.device(self.device).type == "cuda" else "needs a GPU"


def _program(name: str, *arguments: object) -> tuple[str, ...]:
    return _python("-m", "maskdepth", name, *arguments)


def _python(*arguments: object) -> tuple[str, ...]:
    return (sys.executable, *map(str, arguments))


def _missing(engine: str) -> str:
    """Why an engine cannot be measured here; empty if it can."""
    needs = REGISTRY[engine].needs
    return f"{needs} is not installed" if needs and not is_installed(needs) else ""
