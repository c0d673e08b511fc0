"""A budget for the operators and bytes of a training step, so that nothing creeps in."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from maskdepth.benchmarks.estimate import ByteCounter
from maskdepth.loaders import Inputs, Preprocess
from maskdepth.model import DualDecoderUNet, upsampling
from maskdepth.model.precision import Precision
from maskdepth.model.recipe import RECIPES, Recipe, Stage
from maskdepth.model.training.trainer import StageTrainer
from tests.test_step import STATISTICS, NoHostTensors, _batch, make_trainer

BUDGET = {  # size and parts -> operators, MB per sample in float32; 2 % above what was counted
    (112, "depth"): (380, 566),
    (224, "depth"): (371, 1903),
    (112, "mask"): (233, 369),
    (224, "mask"): (223, 1302),
    (112, "both"): (541, 871),
    (224, "both"): (531, 2968),
}
AUTOCAST_BUDGET = {  # the same in bfloat16, as a CPU does it, without preprocessing
    (112, "depth"): (1100, 725),
    (112, "mask"): (649, 457),
}
STAGES = {
    (stage.size, stage.decode): (recipe, stage)
    for recipe in (RECIPES["original"], RECIPES["joint"])
    for stage in recipe.stages
}


def test_every_stage_has_a_budget() -> None:
    assert STAGES.keys() == BUDGET.keys()


@pytest.mark.parametrize("key", BUDGET)
def test_a_step_keeps_its_budget(key: tuple[int, str]) -> None:
    """The second step: the first one makes the momenta.

    Nothing is copied from or to the host, and no value read: meta tensors have none.
    """
    recipe, stage = _of(key)
    batch, backgrounds = _batch("meta")
    preprocess = Preprocess(backgrounds, STATISTICS, size=stage.size)
    trainer = make_trainer(DualDecoderUNet(64).place("meta"), recipe, stage, preprocess)
    trainer.step(batch, epoch=0, lr=0.1)
    with NoHostTensors(), ByteCounter() as counter:
        trainer.step(batch, epoch=0, lr=0.1)
    operators, mbyte = BUDGET[key]
    assert counter.operations <= operators
    assert counter.bytes / len(batch.index) / 1e6 <= mbyte


@pytest.mark.parametrize("key", AUTOCAST_BUDGET)
def test_a_step_in_half_precision_keeps_its_budget(
    key: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autocast has no meta device: fake tensors of the CPU, which have no values either."""
    weights = lru_cache(upsampling._new_weights)  # fake ones must not stay for other tests
    monkeypatch.setattr(upsampling, "_cached_weights", weights)
    recipe, stage = _of(key)
    batch, _ = _batch("cpu", size=1)
    with FakeTensorMode():
        image = torch.empty(2, 3, stage.size, stage.size)
        inputs = Inputs(image, image, image[:, :1], image[:, :1])
        trainer = StageTrainer(
            network=DualDecoderUNet(64).train(), recipe=recipe, stage=stage,
            preprocess=lambda *_, **__: inputs,
            precision=Precision(dtype=torch.bfloat16, scale=False),
        )  # fmt: skip
        trainer.step(batch, epoch=0, lr=0.1)
        with ByteCounter() as counter:
            trainer.step(batch, epoch=0, lr=0.1)
    operators, mbyte = AUTOCAST_BUDGET[key]
    assert counter.operations <= operators
    assert counter.bytes / len(batch.index) / 1e6 <= mbyte


def _of(key: tuple[int, str]) -> tuple[Recipe, Stage]:
    return next(value for found, value in STAGES.items() if found == key)
