"""A real epoch of a stage, taken apart: loader, copy, preprocessing, forward, backward, optimiser.

python -m benchmarks epoch SHARDS --stage depth --stage mask --size 112 --size 224
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.gpus import EnergyMeter, peak_tflops
from benchmarks.harness.phases import Phases, clock_for
from benchmarks.harness.results import CaseResult, Result, make_result
from benchmarks.harness.steps import OurStep, Setup, gflop_per_sample, make_stage
from benchmarks.harness.timing import Repeat, interleave, median, time_once
from convert.errors import DataError
from loaders import Batch, Loader, build_loader, read_layout, split_indices
from model.precision import precision_for


@dataclass(frozen=True, kw_only=True)
class Config:
    """What is trained, and on what.

    samples: of the data set at most so many are used, 70 % of them for training.
    compile: the network goes through `torch.compile`; its first step stands apart.
    """

    shards: Path
    engine: str
    device: str
    amp: str
    width: int
    batch_size: int
    threads: int
    repeats: int
    samples: int
    compile: bool = False


def run(
    config: Config, kinds: tuple[str, ...], sizes: tuple[int, ...], say: Callable[[str], None]
) -> Result:
    """Every kind of stage at every size."""
    cases: dict[str, CaseResult] = {}
    for kind in kinds:
        for size in sizes:
            cases |= _stage(config, kind, size, say)
    samples = sum(len(part) for part in _some(config))
    chosen = precision_for(config.amp, torch.device(config.device))
    arguments = {
        **vars(config), "shards": config.shards.name, "samples": samples,
        "amp": f"{config.amp} ({chosen})",
    }  # fmt: skip
    return make_result("epoch", arguments, cases, device=config.device)


def stall(r_combined: float, r_model: float) -> float:
    """Share of the model's own rate that is lost to waiting: 0 where the loader is free."""
    return 1 - r_combined / r_model


def efficiency(r_combined: float, r_loader: float, r_model: float) -> float:
    """Of the rate that the slower of the two would allow: 1 where they overlap in full."""
    return r_combined / min(r_loader, r_model)


def _stage(
    config: Config, kind: str, size: int, say: Callable[[str], None]
) -> dict[str, CaseResult]:
    """Loader, model and both together, training and validation, in turn."""
    stage, title = make_stage(kind, size, config.batch_size), f"{kind} {size}"
    train, val = _some(config)
    open_loader = partial(
        build_loader, config.engine, config.shards, batch_size=config.batch_size,
        device=config.device, num_workers=config.threads, rank=0, world_size=1,
    )  # fmt: skip
    with (
        open_loader(indices=train, drop_last=True) as training,
        open_loader(indices=val, shuffle=False) as validation,
    ):
        precision = precision_for(config.amp, training.device)
        setup = Setup.of(training, stage, config.width, precision)
        step = OurStep(setup, compiled=config.compile)
        epochs = Epochs(step, training, validation, training.device)
        parts = {
            "loader": epochs.load,
            "model": epochs.model,
            "training": epochs.train,
            "validation": epochs.validate,
        }
        measures = {
            part: partial(time_once, work, device=training.device) for part, work in parts.items()
        }
        found = interleave(
            measures,
            config.repeats,
            report=lambda part, one: say(f"{title}: {part}: {one.samples_per_s:,.1f} samples/s"),
        )
        figures = epochs.figures(found)
        rate = median(found["training"], "samples_per_s")
        figures["training"] |= _of_the_device(epochs, step, setup, rate, len(training))
    return {
        f"{title}: {part}": CaseResult.of(
            repeats, {"stage": kind, "size": size, "part": part}, figures[part]
        )
        for part, repeats in found.items()
    }


