"""On a GPU: upsampling in half precision is as exact as in float32, and deterministic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskdepth.model.upsampling import make_upsample


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype: torch.dtype) -> None:
    """Autocast runs `nn.Upsample` in float32; ours is within half a unit in the last place of it.

    Not bit for bit its rounding: the two kernels may add in another order, and a result in the
    middle between two numbers of half precision then falls on either side.
    """
    half_a_unit = torch.finfo(dtype).eps / 2 * 1.01
    generator = torch.Generator("cuda").manual_seed(0)
    images = torch.randn(4, 16, 14, 10, device="cuda", generator=generator).to(dtype)
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    gradients: list[torch.Tensor] = []
    with torch.autocast("cuda", dtype):
        expected = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)(images)
        for _ in range(2):
            found = make_upsample("products")(images)
            assert found.dtype == dtype
            torch.testing.assert_close(found.float(), expected, rtol=half_a_unit, atol=1e-6)
            gradients += torch.autograd.grad(found.float().square().sum(), images)
    assert torch.equal(*gradients)
    exact = torch.autograd.grad(expected.square().sum(), images)[0]
    torch.testing.assert_close(gradients[0], exact, rtol=0.05, atol=0.05)
