"""The smallest data set that training accepts, for tests of the command line."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import cast
from unittest.mock import patch

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from maskdepth import train
from maskdepth.model.training.state import save_state

BACKGROUNDS, SAMPLES, SIZE = 3, 8, 32
RECIPE = """
name = "tiny"
flip = 0.5
[[stages]]
size = 16
batch_size = 4
lr = 0.05
epochs = 2
trains = ["encoder", "depth"]
"""
"""17 training samples: 5 steps an epoch, the last one smaller."""


def leave_out_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `fit` draw nothing, because that takes longer than a tiny run."""
    monkeypatch.setattr("maskdepth.model.training.run.draw_curves", lambda *arguments: None)
    monkeypatch.setattr("maskdepth.model.training.report.draw_predictions", lambda *arguments: None)


def make_dataset(root: Path) -> Path:
    """3 backgrounds with 8 composites each: a bright square on noise, nearer than the rest."""
    random = np.random.default_rng(0)
    (root / "bg").mkdir()
    for number in range(1, BACKGROUNDS + 1):
        bg = random.integers(0, 120, size=(SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(bg).save(root / "bg" / f"bg_{number:03}.jpg", quality=95)
        for kind in ("fg_bg", "fg_bg_mask", "fg_bg_depth"):
            (root / kind / f"bg_{number:03}").mkdir(parents=True)
        for sample in range(1, SAMPLES + 1):
            mask = np.zeros((SIZE, SIZE), dtype=np.uint8)
            y, x = random.integers(0, SIZE - 12, size=2)
            mask[y : y + 12, x : x + 12] = 255
            composite = np.where(mask[..., None] > 0, np.uint8(230), bg)
            depth = np.where(mask > 0, 20, np.linspace(250, 60, SIZE)[:, None]).astype(np.uint8)
            name = f"bg_{number:03}/img_{sample:04}.jpg"
            Image.fromarray(composite).save(root / "fg_bg" / name, quality=95)
            Image.fromarray(mask).save(root / "fg_bg_mask" / name)
            Image.fromarray(depth).convert("RGB").save(root / "fg_bg_depth" / name)
    return root


def run_train(arguments: list[str], output: str) -> None:
    """Run the command line of training in a process of its own; print to a file.

    Uses one thread: several threads that wait for each other are slow on a busy machine.
    """
    torch.set_num_threads(1)
    with open(output, "w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        train.main(arguments, prog_name="train.py")


def run_train_slowly_saved(arguments: list[str], output: str) -> None:
    """`run_train`, where every write of last.pt prints its position and takes a second longer."""

    def slow(path: Path, state: Mapping[str, object]) -> None:
        print("writing", *cast(tuple, state["position"]), flush=True)
        time.sleep(1)
        save_state(path, state)

    with patch("maskdepth.model.training.run.save_state", slow):
        run_train(arguments, output)


TWO_STAGES = f"""
nesterov = true
{RECIPE}
schedule = "onecycle"
[[stages]]
size = 16
batch_size = 4
lr = 0.05
trains = ["mask"]
"""


def run(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(train.main, [str(argument) for argument in arguments])


def fit(dataset: Path, folder: Path, recipe: str, *more: object) -> Result:
    return run("fit", dataset, folder, "--recipe", recipe, "--width", 2, "--device", "cpu", *more)


def figures(folder: Path) -> list[dict[str, str]]:
    """metrics.csv without the columns that depend on the clock."""
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name in ("epoch_s", "epoch_cpu_s", "samples_per_s", "data_wait"):
            del row[name]
    return rows
