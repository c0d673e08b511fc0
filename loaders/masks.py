"""Run lengths to masks, a batch at a time, on the device of the bytes."""

from __future__ import annotations

import numba
import numpy as np
import torch

from maskdepth.convert.codecs import unpack_runs
from maskdepth.loaders.buffers import BufferPool


def pad_runs(runs: list[np.ndarray]) -> np.ndarray:
    """Stored masks as one array, uint8 (B, longest), padded with 0.

    A padding byte is an empty run after the last pixel, so the lengths are not needed.
    """
    out = np.zeros((len(runs), max(len(run) for run in runs)), np.uint8)
    for row, run in zip(out, runs, strict=True):
        row[: len(run)] = run
    return out


def unpack_batch(runs: torch.Tensor, height: int, width: int, pool: BufferPool) -> torch.Tensor:
    """Masks of a batch: uint8 (B, 1, H, W), 0 or 1, on the device of ``runs``.

    runs: uint8 (B, L) as `pad_runs` makes them.
    pool: of uint8 (B or more, 1, H, W), to unpack into on the CPU.

    On the CPU a loop over runs is 27 times cheaper than the two prefix sums over pixels that a GPU
    computes (1.1 against 31.6 us per mask of 224x224, on two cores; not measured on a GPU).
    """
    if runs.device.type == "cpu":
        out = torch.from_numpy(pool.take(len(runs)))
        _unpack_rows(runs.numpy(), out.numpy().reshape(len(runs), -1))
        return out
    return unpack_by_sums(runs, height, width)


def unpack_by_sums(runs: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`unpack_batch` by two prefix sums: the end of each run, then the parity of ends so far."""
    pixels = height * width
    ends = runs.cumsum(1, dtype=torch.int32)
    # An end after the last pixel changes nothing; a byte of 255 does not end its run.
    flips = torch.zeros(len(runs), pixels + 1, dtype=torch.uint8, device=runs.device)
    flips.scatter_add_(1, ends.clamp_(max=pixels).long(), (runs != 255).to(torch.uint8))
    parity = flips[:, :pixels].cumsum(1, dtype=torch.uint8).bitwise_and_(1)
    return parity.view(-1, 1, height, width)


@numba.njit(nogil=True, cache=True)
def _unpack_rows(runs: np.ndarray, out: np.ndarray) -> None:
    for row in range(len(runs)):
        last = runs.shape[1]
        while last > 1 and runs[row, last - 1] == 0 and runs[row, last - 2] != 255:
            last -= 1
        unpack_runs(runs[row, :last], out[row])
