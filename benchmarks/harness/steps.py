"""One training step of a stage, ours and the original's way, as callables to be timed.

Ours is `model.step.training_step` itself, timed through its seams: the preprocessing, the
network and the scaler that it is given say when they are done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.phases import Phases
from convert.errors import DataError
from loaders import Backgrounds, Batch, Preprocess
from loaders.batch import Loader
from model.distributed import wrap_network
from model.metrics import SampleTable
from model.precision import Precision
from model.recipe import RECIPES, Stage
from model.step import make_optimizer, measure, predict_step, stage_loss, training_step
from model.training.progress import RunningMean
from model.unet import DualDecoderUNet

TRAINS = {"depth": ("encoder", "depth"), "mask": ("mask",), "joint": ("encoder", "mask", "depth")}
"""Name of a kind of stage -> the parts that train, as in the recipes."""


def make_stage(kind: str, size: int, batch_size: int) -> Stage:
    """A stage of the original's recipe; the rate is so low that nothing can diverge.

    Raises DataError for a size that the network cannot have.
    """
    try:
        return Stage(size=size, batch_size=batch_size, lr=1e-4, trains=TRAINS[kind])
    except ValueError as error:
        raise DataError(f"--size: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What both ways of a step share."""

    stage: Stage
    width: int
    device: torch.device
    precision: Precision
    backgrounds: Backgrounds
    statistics: Any

    @classmethod
    def of(cls, loader: Loader, stage: Stage, width: int, precision: Precision) -> Setup:
        """For the data of a loader."""
        return cls(
            stage=stage,
            width=width,
            device=loader.device,
            precision=precision,
            backgrounds=loader.backgrounds,
            statistics=loader.statistics,
        )

    def preprocess(self, *, channels_last: bool = True) -> Preprocess:
        """To the stage's size."""
        return Preprocess(
            self.backgrounds, self.statistics, size=self.stage.size, channels_last=channels_last
        )


class OurStep:
    """A batch -> one step of training, as `train.py fit` does it.

    compiled: through `torch.compile`.
    """

    def __init__(self, setup: Setup, *, compiled: bool = False) -> None:
        torch.manual_seed(0)
        network = DualDecoderUNet(setup.width).place(setup.device)
        self.network = network.freeze(*setup.stage.frozen)
        self.called = wrap_network(network, "default" if compiled else "off")
        self.preprocess = setup.preprocess()
        self.scaler = torch.amp.GradScaler(setup.device.type, enabled=setup.precision.scale)
        self._step = partial(
            training_step,
            stage=setup.stage,
            optimizer=make_optimizer(network, RECIPES["original"], setup.stage),
            running=RunningMean(setup.device),
            precision=setup.precision,
            lr=setup.stage.lr,
        )
        self._setup = setup
        layout = setup.backgrounds.layout
        self._table = SampleTable(layout.samples, setup.device)

    def __call__(self, batch: Batch, phases: Phases | None = None) -> None:
        """One step; with ``phases``, their times are added."""
        if not self.network.training:
            self.network.train()
        network: Any = self.called
        preprocess: Any = self.preprocess
        scaler: Any = self.scaler
        if phases is not None:
            preprocess = _ends(preprocess, "preprocess", phases)
            network = _ends(network, "forward", phases)
            scaler = _TimedScaler(scaler, phases)
        self._step(batch, preprocess=preprocess, network=network, scaler=scaler)
        if phases is not None:
            phases.end("optimiser")

    def evaluate(self, batch: Batch, phases: Phases) -> None:
        """What validation does with a batch."""
        if self.network.training:
            self.network.eval()
        stage, network = self._setup.stage, self.called
        inputs = self.preprocess(batch)
        phases.end("preprocess")
        found = predict_step(inputs, network, self._setup.precision, stage.depth_loss, stage.decode)
        phases.end("forward")
        self._table.add(batch.index, measure(found, inputs))
        phases.end("metrics")


def _ends(call: Callable[..., Any], name: str, phases: Phases) -> Callable[..., Any]:
    """The same call; what it took is phase ``name``."""

    def timed(*args: Any, **options: Any) -> Any:
        result = call(*args, **options)
        phases.end(name)
        return result

    return timed


class _TimedScaler:
    """A scaler that says when backward is over: when it is asked for the step."""

    def __init__(self, scaler: torch.amp.GradScaler, phases: Phases) -> None:
        self._scaler, self._phases = scaler, phases

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return self._scaler.scale(loss)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        self._phases.end("loss and backward")
        self._scaler.step(optimizer)

    def update(self) -> None:
        self._scaler.update()


class OriginalStep:
    """The same stage in the original's way: the baseline.

    Both decoders run though one trains, frozen parts run in training mode and with a graph
    where autograd keeps one, the whole model is in the optimiser, memory is contiguous.
    """

    def __init__(self, setup: Setup) -> None:
        torch.manual_seed(0)
        self._stage, self._precision = setup.stage, setup.precision
        self.network = DualDecoderUNet(setup.width).to(setup.device)
        self.network.freeze(*setup.stage.frozen)
        self.network.frozen = frozenset()  # gradients stay off; the rest is as if never frozen
        nn.Module.train(self.network)
        self.preprocess = setup.preprocess(channels_last=False)
        recipe = RECIPES["original"]
        self._optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=setup.stage.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )

    def __call__(self, batch: Batch) -> None:
        """One step."""
        inputs = self.preprocess(batch)
        self._optimizer.zero_grad()
        with self._precision.autocast(inputs.mask.device.type):
            mask_logits, depth = self.network(inputs.bg, inputs.fg_bg, decode="both")
        trains = self._stage.trains
        loss = stage_loss(
            self._stage,
            mask_logits if "mask" in trains else None,
            depth if "depth" in trains else None,
            inputs,
        )
        loss.backward()
        self._optimizer.step()


def gflop_per_sample(step: Callable[[Batch], None], batch: Batch) -> float:
    """2 x multiply-adds of one step, by torch's own counter, over the samples of the batch."""
    with FlopCounterMode(display=False) as counter:
        step(batch)
    return counter.get_total_flops() / len(batch.index) / 1e9
