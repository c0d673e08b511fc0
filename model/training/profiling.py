"""Names of phases in traces, and a trace of some training steps by torch's profiler."""

from __future__ import annotations

import gzip
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import profile, record_function, schedule
from tqdm import tqdm

from maskdepth.model.files import replace_file

WARM_UP = 3
"""Steps of an epoch before the first that is recorded; in the last of them the profiler runs."""


def phase_range(name: str) -> AbstractContextManager[object]:
    """A named range around what a block launches.

    It is an event of torch's profiler while that records, and otherwise, once the process uses a
    GPU, an NVTX range, which Nsight Systems shows. Without both it does nothing.
    """
    if torch._C._autograd._profiler_enabled():
        return record_function(name)
    return torch.cuda.nvtx.range(name) if torch.cuda.is_initialized() else nullcontext()


@dataclass(kw_only=True)
class StepProfile:
    """Records steps of the first epoch that this process trains, and writes their trace.

    It changes no tensor and draws no random number. Recorded steps are slower than others.
    """

    path: Path
    """The trace: Chrome's JSON, compressed by gzip."""
    steps: int
    """How many are still to be recorded; 0 records nothing."""

    @contextmanager
    def epoch(self, left: int) -> Iterator[Callable[[], None]]:
        """Yields what is called after each of the ``left`` steps, at least one, of an epoch.

        The trace is written after the last step that is recorded, or when the block ends after an
        error. Raises ModelError if it cannot be written.
        """
        if not self.steps:
            yield lambda: None
            return
        wanted, self.steps = self.steps, 0
        before = min(WARM_UP, left - 1)
        with warnings.catch_warnings():  # an epoch of one step leaves none to warm up
            warnings.filterwarnings("ignore", message="Profiler won't be using warmup")
            steps = schedule(
                wait=max(before - 1, 0), warmup=min(before, 1), active=min(wanted, left - before),
                repeat=1,
            )  # fmt: skip
        recorder = profile(schedule=steps, on_trace_ready=partial(self._write, wanted, before))
        with recorder:
            yield recorder.step

    def _write(self, wanted: int, before: int, recorder: profile) -> None:
        replace_file(self.path, partial(_export, recorder))
        recorded = recorder.step_num - before
        few = "" if recorded == wanted else " before the epoch ended"
        tqdm.write(  # clears the progress bar first
            f"profile: {recorded} of {wanted} steps recorded{few}, after {before} to warm up: "
            f"{self.path}; open it in https://ui.perfetto.dev or chrome://tracing"
        )


def _export(recorder: profile, path: Path) -> None:
    with TemporaryDirectory() as folder:
        plain = Path(folder, "trace.json")
        recorder.export_chrome_trace(str(plain))
        with open(plain, "rb") as source, gzip.open(path, "wb") as target:
            shutil.copyfileobj(source, target)
