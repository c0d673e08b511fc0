"""Training one stage of a recipe: the step, and the state that a resumed run needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from maskdepth.model.contract import Batch, Inputs, Loader, NoPhases, PhaseTimer, Preprocessor
from maskdepth.model.distributed import count_ranks, without_exchange, wrap_network
from maskdepth.model.errors import ModelError
from maskdepth.model.losses import training_loss
from maskdepth.model.precision import Precision, choose_compile, precision_for
from maskdepth.model.recipe import Recipe, Stage
from maskdepth.model.training.compiling import compile_once, compiled_if
from maskdepth.model.training.config import RunConfig
from maskdepth.model.training.optimizer import load_optimizer, load_scaler, make_optimizer
from maskdepth.model.training.profiling import phase_range
from maskdepth.model.training.progress import Elapsed, RunningLoss, require_finite_weights
from maskdepth.model.training.run import Run
from maskdepth.model.training.state import StageState
from maskdepth.model.training.steps import StepSize, split_batch
from maskdepth.model.unet import DualDecoderUNet


class StageData(NamedTuple):
    """What a stage is trained and validated on: open loaders, and what prepares their batches."""

    training: Loader
    validation: Loader
    augment: Preprocessor
    """Of training, with the recipe's augmentation."""
    preprocess: Preprocessor
    """Of validation, without."""


OpenStage = Callable[[RunConfig, Stage], AbstractContextManager[StageData]]
"""Opens the data of a stage of a run; the loaders are closed at the end of the block."""


