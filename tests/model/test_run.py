"""A run's state: resumed with another precision, and never written once it is not finite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model import DualDecoderUNet, ModelError
from model.contract import Batch, Inputs
from model.metrics import Scores
from model.precision import Precision
from model.recipe import RECIPES
from model.training.config import DataConfig, RunConfig
from model.training.progress import Elapsed
from model.training.run import Run
from train import StageTrainer

DEMO = RECIPES["demo"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of the demo recipe in its first stage."""
    config = RunConfig(data=DataConfig(shards="shards"), recipe=DEMO, width=1)
    return Run(config=config, folder=tmp_path / "run")


@pytest.fixture
def trainer() -> StageTrainer:
    """A trainer of the first stage, after one batch of loss 1."""

    def no_data(batch: Batch, epoch: int = 0, bg: Tensor | None = None) -> Inputs:
        raise AssertionError("these tests train on no further batch")

    trainer = StageTrainer(
        network=DualDecoderUNet(1),
        recipe=DEMO,
        stage=DEMO.stages[0],
        preprocess=no_data,
        precision=Precision(dtype=None, scale=False),
    )
    trainer.running.add(torch.ones(()), 4)
    return trainer


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (True, True)])
def test_a_stage_is_resumed_with_another_amp(
    trainer: StageTrainer, before: bool, after: bool
) -> None:
    """The state of a disabled scaler is empty, and an enabled one cannot load that."""
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=before)
    state = trainer.state(Elapsed(1.0, 2.0, 0.5, 4))
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0, enabled=after)
    trainer.load_state(state)
    expected = {(False, True): 2, (True, False): 1, (True, True): 8}[before, after]
    assert trainer.scaler.get_scale() == expected
    assert trainer.running.read("here") == 1
    assert Elapsed._make(state["elapsed"]).cpu_s == 2


def test_an_optimiser_of_other_parameters_is_not_resumed(trainer: StageTrainer) -> None:
    state = trainer.state(Elapsed(1.0, 2.0, 0.5, 4))
    fewer = list(trainer.network.parameters())[:1]
    state["optimizer"] = torch.optim.SGD(fewer, lr=0.1).state_dict()
    with pytest.raises(ModelError, match=r"does not fit the network.*start a new run"):
        trainer.load_state(state)


def test_infinite_weights_are_found_before_the_loss_shows_them(trainer: StageTrainer) -> None:
    assert trainer.check_finite("stage 1", 1) == 1
    with torch.no_grad():
        trainer.network.mask_decoder.outc.weight.fill_(math.inf)
    assert trainer.running.read("stage 1") == 1
    with pytest.raises(ModelError, match="stage 1, step 7: the largest weight became inf; lower"):
        trainer.check_finite("stage 1", 7)


def test_an_infinite_validation_loss_replaces_no_weights(run: Run, trainer: StageTrainer) -> None:
    scores = Scores(samples=1, mask_bce=math.nan, depth_l1=0.5)
    with pytest.raises(ModelError, match="stage 1, epoch 1: the validation loss became nan"):
        run.finish_epoch({}, scores, trainer.network, {}, trainer.state(Elapsed()))
    assert not run.folder.exists()
    assert run.history == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2**63}, "seed must be from 0 to"),
        ({"seed": -1}, "seed must be from 0 to"),
        ({"workers": 0}, "workers must be at least 1, found 0"),
        ({"save_minutes": -1.0}, "save_minutes must be at least 0"),
        ({"validation": 1.0}, "validation must be between 0 and 1"),
    ],
)
def test_a_configuration_is_checked_when_built(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        RunConfig.from_options({"shards": "shards", "recipe": DEMO, **change})
