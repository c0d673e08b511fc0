"""On a GPU: the rules score as on the CPU, and a speedrun trains and counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from maskdepth.benchmarks.recipes import Data, baselines
from maskdepth.benchmarks.speedrun import Goal, run_recipe
from maskdepth.loaders import read_layout, split_indices
from maskdepth.model.precision import precision_for
from maskdepth.model.recipe import Recipe, Stage


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_speedrun_on_the_gpu(shards: Path, optimizer: str) -> None:
    train, val = split_indices(read_layout(shards), "random")
    data = Data(
        shards=shards, engine="resident", train=train, scored=np.sort(val)[:6], batch_size=4,
        device="cuda",
    )  # fmt: skip
    assert baselines(data) == pytest.approx(baselines(replace(data, device="cpu")), rel=1e-3)
    stage = Stage(size=32, batch_size=8, lr=0.01, trains=("encoder", "mask", "depth"))
    recipe = Recipe(name="short", width=4, stages=(stage,), optimizer=optimizer, camera=0.5)
    goal = Goal(scores={"mask_iou": 2.0, "depth_rmse": 0.0}, limit_pflop=1, points=2, screen=4)
    precision = precision_for("auto", torch.device("cuda"))
    points = list(run_recipe(recipe, data, goal, 0, precision))
    assert points[-1].samples == len(train) // 8 * 8
    assert points[-1].seconds > 0
    assert 0 < points[-1].scores["depth_rmse"] < 2
