"""Random numbers of a sample that depend on the seed, the epoch and its index alone.

Augmentation draws from here, so that a sample is changed in the same way on every device, in
every batch and on every rank.
"""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(index: Tensor, epoch: int, seed: int, count: int) -> Tensor:
    """float32 (B, count) in [0, 1), a pure function of its arguments on every device.

    index: int64 (B,). A larger ``count`` adds columns and leaves the first ones as they are.
    """
    state = _mix(index.new_full((1,), seed))
    state = _mix(_mix(state + epoch) + index)
    column = torch.arange(1, count + 1, device=index.device, dtype=torch.int64)
    hashed = _mix(state[:, None] + column * -0x61C8864680B583EB)
    # The top 24 bits: float32 holds them exactly.
    return (hashed >> 40 & 0xFFFFFF).to(torch.float32) * 2**-24


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014) on int64, which wraps."""
    # Signed shifts copy the sign bit; the masks make them shifts of unsigned values.
    x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & 0x1FFFFFFFF)
