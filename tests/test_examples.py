"""The examples: killed within an epoch, continued, also by other numbers of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from examples import plain
from maskdepth.loaders import build_loader, read_layout, split_indices
from maskdepth.loaders.engines import is_installed

ROOT = Path(__file__).parent.parent
SAMPLES = 96
COUNTING = '''
"""An example whose network counts the samples it is given, of all processes, in its state."""
import importlib, os, signal, sys
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

example = importlib.import_module(sys.argv.pop(1))
example.Network, example.Preprocess = Network, Preprocess
example.main()
'''


@pytest.fixture
def run(
    need_engine: Callable[[str], None], shards: Path, tmp_path: Path
) -> Callable[[str, int, int], int]:
    """Runs an example with so many processes, of which the first kills itself; the exit code.

    It saves its state after each step, and where it is not killed only at the end.
    """
    need_engine("ffcv")
    script = tmp_path / "counting.py"
    script.write_text(COUNTING)

    def start(name: str, ranks: int, killed_at: int) -> int:
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        command = [sys.executable, *(torchrun if ranks > 1 else []), str(script)]
        arguments = [str(shards), str(tmp_path / "state"), "--epochs", "1", "--batch-size", "8"]
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "SAMPLES": str(SAMPLES),
            "KILLED_AT": str(killed_at), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        if name == "with_lightning":
            arguments += ["--processes", str(ranks)]
        return subprocess.run(
            [*command, f"examples.{name}", *arguments, "--save-steps", "1" if killed_at else "99"],
            env=environment, timeout=120, check=False, capture_output=True,
        ).returncode  # fmt: skip

    return start


@pytest.mark.slow
def test_plain_is_continued_by_other_numbers_of_processes(
    run: Callable[[str, int, int], int], tmp_path: Path
) -> None:
    """Each sample of an epoch is seen once overall: 1 process is killed, then 2, and 4 finish."""

    def visits() -> Tensor:
        found: Tensor = torch.load(tmp_path / "state", weights_only=True)["network"]["visits"]
        return found

    assert run("plain", 1, 3) == -signal.SIGKILL
    assert int(visits().sum()) == 2 * 8
    assert run("plain", 2, 4) != 0
    seen = visits()
    assert int(seen.sum()) == 5 * 8
    assert run("plain", 4, 0) == 0
    loader = torch.load(tmp_path / "state", weights_only=True)["loader"]
    assert visits().max() == 1
    assert int(visits().sum()) == 8 * (loader["samples"] // 8)
    assert bool((visits() >= seen).all())
    assert loader["epoch"] == 1


def test_the_rest_of_an_epoch_is_less_than_a_batch(
    need_engine: Callable[[str], None], shards: Path, tmp_path: Path
) -> None:
    need_engine("ffcv")
    state, network = tmp_path / "state", plain.Network()
    training, _ = split_indices(read_layout(shards), "random")
    weights = plain.balanced(read_layout(shards), training)
    with build_loader(
        "ffcv", shards, indices=training, weights=weights, batch_size=len(training) - 4
    ) as loader:
        next(iter(loader))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        plain.save(state, network, optimizer, loader)
    options = Namespace(
        shards=shards, state=state, epochs=1, batch_size=8, save_steps=1, balanced=True
    )
    plain.train(options, torch.device("cpu"), 0, 1)
    assert torch.load(state, weights_only=True)["loader"]["epoch"] == 1


def visits_of_accelerate(state: Path) -> Tensor:
    (last,) = state.glob("*[0-9]")
    return load_file(last / "model.safetensors")["visits"]


def visits_of_lightning(state: Path) -> Tensor:
    found: Tensor = torch.load(state / "last.ckpt", weights_only=False)["state_dict"][
        "network.visits"
    ]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "package", "read", "ranks", "after"),
    [
        ("with_accelerate", "accelerate", visits_of_accelerate, 1, 2),
        ("with_accelerate", "accelerate", visits_of_accelerate, 2, 1),
        ("with_lightning", "pytorch_lightning", visits_of_lightning, 1, 2),
        ("with_lightning", "pytorch_lightning", visits_of_lightning, 2, 1),
    ],
)
def test_a_loop_of_others_is_continued(
    run: Callable[[str, int, int], int], tmp_path: Path,
    name: str, package: str, read: Callable[[Path], Tensor], ranks: int, after: int,
) -> None:  # fmt: skip
    """It saves and loads the place of the loader, and does not shard it again."""
    if not is_installed(package):
        pytest.skip(f"{package} is not installed; pip install '.[examples]'")
    assert run(name, ranks, 3) != 0
    seen = read(tmp_path / "state")
    assert int(seen.sum()) == 2 * 8 * ranks
    assert run(name, after, 0) == 0
    visits = read(tmp_path / "state")
    assert visits.max() == 1
    assert int(visits.sum()) >= 6 * 8  # the rest is less than a step
    assert int(visits.sum()) % 8 == 0
    assert bool((visits >= seen).all())
