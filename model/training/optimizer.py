"""The optimisers of a training stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from model.recipe import Recipe, Stage
from model.unet import DualDecoderUNet


def make_optimizer(network: DualDecoderUNet, recipe: Recipe, stage: Stage) -> Optimizer:
    """The recipe's optimiser over the parameters that the stage trains; freeze the others first."""
    parameters = network.trained_parameters()
    if recipe.optimizer == "muon":
        return Muon(
            parameters, lr=stage.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    return make_sgd(parameters, recipe, stage)


def make_sgd(parameters: Sequence[Tensor], recipe: Recipe, stage: Stage) -> torch.optim.SGD:
    """SGD, fused into one kernel where the device has one.

    That kernel also applies the scale of fp16, so no step waits for the device.
    """
    optimizer = torch.optim.SGD(
        parameters, lr=stage.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov, fused=parameters[0].device.type in ("cpu", "cuda"),
    )  # fmt: skip
    if recipe.momentum:
        # The fused kernel allocates the momentum uninitialised and fills it in the first step.
        # If the scale of fp16 makes that step overflow, it is skipped, and the next one would
        # read arbitrary memory. Zeros give the same first step, bit for bit.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


class Muon(Optimizer):
    """Momentum whose update of each filter bank is made orthogonal (Jordan et al. 2024).

    A filter bank (out, in, height, width) is the matrix (out, in * height * width). The other
    parameters, biases, BatchNorm's and the last layers with one channel, are trained by Adam with
    `ADAM_SHARE` of the learning rate. torch.optim.Muon takes matrices only, and works in bfloat16,
    which is slow on CPUs without its instructions.
    """

    ADAM_SHARE = 0.1

    def __init__(
        self, parameters: Sequence[Tensor], *, lr: float, momentum: float, weight_decay: float
    ) -> None:
        banks = [p for p in parameters if _is_bank(p)]
        others = [p for p in parameters if not _is_bank(p)]
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([{"params": banks}, {"params": others}], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; ``closure`` is not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                if _is_bank(parameter):
                    self._orthogonal_step(parameter, group["lr"], group["momentum"])
                else:
                    self._adam_step(parameter, group["lr"] * self.ADAM_SHARE, group["momentum"])

    def _orthogonal_step(self, bank: Tensor, lr: float, momentum: float) -> None:
        assert bank.grad is not None
        state = self.state[bank]
        if not state:
            state["momentum"] = torch.zeros_like(bank)
        state["momentum"].lerp_(bank.grad, 1 - momentum)
        update = bank.grad.lerp(state["momentum"], momentum).flatten(1)  # Nesterov's
        rows, columns = update.shape
        size = max(1, rows / columns) ** 0.5
        bank.add_(orthogonalized(update).view_as(bank), alpha=-lr * size)

    def _adam_step(self, parameter: Tensor, lr: float, beta: float, beta2: float = 0.99) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["steps"] = 0
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["steps"] += 1
        state["mean"].lerp_(parameter.grad, 1 - beta)
        state["square"].lerp_(parameter.grad.square(), 1 - beta2)
        deviation = (state["square"] / (1 - beta2 ** state["steps"])).sqrt_().add_(1e-8)
        lr /= 1 - beta ** state["steps"]
        parameter.addcdiv_(state["mean"], deviation, value=-lr)


def _is_bank(parameter: Tensor) -> bool:
    return parameter.ndim == 4 and min(parameter.shape[:2]) > 1


def orthogonalized(matrix: Tensor) -> Tensor:
    """Close to U V^T of the singular value decomposition U S V^T of a float32 matrix.

    Five iterations of Newton and Schulz with the coefficients of Jordan et al. (2024), which bring
    the singular values to 0.7..1.2.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.mT if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x
