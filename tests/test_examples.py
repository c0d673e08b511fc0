"""The examples: killed within an epoch, continued by other numbers of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
COUNTING = '''
"""An example whose network counts the samples it is given, of all processes, in its state."""
import os, signal, sys
import torch
from torch import distributed
from examples import plain

class Network(plain.Network):
    def __init__(self):
        super().__init__()
        self.register_buffer("visits", torch.zeros(int(os.environ["SAMPLES"]), dtype=torch.int64))
        Network.made = self

class Preprocess(plain.Preprocess):
    steps = 0

    def __call__(self, batch):
        Preprocess.steps += 1
        if Preprocess.steps == int(os.environ["KILLED_AT"]) and os.environ.get("RANK", "0") == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        indices = [batch.index]
        if distributed.is_initialized():
            indices = [torch.empty_like(batch.index) for _ in range(distributed.get_world_size())]
            distributed.all_gather(indices, batch.index)
        Network.made.visits[torch.cat(indices)] += 1
        return super().__call__(batch)

plain.Network, plain.Preprocess = Network, Preprocess
plain.main()
'''


def test_plain_is_continued_by_other_numbers_of_processes(
    need_engine: Callable[[str], None], shards: Path, tmp_path: Path
) -> None:
    """Each sample of an epoch is seen once overall: 1 process is killed, then 2, and 4 finish."""
    need_engine("ffcv")
    script, state = tmp_path / "counting.py", tmp_path / "state.pt"
    script.write_text(COUNTING)
    samples = 96

    def run(ranks: int, killed_at: int) -> int:
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        command = start if ranks > 1 else [sys.executable]
        arguments = [str(shards), str(state), "--epochs", "1", "--batch-size", "8"]
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "SAMPLES": str(samples),
            "KILLED_AT": str(killed_at), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        return subprocess.run(
            [*command, str(script), *arguments, "--save-steps", "1"],
            env=environment, timeout=120, check=False, capture_output=True,
        ).returncode  # fmt: skip

    assert run(1, 3) == -signal.SIGKILL
    seen = torch.load(state, weights_only=True)["network"]["visits"]
    assert int(seen.sum()) == 16
    assert run(2, 4) != 0
    seen = torch.load(state, weights_only=True)["network"]["visits"]
    assert int(seen.sum()) == 40
    assert run(4, 0) == 0
    final = torch.load(state, weights_only=True)
    visits = final["network"]["visits"]
    assert visits.max() == 1
    steps = final["loader"]["samples"] // 8
    assert int(visits.sum()) == 8 * steps
    assert final["loader"]["epoch"] == 1
    assert bool((visits >= seen).all())
