"""TensorBoard: curves and pictures of a run, made and written beside the training.

A thread does everything that costs: reading from the device, PNG encoding, files. The loop
hands over tensors that stay on the device and numbers that it has read anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.errors import ModelError
from model.step import Prediction

ROWS = 4
"""Samples in a picture."""


class Board:
    """Writer of RUN_DIR/tensorboard; use it in a ``with`` block, which waits for the thread."""

    def __init__(self, folder: Path, step: int) -> None:
        """``step``: where the run goes on; what an earlier process wrote after it is hidden.

        Raises ModelError without the extra.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ModelError(
                f"--tensorboard needs {error.name}, which is not installed: "
                "pip install 'maskdepth[tensorboard]', or leave the option out"
            ) from None
        self.folder = folder
        # Made when there is something to write: a run that fails before leaves no folder.
        self._open = partial(SummaryWriter, str(folder), purge_step=step)
        self._writer: Any = None
        self.cost_s = 0.0
        """CPU time of the thread so far."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tensorboard")
        self._pending: list[Future[Any]] = []

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pending or self._writer:
            self._later(lambda: self._writer.close())
        self._thread.shutdown()
        self._raise_failures()

    def scalars(self, step: int, values: Mapping[str, Any], group: str) -> None:
        """Numbers at a step of the run; what is no number is left out."""
        numbers = {f"{group}/{n}": v for n, v in values.items() if isinstance(v, int | float)}
        self._later(self._write_scalars, step, numbers)

    def picture(
        self, step: int, bg: Tensor, fg_bg: Tensor, prediction: Prediction, inputs: Any
    ) -> None:
        """The first samples of a batch, see `grid`; nobody may change the tensors afterwards."""
        self._later(self._write_picture, step, bg, fg_bg, prediction, inputs)

    def _later(self, task: Callable[..., None], *arguments: Any) -> None:
        self._raise_failures()
        self._pending.append(self._thread.submit(self._timed, task, *arguments))

    def _timed(self, task: Callable[..., None], *arguments: Any) -> None:
        started = time.thread_time()
        self._writer = self._writer or self._open()
        task(*arguments)
        self.cost_s += time.thread_time() - started

    def _write_scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def _write_picture(self, step: int, *samples: Any) -> None:
        self._writer.add_image("validation", grid(*samples).cpu().numpy(), step)

    def _raise_failures(self) -> None:
        """Raise what went wrong in the thread, as one line."""
        done = [task for task in self._pending if task.done()]
        self._pending = [task for task in self._pending if not task.done()]
        for task in done:
            if error := task.exception():
                raise ModelError(f"{self.folder}: cannot be written: {error}")


@torch.inference_mode()
def grid(bg: Tensor, fg_bg: Tensor, prediction: Prediction, inputs: Any) -> Tensor:
    """Samples below each other: bg, fg_bg, and target and prediction of what was decoded.

    bg, fg_bg: uint8 (B, 3, H, W). Returns uint8 (3, rows * S, columns * S) on their device,
    with at most ROWS rows. No host sync.
    """
    size = inputs.depth.shape[-2:]
    panels = [F.interpolate(image[:ROWS].float() / 255, size=size) for image in (bg, fg_bg)]
    if prediction.mask_logits is not None:
        panels += [inputs.mask[:ROWS], prediction.mask_logits[:ROWS].sigmoid()]
    if prediction.depth is not None:
        panels += [inputs.depth[:ROWS], prediction.depth[:ROWS]]
    rows = torch.cat([panel.expand(-1, 3, -1, -1) for panel in panels], dim=3)
    image = torch.cat(list(rows), dim=1)
    return image.clamp(0, 1).mul(255).round().to(torch.uint8)
