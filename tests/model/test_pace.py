"""The estimate of how long a run still takes, with a clock of our own."""

from __future__ import annotations

import pytest

from maskdepth.loaders.options import LoaderOptions
from maskdepth.loaders.order import Order
from maskdepth.model.recipe import Recipe, Stage
from maskdepth.model.training.config import DataConfig, RunConfig
from maskdepth.model.training.pace import Pace, Plan, duration
from maskdepth.model.training.state import Position

SMALL = Stage(size=16, batch_size=4, lr=0.1, trains=("encoder", "depth"), epochs=2)
LARGE = SMALL.changed(size=32, epochs=1)
RECIPE = Recipe(name="two", stages=(SMALL, LARGE))


def plan(training: int = 18, validation: int = 12, ranks: int = 1) -> Plan:
    return Plan(config=config(RECIPE, ranks), training=training, validation=validation)


def config(recipe: Recipe, ranks: int = 1) -> RunConfig:
    return RunConfig(data=DataConfig(shards="shards"), recipe=recipe, world_size=ranks)


def test_steps_are_those_that_loaders_give() -> None:
    """The last one may be incomplete."""
    assert len(plan().steps_of(SMALL)) == len(Order(18, LoaderOptions(batch_size=4))) == 5
    assert plan().steps == 15
    two = Order(18, LoaderOptions(batch_size=4, world_size=2))
    assert len(plan(ranks=2).steps_of(SMALL)) == len(two) == 3
    assert len(plan().steps_of(SMALL.changed(samples=13))) == 3
    assert len(plan(ranks=2).steps_of(SMALL.changed(samples=13))) == 1
    assert len(plan().steps_of(SMALL, first=12)) == 2
    assert str(plan(1_400)) == (
        "1,400 samples for training, 12 for validation; 2 stages, 3 epochs, 1,050 steps"
    )
    one = Plan(config=config(Recipe(name="one", stages=(LARGE,))), training=2, validation=1)
    assert str(one).endswith("; 1 stage, 1 epoch, 1 step")


def test_work_is_in_pixels() -> None:
    pixels, validated = 16 * 16, 12 / 3
    assert plan().work_before(Position(0, 0, 3)) == 3 * 4 * pixels
    assert plan().work_before(Position(0, 0, 1, 7)) == (7 + 4) * pixels
    assert plan().work_before(Position(0, 1, 0)) == pytest.approx((18 + validated) * pixels)
    assert plan().work_before(Position(1, 0, 1)) == pytest.approx(
        2 * (18 + validated) * pixels + 4 * 4 * pixels
    )
    assert plan().work == pytest.approx(6 * (18 + validated) * pixels)


def test_a_steady_run_is_estimated_exactly_once_it_is_measured() -> None:
    """A second per 1,000 pixels, after a first step that takes a minute more."""
    now = 0.0
    pace = Pace(plan=plan(), clock=lambda: now)
    seconds = plan().work / 1000
    for position in (Position(0, 0, 1), Position(0, 1, 2), Position(1, 0, 1), Position(1, 0, 4)):
        now = 60 + plan().work_before(position) / 1000
        left = pace.left_s(position)
        expected = None if position == Position(0, 0, 1) else pytest.approx(60 + seconds - now)
        assert left == expected


def test_a_slower_stage_corrects_the_estimate() -> None:
    now = 0.0
    pace = Pace(plan=plan(), clock=lambda: now)
    pace.left_s(Position(0, 0, 0))
    now = 10.0
    assert pace.left_s(Position(0, 1, 0)) == pytest.approx(50)
    assert pace.left_s(Position(1, 0, 0)) == pytest.approx(40)  # by the stage before
    now = 30.0  # 5 s a step, where 4 samples of 18 + 4 were expected to take 80 / 11
    assert pace.left_s(Position(1, 0, 4)) == pytest.approx(20 / 16 * (18 + 4 - 16))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5_300, "88 min"), (5_400, "1 h 30 min"),
     (129_000, "35 h 50 min"), (200_000, "2 d 8 h")],
)  # fmt: skip
def test_durations_are_said_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text
