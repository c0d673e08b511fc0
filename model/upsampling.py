"""Bilinear upsampling x2 (`align_corners=True`), with torch's backward or a deterministic one.

Upsampling is a linear map along each axis. Its backward applies the transposed maps: two small
matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Upsampling = Literal["products", "torch"]
"""Which backward: two matrix products, or torch's, which on a GPU adds atomically and therefore
in any order."""


def make_upsample(kind: Upsampling) -> nn.Module:
    """The module that doubles height and width; it has no parameters."""
    return UPSAMPLES[kind]()


class UpsampleByProducts(nn.Module):
    """`nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)` with products in backward.

    The forward is torch's, so the values are equal. Gradients are equal to rounding, and those of
    two runs are equal bit for bit on every device.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Float (B, C, H, W) -> (B, C, 2H, 2W)."""
        result: Tensor = _ProductBackward.apply(images)
        return result


class _ProductBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        ctx.dtype = images.dtype
        # torch's kernels for half precision compute in float32 and round once, at the end. Autocast
        # of a GPU, not of a CPU, would make the result and the concatenation of it float32, for a
        # convolution in half precision: the same values with twice the bytes. Without a GPU, older
        # versions of torch would warn that there is no CUDA.
        with torch.autocast("cuda", enabled=False) if images.is_cuda else nullcontext():
            return functional.interpolate(
                images, scale_factor=2, mode="bilinear", align_corners=True
            )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Columns first, then rows, in NHWC: nothing is copied if channels are last.

        That holds for a slice of the channels too, which is what the gradient of a
        concatenation is. The result is channels_last.
        """
        batch, channels, height, width = gradient.shape
        # oneDNN's products of half precision took 4 to 15 times as long as torch's backward on a
        # CPU; in float32 they take half of it.
        exact = gradient
        if gradient.device.type == "cpu":
            exact = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        columns = exact.permute(0, 2, 3, 1).reshape(batch * height, width, channels)
        weights = _weights(width // 2, columns.dtype, columns.device)
        narrow = torch.bmm(weights.expand(len(columns), -1, -1), columns)
        rows = narrow.view(batch, height, width // 2 * channels)
        weights = _weights(height // 2, rows.dtype, rows.device)
        small = torch.bmm(weights.expand(batch, -1, -1), rows)
        shape = (batch, height // 2, width // 2, channels)
        return small.view(shape).permute(0, 3, 1, 2).to(ctx.dtype)


def _weights(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size, 2 size): row i has the weights of input i in all outputs along one axis.

    It is what torch makes of the identity. Cached, because the step of a small network spends
    its time on launching; a compiled graph contains it as a constant expression instead.
    """
    make = _new_weights if torch.compiler.is_compiling() else _cached_weights
    return make(size, dtype, device)


def _new_weights(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    at_least_float = torch.promote_types(dtype, torch.float32)
    identity = torch.eye(size, dtype=at_least_float, device=device).unsqueeze(0)
    doubled = functional.interpolate(identity, scale_factor=2, mode="linear", align_corners=True)
    return doubled[0].to(dtype)


_cached_weights = lru_cache(maxsize=64)(_new_weights)

UPSAMPLES: dict[Upsampling, Callable[[], nn.Module]] = {
    "products": UpsampleByProducts,
    "torch": partial(nn.Upsample, scale_factor=2, mode="bilinear", align_corners=True),
}
