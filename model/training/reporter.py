"""What a run reports while it trains: lines on standard output and, if wanted, TensorBoard."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from model.contract import PRIOR, Inputs, Loader, about_depth
from model.errors import ModelError
from model.training.evaluation import Prediction
from model.training.pace import Pace, Plan, duration
from model.training.report import DEPTH_FIGURES
from model.training.state import Position

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PICTURE_ROWS = 4
"""Samples in a picture."""


class Reporter:
    """Prints lines, and writes TensorBoard's files if it has a folder for them.

    shown: whether anything is reported, on one rank of several.
    board: the folder of TensorBoard's files, or None. step: where the run resumes; what an
        earlier process wrote after it is hidden.

    Raises ModelError if the extra `tensorboard` is not installed or the folder cannot be written.
    """

    def __init__(self, *, shown: bool, board: Path | None = None, step: int = 0) -> None:
        self.shown, self.step = shown, step
        self.pace: Pace | None = None
        self.board = board if shown else None
        self.depth_source = ""
        """Of the loader. Where depth is a prior, the names of figures of depth say so."""
        self.cost_s = 0.0
        """Time spent on TensorBoard so far, in seconds."""
        if self.board and not find_spec("tensorboard"):
            raise ModelError(
                "--tensorboard needs tensorboard, which is not installed: "
                "pip install 'maskdepth[tensorboard]', or leave the option out"
            )

    @cached_property
    def _writer(self) -> SummaryWriter:
        # Opened with the first value: a run that fails earlier leaves no folder.
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self.board), purge_step=self.step)
        if about := about_depth(self.depth_source):
            writer.add_text("about", about, self.step)
        return writer

    @property
    def _mark(self) -> str:
        """Ends the name of what is of depth, where that is a prior; TensorBoard allows no space."""
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
        """Write numbers at a step of the run to TensorBoard; other values are left out."""
        if self.board:
            with self._writing():
                for name, value in values.items():
                    if isinstance(value, int | float):
                        mark = self._mark if name in DEPTH_FIGURES else ""
                        self._writer.add_scalar(f"{group}/{name}{mark}", value, step)

    def picture(
        self, step: int, bg: Tensor, fg_bg: Tensor, prediction: Prediction, inputs: Inputs
    ) -> None:
        """Write the first samples of a batch to TensorBoard, see `grid`: a host sync."""
        if self.board:
            with self._writing():
                mark = self._mark and f"_depth{self._mark}"
                image = grid(bg, fg_bg, prediction, inputs)
                self._writer.add_image(f"validation{mark}", image, step)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise ModelError(f"{self.board}: cannot be written: {reason}") from None
        finally:
            self.cost_s += time.perf_counter() - started

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """At the end of the block, close TensorBoard's files and report what they cost."""
        started = time.perf_counter()
        with _no_traceback_of_writer():
            try:
                yield
            finally:
                if "_writer" in vars(self):
                    with self._writing():
                        self._writer.close()
        if self.board:
            share = self.cost_s / (time.perf_counter() - started)
            self.line(f"TensorBoard: {self.cost_s:.2f} s, {share:.2%} of the time of training")


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
