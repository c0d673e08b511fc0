"""What a run reports while it trains: lines on standard output and, if wanted, TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from model.contract import Inputs, Skipping
from model.errors import ModelError
from model.training.evaluation import Prediction

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PICTURE_ROWS = 4
"""Samples in a picture."""


class Reporter:
    """Prints lines; the base of `Board`, which also writes for TensorBoard.

    shown: whether anything is printed, on one rank of several.
    """

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown

    def line(self, text: str) -> None:
        """Print a line."""
        if self.shown:
            click.echo(text)

    def scalars(self, step: int, values: Mapping[str, object], group: str) -> None:
        """Numbers at a step of the run; only a `Board` keeps them."""

    def picture(
        self, step: int, bg: Tensor, fg_bg: Tensor, prediction: Prediction, inputs: Inputs
    ) -> None:
        """The first samples of a batch; only a `Board` keeps them."""


class Board(Reporter):
    """Writes RUN_DIR/tensorboard beside the training.

    A thread does all work that costs time: reading from the device, PNG encoding, writing
    files. The training loop hands over tensors that stay on the device and numbers that the
    host has read anyway.
    """

    def __init__(self, folder: Path, step: int) -> None:
        """``step``: where the run resumes; what an earlier process wrote after it is hidden.

        Raises ModelError if the extra `tensorboard` is not installed.
        """
        super().__init__(shown=True)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ModelError(
                f"--tensorboard needs {error.name}, which is not installed: "
                "pip install 'maskdepth[tensorboard]', or leave the option out"
            ) from None
        self.folder = folder
        # Opened with the first value: a run that fails earlier leaves no folder.
        self._open = partial(SummaryWriter, str(folder), purge_step=step)
        self._writer: SummaryWriter | None = None
        self.cost_s = 0.0
        """CPU time of the thread so far."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tensorboard")
        self._pending: list[Future[None]] = []

    def close(self) -> None:
        """Wait for the thread; raises ModelError if it could not write."""
        if self._pending or self._writer:
            self._submit(lambda writer: writer.close())
        self._thread.shutdown()
        self._raise_failures()

    def scalars(self, step: int, values: Mapping[str, object], group: str) -> None:
        """Write numbers at a step of the run; other values are left out."""
        numbers = {f"{group}/{n}": v for n, v in values.items() if isinstance(v, int | float)}

        def write(writer: SummaryWriter) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)

        self._submit(write)

    def picture(
        self, step: int, bg: Tensor, fg_bg: Tensor, prediction: Prediction, inputs: Inputs
    ) -> None:
        """Write the first samples of a batch, see `grid`; do not change the tensors afterwards."""

        def write(writer: SummaryWriter) -> None:
            image = grid(bg, fg_bg, prediction, inputs).cpu().numpy()
            writer.add_image("validation", image, step)

        self._submit(write)

    def _submit(self, task: Callable[[SummaryWriter], None]) -> None:
        self._raise_failures()
        self._pending.append(self._thread.submit(self._run, task))

    def _run(self, task: Callable[[SummaryWriter], None]) -> None:
        started = time.thread_time()
        self._writer = self._writer or self._open()
        task(self._writer)
        self.cost_s += time.thread_time() - started

    def _raise_failures(self) -> None:
        """Raise what failed in the thread, as one line."""
        done = [task for task in self._pending if task.done()]
        self._pending = [task for task in self._pending if not task.done()]
        for task in done:
            if error := task.exception():
                raise ModelError(f"{self.folder}: cannot be written: {error}")


@contextmanager
def open_reporter(folder: Path | None, step: int, *, shown: bool) -> Iterator[Reporter]:
    """A reporter for a run at ``step``; with a ``folder``, TensorBoard is written there too."""
    if folder is None or not shown:
        yield Reporter(shown=shown)
        return
    started = time.perf_counter()
    board = Board(folder, step)
    try:
        yield board
    finally:
        board.close()
    took_s = time.perf_counter() - started
    board.line(
        f"TensorBoard: {board.cost_s:.2f} s of a thread's CPU time, "
        f"{board.cost_s / took_s:.2%} of the time of training"
    )


@contextmanager
def listing_skipped(*loaders: Skipping) -> Iterator[None]:
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
