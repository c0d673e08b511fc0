"""Runs that are killed within an epoch and continue on other numbers of ranks."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskdepth.model.unet import DualDecoderUNet
from tests.counting import run_counting
from tests.tiny import make_dataset

ROOT = Path(__file__).parent.parent
TRAINED, COUNTED = 17, "2x24"
"""Samples for training of the 24, by the default split; epochs x samples."""
RECIPE = """
name = "tiny"
nesterov = true
flip = 0.5
[[stages]]
size = 16
batch_size = {batch}
lr = 0.005
epochs = 2
trains = ["encoder", "mask", "depth"]
schedule = "onecycle"
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset"))


def options(folder: Path, run: str, dataset: Path, batch: int) -> list[str]:
    """Arguments of `fit` in float32, saved after every step; it starts or resumes."""
    recipe = folder / f"{run}.toml"
    recipe.write_text(RECIPE.format(batch=batch))
    files = [str(dataset), str(folder / run), "--recipe", str(recipe)]
    return [
        *files,
        "--width",
        "2",
        "--device",
        "cpu",
        "--amp",
        "off",
        "--resume",
        "--save-minutes",
        "0",
    ]


def train(arguments: list[str], folder: Path, ranks: int, killed_at: str = "") -> str:
    """Train on so many ranks, to the end or to a kill; what the first rank has printed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.counting"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outputs = [folder / f"{ranks}-{rank}.txt" for rank in range(ranks)]
    processes = []
    for rank, output in enumerate(outputs):
        environment = {
            "RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }  # fmt: skip
        process = context.Process(
            target=run_counting,
            args=(["fit", *arguments], str(output), COUNTED, killed_at, environment),
        )
        process.start()
        processes.append(process)
    killed = int(killed_at.split(":")[0]) if killed_at else None
    if killed is not None:
        processes[killed].join()
        assert processes[killed].exitcode == -signal.SIGKILL, outputs[killed].read_text()
        for process in processes:
            process.kill()  # as torchrun does
    for process, output in zip(processes, outputs, strict=True):
        process.join()
        assert killed is not None or process.exitcode == 0, output.read_text()
    return outputs[0].read_text()


def last(run: Path) -> dict[str, Tensor]:
    """The weights, and the count of each epoch and sample, in the last state."""
    state: dict[str, Tensor] = torch.load(run / "last.pt", weights_only=True)["network"]
    return state


def vector(state: dict[str, Tensor]) -> Tensor:
    """All weights and statistics."""
    return torch.cat([v.double().flatten() for v in state.values() if v.is_floating_point()])


@pytest.mark.slow
def test_any_number_of_ranks_continues_a_run_with_its_results(
    dataset: Path, tmp_path: Path
) -> None:
    """Also where the last step has a sample for one of them alone."""
    torch.manual_seed(0)
    start = DualDecoderUNet(2).state_dict()
    train(options(tmp_path, "whole", dataset, batch=4), tmp_path, 1)
    broken = options(tmp_path, "broken", dataset, batch=4)
    train(broken, tmp_path, 1, "0:3")
    assert int(last(tmp_path / "broken")["visits"].sum()) == 2 * 4
    text = train(broken, tmp_path, 2, "0:6")
    assert "started with 1 rank, now 2 ranks: a step takes as many samples as before" in text
    assert "parts" not in text
    assert last(tmp_path / "broken")["visits"].sum(1).tolist() == [TRAINED, 2 * 4]
    train(broken, tmp_path, 4)
    expected, found = last(tmp_path / "whole"), last(tmp_path / "broken")
    assert found["visits"].sum() == 2 * TRAINED
    del expected["visits"], found["visits"]
    moved = [vector(expected) - vector(start), vector(found) - vector(expected)]
    assert moved[1].norm() < 1e-4 * moved[0].norm()


@pytest.mark.slow
def test_fewer_ranks_compute_in_parts_and_others_change_the_step(
    dataset: Path, tmp_path: Path
) -> None:
    arguments, run = options(tmp_path, "run", dataset, batch=2), tmp_path / "run"
    train(arguments, tmp_path, 2, "0:3")
    seen = last(run)["visits"]
    assert int(seen.sum()) == 2 * 4
    text = train(arguments, tmp_path, 1, "0:2")
    assert "started with 2 ranks, now 1 rank: a step takes as many samples as before" in text
    assert "in 2 parts" in text
    assert int(last(run)["visits"].sum()) == 3 * 4
    text = train(arguments, tmp_path, 3)
    assert "they do not divide the steps, which take 3 samples in place of 4" in text
    visits = last(run)["visits"]
    assert visits.sum(1).tolist() == [TRAINED, TRAINED]
    assert visits.max() == 1
    assert bool((visits >= seen).all())


@pytest.mark.slow
def test_torchrun_restarts_a_killed_worker(dataset: Path, tmp_path: Path) -> None:
    """The run continues from its last state, in which each sample is seen once in an epoch."""
    arguments = options(tmp_path, "run", dataset, batch=2)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = [str(ROOT / "tests/counting.py"), COUNTED, "1:4", "fit"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "--max-restarts", "1", *script, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"of which [23] are done", done.stdout)  # rank 0 may not have saved the third
    visits = last(tmp_path / "run")["visits"]
    assert visits.max() == 1
    assert visits.sum(1).tolist() == [TRAINED, TRAINED]