@dataclass(kw_only=True)
class StageTrainer:
    """Trains one stage of a recipe; holds network, optimiser, scaler and running loss."""

    network: DualDecoderUNet
    recipe: Recipe
    stage: Stage
    preprocess: Preprocessor
    precision: Precision
    size: StepSize | None = None
    """What a step is; None: a batch of the stage on one rank, at once."""
    compile: str = "off"
    """off, or a mode of torch.compile."""
    compile_failed: Callable[[str], None] | None = None
    """Called with the reason if compiling fails; the process continues uncompiled. None: raise."""
    phases: PhaseTimer = field(default_factory=NoPhases)
    wrapped: nn.Module = field(init=False)
    """The network as it is called: shared between ranks and compiled, where wanted."""
    optimizer: torch.optim.Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    running: RunningLoss = field(init=False)
    _compiled: set[str] = field(default_factory=set, init=False)

    @classmethod
    def of_run(
        cls, run: Run, network: DualDecoderUNet, stage: Stage, preprocess: Preprocessor
    ) -> Self:
        """The trainer for a stage of a run, on the device of the network."""
        config, device = run.config, network.device
        return cls(
            network=network, recipe=config.recipe, stage=stage, preprocess=preprocess,
            precision=precision_for(config.amp, device), size=config.step_size(stage),
            compile=choose_compile(config.compile, device, world_size=config.world_size),
            compile_failed=run.stop_compiling if run.may_stop_compiling else None,
        )  # fmt: skip

    def __post_init__(self) -> None:
        self.network.freeze(*self.stage.frozen)
        self.wrapped = wrap_network(self.network, self.compile)
        self.optimizer = make_optimizer(self.network, self.recipe, self.stage)
        self.scaler = torch.amp.GradScaler(self.network.device.type, enabled=self.precision.scale)
        self.running = RunningLoss(self.network.device)

    def step(self, batch: Batch, *, epoch: int, lr: float, of: int | None = None) -> None:
        """Train on one batch without a host sync; ``epoch`` counts over all stages of the run.

        of: samples of the step on all ranks together; None: every rank has as many as this one.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        ranks, samples = count_ranks(), len(batch.index)
        of = of or max(1, samples * ranks)
        largest = -(-of // ranks)
        parts = split_batch(batch, self.size.parts(largest) if self.size else 1)
        losses = []
        for number, part in enumerate(parts, 1):
            # Ranks average their gradients, of which each sample counts for as much.
            share = len(part.index) * ranks / of
            last = number == len(parts)
            with nullcontext() if last else without_exchange(self.wrapped):
                loss = self._train_part(part, epoch, share, first=number == 1)
            losses.append(loss if len(parts) == 1 else loss * (len(part.index) / max(1, samples)))
        with self._phase("optimiser"):
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.running.add(losses[0] if len(parts) == 1 else torch.stack(losses).sum(), samples)

    def _train_part(self, part: Batch, epoch: int, share: float, *, first: bool) -> Tensor:
        """The mean loss of a part; adds its gradients, but for the ``first`` to those before.

        share: of the part in the step, times the number of ranks.
        """
        if not len(part.index):  # the last step of an epoch has fewer samples than there are ranks
            return self._backward_nothing(first=first)
        with self._phase("preprocess"):
            inputs = self.preprocess(part, epoch)
        full = len(part.index) == (self.size.largest_part if self.size else self.stage.batch_size)
        if full and first:
            self.compile_for("training", partial(self._backward, inputs))
        with compiled_if(full or self.compile == "off"):
            return self._backward(inputs, share, first=first)

    def compile_for(self, use: str, run: Callable[[], object]) -> None:
        """Compile by running the network, if it has not been compiled for this use.

        Uses are "training" and "validation". See `compile_once`.
        """
        if self.compile != "off" and use not in self._compiled:
            self._compiled.add(use)
            with self._phase("compile"):
                compile_once(self.network, run, self.compile, self.compile_failed)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """A phase of the step: a range in traces, reported to `phases` at its end."""
        with phase_range(name):
            yield
        self.phases.end(name)

    def _backward(self, inputs: Inputs, share: float = 1, *, first: bool = True) -> Tensor:
        """The loss; its scaled gradients replace those of the parameters, or are added to them."""
        with self._phase("forward"), self.precision.autocast(inputs.mask.device.type):
            mask_logits, depth = self.wrapped(inputs.bg, inputs.fg_bg, decode=self.stage.decode)
        with self._phase("loss and backward"):
            loss = training_loss(self.stage, inputs, mask_logits, depth)
            if first:
                self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss if share == 1 else loss * share).backward()
        return loss

    def _backward_nothing(self, *, first: bool) -> Tensor:
        """Gradients of no sample, which other ranks wait for."""
        nothing = torch.empty(0, 3, self.stage.size, self.stage.size, device=self.network.device)
        outputs = self.wrapped(nothing, nothing, decode=self.stage.decode)
        loss = torch.stack([output.float().sum() for output in outputs if output is not None]).sum()
        if first:
            self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        return loss

    def check_finite(self, title: str, step: int, *, all_ranks: bool = False) -> float:
        """Mean loss in this epoch; ModelError unless it and the weights are finite.

        all_ranks: the loss is that of all ranks, each of which must call this after the same
        step; otherwise of this rank. The weights are the same on all. Two host syncs.
        """
        loss = self.running.read(title, all_ranks=all_ranks)
        require_finite_weights(self.network, f"{title}, step {step}")
        return loss

    def state(self, elapsed: Elapsed) -> StageState:
        """What `load_state` needs to continue."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "running": self.running.saved(count_ranks()),
            "elapsed": tuple(elapsed),
        }

    def load_state(self, state: StageState) -> None:
        """Restore optimiser, scaler and running loss from a result of `state`.

        Raises ModelError if it is not of this stage.
        """
        try:
            load_optimizer(self.optimizer, state["optimizer"])
            if state["scaler"]:  # empty if the run did not scale gradients so far
                load_scaler(self.scaler, state["scaler"])
            self.running.load(state["running"], count_ranks())
        except ValueError as error:
            raise ModelError(
                f"--resume: the saved optimiser does not fit the network ({error}); resume the run "
                "with the version that began it, or start a new run"
            ) from None
