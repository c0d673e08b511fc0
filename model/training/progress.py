"""What a person sees while an epoch runs: loss, samples per second, time spent waiting."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from model.distributed import is_distributed

READ_EVERY_S = 1.0
"""Reading the loss makes the host wait for the device: at most once in this time."""


class Elapsed(NamedTuple):
    """What an epoch has taken so far: seconds of wall time, of CPU time, of waiting; samples."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    wait_s: float = 0.0
    samples: int = 0


class EpochMeter:
    """Progress bar of an epoch, on a terminal only; measures the wait for data everywhere.

    The wait is the time the host stood still for the next batch, as a share of the epoch's
    wall time: near 0 the network is the limit, near 1 the loader is.
    """

    def __init__(
        self,
        title: str,
        batches: int,
        done: int = 0,
        before: Elapsed = Elapsed(),  # noqa: B008  # a constant
        *,
        ranks: int = 1,
        shown: bool = True,
    ) -> None:
        """Goes on from ``done`` batches, which took ``before``, where the run is resumed.

        ranks: processes that train as many samples as this one. shown: on this one.
        """
        hidden = None if shown else True
        self.bar = tqdm(total=batches, initial=done, desc=title, unit="batch", disable=hidden)
        self.ranks, self.shown = ranks, shown
        self.samples, self.wait_s = before.samples, before.wait_s
        self.loss = float("nan")
        self.last_read = time.perf_counter()
        self.started = self.last_read - before.wall_s
        self.cpu_started = time.process_time() - before.cpu_s

    def __enter__(self) -> EpochMeter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.close()

    def batches(self, source: Iterable[Any]) -> Iterator[Any]:
        """The batches of a loader; the time that each took to come counts as waiting."""
        iterator = iter(source)
        while True:
            before = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self.wait_s += time.perf_counter() - before
            yield batch

    def step(self, samples: int) -> bool:
        """Count a batch. True when it is time to read the loss and call `show`."""
        self.samples += samples * self.ranks
        self.bar.update()
        return self.shown and time.perf_counter() - self.last_read >= READ_EVERY_S

    def show(self, loss: float) -> None:
        """Put the loss, the rate and the wait beside the bar."""
        self.last_read = time.perf_counter()
        self.loss = loss
        self.bar.set_postfix_str(
            f"loss {loss:.4f}, {self.samples_per_s:.1f} samples/s, wait {self.wait_share:.0%}"
        )

    def figures(self) -> dict[str, float]:
        """What `show` showed last, by name."""
        rate, wait = self.samples_per_s, self.wait_share
        return {"loss": self.loss, "samples_per_s": rate, "data_wait": wait}

    @property
    def elapsed(self) -> Elapsed:
        """For a run that goes on from here."""
        return Elapsed(self.epoch_s, self.epoch_cpu_s, self.wait_s, self.samples)

    @property
    def epoch_s(self) -> float:
        """Seconds that the epoch has run; what a killed process did after its last save is lost."""
        return time.perf_counter() - self.started

    @property
    def epoch_cpu_s(self) -> float:
        """CPU time of the process in them, all threads; loading and training, no validation."""
        return time.process_time() - self.cpu_started

    @property
    def samples_per_s(self) -> float:
        """Samples trained on per second of wall time, by all ranks."""
        return self.samples / max(self.epoch_s, 1e-9)

    @property
    def wait_share(self) -> float:
        """Share of the wall time spent waiting for data, in 0..1."""
        return self.wait_s / max(self.epoch_s, 1e-9)


class RunningMean:
    """Mean of a value per sample, kept on the device until it is read."""

    def __init__(self, device: torch.device | str) -> None:
        # sum of the values, samples, steps until the sum was not finite any more
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, mean: Tensor, samples: int) -> None:
        """Add a batch's mean (scalar tensor on the device). No host sync."""
        self.sums[0] += mean.detach().double() * samples
        self.sums[1] += samples
        self.sums[2] += self.sums[0].isfinite()  # once it is not, it never is again

    def read(self) -> float:
        """The mean of this rank's samples so far; NaN before the first. A host sync."""
        return self._mean(self.sums)

    def read_all(self) -> float:
        """The mean of all ranks' samples; every rank must call it. A host sync."""
        sums = self.sums.clone()
        if is_distributed():
            dist.all_reduce(sums)
        return self._mean(sums)

    @property
    def finite_steps(self) -> int:
        """Steps since `reset` before the first whose value was not finite. A host sync."""
        return int(self.sums[2].item())

    def reset(self) -> None:
        """Start anew. No host sync."""
        self.sums.zero_()

    @staticmethod
    def _mean(sums: Tensor) -> float:
        total, samples, _ = sums.tolist()
        return total / samples if samples else float("nan")
