"""The optimisers of a training stage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from maskdepth.convert.schema import Items, Schema
from maskdepth.model.recipe import Recipe, Stage
from maskdepth.model.unet import DualDecoderUNet


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


class _Saved(Schema):
    """The state dict of an optimiser."""

    state: dict[int, dict[str, Tensor | int | float | None]]
    param_groups: Items[dict[str, Any]]


def load_optimizer(optimizer: Optimizer, saved: object) -> None:
    """Load a state dict but for its options, which are those of the recipe.

    Raises ValueError if it is that of another optimiser or of other parameters.
    """
    found, own = _Saved.from_json(saved), optimizer.state_dict()["param_groups"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if [group.get("params") for group in found.param_groups] != [g["params"] for g in own]:
        raise ValueError("the parameters are others")
    kinds = MUON_STATES if isinstance(optimizer, Muon) else SGD_STATES
    for number, values in found.state.items():
        shapes = [value.shape for value in values.values() if isinstance(value, Tensor)]
        known = 0 <= number < len(parameters) and tuple(values) in kinds
        if not known or any(shape != parameters[number].shape for shape in shapes):
            raise ValueError(f"the state of parameter {number} is another")
    optimizer.load_state_dict({"state": found.state, "param_groups": own})


def load_scaler(scaler: torch.amp.GradScaler, saved: Mapping[str, float]) -> None:
    """Load the state dict of a scaler of gradients, if it is enabled; ValueError if it is none."""
    own = scaler.state_dict()
    if own and (saved.keys() != own.keys() or not saved["scale"] > 0):
        raise ValueError(f"expected a scaler with {', '.join(own)}, found {', '.join(saved)}")
    scaler.load_state_dict(dict(saved))


SGD_STATES = (("momentum_buffer",),)
MUON_STATES = (("momentum",), ("steps", "mean", "square"))
"""What the optimisers keep of a parameter."""
ADAM_SQUARES = 0.99
"""Decay of the mean square in the Adam of `Muon`."""


class Muon(Optimizer):
    """Momentum whose update of each filter bank is made orthogonal (Jordan et al. 2024).

    A filter bank (out, in, height, width) is the matrix (out, in * height * width). The other
    parameters, biases, BatchNorm's and the last layers with one channel, are trained by Adam with
    `ADAM_SHARE` of the learning rate. torch.optim.Muon takes matrices only, and works in bfloat16,
    which is slow on CPUs without its instructions.

    It does not apply the scale of fp16 itself, as fused SGD does: GradScaler then waits for the
    device once per step, to learn whether the gradients overflowed.
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
        for group, update in zip(
            self.param_groups, (self._muon_step, self._adam_step), strict=True
        ):
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                update(parameters, group["lr"], group["momentum"])

    def _muon_step(self, banks: list[Tensor], lr: float, momentum: float) -> None:
        alike: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
        for bank in banks:
            alike[bank.shape].append(bank)
        for same in alike.values():
            for bank in same:
                if not self.state[bank]:
                    self.state[bank]["momentum"] = torch.zeros_like(bank)
            grads = [_gradient(bank) for bank in same]
            means = [self.state[bank]["momentum"] for bank in same]
            torch._foreach_lerp_(means, grads, 1 - momentum)
            nesterov = torch.stack(torch._foreach_lerp(grads, means, momentum)).flatten(2)
            rows, columns = nesterov.shape[1:]
            size = max(1, rows / columns) ** 0.5
            for bank, update in zip(same, orthogonalized(nesterov), strict=True):
                bank.add_(update.view_as(bank), alpha=-lr * size)

    def _adam_step(self, parameters: list[Tensor], lr: float, momentum: float) -> None:
        # Not torch's function, which keeps its number of steps in tensors on the CPU.
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "steps": 0,
                    "mean": torch.zeros_like(parameter),
                    "square": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in parameters]
        grads = [_gradient(parameter) for parameter in parameters]
        means, squares = ([state[key] for state in states] for key in ("mean", "square"))
        torch._foreach_lerp_(means, grads, 1 - momentum)
        torch._foreach_lerp_(squares, torch._foreach_mul(grads, grads), 1 - ADAM_SQUARES)
        for state in states:
            state["steps"] += 1
        squares_bias = [1 - ADAM_SQUARES ** state["steps"] for state in states]
        deviations = torch._foreach_sqrt(torch._foreach_div(squares, squares_bias))
        torch._foreach_add_(deviations, 1e-8)
        rates = [-lr * self.ADAM_SHARE / (1 - momentum ** state["steps"]) for state in states]
        torch._foreach_addcdiv_(parameters, means, deviations, rates)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _is_bank(parameter: Tensor) -> bool:
    return parameter.ndim == 4 and min(parameter.shape[:2]) > 1


def orthogonalized(matrices: Tensor) -> Tensor:
    """Close to U V^T of the singular value decomposition U S V^T of float32 (..., rows, columns).

    Five iterations of Newton and Schulz with the coefficients of Jordan et al. (2024), which bring
    the singular values to 0.7..1.2.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x
