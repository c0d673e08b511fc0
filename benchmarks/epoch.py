"""A real epoch of a stage by its parts: loader, copy, preprocessing and the phases of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import click
import numpy as np
import torch
from torch.profiler import ProfilerActivity

from maskdepth.benchmarks.harness import options as cli
from maskdepth.benchmarks.harness.gpus import peak_tflops
from maskdepth.benchmarks.harness.nvml import added_gib, open_nvml
from maskdepth.benchmarks.harness.results import CaseResult, Result, make_result
from maskdepth.benchmarks.harness.steps import TRAINS, OurStep, Setup, gflop_per_sample, make_stage
from maskdepth.benchmarks.harness.timing import Found, Phases, Repeat, interleave, time_once
from maskdepth.benchmarks.harness.traces import Event, busy_s, host_to_device, trace
from maskdepth.convert.errors import DataError
from maskdepth.loaders import Batch, Loader, build_loader, read_layout, split_indices
from maskdepth.model.precision import AMP, precision_for

_TRACED = 20
"""Steps that the profiler records, of one epoch."""


@cli.command(
    cli.SHARDS,
    cli.option(
        "--stage", "kinds", type=click.Choice(list(TRAINS)), multiple=True,
        default=("depth", "mask"),
    ),
    cli.option("--size", "sizes", type=click.IntRange(8), multiple=True, default=(112,)),
    cli.option("--samples", type=click.IntRange(2), default=2**40, show_default="all",
           help="Samples to use at most, 70 % of them for training."),
    cli.option("--compile", "compiled", is_flag=True, show_default=False,
           help="The network by torch.compile; its first step is timed separately."),
    cli.option("--warmup", type=click.IntRange(0), default=1,
           help="Rounds that are not timed. One step of each kind runs before in any case."),
    cli.width_option(default=64),
    cli.ENGINE,
    cli.option("--amp", type=click.Choice(AMP), default="auto", help="As in `fit`."),
    cli.loading_options,
)  # fmt: skip
def epoch(
    shards: Path,
    loading: cli.Loading,
    kinds: tuple[str, ...],
    sizes: tuple[int, ...],
    samples: int,
    compiled: bool,
    warmup: int,
    width: int,
    engine: str,
    amp: str,
) -> Result:
    """Real epochs of stages: loader, model and both; every phase of a step."""
    train, val = _split(shards, samples, loading.batch_size)
    open_loader = partial(
        build_loader, engine, shards, batch_size=loading.batch_size, device=loading.device,
        num_workers=loading.threads, rank=0, world_size=1,
    )  # fmt: skip
    precision = precision_for(amp, torch.device(loading.device))
    complete = len(val) >= loading.batch_size
    cases: dict[str, CaseResult] = {}
    skipped: dict[str, str] = {}
    arguments = {
        "shards": shards.name, "engine": engine, "device": loading.device,
        "amp": f"{amp} ({precision})", "width": width, "batch_size": loading.batch_size,
        "threads": loading.threads, "repeats": loading.repeats, "samples": len(train) + len(val),
        "compile": compiled, "warmup": warmup,
    }  # fmt: skip

    def result(cases: dict[str, CaseResult]) -> Result:
        return make_result("epoch", arguments, cases, device=loading.device, skipped=skipped)

    def keep_with(done: dict[str, CaseResult], found: dict[str, CaseResult]) -> None:
        cli.keep(result(done | found))

    for kind in kinds:
        for size in sizes:
            stage = make_stage(kind, size, loading.batch_size)
            with (
                open_loader(indices=train, drop_last=True) as training,
                # A smaller last batch would be compiled again, within the time of validation.
                open_loader(indices=val, shuffle=False, drop_last=complete) as validation,
            ):
                setup = Setup(training, stage, width, precision)
                step = OurStep(setup, compiled=compiled)
                epochs = Epochs(step, training, validation, training.device)
                cases |= _cases(
                    epochs, setup, kind, loading, warmup, skipped,
                    after_round=partial(keep_with, dict(cases)),
                )  # fmt: skip
    return result(cases)


def _split(shards: Path, samples: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation indices of the random split, of at most so many samples."""
    train, val = split_indices(read_layout(shards), "random")
    wanted = min(samples, len(train) + len(val))
    train, val = train[: round(0.7 * wanted)], val[: round(0.3 * wanted)]
    if len(train) < batch_size:
        raise DataError(
            f"--batch-size {batch_size}: found {len(train)} training samples; use a smaller "
            "batch size, or more --samples"
        )
    return train, val


