"""A real epoch of a stage, taken apart: loader, copy, preprocessing, forward, backward, optimiser.

python -m benchmarks epoch SHARDS --stage depth --stage mask --size 112 --size 224
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.gpus import EnergyMeter, peak_tflops
from benchmarks.phases import Phases, clock_for
from benchmarks.results import CaseResult, Result, make_result
from benchmarks.timing import Repeat, interleave, median, synchronize, time_once
from benchmarks.training import OurStep, Setup, gflop_per_sample, make_stage
from convert.errors import DataError
from loaders import Batch, Loader, build_loader, read_layout, split_indices
from model.metrics import SampleTable
from model.precision import Precision, precision_for
from model.step import measure, predict_step


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
    arguments = {**vars(config), "shards": config.shards.name}
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
        epochs = Epochs(setup, training, validation, compiled=config.compile)
        parts = {
            f"{title}: loader": epochs.load,
            f"{title}: model": epochs.model,
            f"{title}: training": epochs.train,
            f"{title}: validation": epochs.validate,
        }
        measures = {name: partial(time_once, part, device=training.device)
                    for name, part in parts.items()}  # fmt: skip
        found = interleave(
            measures,
            config.repeats,
            report=lambda name, one: say(f"{name}: {one.samples_per_s:,.1f} samples/s"),
        )
        figures = epochs.figures(title, found, precision)
    parameters: dict[str, str | float] = {"stage": kind, "size": size}
    return {
        name: CaseResult.of(repeats, {**parameters, "part": name.split(": ")[1]}, figures[name])
        for name, repeats in found.items()
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
    """An epoch in each of four ways; all return the number of samples."""

    def __init__(
        self, setup: Setup, training: Loader, validation: Loader, *, compiled: bool
    ) -> None:
        self._setup, self._training, self._validation = setup, training, validation
        self._step = OurStep(setup, compiled=compiled)
        self._number = 0
        self._energy = EnergyMeter(setup.device)
        self._phases: dict[str, list[dict[str, float]]] = {"training": [], "validation": []}
        self._joules: list[float] = []
        self._fixed = next(iter(training.epoch(0)))
        clock = clock_for(setup.device)
        first = Phases(clock)
        self._step(self._fixed)
        first.end("first step")
        self._first_step_s = first.totals_s()["first step"]

    def load(self) -> int:
        """The loader alone; nobody consumes."""
        self._number += 1
        return sum(len(batch.index) for batch in self._training.epoch(self._number))

    def model(self) -> int:
        """As many steps as an epoch has, all on one batch."""
        for _ in range(len(self._training)):
            self._step(self._fixed)
        return len(self._training) * len(self._fixed.index)

    def train(self) -> int:
        """Both together: what an epoch of training is."""
        self._number += 1
        phases, before = Phases(clock_for(self._setup.device)), self._energy.joules()
        samples = 0
        self._step.network.train()
        for batch in _waited(self._training.epoch(self._number), phases):
            self._step(batch, phases)
            samples += len(batch.index)
        self._phases["training"].append(phases.totals_s())
        after = self._energy.joules()
        if before is not None and after is not None:
            self._joules.append(after - before)
        return samples

    def validate(self) -> int:
        """Forward and sums of the metrics over the validation split."""
        setup, phases = self._setup, Phases(clock_for(self._setup.device))
        network, stage = self._step.network, setup.stage
        network.eval()
        table = SampleTable(self._validation.layout.samples, setup.device)
        samples = 0
        for batch in _waited(self._validation.epoch(0), phases):
            inputs = self._step.preprocess(batch)
            phases.end("preprocess")
            found = predict_step(inputs, network, setup.precision, stage.depth_loss, stage.decode)
            phases.end("forward")
            table.add(batch.index, measure(found, inputs))
            phases.end("metrics")
            samples += len(batch.index)
        self._phases["validation"].append(phases.totals_s())
        return samples

    def figures(
        self, title: str, found: dict[str, list[Repeat]], precision: Precision
    ) -> dict[str, dict[str, float]]:
        """What follows from the repeats, by name of the case."""
        rates = {name.split(": ")[1]: median(one, "samples_per_s") for name, one in found.items()}
        figures: dict[str, dict[str, float]] = {f"{title}: {part}": {} for part in rates}
        for part, laps in self._phases.items():
            kept = laps[-len(found[f"{title}: {part}"]) :]  # without the warm-up
            figures[f"{title}: {part}"] |= _median_phases(kept)
        training = figures[f"{title}: training"]
        training["stall"] = stall(rates["training"], rates["model"])
        training["efficiency"] = efficiency(rates["training"], rates["loader"], rates["model"])
        training |= self._device_figures(found[f"{title}: training"], training, precision)
        figures[f"{title}: model"]["first_step_s"] = self._first_step_s
        return figures

    def _device_figures(
        self, repeats: list[Repeat], phases: dict[str, float], precision: Precision
    ) -> dict[str, float]:
        """Use of the device. "accelerator" stands only where it is one."""
        device, epoch_s = self._setup.device, median(repeats, "wall_s")
        busy_s = sum(
            value for name, value in phases.items() if name.endswith("_s") and name != "data_wait_s"
        )
        on_gpu = device.type == "cuda"
        found = {"epoch_s": epoch_s}
        found["accelerator_utilisation" if on_gpu else "cpu_compute_share"] = busy_s / epoch_s
        found["gflop_per_sample"] = gflop_per_sample(self._step, self._fixed)
        peak = peak_tflops(device, precision.dtype)
        if peak is not None:
            rate = median(repeats, "samples_per_s")
            found["mfu"] = found["gflop_per_sample"] * rate / (peak * 1e3)
        if self._joules:
            kept = self._joules[-len(repeats) :]
            found["joules_per_sample"] = float(np.median(kept)) / repeats[0].samples
        if on_gpu:
            found["host_to_device_s"] = self._copy_s() * len(self._training)
        return found

    def _copy_s(self) -> float:
        """Seconds to copy one batch from pinned memory; in an epoch this runs beside the steps."""
        device = self._setup.device
        host = [field.cpu().pin_memory() for field in self._fixed]
        phases = Phases(clock_for(device))
        for _ in range(10):
            for field in host:
                field.to(device, non_blocking=True)
        phases.end("copy")
        synchronize(device)
        return phases.totals_s()["copy"] / 10


def _waited(batches: Iterator[Batch], phases: Phases) -> Iterator[Batch]:
    """The batches; the time that each took to come is the phase "data wait"."""
    phases.begin()
    for batch in batches:
        phases.end("data wait")
        yield batch


def _median_phases(laps: list[dict[str, float]]) -> dict[str, float]:
    """Median seconds of each phase, by a name with its unit."""
    return {
        f"{name.replace(' ', '_')}_s": float(np.median([lap[name] for lap in laps]))
        for name in (laps[0] if laps else {})
    }
