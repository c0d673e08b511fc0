"""`train.py` whose network counts, in its state, how often each sample was trained in each epoch.

python tests/counting.py COUNTED KILLED_AT fit ARGUMENTS

COUNTED: epochs x samples, such as 2x24. KILLED_AT: RANK:STEP, at whose step the rank kills itself
unless it was killed before; empty for none.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed

sys.path.insert(0, str(Path(__file__).parents[1]))

from maskdepth import train
from maskdepth.model.contract import Batch
from maskdepth.model.distributed import is_distributed
from maskdepth.model.training import report as training_report
from maskdepth.model.training import run as training_run
from maskdepth.model.training.run import Run
from maskdepth.model.training.trainer import StageTrainer
from maskdepth.model.unet import DualDecoderUNet


def count_samples(counted: str, killed_at: str, *, restarts: int = 0) -> None:
    """Patch the network and the step of this process.

    A `save` waits until it is written, and no picture is drawn, because that takes longer.
    """
    shape = tuple(map(int, counted.split("x")))
    real_init, real_step, steps = DualDecoderUNet.__init__, StageTrainer.step, 0
    rank, real_save = os.environ.get("RANK", "0"), Run.save

    def init(network: DualDecoderUNet, *arguments: Any, **options: Any) -> None:
        real_init(network, *arguments, **options)
        network.register_buffer("visits", torch.zeros(shape, dtype=torch.int64))

    def step(trainer: StageTrainer, batch: Batch, *, epoch: int, **options: Any) -> None:
        nonlocal steps
        steps += 1
        if killed_at == f"{rank}:{steps}" and not restarts:
            os.kill(os.getpid(), signal.SIGKILL)
        real_step(trainer, batch, epoch=epoch, **options)
        seen = torch.bincount(batch.index, minlength=shape[1])
        if is_distributed():
            distributed.all_reduce(seen)
        trainer.network.get_buffer("visits")[epoch] += seen

    def save(run: Run, *arguments: Any, **options: Any) -> None:
        real_save(run, *arguments, **options)
        run.writer.wait()

    DualDecoderUNet.__init__ = init  # type: ignore[method-assign, assignment]
    training_run.__dict__["draw_curves"] = lambda *arguments: None
    training_report.__dict__["draw_predictions"] = lambda *arguments: None
    Run.save = save  # type: ignore[method-assign, assignment]
    StageTrainer.step = step  # type: ignore[method-assign, assignment]


def run_counting(
    arguments: list[str], output: str, counted: str, killed_at: str, environment: dict[str, str]
) -> None:
    """Train in a process of its own, with one thread; print to a file."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    with open(output, "w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        count_samples(counted, killed_at)
        train.main(arguments, prog_name="train.py")


if __name__ == "__main__":
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    count_samples(sys.argv[1], sys.argv[2], restarts=restarts)
    train.main(sys.argv[3:], prog_name="train.py")