def stall(r_combined: float, r_model: float) -> float:
    """Share of the model's own rate that is lost to waiting for the loader."""
    return 1 - r_combined / r_model


def efficiency(r_combined: float, r_loader: float, r_model: float) -> float:
    """Share of the rate that the slower of the two allows: 1 where they overlap completely.

    r_loader is measured while the device does nothing else. An engine that decodes on a GPU shares
    it with the model in training, so that even a complete overlap stays below 1 there.
    """
    return r_combined / min(r_loader, r_model)


def _cases(
    epochs: Epochs,
    setup: Setup,
    kind: str,
    loading: cli.Loading,
    warmup: int,
    skipped: dict[str, str],
    after_round: Callable[[dict[str, CaseResult]], None],
) -> dict[str, CaseResult]:
    """Loader, model and both together, training and validation, measured in turn.

    skipped: is given what could not be measured, and why. after_round: is given the cases so far.
    """
    title = f"{kind} {setup.stage.size}"
    works = {
        "loader": epochs.load, "model": epochs.model,
        "training": epochs.train, "validation": epochs.validate,
    }  # fmt: skip
    measures = {
        f"{title}: {part}": partial(time_once, work, device=setup.loader.device)
        for part, work in works.items()
    }

    def cases_of(found: Found, figures: dict[str, dict[str, float]]) -> dict[str, CaseResult]:
        return {
            f"{title}: {part}": CaseResult(
                parameters={"stage": kind, "size": setup.stage.size, "part": part},
                repeats=list(found[part]),
                figures=figures[part],
            )
            for part in works
        }

    def by_part(timed: Found) -> Found:
        return dict(zip(works, timed.values(), strict=True))

    def keep_round(timed: Found) -> None:
        found = by_part(timed)
        after_round(cases_of(found, epochs.figures(found)))

    timed = interleave(
        measures, loading.repeats, warmup, minutes=loading.minutes, after_round=keep_round
    )
    found = by_part(timed)
    figures = epochs.figures(found)
    rate = median(one.samples_per_s for one in found["training"])
    used_gib = added_gib(setup.loader.device)
    if used_gib is not None:
        figures["training"]["device_used_gib"] = used_gib
    figures["training"] |= epochs.device_figures(setup, rate)
    if setup.loader.device.type == "cuda":
        _measure_gpu(epochs, title, rate, figures, skipped)
    return cases_of(found, figures)


def _measure_gpu(
    epochs: Epochs,
    title: str,
    rate: float,
    figures: dict[str, dict[str, float]],
    skipped: dict[str, str],
) -> None:
    """Add to ``figures`` what takes epochs of its own on a GPU; rate: samples/s of training."""
    extra: dict[str, Callable[[], dict[str, float]]] = {
        "loader": lambda: {"under_load_samples_per_s": epochs.load_under_load()},
        "training": lambda: epochs.trace_figures(rate),
    }
    for part, measure in extra.items():
        try:
            figures[part] |= measure()
        except Exception as error:  # must not cost the repeats that have been measured
            reason = f"{type(error).__name__}: {error}"
            skipped[f"{title}: {part}, figures of a GPU"] = reason


