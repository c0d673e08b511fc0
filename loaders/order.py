"""The order of an epoch: ours, not the engine's, so that every engine yields the same batches.

One permutation per (seed, epoch). It is never stored: a keyed bijection on 0..n-1 is evaluated
at the positions that a batch needs. Memory and work do not grow with ``n``, so resuming within
an epoch costs nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from torch import distributed

from maskdepth.convert.errors import DataError
from maskdepth.loaders.options import MAX_SAMPLES, LoaderOptions, expect
from maskdepth.loaders.weights import Weights

# At 4,099 samples, statistics of pairs of values detect a cipher of 4 rounds but not of 5.
_ROUNDS = 6
# Up to this many samples a permutation is sorted once per epoch and kept (32 KiB at most): on grids
# of few cells a Feistel cipher does not reach all permutations equally often.
_SORTED_UP_TO = 4096
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31 = np.uint64(27), np.uint64(30), np.uint64(31)


@dataclass(frozen=True, eq=False)
class Order:
    """Which samples batch ``k`` of epoch ``e`` holds on this rank.

    Step ``k`` of all ranks together covers positions ``k * B * W`` to ``(k + 1) * B * W - 1``
    of the epoch's permutation; rank ``r`` takes the ``r``-th of ``W`` contiguous slices. The
    last step of ``drop_last=False`` splits the remaining samples as evenly as possible. So a
    rank may get an empty batch there, but all ranks have the same number of steps and every
    sample is seen exactly once. Equal ``B * W`` gives equal global steps for any ``W``.

    With ``weights``, the permutation is that of the draws of an epoch, and a sample may be seen
    several times, see `Weights`.

    n: samples in the data set, 1 to 2**40.
    first: positions that are left out at the start of an epoch: steps begin there.
    options: ``indices``, ``weights``, ``draws``, ``batch_size`` (B), ``shuffle``, ``drop_last``,
        ``seed``, ``rank`` (r) and ``world_size`` (W) are used.

    Raises DataError for another number of samples or weights, and for indices outside 0..n-1.
    """

    n: int
    options: LoaderOptions
    first: int = 0

    def __post_init__(self) -> None:
        expect("number of samples", self.n, 1, MAX_SAMPLES)
        indices = self.options.indices
        if indices is not None and (indices.min() < 0 or indices.max() >= self.n):
            raise DataError(
                f"indices: found {indices.min()} to {indices.max()}, expected 0 to {self.n - 1}"
            )
        weights = self.options.weights
        if isinstance(weights, Weights) and indices is None and len(weights) != self.n:
            raise DataError(
                f"weights: found {len(weights)} of them, expected one for each of {self.n} samples"
            )

    @property
    def samples(self) -> int:
        """Samples that all ranks together visit in an epoch, before ``drop_last``."""
        if self.options.draws is not None:
            return self.options.draws
        return self.n if self.options.indices is None else len(self.options.indices)

    def __len__(self) -> int:
        """Steps of an epoch; the same on every rank."""
        return self.steps(self.options.batch_size)

    def steps(self, batch_size: int) -> int:
        """Steps of an epoch with this batch size."""
        step, samples = batch_size * self.options.world_size, self.samples - self.first
        return samples // step if self.options.drop_last else -(-samples // step)

    def batch(self, epoch: int, k: int, corrupt: Collection[int] = ()) -> np.ndarray:
        """Samples of this rank's batch ``k``: int64 (B,), fewer or none in a partial last step.

        corrupt: samples to replace. The replacement is the next other sample of the epoch's
            order, wrapping around at the end. It depends only on (seed, epoch, position) and on
            ``corrupt``, not on the rank, the batch size or what was read before. It also keeps
            its own position, so it is seen twice.

        Raises DataError for a negative epoch or if all samples are corrupt, IndexError for ``k``
        outside 0..len-1.
        """
        expect("epoch", epoch, 0)
        first, last = self._span(k, self.options.rank)
        samples = self._at(np.arange(first, last, dtype=np.int64), epoch)
        if corrupt:
            for row, sample in enumerate(samples.tolist()):
                if sample in corrupt:
                    samples[row] = self._replacement(first + row, epoch, corrupt)
        return samples

    def seen(self, k: int) -> int:
        """Positions of an epoch before the end of step ``k``, of all ranks."""
        return min(
            self.samples, self.first + (k + 1) * self.options.batch_size * self.options.world_size
        )

    def size(self, k: int, rank: int | None = None) -> int:
        """Samples of batch ``k`` on this or another rank; IndexError as for `batch`."""
        first, last = self._span(k, self.options.rank if rank is None else rank)
        return last - first

    def _span(self, k: int, rank: int) -> tuple[int, int]:
        """First and end position of a batch in the epoch's order."""
        if not 0 <= k < len(self):
            raise IndexError(f"batch {k} of an epoch of {len(self)}")
        world_size = self.options.world_size
        step = self.options.batch_size * world_size
        first = self.first + k * step
        size = min(step, self.samples - first)
        return first + rank * size // world_size, first + (rank + 1) * size // world_size

    def _at(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        """Samples at some positions of the epoch's order: int64, a new array."""
        if self.options.shuffle:
            positions = permute(positions, self.samples, self.options.seed, epoch)
        if isinstance(self.options.weights, Weights):
            positions = self.options.weights.draw(positions, self.samples, self.options.seed, epoch)
        indices = self.options.indices
        return positions if indices is None else indices[positions]

    def _replacement(self, position: int, epoch: int, corrupt: Collection[int]) -> int:
        for ahead in range(1, self.samples):
            following = np.array([(position + ahead) % self.samples])
            sample = int(self._at(following, epoch)[0])
            if sample not in corrupt:
                return sample
        raise DataError(f"all {self.samples} records to visit are corrupt")


def permute(positions: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Values of the permutation of 0..n-1 given by (seed, epoch) at some positions.

    positions: int64 (B,), each in 0..n-1. Returns int64 (B,), each in 0..n-1.

    A generalised Feistel cipher with cycle walking: Black and Rogaway, "Ciphers with
    Arbitrary Finite Domains" (2002), section 5. A position is written as (left, right), row and
    column of a grid of ``rows * columns >= n`` cells. Each round adds a hash of one coordinate
    to the other, which is invertible, so the rounds are a bijection of the grid. A value outside
    0..n-1 is encrypted again until it is inside; that is rare, because the grid has fewer than
    sqrt(n) + 1 spare cells. A small ``n`` is sorted by hash instead, which makes all
    permutations equally likely.
    """
    if n <= _SORTED_UP_TO:
        return np.asarray(_sorted_permutation(n, seed, epoch)[positions])
    columns = math.isqrt(n - 1) + 1
    rows, keys = -(-n // columns), _round_keys(seed, epoch)
    return np.asarray(_walk(positions, n, rows, columns, keys))


def distributed_rank() -> tuple[int, int]:
    """(rank, world_size) of this process; (0, 1) if it is the only one.

    Those of `torch.distributed` where it is initialised, or RANK and WORLD_SIZE as torchrun sets
    them. Raises DataError if only one is set or RANK is not within 0..WORLD_SIZE - 1.
    """
    # `torch.multiprocessing` makes process groups without the environment variables. Ignoring
    # them, each rank would take itself for the only one and read all samples.
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    found = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    if found == {"RANK": None, "WORLD_SIZE": None}:
        return 0, 1
    try:
        rank, world_size = int(found["RANK"] or ""), int(found["WORLD_SIZE"] or "")
    except ValueError:
        rank, world_size = -1, 0
    if not 0 <= rank < world_size:
        raise DataError(
            f"environment: found RANK={found['RANK']} and WORLD_SIZE={found['WORLD_SIZE']}, "
            "expected 0 <= RANK < WORLD_SIZE; start with torchrun, or unset both"
        )
    return rank, world_size


# Compiled: a batch of 64 takes 4 us instead of the 42 us of NumPy's operations on arrays.
@numba.njit(cache=True, nogil=True)
def _walk(positions: np.ndarray, n: int, rows: int, columns: int, keys: np.ndarray) -> np.ndarray:
    """Each position encrypted until it is in 0..n-1: int64, as ``positions``."""
    out = np.empty(positions.size, np.int64)
    sizes = (np.uint64(rows), np.uint64(columns))
    for i in range(positions.size):
        value = np.uint64(positions[i])
        while True:
            left, right = value // sizes[1], value % sizes[1]
            for number in range(0, keys.size, 2):
                # Below 2**20 + a 64-bit hash modulo 2**20: no overflow, and a bias below 2**-44.
                left = (left + _mix(right, keys[number]) % sizes[0]) % sizes[0]
                right = (right + _mix(left, keys[number + 1]) % sizes[1]) % sizes[1]
            value = left * sizes[1] + right
            if value < np.uint64(n):
                break
        out[i] = value
    return out


@numba.njit(cache=True, nogil=True)
def _mix(value: Any, key: np.uint64) -> Any:  # numba has no type for "a number or an array"
    """Hash uint64 (a number or an array) with a key: splitmix64's finaliser (Steele 2014)."""
    hashed = value * _GOLDEN + key
    hashed = (hashed ^ (hashed >> _S30)) * _MIX_1
    hashed = (hashed ^ (hashed >> _S27)) * _MIX_2
    return hashed ^ (hashed >> _S31)


@lru_cache(maxsize=16)
def _sorted_permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """int64 (n,): 0..n-1 ordered by the hash of each number."""
    hashes = _mix(np.arange(n, dtype=np.uint64), _round_keys(seed, epoch)[0])
    return np.argsort(hashes, kind="stable")


@lru_cache(maxsize=16)
def _round_keys(seed: int, epoch: int) -> np.ndarray:
    """uint64 (rounds,); NumPy guarantees that SeedSequence never changes."""
    # Not SeedSequence((seed, epoch)): a seed above 2**32 would give the words of another pair.
    return np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(_ROUNDS, np.uint64)
