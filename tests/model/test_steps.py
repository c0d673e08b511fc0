"""The steps of an epoch on changing numbers of ranks, and gradients that are added up in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdepth.loaders import Backgrounds, Batch, Layout, Preprocess
from maskdepth.loaders.options import LoaderOptions
from maskdepth.loaders.order import Order
from maskdepth.model import DualDecoderUNet
from maskdepth.model.checkpoint import ChannelStatistics
from maskdepth.model.losses import training_loss
from maskdepth.model.precision import Precision
from maskdepth.model.recipe import RECIPES, Stage
from maskdepth.model.training.config import DataConfig, RunConfig
from maskdepth.model.training.state import RunState, generator_states
from maskdepth.model.training.steps import EpochSteps, StepSize
from maskdepth.model.training.trainer import StageTrainer

STAGE = Stage(
    size=16, batch_size=6, lr=0.1, trains=("encoder", "mask", "depth"), mask_loss="bce+dice",
    schedule="onecycle", epochs=2,
)  # fmt: skip


def test_a_step_keeps_its_samples_where_ranks_divide_it() -> None:
    def size(started: int, ranks: int, accumulate: int = 1) -> tuple[int, int, int]:
        found = StepSize.of(STAGE, started=started, ranks=ranks, accumulate=accumulate)
        return found.samples, found.share, found.parts(found.share)

    assert size(1, 1) == (6, 6, 1)
    assert size(2, 2) == (12, 6, 1)
    assert size(2, 1) == (12, 12, 2)
    assert size(1, 3) == (6, 2, 1)
    assert size(1, 4) == (8, 2, 1)  # 6 / 4 is rounded up
    assert size(1, 100) == (100, 1, 1)
    assert size(1, 1, 2) == (6, 6, 2)
    assert size(1, 1, 4) == (6, 6, 3)  # parts of 2, as 4 parts would also need
    assert size(1, 2, 2) == (6, 3, 1)


def saved(position: tuple[int, int, int], counted: dict[str, int] | None) -> RunState:
    return RunState.from_json(
        {
            "network": {}, "position": position, "history": [], "steps": 0, "best": None,
            "within_stage": None, "generators": generator_states(), "counted": counted,
        }
    )  # fmt: skip


@given(
    count=st.integers(1, 60), batch_size=st.integers(1, 9), started=st.integers(1, 4),
    stops=st.lists(st.tuples(st.integers(1, 5), st.floats(0, 1)), max_size=4),
    last=st.integers(1, 5),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_each_sample_once_whatever_the_numbers_of_ranks(
    count: int, batch_size: int, started: int, stops: list[tuple[int, float]], last: int
) -> None:
    """The samples that loaders yield to all ranks, in an epoch that is stopped again and again."""
    stage, taken = STAGE.changed(batch_size=batch_size), []
    position, counted, seen = (0, 0, 0), None, 0
    for ranks, stopped_at in [*stops, (last, 1.0)]:
        size = StepSize.of(stage, started=started, ranks=ranks)
        _, _, begin, first = saved(position, counted).position_in(size.samples, 0)
        steps = EpochSteps.of(stage, count, size.samples, first)
        orders = [
            Order(count, LoaderOptions(batch_size=size.share, rank=r, world_size=ranks), first)
            for r in range(ranks)
        ]
        assert len(orders[0]) == len(steps)
        end = begin + int((len(steps) - begin) * stopped_at)
        for k in range(begin, end):
            shares = [order.batch(0, k) for order in orders]
            assert steps.seen(k) == seen
            seen += steps.samples_of(k)
            assert sum(map(len, shares)) == steps.samples_of(k)
            assert max(map(len, shares)) <= -(-steps.samples_of(k) // ranks)
            taken += np.concatenate(shares).tolist()
        position, counted = (0, 0, end), {"samples": size.samples, "first": first, "ranks": ranks}
        if seen == count:
            break
    assert sorted(taken) == list(range(count))


def test_the_learning_rate_continues_by_samples() -> None:
    whole = EpochSteps.of(STAGE, 120, 6)
    expected = [STAGE.lr_at(20 + k, 40) for k in range(20)]
    assert [whole.lr_at(STAGE, 1, k) for k in range(20)] == expected
    rest = EpochSteps.of(STAGE, 120, 12, first=30)  # 5 steps of 6 are done
    for k in range(len(rest)):
        middle = rest.seen(k) + 6  # of a step of 12
        between = np.interp(middle, [6 * k + 3 for k in range(20)], expected)
        assert rest.lr_at(STAGE, 1, k) == pytest.approx(between, abs=0.001)


def test_the_samples_of_a_shorter_epoch_stay_nearly_the_same() -> None:
    stage = STAGE.changed(samples=50)
    assert EpochSteps.of(stage, 1000, 6).samples == 48
    rest = EpochSteps.of(stage, 1000, 8, first=36)
    assert (rest.samples, len(rest)) == (48, 2)
    assert len(EpochSteps.of(stage, 1000, 60, first=60)) == 0


def test_files_of_version_0_1_count_in_steps_of_the_run() -> None:
    assert saved((0, 1, 3), None).position_in(8, 8) == (0, 1, 3, 0)
    assert saved((0, 1, 3), None).position_in(12, 8) == (0, 1, 0, 24)


def make_batch(samples: int) -> tuple[Batch, Preprocess]:
    generator = torch.Generator().manual_seed(0)

    def pixels(count: int, channels: int, high: int = 256) -> torch.Tensor:
        shape = (count, channels, 16, 16)
        return torch.randint(high, shape, dtype=torch.uint8, generator=generator)

    layout = Layout(height=16, width=16, group_starts=np.array([0, samples]), samples_per_fg=None)
    statistics = {
        name: ChannelStatistics((0.5, 0.5, 0.5), (0.3, 0.3, 0.3)) for name in ("bg", "fg_bg")
    }
    preprocess = Preprocess(Backgrounds(pixels(1, 3), layout), statistics)
    index = torch.arange(samples)
    return Batch(pixels(samples, 3), pixels(samples, 1, 2), pixels(samples, 1), index), preprocess


def trained(size: StepSize | None, *, statistics: bool, of: int = 7) -> dict[str, Any]:
    """The weights after a step; statistics: whether BatchNorm uses those of the batch."""
    torch.manual_seed(0)
    batch, preprocess = make_batch(of)
    trainer = StageTrainer(
        network=DualDecoderUNet(2), recipe=RECIPES["fast"], stage=STAGE.changed(batch_size=7),
        preprocess=preprocess, precision=Precision(dtype=None, scale=False), size=size,
    )  # fmt: skip
    trainer.network.train(statistics)
    trainer.step(batch, epoch=0, lr=0.1)
    return {**trainer.network.state_dict(), "loss": trainer.running.sums}


def test_parts_are_the_whole_batch_but_for_the_statistics_of_batchnorm() -> None:
    """7 samples in parts of 3, 2 and 2: each counts for as much."""
    whole = trained(None, statistics=False)
    parts = trained(StepSize(1, 7, 3), statistics=False)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6, msg=name)
    with_statistics = trained(StepSize(1, 7, 3), statistics=True)
    mean = "encoder.inc.1.running_mean"
    assert not torch.equal(with_statistics[mean], trained(None, statistics=True)[mean])
    assert torch.equal(
        trained(StepSize(1, 7, 7), statistics=True)[mean], trained(None, statistics=True)[mean]
    )


def test_parts_are_a_plain_loop_that_adds_up_gradients() -> None:
    torch.manual_seed(0)
    batch, preprocess = make_batch(7)
    network = DualDecoderUNet(2).train()
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=0.1,
        momentum=0.9,
        nesterov=True,
        weight_decay=RECIPES["fast"].weight_decay,
    )
    for first, end in ((0, 3), (3, 5), (5, 7)):
        inputs = preprocess(Batch(*(field[first:end] for field in batch)))
        loss = training_loss(STAGE, inputs, *network(inputs.bg, inputs.fg_bg))
        (loss * (end - first) / 7).backward()
    optimizer.step()
    found = trained(StepSize(1, 7, 3), statistics=True)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accumulate": 9}, "accumulate: found 9 parts, expected at most 8, the smallest"),
        ({"accumulate": 2, "compile": "reduce-overhead"}, "compile: reduce-overhead uses CUDA"),
        ({"world_size": 1, "started_on": 2, "compile": "max-autotune"}, "compile: max-autotune"),
    ],
)
def test_what_cannot_be_computed_in_parts(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig(data=DataConfig(shards="shards"), recipe=RECIPES["demo"], **change)