class Epochs:
    """An epoch in each of four ways; all return the number of samples.

    step: trains on a batch, and evaluates one; reports its phases to `Phases`.
    """

    def __init__(
        self, step: OurStep, training: Loader, validation: Loader, device: torch.device
    ) -> None:
        self._step, self._training, self._validation = step, training, validation
        nvml = open_nvml(device)
        self._device, self._read_mj = device, nvml.energy_counter() if nvml else None
        self._number = 0
        self._laps: dict[str, list[dict[str, float]]] = {"training": [], "validation": []}
        self._joules: list[float] = []
        self.fixed = next(iter(training.epoch(0)))
        phases = Phases(device)
        step(self.fixed)
        phases.end("first step")
        step.evaluate(next(iter(validation.epoch(0))), Phases(device))
        self.first_step_s = phases.totals_s()["first step"]

    def load(self) -> int:
        """The loader alone; nothing uses the batches."""
        self._number += 1
        return sum(len(batch.index) for batch in self._training.epoch(self._number))

    def model(self) -> int:
        """As many steps as an epoch has, all on one batch."""
        for _ in range(len(self._training)):
            self._step(self.fixed)
        return len(self._training) * len(self.fixed.index)

    def train(self) -> int:
        """Both together: a real epoch of training."""
        self._number += 1
        before = self._read_mj() if self._read_mj else 0
        samples = self._walk("training", self._training.epoch(self._number), self._step)
        if self._read_mj:
            self._joules.append((self._read_mj() - before) / 1e3)
        return samples

    def validate(self) -> int:
        """Forward passes and metrics over the validation split."""
        return self._walk("validation", self._validation.epoch(0), self._step.evaluate)

    def _walk(
        self, part: str, batches: Iterable[Batch], work: Callable[[Batch, Phases], None]
    ) -> int:
        phases, samples = Phases(self._device), 0
        for batch in batches:
            phases.end("data wait")
            work(batch, phases)
            samples += len(batch.index)
        self._laps[part].append(phases.totals_s())
        return samples

    def figures(self, found: dict[str, list[Repeat]]) -> dict[str, dict[str, float]]:
        """Phases and ratios of each part, from its repeats; the warm-up does not count."""
        rates = {part: median(one.samples_per_s for one in some) for part, some in found.items()}
        figures: dict[str, dict[str, float]] = {part: {} for part in found}
        for part, laps in self._laps.items():
            kept = laps[-len(found[part]) :]
            for name in kept[0]:
                figures[part][f"{name.replace(' ', '_')}_s"] = median(lap[name] for lap in kept)
        training, repeats = figures["training"], found["training"]
        compute_s = sum(value for name, value in training.items() if name != "data_wait_s")
        epoch_s = median(one.wall_s for one in repeats)
        on_gpu = self._device.type == "cuda"
        training["stream_share" if on_gpu else "cpu_compute_share"] = compute_s / epoch_s
        training["epoch_s"] = epoch_s
        training["stall"] = stall(rates["training"], rates["model"])
        training["efficiency"] = efficiency(rates["training"], rates["loader"], rates["model"])
        if self._joules:
            joules = median(self._joules[-len(repeats) :])
            training["joules_per_sample"] = joules / repeats[0].samples
        figures["model"]["first_step_s"] = self.first_step_s
        return figures

    def device_figures(self, setup: Setup, rate: float) -> dict[str, float]:
        """FLOPs of a step, and their share of the device's peak. rate: samples/s of training."""
        found = {"gflop_per_sample": gflop_per_sample(self._step, self.fixed)}
        peak = peak_tflops(self._device, setup.precision)
        if peak is not None:
            found["mfu"] = found["gflop_per_sample"] * rate / (peak * 1e3)
        return found

    def load_under_load(self) -> float:
        """Samples/s of the loader in a thread while this thread repeats the step on one batch.

        On a GPU the loader's consumer has a stream of its own, so that it waits for no step. Both
        threads share the interpreter lock, as a loader and a step do in training.
        """
        self._number += 1
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(self._load_on_a_stream, self._number)
            while not loading.done():
                self._step(self.fixed)
        return loading.result()

    def _load_on_a_stream(self, number: int) -> float:
        on_gpu = self._device.type == "cuda"
        stream = torch.cuda.Stream(self._device) if on_gpu else None
        with torch.cuda.stream(stream):  # also makes its device the current one
            began = time.perf_counter()
            samples = sum(len(batch.index) for batch in self._training.epoch(number))
            if stream is not None:
                stream.synchronize()
        return samples / (time.perf_counter() - began)

    def trace_figures(self, rate: float) -> dict[str, float]:
        """Kernels and copies of the GPU in steps of a real epoch, by `torch.profiler`.

        kernel_share: kernel seconds per sample, with those of a loader that decodes on the GPU,
        times ``rate``, the samples/s of training without the profiler, which slows launches.
        RuntimeError: the profiler has recorded no kernel.
        """
        events, samples, batches = self._trace_steps()
        kernel_s, copied = busy_s(events), host_to_device(events)
        if kernel_s == 0:
            raise RuntimeError("torch.profiler recorded no kernel; expected CUPTI to be usable")
        return {
            "kernel_share": kernel_s / samples * rate,
            "host_to_device_mib_per_batch": copied.mib / batches,
            "host_to_device_s": copied.seconds / batches * len(self._training),
        }

    def _trace_steps(self) -> tuple[list[Event], int, int]:
        """Events of the middle steps of an epoch of training, their samples and their number."""
        self._number += 1
        batches, sizes = iter(self._training.epoch(self._number)), list[int]()
        for batch in islice(batches, min(_TRACED // 2, len(self._training) // 2)):
            self._step(batch)
        torch.cuda.synchronize(self._device)

        def work() -> None:
            for batch in islice(batches, _TRACED):
                self._step(batch)
                sizes.append(len(batch.index))
            torch.cuda.synchronize(self._device)

        events = trace(work, ProfilerActivity.CUDA)
        return events, sum(sizes), len(sizes)
