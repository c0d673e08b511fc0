"""One training step of a stage, ours and the original's way, as callables to be timed.

Ours is `StageTrainer.step` itself, which reports the end of each phase.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from maskdepth.benchmarks.harness.timing import Phases
from maskdepth.convert.errors import DataError
from maskdepth.loaders import Batch, Loader, Preprocess
from maskdepth.loaders.augment import make_augment
from maskdepth.model.contract import NoPhases
from maskdepth.model.losses import training_loss
from maskdepth.model.metrics import SampleTable
from maskdepth.model.precision import Precision
from maskdepth.model.recipe import RECIPES, Recipe, Stage
from maskdepth.model.training.evaluation import measure, predict_step
from maskdepth.model.training.trainer import StageTrainer
from maskdepth.model.unet import PARTS, DoubleConv, DualDecoderUNet
from maskdepth.model.upsampling import Upsampling

TRAINS = {"depth": ("encoder", "depth"), "mask": ("mask",), "joint": ("encoder", "mask", "depth")}
"""Name of a kind of stage -> the parts that train, as in the recipes."""


def make_stage(kind: str, size: int, batch_size: int) -> Stage:
    """A stage of the original's recipe, with a learning rate too low to diverge.

    Raises DataError for a size that the network cannot have.
    """
    try:
        return Stage.from_json(
            {"size": size, "batch_size": batch_size, "lr": 1e-4, "trains": TRAINS[kind]}
        )
    except ValueError as error:
        raise DataError(f"--size: {error}") from None


@dataclass(frozen=True)
class Setup:
    """What both ways of a step share; loader: gives the device, backgrounds and statistics.

    recipe: its optimiser and augmentation are used, not its stages. upsampling: of our step.
    """

    loader: Loader
    stage: Stage
    width: int
    precision: Precision
    recipe: Recipe = RECIPES["original"]
    upsampling: Upsampling = "products"

    def preprocess(self, *, channels_last: bool = True) -> Preprocess:
        return Preprocess(
            self.loader.backgrounds,
            self.loader.statistics,
            size=self.stage.size,
            augment=make_augment(self.recipe, seed=0),
            channels_last=channels_last,
        )


class OurStep:
    """A batch -> one step of training by `StageTrainer`, as `train.py fit` runs it.

    compiled: through `torch.compile`.
    """

    def __init__(self, setup: Setup, *, compiled: bool = False) -> None:
        torch.manual_seed(0)
        self.trainer = StageTrainer(
            network=DualDecoderUNet(setup.width, setup.upsampling).place(setup.loader.device),
            recipe=setup.recipe,
            stage=setup.stage,
            preprocess=setup.preprocess(),
            precision=setup.precision,
            compile="default" if compiled else "off",
        )
        self._table = SampleTable(setup.loader.layout.samples, setup.loader.device)

    def __call__(self, batch: Batch, phases: Phases | None = None) -> None:
        """One step; with ``phases``, the times of its phases are added to them."""
        trainer = self.trainer
        if not trainer.network.training:
            trainer.wrapped.train()
        trainer.phases = phases or NoPhases()
        trainer.step(batch, epoch=0, lr=trainer.stage.lr)

    def evaluate(self, batch: Batch, phases: Phases) -> None:
        """What validation does with a batch."""
        trainer = self.trainer
        if trainer.network.training:
            trainer.wrapped.eval()
        inputs = trainer.preprocess(batch)
        phases.end("preprocess")
        stage = trainer.stage
        found = predict_step(
            inputs, trainer.wrapped, trainer.precision, stage.depth_loss, stage.decode
        )
        phases.end("forward")
        self._table.add(batch.index, measure(found, inputs))
        phases.end("metrics")


class OriginalStep:
    """The same stage in the original's way: the baseline.

    Both decoders run though only one trains, frozen parts run in training mode and with a graph
    where autograd keeps one, biases before a BatchNorm are added and trained, the optimiser has all
    parameters, memory is contiguous.
    """

    def __init__(self, setup: Setup) -> None:
        torch.manual_seed(0)
        self._stage, self._precision = setup.stage, setup.precision
        self.network = DualDecoderUNet(setup.width, "torch").to(setup.loader.device)
        self.network.freeze(*setup.stage.frozen)
        self.network.frozen = frozenset()  # gradients stay off; all else is as if never frozen
        nn.Module.train(self.network)
        _train_biases(self.network, setup.stage)
        self.preprocess = setup.preprocess(channels_last=False)
        self._optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=setup.stage.lr,
            momentum=setup.recipe.momentum,
            weight_decay=setup.recipe.weight_decay,
        )

    def __call__(self, batch: Batch) -> None:
        inputs = self.preprocess(batch)
        self._optimizer.zero_grad()
        with self._precision.autocast(inputs.mask.device.type):
            mask_logits, depth = self.network(inputs.bg, inputs.fg_bg, decode="both")
        trains = self._stage.trains
        loss = training_loss(
            self._stage,
            inputs,
            mask_logits if "mask" in trains else None,
            depth if "depth" in trains else None,
        )
        loss.backward()
        self._optimizer.step()


def _train_biases(network: DualDecoderUNet, stage: Stage) -> None:
    """Let every `DoubleConv` add and train its biases, where its part of the network trains."""
    for part in stage.trains:
        network.get_submodule(PARTS[part]).requires_grad_(True)
    for block in network.modules():
        if isinstance(block, DoubleConv):
            block.forward = partial(nn.Sequential.forward, block)  # type: ignore[method-assign]


def gflop_per_sample(step: Callable[[Batch], None], batch: Batch) -> float:
    """2 x multiply-adds of one step, by torch's own counter, over the samples of the batch.

    Counted without compilation, which the counter does not see into.
    """
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        step(batch)
    return float(counter.get_total_flops() / len(batch.index) / 1e9)
