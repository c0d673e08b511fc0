"""Training in separate processes: killed and resumed, and on two ranks."""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.tiny import make_dataset, run_train, run_train_slowly_saved

ROOT = Path(__file__).parent.parent
FIT = [str(ROOT / "train.py"), "fit"]
KILLS = 5

RECIPE = """
name = "tiny"
nesterov = true
[[stages]]
size = 16
batch_size = {batch}
lr = 0.05
epochs = {epochs}
trains = ["encoder", "depth"]
schedule = "onecycle"
[[stages]]
size = 16
batch_size = {batch}
lr = 0.05
epochs = {epochs}
trains = ["mask"]
mask_loss = "bce+dice"
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("dataset"))


def fit_options(folder: Path, run: str, dataset: Path, *, batch: int, epochs: int) -> list[str]:
    """Arguments of a run in float32; 16 of the 24 samples are for training."""
    recipe = folder / f"{run}.toml"
    recipe.write_text(RECIPE.format(batch=batch, epochs=epochs))
    plain = ["--width", "2", "--device", "cpu", "--amp", "off", "--validation", "0.34"]
    return [str(dataset), str(folder / run), "--recipe", str(recipe), *plain]


def weights(run: Path) -> dict[str, Tensor]:
    """The best and the last weights of a run, under different names."""
    last = torch.load(run / "last.pt", weights_only=True)["network"]
    best = load_file(run / "best.safetensors")
    return {
        **{f"best {n}": v for n, v in best.items()},
        **{f"last {n}": v for n, v in last.items()},
    }


def losses(run: Path) -> list[tuple[float, float]]:
    """Training loss and depth error of each epoch."""
    with open(run / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    return [(float(row["train_loss"]), float(row["depth_l1"] or "0")) for row in rows]


def start(
    arguments: list[str], output: Path, target: Callable[[list[str], str], None] = run_train
) -> BaseProcess:
    """A process that trains; forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.tiny"])
    process = context.Process(target=target, args=(["fit", *arguments], str(output)))
    process.start()
    return process


def finish(arguments: list[str], output: Path) -> float:
    """Train to the end; returns the seconds since the training began."""
    process = start(arguments, output)
    wait_for(output, "stage")
    began = time.monotonic()
    process.join()
    assert process.exitcode == 0, output.read_text()
    return time.monotonic() - began


def wait_for(output: Path, text: str) -> None:
    """Wait until a training process has printed the text: "stage" with its first stage."""
    deadline = time.monotonic() + 120
    while not (output.exists() and text in output.read_text()):
        assert time.monotonic() < deadline, f"training did not print {text!r}"
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed(dataset: Path, tmp_path: Path) -> None:
    """After five times SIGKILL the weights equal those of an undisturbed run, bit for bit."""
    whole, broken = (
        fit_options(tmp_path, name, dataset, batch=2, epochs=2) for name in ("whole", "broken")
    )
    took_s = finish(whole, tmp_path / "whole.txt")
    moments = random.Random(1)
    for kill in range(KILLS):
        output = tmp_path / f"{kill}.txt"
        process = start([*broken, "--resume", "--save-minutes", "0"], output)
        wait_for(output, "stage")
        time.sleep(moments.uniform(0, took_s / KILLS))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"ended before: {output.read_text()}"
    finish([*broken, "--resume"], tmp_path / "end.txt")
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_after_its_last_write(
    number: signal.Signals, code: int, dataset: Path, tmp_path: Path
) -> None:
    options = fit_options(tmp_path, "run", dataset, batch=2, epochs=2)
    output = tmp_path / "output.txt"
    process = start([*options, "--save-minutes", "0"], output, run_train_slowly_saved)
    wait_for(output, "writing 0 0 1")
    os.kill(process.pid or 0, number)
    process.join()
    assert process.exitcode == code, output.read_text()
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    written = re.findall(r"writing 0 0 (\d+)", output.read_text())
    assert tuple(state["position"]) == (0, 0, int(written[-1]))
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.slow
def test_two_ranks_are_one_process_with_twice_the_batch(dataset: Path, tmp_path: Path) -> None:
    """This includes BatchNorm, whose statistics cover both ranks."""
    one = fit_options(tmp_path, "one", dataset, batch=8, epochs=2)
    two = fit_options(tmp_path, "two", dataset, batch=4, epochs=2)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    finish(one, tmp_path / "one.txt")
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", *FIT, *two, "--profile", "1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("profile: 1 of 1 steps recorded") == 1
    assert done.stdout.count("stage 1 of 2") == 1  # only the first rank prints
    assert done.stdout.count("written to") == 1
    expected, found = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)
    rows = (tmp_path / "one", tmp_path / "two")
    assert np.array(losses(rows[1])) == pytest.approx(np.array(losses(rows[0])), rel=1e-4)


@pytest.mark.slow
def test_an_error_on_ranks_ends_them_all(dataset: Path, tmp_path: Path) -> None:
    """With fewer samples than ranks, no rank waits forever."""
    options = fit_options(tmp_path, "run", dataset, batch=16, epochs=1)
    options[options.index("0.34")] = "0.97"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", *FIT, *options],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert "found 1 samples for training, expected one for each of 2 ranks" in done.stderr
