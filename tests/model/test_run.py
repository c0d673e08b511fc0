"""A run's state: resumed in another arithmetic, and never written once it is of no use."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from model import DualDecoderUNet, ModelError
from model.metrics import Scores
from model.recipe import RECIPES
from model.step import make_optimizer
from model.training.config import RunConfig
from model.training.progress import RunningMean
from model.training.run import Run

DEMO = RECIPES["demo"]


def enter(run: Run, scaler: torch.amp.GradScaler) -> torch.amp.GradScaler:
    """Begin the first stage with a fresh optimiser and this scaler."""
    optimizer = make_optimizer(run.network, DEMO, DEMO.stages[0])
    run.enter_stage(optimizer, scaler, RunningMean("cpu"))
    return scaler


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of the demo recipe in its first stage, after one batch of loss 1."""
    config = RunConfig(shards="shards", recipe=DEMO, width=1)
    network = DualDecoderUNet(1)
    run = Run(config=config, folder=tmp_path / "run", device=torch.device("cpu"), network=network)
    enter(run, torch.amp.GradScaler("cpu", enabled=False))
    run.running.add(torch.ones(()), 4)
    return run


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (True, True)])
def test_a_run_is_resumed_with_another_amp(run: Run, before: bool, after: bool) -> None:
    """The state of a scaler that is switched off is empty, and no other can load that."""
    state = {
        "optimizer": run.optimizer.state_dict(),
        "scaler": torch.amp.GradScaler("cpu", init_scale=8.0, enabled=before).state_dict(),
        "running": run.running.sums,
        "elapsed": (1.0, 2.0, 0.5, 4),
    }
    run.restored = state
    scaler = enter(run, torch.amp.GradScaler("cpu", init_scale=2.0, enabled=after))
    assert (
        scaler.get_scale() == {(False, True): 2, (True, False): 1, (True, True): 8}[before, after]
    )
    assert run.read_loss("here") == 1
    assert run.elapsed.cpu_s == 2


def test_infinite_weights_are_found_before_the_loss_shows_them(run: Run) -> None:
    assert run.check("stage 1", 1) == 1
    with torch.no_grad():
        run.network.mask_decoder.outc.weight.fill_(math.inf)
    assert run.read_loss("stage 1") == 1
    with pytest.raises(ModelError, match="stage 1, step 7: the largest weight became inf; lower"):
        run.check("stage 1", 7)


def test_an_infinite_validation_loss_replaces_no_weights(run: Run) -> None:
    scores = Scores(samples=1, mask_bce=math.nan, depth_l1=0.5)
    with pytest.raises(ModelError, match="stage 1, epoch 1: the validation loss became nan"):
        run.finish_epoch({}, scores)
    assert not run.folder.exists()
    assert run.history == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2**63}, "seed must be from 0 to"),
        ({"seed": -1}, "seed must be from 0 to"),
        ({"workers": 0}, "workers must be at least 1, found 0"),
        ({"save_every": 0}, "save_every must be at least 1"),
        ({"validation": 1.0}, "validation must be between 0 and 1"),
    ],
)
def test_a_configuration_is_checked_when_built(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig(shards="shards", recipe=DEMO, **change)
