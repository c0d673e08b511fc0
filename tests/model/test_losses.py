"""Losses compared with numpy, kornia and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kornia.filters import spatial_gradient
from kornia.losses import dice_loss, ssim_loss
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from maskdepth.model import losses


@pytest.fixture
def sample() -> tuple[Tensor, Tensor, Tensor]:
    """Raw output, mask target and depth target, (3, 1, 24, 24)."""
    generator = torch.Generator().manual_seed(3)
    raw = torch.randn(3, 1, 24, 24, generator=generator)
    depth = torch.rand(3, 1, 24, 24, generator=generator)
    return raw, (depth > 0.7).float(), depth


def test_mask_losses(sample: tuple[Tensor, Tensor, Tensor]) -> None:
    raw, mask, _ = sample
    p, t = 1 / (1 + np.exp(-raw.double().numpy())), mask.numpy()
    bce = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    each = (1, 2, 3)
    dice = 1 - 2 * (p * t).sum(each) / (p.sum(each) + t.sum(each))
    expected = {"bce": bce, "dice": dice.mean(), "l1": np.abs(p - t).mean()}
    expected["bce+dice"] = bce + dice.mean()
    classes, weight = torch.cat([torch.zeros_like(raw), raw], dim=1), torch.tensor([0.0, 1.0])
    theirs = dice_loss(classes, mask[:, 0].long(), weight=weight, ignore_index=None).item()
    assert losses.mask_dice(raw, mask).item() == pytest.approx(theirs, rel=1e-5)
    for name, value in expected.items():
        assert losses.MASK_LOSSES[name](raw, mask).item() == pytest.approx(value, rel=1e-5)


def test_ssim_loss_equals_that_of_kornia(sample: tuple[Tensor, Tensor, Tensor]) -> None:
    raw, mask, depth = sample
    for loss, output, shown, target in (
        (losses.mask_ssim, raw, raw.sigmoid(), mask),
        (losses.depth_ssim, raw, raw, depth),
    ):
        assert loss(output, target).item() == pytest.approx(
            ssim_loss(shown, target, 11).item(), abs=1e-5
        )
        # Both use a Gaussian window of 11 with sigma 1.5; they differ at the border only.
        inside = (..., slice(5, -5), slice(5, -5))
        _, image = structural_similarity_index_measure(
            shown, target, data_range=1.0, return_full_image=True
        )
        ours = losses.ssim_map(shown, target)[inside]
        torch.testing.assert_close(ours, image[inside], rtol=0, atol=2e-3)


def test_gradients_equal_those_of_kornia(sample: tuple[Tensor, Tensor, Tensor]) -> None:
    raw, _, _ = sample
    torch.testing.assert_close(losses.gradients(raw), spatial_gradient(raw)[:, 0])


def test_depth_l1_and_bce(sample: tuple[Tensor, Tensor, Tensor]) -> None:
    raw, _, depth = sample
    p, t = 1 / (1 + np.exp(-raw.double().numpy())), depth.double().numpy()
    l1, bce = (losses.DEPTH_LOSSES[name](raw, depth).item() for name in ("l1", "bce"))
    assert l1 == pytest.approx(np.abs(raw.numpy() - t).mean())
    expected = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    assert bce == pytest.approx(expected, rel=1e-5)


def test_edge_loss_of_a_ramp() -> None:
    """A ramp of slope s along x has a normalised Sobel gradient of s."""
    ramp = torch.arange(16.0).expand(1, 1, 16, 16) / 16
    edges = losses.depth_edges(ramp, torch.zeros_like(ramp)).item()
    inner = 14 / 16 * (1 / 16) + 2 / 16 * (0.5 / 16)  # replicated border: half the slope
    assert edges == pytest.approx(inner / 2, rel=1e-5)  # mean of x and y; y has none


def test_densedepth_compares_with_the_target(sample: tuple[Tensor, Tensor, Tensor]) -> None:
    raw, _, depth = sample
    total = losses.depth_densedepth(raw, depth).item()
    parts = (losses.DEPTH_LOSSES["l1"], losses.depth_ssim, losses.depth_edges)
    l1, ssim, edges = (part(raw, depth).item() for part in parts)
    assert total == pytest.approx(0.1 * l1 + ssim + edges, rel=1e-6)
    assert ssim > 0.1
    assert edges > 0.1
    assert losses.depth_densedepth(depth, depth).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("table", "name"),
    [("mask", n) for n in losses.MASK_LOSSES] + [("depth", n) for n in losses.DEPTH_LOSSES],
)
def test_every_loss_decreases_along_its_gradient(table: str, name: str) -> None:
    loss = {"mask": losses.MASK_LOSSES, "depth": losses.DEPTH_LOSSES}[table][name]
    generator = torch.Generator().manual_seed(5)
    output = torch.randn(2, 1, 16, 16, generator=generator).requires_grad_()
    target = torch.rand(2, 1, 16, 16, generator=generator)
    target = target.round() if table == "mask" else target
    value = loss(output, target)
    (gradient,) = torch.autograd.grad(value, output)
    assert value.shape == ()
    assert gradient.abs().max() > 0
    assert loss(output - 1e-2 * gradient / gradient.norm(), target) < value
    assert loss(output.detach().to("meta"), target.to("meta")).device.type == "meta"


def test_an_empty_mask_gives_finite_losses() -> None:
    logits = torch.full((2, 1, 16, 16), -3.0, requires_grad=True)
    for loss in losses.MASK_LOSSES.values():
        value = loss(logits, torch.zeros(2, 1, 16, 16))
        assert math.isfinite(value.item())
        assert torch.autograd.grad(value, logits)[0].isfinite().all()


def test_depth_values_of_a_logit_are_its_sigmoid() -> None:
    raw = torch.tensor([-1.0, 0.0, 2.0])
    for loss in losses.DEPTH_LOSSES:
        expected = raw.sigmoid() if loss == "bce" else raw
        assert torch.equal(losses.depth_values(raw, loss), expected)