def _some(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation indices of the random split, cut to the samples asked for."""
    train, val = split_indices(read_layout(config.shards), "random")
    wanted = min(config.samples, len(train) + len(val))
    train, val = train[: round(0.7 * wanted)], val[: round(0.3 * wanted)]
    if len(train) < config.batch_size:
        raise DataError(
            f"batch size: found {config.batch_size} for {len(train)} training samples; "
            "use a smaller one, or more samples"
        )
    return train, val


class Epochs:
    """An epoch in each of four ways; all return the number of samples.

    step: trains on a batch, and evaluates one; says what it is doing to `Phases`.
    """

    def __init__(
        self, step: OurStep, training: Loader, validation: Loader, device: torch.device
    ) -> None:
        self._step, self._training, self._validation = step, training, validation
        self._device, self._energy = device, EnergyMeter(device)
        self._number = 0
        self._laps: dict[str, list[dict[str, float]]] = {"training": [], "validation": []}
        self._joules: list[float] = []
        self.fixed = next(iter(training.epoch(0)))
        phases = Phases(clock_for(device))
        step(self.fixed)
        phases.end("first step")
        self.first_step_s = phases.totals_s()["first step"]

    def load(self) -> int:
        """The loader alone; nobody consumes."""
        self._number += 1
        return sum(len(batch.index) for batch in self._training.epoch(self._number))

    def model(self) -> int:
        """As many steps as an epoch has, all on one batch."""
        for _ in range(len(self._training)):
            self._step(self.fixed)
        return len(self._training) * len(self.fixed.index)

    def train(self) -> int:
        """Both together: what an epoch of training is."""
        self._number += 1
        before = self._energy.joules()
        samples = self._walk("training", self._training.epoch(self._number), self._step)
        after = self._energy.joules()
        if before is not None and after is not None:
            self._joules.append(after - before)
        return samples

    def validate(self) -> int:
        """Forward and sums of the metrics over the validation split."""
        return self._walk("validation", self._validation.epoch(0), self._step.evaluate)

    def _walk(
        self, part: str, batches: Iterable[Batch], work: Callable[[Batch, Phases], None]
    ) -> int:
        phases, samples = Phases(clock_for(self._device)), 0
        for batch in batches:
            phases.end("data wait")
            work(batch, phases)
            samples += len(batch.index)
        self._laps[part].append(phases.totals_s())
        return samples

    def figures(self, found: dict[str, list[Repeat]]) -> dict[str, dict[str, float]]:
        """What follows from the repeats of each part, without the warm-up."""
        rates = {part: median(one, "samples_per_s") for part, one in found.items()}
        figures: dict[str, dict[str, float]] = {part: {} for part in found}
        for part, laps in self._laps.items():
            figures[part] = _median_phases(laps[-len(found[part]) :])
        training, repeats = figures["training"], found["training"]
        busy_s = sum(value for name, value in training.items() if name != "data_wait_s")
        epoch_s = median(repeats, "wall_s")
        on_gpu = self._device.type == "cuda"
        training["accelerator_utilisation" if on_gpu else "cpu_compute_share"] = busy_s / epoch_s
        training["epoch_s"] = epoch_s
        training["stall"] = stall(rates["training"], rates["model"])
        training["efficiency"] = efficiency(rates["training"], rates["loader"], rates["model"])
        if self._joules:
            joules = float(np.median(self._joules[-len(repeats) :]))
            training["joules_per_sample"] = joules / repeats[0].samples
        figures["model"]["first_step_s"] = self.first_step_s
        return figures


def _of_the_device(
    epochs: Epochs, step: OurStep, setup: Setup, rate: float, steps: int
) -> dict[str, float]:
    """Arithmetic of a step, its share of the device's peak, and the copies of an epoch."""
    found = {"gflop_per_sample": gflop_per_sample(step, epochs.fixed)}
    peak = peak_tflops(setup.device, setup.precision)
    if peak is not None:
        found["mfu"] = found["gflop_per_sample"] * rate / (peak * 1e3)
    if setup.device.type == "cuda":
        found["host_to_device_s"] = _copy_s(epochs.fixed, setup.device) * steps
    return found


def _copy_s(batch: Batch, device: torch.device) -> float:
    """Seconds to copy one batch from pinned memory; in an epoch this runs beside the steps."""
    host = [field.cpu().pin_memory() for field in batch]
    phases = Phases(clock_for(device))
    for _ in range(10):
        for field in host:
            field.to(device, non_blocking=True)
    phases.end("copy")
    return phases.totals_s()["copy"] / 10


def _median_phases(laps: list[dict[str, float]]) -> dict[str, float]:
    """Median seconds of each phase, by a name with its unit."""
    return {
        f"{name.replace(' ', '_')}_s": float(np.median([lap[name] for lap in laps]))
        for name in (laps[0] if laps else {})
    }
