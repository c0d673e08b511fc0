"""A budget for the operators and bytes of a training step, so that nothing creeps in."""

from __future__ import annotations

import pytest

from benchmarks.estimate import ByteCounter
from loaders import Preprocess
from model import DualDecoderUNet
from model.recipe import RECIPES, Recipe, Stage
from tests.test_step import STATISTICS, NoHostTensors, _batch, make_trainer

BUDGET = {  # size and parts -> operators, MB per sample in float32; 2 % above what was counted
    (112, "depth"): (380, 566),
    (224, "depth"): (371, 1903),
    (112, "mask"): (233, 369),
    (224, "mask"): (223, 1302),
    (112, "both"): (541, 871),
    (224, "both"): (531, 2968),
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


def _of(key: tuple[int, str]) -> tuple[Recipe, Stage]:
    return next(value for found, value in STAGES.items() if found == key)
