"""Upsampling x2 by products: the values and gradients of `nn.Upsample`, in any way it is run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskdepth.model import DualDecoderUNet
from maskdepth.model.upsampling import make_upsample

TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 8e-3,  # one unit in the last place of values up to 8
    torch.bfloat16: 6e-2,
}
"""Of gradients; forwards are equal."""


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)
    return values.contiguous(memory_format=torch.channels_last)


def _run(up: Any, images: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The upsampled images and the gradient of the images."""
    images = images.clone().requires_grad_()
    result = up(images)
    result.backward(gradient)
    assert images.grad is not None
    return result.detach(), images.grad


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 3), (14, 14), (5, 28)])
def test_equals_nn_upsample(size: tuple[int, int], dtype: torch.dtype) -> None:
    """Also for the gradient of a concatenation, whose channels are a slice."""
    height, width = size
    images = _random(2, 4, height, width, dtype=dtype)
    both = _random(2, 8, 2 * height, 2 * width, dtype=dtype)
    for gradient in (both[:, 4:], both[:, 4:].contiguous()):
        reference = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        expected, expected_gradient = _run(reference, images, gradient)
        found, found_gradient = _run(make_upsample("products"), images, gradient)
        assert torch.equal(found, expected)
        torch.testing.assert_close(
            found_gradient, expected_gradient, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype]
        )
        assert found_gradient.is_contiguous(memory_format=torch.channels_last)
        again = _run(make_upsample("products"), images, gradient)[1]
        assert torch.equal(found_gradient, again)


def test_gradient_is_that_of_finite_differences() -> None:
    images = _random(1, 2, 3, 4, dtype=torch.float64).requires_grad_()
    up = make_upsample("products")
    assert torch.autograd.gradcheck(up, (images,))
    assert torch.autograd.gradgradcheck(up, (images,))


def test_autocast_keeps_the_dtype_of_nn_upsample() -> None:
    for up in (make_upsample("products"), make_upsample("torch")):
        images = _random(1, 2, 4, 4, dtype=torch.bfloat16).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            result = up(images)
        result.sum().backward()
        assert images.grad is not None
        assert images.grad.dtype == torch.bfloat16
        # Each input's weights sum to what the transposed map makes of ones.
        assert images.grad.float().sum().item() == pytest.approx(result.numel(), rel=1e-2)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_breaks(backend: str) -> None:
    torch._dynamo.reset()
    up = make_upsample("products")
    images, gradient = _random(2, 4, 6, 5), _random(2, 4, 12, 10)
    compiled = torch.compile(up, backend=backend, fullgraph=True)
    for found, expected in zip(
        _run(compiled, images, gradient), _run(up, images, gradient), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_network_has_the_same_weights_and_gradients() -> None:
    torch.manual_seed(0)
    ours, theirs = DualDecoderUNet(4), DualDecoderUNet(4, "torch")
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = _random(2, 3, 16, 16), _random(2, 3, 16, 16) + 1
    for network in (ours, theirs):
        results = [result for result in network(*images) if result is not None]
        torch.stack(results).square().mean().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_no_operation_adds_in_any_order() -> None:
    """In backward there are products alone; torch's backward would raise here on a GPU."""
    names: list[str] = []

    class Names(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    images = torch.randn(1, 2, 4, 4, device="meta", requires_grad=True)
    result = make_upsample("products")(images)
    with Names():
        result.backward(torch.empty_like(result))
    assert names.count("bmm") == 2
    assert not {"upsample_bilinear2d_backward", "index_add", "index_put", "scatter_add"} & {*names}
