"""The training step: every recipe on the meta device, and which weights a stage changes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maskdepth.loaders import Backgrounds, Batch, Inputs, Layout, Preprocess
from maskdepth.model import DualDecoderUNet
from maskdepth.model.checkpoint import ChannelStatistics
from maskdepth.model.losses import training_loss
from maskdepth.model.metrics import SampleTable
from maskdepth.model.precision import Precision
from maskdepth.model.recipe import RECIPES, Recipe, Stage
from maskdepth.model.training.evaluation import measure, predict_step
from maskdepth.model.training.optimizer import make_optimizer
from maskdepth.model.training.trainer import StageTrainer

STATISTICS = {
    "bg": ChannelStatistics((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)),
    "fg_bg": ChannelStatistics((0.4, 0.4, 0.4), (0.2, 0.2, 0.2)),
}
OFF = Precision(dtype=None, scale=False)
EVERY = ("encoder", "mask", "depth")
STAGES = [
    pytest.param(recipe, stage, id=f"{recipe.name}-{number}")
    for recipe in RECIPES.values()
    for number, stage in enumerate(recipe.stages)
] + [
    pytest.param(
        RECIPES["joint"],
        Stage(size=32, batch_size=2, lr=0.1, trains=EVERY, mask_loss=mask, depth_loss=depth),
        id=f"{mask}-{depth}",
    )
    for mask, depth in [("ssim", "ssim"), ("dice", "densedepth"), ("bce+dice", "bce"), ("l1", "l1")]
]


class NoHostTensors(TorchDispatchMode):
    """Fails if an operation takes or makes a tensor on the host, because copying it would wait."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and check the devices of its tensors."""
        result = func(*args, **(kwargs or {}))
        tensors = [v for v in tree_leaves((args, kwargs, result)) if isinstance(v, torch.Tensor)]
        assert {tensor.device.type for tensor in tensors} <= {"meta"}, func
        return result


def _batch(device: str, samples: int = 2, size: int = 224) -> tuple[Batch, Backgrounds]:
    generator = torch.Generator().manual_seed(0)

    def pixels(count: int, channels: int, high: int = 256) -> torch.Tensor:
        shape = (count, channels, size, size)
        return torch.randint(high, shape, dtype=torch.uint8, generator=generator).to(device)

    layout = Layout(height=size, width=size, group_starts=np.array([0, 2, 4]), samples_per_fg=None)
    index = torch.arange(samples, device=device)
    batch = Batch(pixels(samples, 3), pixels(samples, 1, 2), pixels(samples, 1), index)
    return batch, Backgrounds(pixels(2, 3), layout)


def make_trainer(
    network: DualDecoderUNet, recipe: Recipe, stage: Stage, preprocess: Preprocess
) -> StageTrainer:
    """A trainer in float32, with the network in training mode."""
    trainer = StageTrainer(
        network=network, recipe=recipe, stage=stage, preprocess=preprocess, precision=OFF
    )
    network.train()
    return trainer


@pytest.mark.parametrize(("recipe", "stage"), STAGES)
def test_every_stage_runs_on_meta(recipe: Recipe, stage: Stage) -> None:
    """The meta device fails if a tensor is made elsewhere or a value is read on the host."""
    batch, backgrounds = _batch("meta")
    preprocess = Preprocess(backgrounds, STATISTICS, size=stage.size)
    network = DualDecoderUNet(64).place("meta")
    trainer = make_trainer(network, recipe, stage, preprocess)
    with NoHostTensors():
        trainer.step(batch, epoch=0, lr=0.1)
    trained = {part for part in ("encoder", "mask", "depth") if part in stage.trains}
    moved = {id(p) for p in trainer.optimizer.state}
    assert moved == {id(p) for p in network.trained_parameters()}
    assert set(network.frozen) == {"encoder", "mask", "depth"} - trained

    network.eval()
    inputs = preprocess(batch)
    prediction = predict_step(inputs, network, OFF, stage.depth_loss, "both")
    SampleTable(4, "meta").add(batch.index, measure(prediction, inputs))


@pytest.mark.parametrize("stage", [STAGES[0].values[1], STAGES[8].values[1]])
def test_a_stage_is_one_graph(stage: Stage) -> None:
    """`--compile` passes one graph without breaks to its backend."""
    torch._dynamo.reset()
    network = DualDecoderUNet(2).freeze(*stage.frozen).train()
    network.compile(backend="eager", fullgraph=True)
    images = torch.randn(2, 2, 3, 16, 16)
    mask_logits, depth = network(*images, decode=stage.decode)
    output = depth if mask_logits is None else mask_logits
    assert output.requires_grad
    network.eval()
    with torch.inference_mode():
        compiled = network(*images)
        eager = network.forward(*images)
    for ours, theirs in zip(compiled, eager, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_mask_stage_changes_the_mask_decoder_alone() -> None:
    torch.manual_seed(0)
    stage = Stage(size=16, batch_size=2, lr=0.1, trains=("mask",))
    batch, backgrounds = _batch("cpu", size=32)
    network = DualDecoderUNet(2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    preprocess = Preprocess(backgrounds, STATISTICS, size=16)
    trainer = make_trainer(network, RECIPES["original"], stage, preprocess)
    for _ in range(3):
        trainer.step(batch, epoch=0, lr=0.1)
    after = network.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"mask_decoder"}
    assert trainer.running.read("here") > 0


def test_joint_loss_is_the_sum() -> None:
    stage = Stage(size=16, batch_size=2, lr=0.1, trains=EVERY)
    ones = torch.ones(1, 1, 8, 8)
    inputs = Inputs(bg=ones, fg_bg=ones, mask=ones, depth=ones)
    both = training_loss(stage, inputs, 0 * ones, 0.25 * ones)
    assert both.item() == pytest.approx(np.log(2) + 0.75)
    assert training_loss(stage, inputs, None, 0.25 * ones).item() == pytest.approx(0.75)


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_first_step_that_overflows_leaves_no_trace(nesterov: bool) -> None:
    """The scale of fp16 can make a step overflow; it is skipped, and the next is a first step."""
    recipe = RECIPES["original"].changed(nesterov=nesterov)
    stage, weights = recipe.stages[0], []
    for overflows in (True, False):
        torch.manual_seed(0)
        network = DualDecoderUNet(2).freeze(*stage.frozen)
        optimizer = make_optimizer(network, recipe, stage)
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        for gradient in ([math.inf] if overflows else []) + [0.5, 0.25]:
            # A fresh allocation holds what was freed last: here, NaN.
            for parameter in network.trained_parameters():
                parameter.grad = torch.full_like(parameter, math.nan)
                parameter.grad = torch.full_like(parameter, gradient)
            scaler.scale(torch.ones(()))  # creates the scaler's tensors
            scaler.step(optimizer)
            scaler.update(1.0)
        weights.append([parameter.detach().clone() for parameter in network.trained_parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_phases_are_marked_in_order() -> None:
    """A benchmark passes its own `PhaseTimer`."""
    ended: list[str] = []

    class Recorder:
        def end(self, name: str) -> None:
            ended.append(name)

    stage = Stage(size=16, batch_size=2, lr=0.1, trains=("mask",))
    batch, backgrounds = _batch("cpu", size=32)
    preprocess = Preprocess(backgrounds, STATISTICS, size=16)
    trainer = make_trainer(DualDecoderUNet(1), RECIPES["original"], stage, preprocess)
    trainer.phases = Recorder()
    trainer.step(batch, epoch=0, lr=0.1)
    assert ended == ["preprocess", "forward", "loss and backward", "optimiser"]
