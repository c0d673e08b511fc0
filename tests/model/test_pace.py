"""The estimate of how long a run still takes, with a clock of our own."""

from __future__ import annotations

import pytest

from loaders.options import LoaderOptions
from loaders.order import Order
from model.recipe import Recipe, Stage
from model.training.pace import Pace, Plan, duration
from model.training.state import Position

SMALL = Stage(size=16, batch_size=4, lr=0.1, trains=("encoder", "depth"), epochs=2)
LARGE = SMALL.changed(size=32, epochs=1)
RECIPE = Recipe(name="two", stages=(SMALL, LARGE))


def plan(training: int = 18, validation: int = 12, ranks: int = 1) -> Plan:
    return Plan(recipe=RECIPE, training=order(training, ranks), validation=validation, ranks=ranks)


def order(samples: int, ranks: int = 1) -> Order:
    """As the loaders of training have it."""
    return Order(samples, LoaderOptions(rank=0, world_size=ranks, drop_last=ranks > 1))


def test_steps_are_those_that_loaders_give() -> None:
    """One rank trains on an incomplete last batch, several leave it out."""
    assert plan().batches(SMALL) == 5
    assert plan().steps == 15
    assert plan(ranks=2).batches(SMALL) == 2
    assert plan().batches(SMALL.changed(samples=13)) == 3
    assert str(plan(1_400)) == (
        "1,400 samples for training, 12 for validation; 2 stages, 3 epochs, 1,050 steps"
    )
    one = Plan(recipe=Recipe(name="one", stages=(LARGE,)), training=order(2), validation=1)
    assert str(one).endswith("; 1 stage, 1 epoch, 1 step")


def test_work_is_in_pixels() -> None:
    pixels, validated = 16 * 16, 12 / 3
    assert plan().work_before(Position(0, 0, 3)) == 3 * 4 * pixels
    assert plan().work_before(Position(0, 1, 0)) == pytest.approx((20 + validated) * pixels)
    assert plan().work_before(Position(1, 0, 1)) == pytest.approx(
        2 * (20 + validated) * pixels + 4 * 4 * pixels
    )
    assert plan().work == pytest.approx(6 * (20 + validated) * pixels)


def test_a_steady_run_is_estimated_exactly_once_it_is_measured() -> None:
    """A second per 1,000 pixels, after a first step that takes a minute more."""
    now = 0.0
    pace = Pace(plan=plan(), clock=lambda: now)
    seconds = plan().work / 1000
    for position in (Position(0, 0, 1), Position(0, 1, 2), Position(1, 0, 1), Position(1, 0, 4)):
        now = 60 + plan().work_before(position) / 1000
        left = pace.left_s(position)
        expected = None if position == (0, 0, 1) else pytest.approx(60 + seconds - now)
        assert left == expected


def test_a_slower_stage_corrects_the_estimate() -> None:
    now = 0.0
    pace = Pace(plan=plan(), clock=lambda: now)
    pace.left_s(Position(0, 0, 0))
    now = 10.0
    assert pace.left_s(Position(0, 1, 0)) == pytest.approx(50)
    assert pace.left_s(Position(1, 0, 0)) == pytest.approx(40)  # by the stage before
    now = 30.0  # 4 s a step, where 10 / 6 were expected
    expected = 20 / 5 * (1 / 4) * 4 * 6  # what 5 of 6 parts of the stage took, for all of it
    assert pace.left_s(Position(1, 0, 5)) == pytest.approx(expected - 20)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5_300, "88 min"), (5_400, "1 h 30 min"),
     (129_000, "35 h 50 min"), (200_000, "2 d 8 h")],
)  # fmt: skip
def test_durations_are_said_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text
