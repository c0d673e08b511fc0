"""The optimiser of a training stage."""

from __future__ import annotations

import torch

from model.recipe import Recipe, Stage
from model.unet import DualDecoderUNet


def make_optimizer(network: DualDecoderUNet, recipe: Recipe, stage: Stage) -> torch.optim.SGD:
    """SGD over the parameters that the stage trains; freeze the others first.

    Fused into one kernel where the device has one. That kernel also applies the scale of fp16,
    so no step waits for the device.
    """
    parameters = network.trained_parameters()
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
