"""Recipes at equal CPU time: stages share it by their FLOPs, and each recipe is scored."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.estimate import work
from benchmarks.recipes import Data, baselines, follow
from benchmarks.speedrun import Goal, run_recipe
from loaders import read_layout, split_indices
from model.recipe import RECIPES, Recipe, Stage


def test_work_of_a_stage_is_that_of_the_description() -> None:
    """228, 139 and 98 GFLOP per sample at full width; the same ratios at any."""
    depth, mask = RECIPES["original"].stages[2], RECIPES["original"].stages[7]
    joint = RECIPES["joint"].stages[2]
    gflop = [work(stage, 8)[0] for stage in (joint, depth, mask)]
    assert np.array(gflop) / gflop[0] == pytest.approx(np.array([228, 139, 98]) / 228, rel=0.02)
    assert work(RECIPES["joint"].stages[0], 8)[0] * 4 == gflop[0]


def test_a_recipe_is_trained_and_scored(
    shards: Path, need_engine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    need_engine("dali")
    clock = itertools.count()  # a second for each call: each step takes one
    monkeypatch.setattr("benchmarks.recipes.time.process_time", lambda: next(clock))
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
    unreachable = {"mask_iou": 2.0, "depth_rmse": 0.0}
    goal = Goal(scores=unreachable, limit_pflop=1, points=3)
    points = list(run_recipe(recipe, data, goal, seed=1))
    assert points[-1].samples == 2 * 16 + 16
    small, large = (work(stage, 2)[0] / 1e6 for stage in stages)
    assert points[-1].pflop == pytest.approx(32 * small + 16 * large)
    assert [p.pflop for p in points] == sorted(p.pflop for p in points)
    assert all(0 < one.seconds < other.seconds for one, other in itertools.pairwise(points))
    again = list(run_recipe(recipe, data, goal, seed=1))
    assert [p.scores for p in again] == [p.scores for p in points]
    other = list(run_recipe(recipe, data, goal, seed=2))
    assert [p.scores for p in other] != [p.scores for p in points]

    trivial = {"mask_iou": 0.0, "depth_rmse": 9.0}
    assert (
        len(list(run_recipe(recipe, data, Goal(scores=trivial, limit_pflop=1, points=3), seed=1)))
        == 1
    )
    limited = Goal(scores=unreachable, limit_pflop=points[1].pflop, points=3)
    assert len(list(run_recipe(recipe, data, limited, seed=1))) == 2
