"""On a GPU: a step never waits for the device, and compiled steps equal eager ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from maskdepth.loaders import Backgrounds, Batch, Layout, Preprocess
from maskdepth.model import DualDecoderUNet
from maskdepth.model.checkpoint import ChannelStatistics
from maskdepth.model.metrics import SampleTable
from maskdepth.model.precision import capability_of, precision_for, require_compile
from maskdepth.model.recipe import RECIPES, Stage
from maskdepth.model.training.evaluation import measure, predict_step
from maskdepth.model.training.progress import RunningLoss
from maskdepth.model.training.saving import copy_to_host
from maskdepth.model.training.trainer import StageTrainer

SAMPLES, SIZE = 4, 64
FAST = RECIPES["fast"]
EVERY = ("encoder", "mask", "depth")


@pytest.fixture
def batch() -> Batch:
    """Noise on the GPU; one background."""
    generator = torch.Generator().manual_seed(0)

    def pixels(channels: int, high: int) -> torch.Tensor:
        shape = (SAMPLES, channels, SIZE, SIZE)
        return torch.randint(high, shape, dtype=torch.uint8, generator=generator).cuda()

    index = torch.arange(SAMPLES, device="cuda")
    return Batch(pixels(3, 256), pixels(1, 2), pixels(1, 256), index)


def preprocess_of(batch: Batch) -> Preprocess:
    layout = Layout(
        height=SIZE, width=SIZE, group_starts=np.array([0, SAMPLES]), samples_per_fg=None
    )
    same = ChannelStatistics((0.5,) * 3, (0.25,) * 3)
    statistics: Any = {"bg": same, "fg_bg": same}
    return Preprocess(Backgrounds(batch.fg_bg[:1], layout), statistics, size=SIZE // 2)


def make_step(
    stage: Stage, batch: Batch, amp: str, compile_mode: str
) -> tuple[Callable[[], None], RunningLoss]:
    """A step of training on a new network, and its running loss."""
    torch.manual_seed(0)
    trainer = StageTrainer(
        network=DualDecoderUNet(8).place("cuda"),
        recipe=FAST,
        stage=stage,
        preprocess=preprocess_of(batch),
        precision=precision_for(amp, torch.device("cuda")),
        compile=compile_mode,
    )
    trainer.wrapped.train()
    return partial(trainer.step, batch, epoch=0, lr=0.01), trainer.running


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within it, an operation that makes the host wait is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("amp", ["off", "fp16", "auto"])
@pytest.mark.parametrize(
    ("mask_loss", "depth_loss"), [("bce", "l1"), ("bce+dice", "densedepth"), ("ssim", "bce")]
)
def test_no_step_waits(batch: Batch, amp: str, mask_loss: str, depth_loss: str) -> None:
    stage = Stage(
        size=SIZE // 2, batch_size=SAMPLES, lr=0.01, trains=EVERY,
        mask_loss=mask_loss, depth_loss=depth_loss,
    )  # fmt: skip
    step, _ = make_step(stage, batch, amp, "off")
    step()
    with no_waiting():
        step()


def test_no_score_waits(batch: Batch) -> None:
    network = DualDecoderUNet(8).place("cuda").eval()
    precision, preprocess = precision_for("auto", torch.device("cuda")), preprocess_of(batch)
    table = SampleTable(SAMPLES, "cuda")
    for _ in range(2):
        with no_waiting():
            inputs = preprocess(batch)
            prediction = predict_step(inputs, network, precision, "l1", "both")
            table.add(batch.index, measure(prediction, inputs))
    assert table.collect()["seen"].tolist() == [1.0] * SAMPLES


def test_a_copy_for_saving_neither_waits_nor_changes() -> None:
    weights: dict[str, Any] = {
        "network": {"weight": torch.ones(1 << 20, device="cuda")},
        "position": (0, 0, 1),
    }
    copy_to_host(weights)  # the first one allocates pinned memory
    with no_waiting():
        torch.cuda._sleep(100_000_000)  # the copy below begins after these cycles
        copy, wait = copy_to_host(weights)
        weights["network"]["weight"].zero_()
    wait()
    copied = copy["network"]["weight"]
    assert copied.is_pinned()
    assert copied.eq(1).all()


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_steps_equal_eager_steps(batch: Batch, mode: str) -> None:
    if (capability := capability_of(torch.device("cuda"))) and capability < (7, 0):
        pytest.skip(f"torch.compile does not know compute capability {capability}")
    require_compile(mode, torch.device("cuda"))
    for stage in (RECIPES["joint"].stages[0], RECIPES["original"].stages[-1]):
        losses = []
        for compile_mode in ("off", mode):
            step, running = make_step(stage, batch, "off", compile_mode)
            for _ in range(5):
                step()
            losses.append(running.read("here"))
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
