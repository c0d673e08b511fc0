"""One training step and one evaluation step; neither names a device.

Neither makes the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.losses import DEPTH_LOSSES, MASK_LOSSES, depth_values
from model.metrics import sample_sums
from model.precision import Precision
from model.recipe import Recipe, Stage
from model.training.progress import RunningMean
from model.unet import Decode, DualDecoderUNet

Preprocess = Callable[[Any], Any]
"""Batch -> Inputs: bg, fg_bg, mask, depth, each float (B, C, S, S) on the device."""


class Prediction(NamedTuple):
    """Mask logits, and depth in the units of the target; None where a decoder did not run."""

    mask_logits: Tensor | None
    depth: Tensor | None


def stage_loss(
    stage: Stage, mask_logits: Tensor | None, depth: Tensor | None, inputs: Any
) -> Tensor:
    """Sum of the losses of the decoders that train; a scalar.

    Losses are computed in float32, whatever autocast made of the outputs.
    """
    terms = []
    if mask_logits is not None:
        terms.append(MASK_LOSSES[stage.mask_loss](mask_logits.float(), inputs.mask))
    if depth is not None:
        terms.append(DEPTH_LOSSES[stage.depth_loss](depth.float(), inputs.depth))
    return torch.stack(terms).sum()


def make_optimizer(network: DualDecoderUNet, recipe: Recipe, stage: Stage) -> torch.optim.SGD:
    """SGD over what the stage trains; freeze the network first.

    In one kernel where the device has one: it takes fp16's scale too, so that no step waits.
    """
    parameters = network.trained_parameters()
    optimizer = torch.optim.SGD(
        parameters,
        fused=parameters[0].device.type in ("cpu", "cuda"),
        lr=stage.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )
    if recipe.momentum:
        # The fused kernel makes them without values and fills them in the first step. Where
        # fp16's scale makes that step overflow, it is skipped, and the next one takes what
        # happens to be in memory. From 0 the first step is the same, bit for bit.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def training_step(
    batch: Any,
    *,
    stage: Stage,
    preprocess: Preprocess,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    running: RunningMean,
    precision: Precision,
    scaler: torch.amp.GradScaler,
    lr: float,
) -> None:
    """Forward, backward and update for one batch; ``running`` takes the loss.

    network: a `DualDecoderUNet`, or what `model.distributed.wrap_network` makes of it.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    inputs = preprocess(batch)
    with precision.autocast(inputs.mask.device.type):
        mask_logits, depth = network(inputs.bg, inputs.fg_bg, decode=stage.decode)
    loss = stage_loss(stage, mask_logits, depth, inputs)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    running.add(loss, inputs.mask.shape[0])


@torch.inference_mode()
def predict_step(
    inputs: Any, network: nn.Module, precision: Precision, depth_loss: str, decode: Decode
) -> Prediction:
    """Prediction for prepared inputs; float32. The network must be in eval mode."""
    with precision.autocast(inputs.bg.device.type):
        mask_logits, depth = network(inputs.bg, inputs.fg_bg, decode=decode)
    return Prediction(
        mask_logits=None if mask_logits is None else mask_logits.float(),
        depth=None if depth is None else depth_values(depth.float(), depth_loss),
    )


def measure(prediction: Prediction, inputs: Any) -> Tensor:
    """`sample_sums` of a prediction."""
    return sample_sums(prediction.mask_logits, prediction.depth, inputs.mask, inputs.depth)
