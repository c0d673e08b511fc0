"""The options that every loader takes, checked when they are built."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
import torch

from maskdepth.convert.errors import DataError, OptionError
from maskdepth.convert.limits import LARGEST_BATCH, MOST_WORKERS
from maskdepth.convert.schema import LARGEST
from maskdepth.loaders.weights import Weights

MAX_SAMPLES = 2**40


@dataclass(frozen=True, kw_only=True, eq=False)
class LoaderOptions:
    """What a loader yields, and how it reads. Raises DataError for a value out of range.

    Each engine is built as ``Engine(shards, options)``.
    """

    batch_size: int = 64
    """Samples of a batch on this rank."""
    indices: np.ndarray | None = None
    """Distinct samples to visit, stored as a read-only int64 copy; None visits all."""
    weights: np.ndarray | Sequence[float] | Weights | None = None
    """How often each of the samples to visit is drawn, in proportion, stored as `Weights`; samples
    may then repeat within an epoch, and those of weight 0 are left out. None: each once."""
    draws: int | None = None
    """Samples of an epoch with ``weights``; None: as many as there are weights."""
    shuffle: bool = True
    """Whether an epoch is permuted by (seed, epoch); False keeps the order of ``indices``."""
    drop_last: bool = False
    """Whether to leave out the last step of an epoch if it is not full on every rank."""
    seed: int = 0
    """Together with the epoch it selects the permutation; 0 or more."""
    device: str | torch.device = "cpu"
    """Where batches and backgrounds are: cpu, cuda or cuda:N; stored with its number."""
    num_workers: int | None = None
    """Decoding threads. None: one per core, divided by the ranks of this machine, and for DALI on a
    GPU at most 8 ("reference": the calling thread, as does 0)."""
    rank: int = 0
    """This process among all, 0 to ``world_size - 1``."""
    world_size: int = 1
    """Number of processes that share each epoch."""
    max_bad: int = 0
    """Corrupt records that may be skipped (see `loaders.corrupt`); above 0, ``check`` is on."""
    check: bool | None = None
    """Whether each record is compared with its checksum before it is decoded. None: wherever there
    are checksums, that is, in shards. False decodes some corrupt records to wrong pixels, and
    with DALI on a GPU some can end the process (`loaders.engines.dali`)."""

    hw_decoder_load: float | None = None
    """Share of a batch, 0 to 1, that the JPEG engine of an A100 or a newer GPU decodes; the rest is
    decoded by its cores. DALI on a GPU alone; None leaves it to DALI (0.65)."""

    def __post_init__(self) -> None:
        self._whole("batch_size", 1, LARGEST_BATCH)
        self._whole("seed", 0, LARGEST)
        self._whole("world_size", 1, LARGEST, shown="world size")
        self._whole("rank", 0, self.world_size - 1)
        if self.num_workers is not None:
            self._whole("num_workers", 0, MOST_WORKERS, shown="workers")
        self._whole("max_bad", 0, LARGEST)
        self._true_or_false("shuffle")
        self._true_or_false("drop_last")
        if self.check is not None:
            self._true_or_false("check")
        if self.hw_decoder_load is not None:
            expect("hw_decoder_load", self.hw_decoder_load, 0, 1)
        object.__setattr__(self, "device", resolve_device(self.device))
        if self.indices is not None:
            object.__setattr__(self, "indices", _distinct(self.indices))
        self._check_weights()

    def _check_weights(self) -> None:
        if self.draws is not None:
            self._whole("draws", 1, MAX_SAMPLES)
            if self.weights is None:
                raise OptionError("draws", f": found {self.draws} without weights; give both")
        if self.weights is None:
            return
        if not isinstance(self.weights, Weights):
            object.__setattr__(self, "weights", Weights(self.weights))
        assert isinstance(self.weights, Weights)
        if self.indices is not None and len(self.weights) != len(self.indices):
            raise OptionError(
                "weights",
                f": found {len(self.weights)} of them, expected one for each of "
                f"{len(self.indices)} indices",
            )

    def _whole(self, name: str, low: int, high: int, shown: str | None = None) -> None:
        """Store an option as an int, also one of numpy's; OptionError unless low <= it <= high."""
        object.__setattr__(self, name, whole(shown or name, getattr(self, name), low, high))

    def _true_or_false(self, name: str) -> None:
        """Store an option as a bool, also one of numpy's; OptionError for anything else."""
        found = getattr(self, name)
        if not isinstance(found, bool | np.bool_):
            raise OptionError(name, f": found {found!r}, expected True or False")
        object.__setattr__(self, name, bool(found))


def whole(name: str, found: object, low: int, high: int) -> int:
    """The number as an int, also one of numpy's; OptionError unless whole and in low..high."""
    wanted = f"{low} or more" if high == LARGEST else f"{low} to {high}"
    if isinstance(found, bool | np.bool_) or not isinstance(found, SupportsIndex):
        raise OptionError(name, f": found {found!r}, expected a whole number, {wanted}")
    number = operator.index(found)
    if number > LARGEST:
        raise OptionError(
            name, f": found a number of {number.bit_length()} bits, expected {low} to {LARGEST}"
        )
    expect(name, number, low, None if high == LARGEST else high)
    return number


def expect(name: str, found: float, low: int, high: float | None = None) -> None:
    """Raise OptionError unless low <= found <= high."""
    if not low <= found or (high is not None and not found <= high):
        wanted = f"{low} or more" if high is None else f"{low} to {high}"
        raise OptionError(name, f": found {found}, expected {wanted}")


def resolve_device(device: str | torch.device) -> torch.device:
    """The device with its number; "cuda" is the current GPU. DataError if it is missing."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError):  # a name that torch does not know, None, 2**64
        found = torch.device("meta")
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type != "cuda":
        raise DataError(f"device {device}: expected cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if (found.index or 0) >= count:
        raise DataError(f"device {device}: found {count} GPUs; use cpu or another number")
    return torch.device("cuda", torch.cuda.current_device()) if str(found) == "cuda" else found


def _distinct(indices: np.ndarray) -> np.ndarray:
    """A read-only int64 copy. Raises DataError unless the numbers are integers and distinct."""
    found = np.asarray(indices)
    if found.ndim != 1 or len(found) == 0 or found.dtype.kind not in "iu":
        raise DataError(
            f"indices: found {found.dtype} of shape {found.shape}, "
            "expected a list of at least one integer"
        )
    distinct = found.astype(np.int64)
    ordered = np.sort(distinct)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise DataError(f"indices: found {repeated[0]} more than once, expected each at most once")
    distinct.setflags(write=False)
    return distinct
