"""Recipes at equal CPU time: stages share it by their FLOPs, and each recipe is scored."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskdepth.benchmarks.estimate import optimizer_work, step_pflop, work
from maskdepth.benchmarks.recipes import Data, baselines, follow
from maskdepth.benchmarks.speedrun import Goal, run_recipe
from maskdepth.loaders import read_layout, split_indices
from maskdepth.model import DualDecoderUNet
from maskdepth.model.recipe import RECIPES, Recipe, Stage


def test_work_of_a_stage_is_that_of_the_description() -> None:
    """228, 139 and 98 GFLOP per sample at full width; the same ratios at any."""
    depth, mask = RECIPES["original"].stages[2], RECIPES["original"].stages[7]
    joint = RECIPES["joint"].stages[2]
    gflop = [work(stage, 8) for stage in (joint, depth, mask)]
    assert np.array(gflop) / gflop[0] == pytest.approx(np.array([228, 139, 98]) / 228, rel=0.02)
    assert work(RECIPES["joint"].stages[0], 8) * 4 == gflop[0]


def test_a_recipe_is_trained_and_scored(
    shards: Path, need_engine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    need_engine("dali")
    clock = itertools.count()  # a second for each call: each step takes one
    monkeypatch.setattr("maskdepth.benchmarks.recipes.time.process_time", lambda: next(clock))
    train, val = split_indices(read_layout(shards), "random")
    data = Data(shards=shards, engine="dali", train=train, scored=np.sort(val)[:6], batch_size=4)
    stages = (
        Stage(size=32, batch_size=99, lr=0.01, trains=("encoder", "depth")),
        Stage(size=32, batch_size=99, lr=0.01, trains=("mask",)),
    )
    recipe = Recipe(name="two", stages=stages)
    points = list(follow(recipe, data, width=2, budget_s=12, points=4))
    assert len(points) == 4
    assert ["mask_iou" in p.scores for p in points] == [False, False, True, True]
    assert all(0 < p.scores["depth_rmse"] < 2 for p in points)
    # 139 of 237 GFLOP are the depth stage's: 7.04 of 12 seconds, so 8 steps of one.
    assert [p.cpu_s for p in points] == [3, 6, 9, 12]
    assert set(points[0].scores) == {"depth_rmse"}
    assert baselines(data)["mask_iou"] > 0.5


def test_a_speedrun_counts_its_work_and_ends_at_the_goal(
    shards: Path, need_engine: Callable[[str], None]
) -> None:
    need_engine("dali")
    train, val = split_indices(read_layout(shards), "random")
    data = Data(shards=shards, engine="dali", train=train, scored=np.sort(val)[:6], batch_size=4)
    both = ("encoder", "mask", "depth")
    stages = (
        Stage(size=16, batch_size=4, lr=0.01, trains=both, samples=16, epochs=2),
        Stage(size=32, batch_size=8, lr=0.01, trains=both, samples=16),
    )
    recipe = Recipe(name="short", width=2, stages=stages, optimizer="muon", camera=0.5)
    small, large = (step_pflop(recipe, stage) for stage in stages)
    gflop = work(stages[0], 2) * 4 + optimizer_work(recipe, stages[0])
    assert small * 1e6 == pytest.approx(gflop)
    planned = 8 * small + 2 * large
    unreachable = {"mask_iou": 2.0, "depth_rmse": 0.0}
    goal = Goal(scores=unreachable, limit_pflop=4 * planned, points=3, screen=2)
    points = list(run_recipe(recipe, data, goal, seed=1))
    assert points[-1].samples == 2 * 16 + 16
    assert points[-1].pflop == pytest.approx(planned)
    # A point of each mark, at most a step later; one point where a step passes several marks.
    marks = goal.marks(planned)
    assert all(any(0 <= p.pflop - m < large + small / 9 for p in points) for m in marks[:-1])
    assert [p.pflop for p in points] == sorted({p.pflop for p in points})
    assert all(0 < one.seconds < other.seconds for one, other in itertools.pairwise(points))
    assert [p.scored for p in points] == [2] * (len(points) - 1) + [6]
    again = list(run_recipe(recipe, data, goal, seed=1))
    assert [p.scores for p in again] == [p.scores for p in points]
    other = list(run_recipe(recipe, data, goal, seed=2))
    assert [p.scores for p in other] != [p.scores for p in points]

    trivial = replace(goal, scores={"mask_iou": 0.0, "depth_rmse": 9.0})
    assert [p.scored for p in run_recipe(recipe, data, trivial, seed=1)] == [6]
    limited = replace(goal, limit_pflop=0.7 * planned)
    end = list(run_recipe(recipe, data, limited, seed=1))[-1]
    assert 0 <= end.pflop - 0.7 * planned < large
    assert end.scored == 6


@given(st.floats(1e-6, 10), st.floats(1e-6, 10), st.integers(1, 20))
def test_marks_of_a_speedrun_are_the_same_for_all_recipes(
    planned: float, limit: float, points: int
) -> None:
    goal = Goal(scores={}, limit_pflop=limit, points=points, screen=1)
    *shared, end = goal.marks(planned)
    assert end == min(planned, limit)
    *complete, last = goal.marks(2 * limit)
    assert shared == [mark for mark in complete if mark < end]
    assert last == limit
    assert complete[0] == pytest.approx(limit / 100)
    assert len(complete) == 2 * points
    factors = [b / a for a, b in itertools.pairwise([*complete, last])]
    assert factors == pytest.approx([10 ** (1 / points)] * len(factors))


def test_work_of_an_optimiser_is_that_of_its_matrix_products() -> None:
    """Five iterations with three products of each bank; nothing for the rest, or for SGD."""
    stage = Stage(size=16, batch_size=4, lr=0.01, trains=("mask",))
    sgd = Recipe(name="short", width=2, stages=(stage,))
    assert optimizer_work(sgd, stage) == 0
    network = DualDecoderUNet(2).freeze("encoder", "depth")
    flop = 0
    for bank in network.trained_parameters():
        if bank.ndim == 4 and min(bank.shape[:2]) > 1:
            short, long = sorted((bank.shape[0], bank[0].numel()))
            flop += 5 * 2 * (2 * short * short * long + short**3)
    assert flop
    assert optimizer_work(sgd.changed(optimizer="muon"), stage) == pytest.approx(flop / 1e9)
