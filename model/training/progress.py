"""Progress of training: loss, samples per second, share of the time spent waiting for data."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self, TypeVar

import click
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from maskdepth.model.contract import Batch, Loader
from maskdepth.model.distributed import is_distributed
from maskdepth.model.errors import ModelError
from maskdepth.model.training.profiling import phase_range
from maskdepth.model.unet import DualDecoderUNet

READ_EVERY_S = 1.0
"""Reading the loss makes the host wait for the device: at most once per this many seconds."""
LINE_EVERY_S = 30.0
"""Seconds between lines about the progress where there is no terminal."""

T = TypeVar("T")


class RunningLoss:
    """Mean training loss per sample, accumulated on the device until it is read."""

    def __init__(self, device: torch.device | str) -> None:
        # Sum of the losses, number of samples, number of steps while the sum was finite.
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, mean: Tensor, samples: int) -> None:
        """Add the mean loss of a batch, a scalar tensor on the device. No host sync."""
        self.sums[0] += mean.detach().double() * samples
        self.sums[1] += samples
        self.sums[2] += self.sums[0].isfinite()  # once infinite or NaN, the sum stays so

    def saved(self, ranks: int) -> Tensor:
        """The ``sums``, for as many ranks as train together, of which each has about as much."""
        sums = self.sums.clone()
        sums[:2] *= ranks
        return sums

    def load(self, sums: Tensor, ranks: int) -> None:
        """Continue from what another has `saved`; ValueError if it is none."""
        if (sums.shape, sums.dtype) != (self.sums.shape, self.sums.dtype):
            found = f"{sums.dtype} {tuple(sums.shape)}"
            raise ValueError(f"running: found {found}, expected three sums of float64")
        self.sums.copy_(sums)
        self.sums[:2] /= ranks

    def reset(self) -> None:
        """Start at zero. No host sync."""
        self.sums.zero_()

    def read(self, title: str, *, all_ranks: bool = False) -> float:
        """Mean over this rank's samples so far; NaN before the first. A host sync.

        all_ranks: over the samples of all ranks, each of which must call it. Raises ModelError
        that names the first step whose loss was not finite.
        """
        sums = self.sums.clone()
        if all_ranks and is_distributed():
            dist.all_reduce(sums)
        total, samples, _ = sums.tolist()
        mean = total / samples if samples else math.nan
        if samples and not math.isfinite(mean):
            # Counted on the device in every step, however seldom the host reads the loss.
            raise not_finite("loss", mean, f"{title}, step {int(self.sums[2].item()) + 1}")
        return mean


def require_finite_weights(network: DualDecoderUNet, where: str) -> None:
    """Raise ModelError if a weight or buffer is not finite. A host sync.

    No run can resume from such weights, and the loss shows them only one step later.
    """
    each = [values.abs().amax().double() for values in network.state_dict().values()]
    largest = torch.stack(each).amax().item()
    if not math.isfinite(largest):
        raise not_finite("largest weight", largest, where)


def not_finite(what: str, value: float, where: str) -> ModelError:
    """The error for a training that diverged, with what to do about it."""
    return ModelError(
        f"{where}: the {what} became {value}; "
        "lower the recipe's lr in a new RUN_DIR, or continue with --resume --amp off"
    )


class Elapsed(NamedTuple):
    """What an epoch has taken so far: seconds of wall time, CPU time and waiting, and samples."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    wait_s: float = 0.0
    samples: int = 0


