"""Weighted sampling: which sample is at a position of an epoch, if some are drawn more often."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from maskdepth.convert.errors import OptionError

_STEPS = 2**20


class Weights:
    """Weights of samples, and what an epoch draws by them.

    weights: numbers of 0 or more, one for each sample to visit, stored as float64. Each is compared
        with the mean. Raises OptionError for others.

    An epoch of N draws shows a sample of weight w either floor(N * w / sum) or ceil(N * w / sum)
    times; a draw of the epoch decides which, so that the mean over epochs is exact (systematic
    sampling). Equal weights give each sample once.
    """

    def __init__(self, weights: object) -> None:
        try:
            found = np.array(weights, dtype=np.float64)
        except (TypeError, ValueError):
            found = np.empty((0, 0))
        if found.ndim != 1 or len(found) == 0:
            raise OptionError("weights", ": expected a list of at least one number")
        wrong = np.flatnonzero(~(np.isfinite(found) & (found >= 0)))
        if len(wrong):
            first = int(wrong[0])
            raise OptionError(
                "weights", f": found {found[first]} at {first}, expected finite numbers, 0 or more"
            )
        with np.errstate(over="ignore"):
            self.ends = np.cumsum(found)
        if not 0 < self.ends[-1] < np.inf:
            raise OptionError("weights", f": found a sum of {self.ends[-1]}, expected more than 0")
        self._last = int(np.flatnonzero(found)[-1])
        found.setflags(write=False)
        self.values = found

    def __len__(self) -> int:
        return len(self.values)

    def draw(self, positions: np.ndarray, draws: int, seed: int, epoch: int) -> np.ndarray:
        """Which samples are at some positions, int64 (B,), of the ``draws`` of an epoch.

        Positions in ascending order show samples in ascending order.
        """
        points = (positions + _offset(seed, epoch)) * (self.ends[-1] / draws)
        found = np.searchsorted(self.ends, points, side="right")
        return np.asarray(np.minimum(found, self._last), dtype=np.int64)


@lru_cache(maxsize=16)
def _offset(seed: int, epoch: int) -> float:
    """Uniform in 0..1; never an end, so that rounding does not move a draw to the next sample."""
    sequence = np.random.SeedSequence(seed, spawn_key=(epoch, 1))
    return (int(sequence.generate_state(1)[0]) % _STEPS + 0.5) / _STEPS
