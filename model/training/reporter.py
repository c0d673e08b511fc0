"""What a run reports while it trains: lines on standard output, and to the logs it is given."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from maskdepth.model.contract import PRIOR, Inputs, Loader, about_depth
from maskdepth.model.errors import ModelError
from maskdepth.model.training.evaluation import Prediction
from maskdepth.model.training.logs import LOGS, Log, LoggedRun, require_installed
from maskdepth.model.training.pace import Pace, Plan, duration
from maskdepth.model.training.report import DEPTH_FIGURES
from maskdepth.model.training.state import Position

PICTURE_ROWS = 4
"""Samples in a picture."""


class Reporter:
    """Prints lines, and writes to logs.

    shown: whether anything is reported, on one rank of several. logs: names of `LOGS`.
    folder: RUN_DIR. step: where the run begins or resumes. config: plain values, for the logs.

    Raises ModelError if the library of a log is not installed.
    """

    def __init__(
        self, *, shown: bool, logs: Sequence[str] = (), folder: Path = Path(), step: int = 0,
        config: Mapping[str, object] | None = None,
    ) -> None:  # fmt: skip
        self.shown, self.step = shown, step
        self.pace: Pace | None = None
        self.depth_source = ""
        """Of the loader. Where depth is a prior, the names of figures of depth say so."""
        self.cost_s = {name: 0.0 for name in logs if shown}
        """Time spent on each log so far, in seconds."""
        self._folder, self._config = folder, config or {}
        self._logs: dict[str, Log] = {}
        for name in self.cost_s:
            require_installed(name)

    @property
    def _mark(self) -> str:
        """Ends the name of what is of depth, where that is a prior; no log allows spaces."""
        return "_prior" if self.depth_source == PRIOR else ""

    def line(self, text: str) -> None:
        """Print a line."""
        if self.shown:
            with tqdm.external_write_mode():  # clears the progress bar
                click.echo(text)

    def begin(self, plan: Plan) -> None:
        """Say what a run does, and estimate from now on how long that takes; once."""
        if self.pace is None:
            self.pace = Pace(plan=plan)
            done = f", of which {self.step:,} are done" if self.step else ""
            self.line(f"{plan}{done}")

    def time_left(self, position: Position) -> str:
        """How long the run still takes, in words; empty before it can be known.

        The first estimate is also printed.
        """
        if self.pace is None:
            return ""
        first = self.pace.rate is None
        left_s = self.pace.left_s(position)
        if left_s is None:
            return ""
        if first:
            self.line(f"estimated time: about {duration(left_s)}, by the first steps")
        return f"about {duration(left_s)} left"

    def scalars(self, step: int, values: Mapping[str, object], group: str) -> None:
        """Write numbers at a step of the run to the logs; other values are left out."""
        if self.cost_s:
            marks = {name: self._mark if name in DEPTH_FIGURES else "" for name in values}
            numbers = {
                f"{group}/{name}{marks[name]}": float(value)
                for name, value in values.items() if isinstance(value, int | float)
            }  # fmt: skip
            self._write(lambda log: log.scalars(step, numbers), self.cost_s)

    def picture(
        self, step: int, bg: Tensor, fg_bg: Tensor, prediction: Prediction, inputs: Inputs
    ) -> None:
        """Write the first samples of a batch to the logs, see `grid`: a host sync."""
        if self.cost_s:
            mark = self._mark and f"_depth{self._mark}"
            image = grid(bg, fg_bg, prediction, inputs).permute(1, 2, 0).cpu().numpy()
            self._write(lambda log: log.picture(step, f"validation{mark}", image), self.cost_s)

    def _write(self, write: Callable[[Log], None], names: Iterable[str]) -> None:
        """Write to logs. One that has become unreachable is reported and written no more."""
        for name in list(names):
            started = time.perf_counter()
            try:
                write(self._opened(name))
            except ModelError as error:
                if name not in self._logs or not self._logs[name].remote:
                    raise
                del self._logs[name], self.cost_s[name]
                click.echo(f"Warning: {error}; the run continues without {name}", err=True)
            else:
                self.cost_s[name] += time.perf_counter() - started

    def _opened(self, name: str) -> Log:
        # Opened with the first value: a run that fails earlier leaves no folder.
        if name not in self._logs:
            about = about_depth(self.depth_source)
            self._logs[name] = LOGS[name](LoggedRun(self._folder, self.step, self._config, about))
        return self._logs[name]

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """At the end of the block, close the logs and report what they cost."""
        started, finished = time.perf_counter(), False
        with _no_traceback_of_writer():
            try:
                yield
                finished = True
            finally:
                self._write(lambda log: log.close(finished=finished), self._logs)
        for name, cost_s in self.cost_s.items():
            share = cost_s / (time.perf_counter() - started)
            self.line(f"{name}: {cost_s:.2f} s, {share:.2%} of the time of training")


@contextmanager
def _no_traceback_of_writer() -> Iterator[None]:
    """Do not print what TensorBoard's thread raises: the next call of its writer raises it too."""
    before = threading.excepthook

    def hook(raised: threading.ExceptHookArgs) -> None:
        if not type(raised.thread).__module__.startswith("tensorboard."):
            before(raised)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


@contextmanager
def listing_skipped(*loaders: Loader) -> Iterator[None]:
    """At the end of the block, list the corrupt records that loaders skipped, each once."""
    try:
        yield
    finally:
        skipped = {error.index: error.message for one in loaders for error in one.skipped}
        if skipped:
            lines = "\n".join(f"  {message}" for message in skipped.values())
            click.echo(f"skipped {len(skipped)} corrupt records:\n{lines}", err=True)


@torch.inference_mode()
def grid(bg: Tensor, fg_bg: Tensor, prediction: Prediction, inputs: Inputs) -> Tensor:
    """One row per sample: bg, fg_bg, and target and prediction of what was decoded.

    bg, fg_bg: uint8 (B, 3, H, W). Returns uint8 (3, rows * S, columns * S) on their device,
    with at most PICTURE_ROWS rows. No host sync.
    """
    first = slice(PICTURE_ROWS)
    size = inputs.depth.shape[-2:]
    panels = [F.interpolate(image[first].float() / 255, size=size) for image in (bg, fg_bg)]
    if prediction.mask_logits is not None:
        panels += [inputs.mask[first], prediction.mask_logits[first].sigmoid()]
    if prediction.depth is not None:
        panels += [inputs.depth[first], prediction.depth[first]]
    rows = torch.cat([panel.expand(-1, 3, -1, -1) for panel in panels], dim=3)
    image = torch.cat(list(rows), dim=1)
    return image.clamp(0, 1).mul(255).round().to(torch.uint8)