class Progress:
    """A progress bar if standard error is a terminal, otherwise a line there every 30 s.

    Close it at the end: it is a context manager.
    """

    def __init__(
        self, title: str, total: int, done: int = 0, *, shown: bool = True, leave: bool = True
    ) -> None:
        """Start after ``done`` of ``total`` batches. shown: False for a rank that prints nothing.

        leave: whether the bar stays when it is closed.
        """
        hidden = None if shown else True  # None: hidden unless on a terminal
        self.bar = tqdm(
            total=total, initial=done, desc=title, unit="batch", disable=hidden, leave=leave
        )
        self.title, self.total, self.done, self.note = title, total, done, ""
        self._lines = shown and self.bar.disable
        self._line_at = time.monotonic() + LINE_EVERY_S

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self) -> None:
        """Count a batch."""
        self.done += 1
        self.bar.update()
        if self._lines and time.monotonic() >= self._line_at:
            self._line_at = time.monotonic() + LINE_EVERY_S
            note = f", {self.note}" if self.note else ""
            click.echo(f"{self.title}: batch {self.done} of {self.total}{note}", err=True)

    def set_note(self, note: str) -> None:
        """Show a text after the count from now on."""
        self.note = note
        self.bar.set_postfix_str(note)


def with_progress(loader: Loader, title: str) -> Iterator[Batch]:
    """Batches of epoch 0, with their progress, on the first rank."""
    first = not is_distributed() or dist.get_rank() == 0
    with Progress(title, len(loader), shown=first, leave=False) as progress:
        for batch in loader.epoch(0):
            yield batch
            progress.update()


class EpochMeter:
    """Measures an epoch and shows its progress; close its `progress` at the end.

    The wait is the time in which the host waited for the next batch, as a share of the epoch's
    wall time: near 0 the network is the bottleneck, near 1 the loader is.
    """

    def __init__(
        self, title: str, batches: int, done: int, before: Elapsed, *, shown: bool
    ) -> None:
        """Start after ``done`` of ``batches``, which took ``before`` in an interrupted run.

        shown: whether to show the progress.
        """
        self.progress = Progress(title, batches, done, shown=shown)
        self.shown = shown
        self.samples, self.wait_s = before.samples, before.wait_s
        self.last_read = time.perf_counter()
        self.started = self.last_read - before.wall_s
        self.cpu_started = time.process_time() - before.cpu_s

    def batches(self, source: Iterable[T]) -> Iterator[T]:
        """The batches of a loader; the time until each arrives counts as waiting."""
        remaining = iter(source)
        while True:
            before = time.perf_counter()
            with phase_range("data wait"):
                batch = next(remaining, None)
            if batch is None:
                return
            self.wait_s += time.perf_counter() - before
            yield batch

    def count(self, samples: int) -> bool:
        """Count a step of all ranks. True when it is time to read the loss and call `show`."""
        self.samples += samples
        self.progress.update()
        return self.shown and time.perf_counter() - self.last_read >= READ_EVERY_S

    def show(self, loss: float, left: str) -> dict[str, float]:
        """Show the loss, the rate, the wait and what is left; returns the numbers by name."""
        self.last_read = time.perf_counter()
        figures = self.figures()
        rate, wait = figures["samples_per_s"], figures["data_wait"]
        note = f"loss {loss:z.4f}, {rate:.1f} samples/s, wait {wait:.0%}"
        self.progress.set_note(f"{note}, {left}" if left else note)
        return {"loss": loss, "samples_per_s": rate, "data_wait": wait}

    @property
    def elapsed(self) -> Elapsed:
        """What the epoch has taken so far, without what a killed process did after its last save.

        The CPU time is that of all threads of the process: loading and training, no validation.
        """
        wall_s, cpu_s = time.perf_counter() - self.started, time.process_time() - self.cpu_started
        return Elapsed(wall_s, cpu_s, self.wait_s, self.samples)

    def figures(self) -> dict[str, float]:
        """As in metrics.csv: `elapsed`, samples of all ranks per second, share of time waited."""
        wall_s, cpu_s, wait_s, samples = self.elapsed
        return {
            "epoch_s": wall_s, "epoch_cpu_s": cpu_s, "train_samples": samples,
            "samples_per_s": samples / max(wall_s, 1e-9), "data_wait": wait_s / max(wall_s, 1e-9),
        }  # fmt: skip
