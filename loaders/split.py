"""Which samples train and which validate: index arrays over the same shards.

Every background and every foreground is part of many samples. A random split puts nearly all of
them in both halves, so its validation measures neither new backgrounds nor new foregrounds; the
other splits hold out complete groups.
"""

from __future__ import annotations

import math

import numpy as np

from maskdepth.convert.errors import DataError, OptionError
from maskdepth.convert.layout import Layout
from maskdepth.loaders.options import expect

SPLITS = ("random", "bg", "fg", "both")


def split_indices(
    layout: Layout, name: str, *, seed: int = 42, validation: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and the validation samples, two int64 arrays without overlap.

    layout: which sample shows which background and foreground.
    name:
        "random": the original work's split, sample by sample: ``np.random.seed(seed);
        np.random.shuffle``, and the first ``floor(validation * samples)`` are validation.
        Both arrays keep the order of that shuffle.
        "bg": a share ``validation`` of the backgrounds is held out; ascending order.
        "fg": a share of the foregrounds is held out, flips with their source; ascending order.
            A sample that shows several foregrounds trains only if none of them is held out, and
            validates only if all are; one of both kinds is in neither array.
        "both": the backgrounds that "bg" and the foregrounds that "fg" hold out at the same seed.
        Validation has only samples of which neither background nor foreground is in training;
        samples with one of the two held out are in neither array: at 0.3, 9 % of the samples
        validate, 49 % train and 42 % are left out.
    seed: 0 to 2**32 - 1.
    validation: share held out, between 0 and 1; of groups, at least one on each side.

    Raises DataError for another name, a seed or share out of range, a data set too small for
    both halves, and one of which it is not known which samples show one foreground.
    """
    if name not in SPLITS:
        raise OptionError("split", f": found {name!r}, expected one of {', '.join(SPLITS)}")
    if not 0 < validation < 1:
        raise OptionError("validation", f": found {validation}, expected between 0 and 1")
    expect("split_seed", seed, 0, 2**32 - 1)
    held_out, wholly_held_out = [], []  # whether any group of a sample is, and whether all are
    samples = np.arange(layout.samples, dtype=np.int64)
    if name in ("bg", "both"):
        groups = layout.background_of(samples)
        held_out.append(np.isin(groups, _choose(groups, "backgrounds", [seed, 0], validation)))
        wholly_held_out.append(held_out[0])
    if name in ("fg", "both"):
        some, every = _held_out_foregrounds(layout, seed, validation)
        held_out.append(some)
        wholly_held_out.append(every)
    if name == "random":
        # NumPy guarantees the stream of RandomState.
        np.random.RandomState(seed).shuffle(samples)
        val, train = np.split(samples, [math.floor(validation * len(samples))])
    else:
        train = np.flatnonzero(~np.logical_or.reduce(held_out))
        val = np.flatnonzero(np.logical_and.reduce(wholly_held_out))
    if len(train) == 0 or len(val) == 0:
        raise DataError(
            f"split {name!r}: found {len(train)} samples for training and {len(val)} for "
            "validation, expected some of each; choose another share, seed or split"
        )
    return train, val


def count_mixed(layout: Layout, name: str, *, seed: int = 42, validation: float = 0.3) -> int:
    """Samples that a split leaves out because only some of their foregrounds are held out.

    The arguments are those of `split_indices`.
    """
    if name not in ("fg", "both") or not len(layout.other_placements):
        return 0
    some, every = _held_out_foregrounds(layout, seed, validation)
    return int(np.count_nonzero(some & ~every))


def _held_out_foregrounds(
    layout: Layout, seed: int, validation: float
) -> tuple[np.ndarray, np.ndarray]:
    """bool (samples,) each: whether any foreground of a sample is held out, and whether all are."""
    first, others = layout.foreground_of(np.arange(layout.samples)), layout.other_placements
    chosen = _choose(first, "foregrounds", [seed, 1], validation)
    some = np.isin(first, chosen)
    every, is_held_out = some.copy(), np.isin(others["fg"], chosen)
    some[others["sample"][is_held_out]] = True
    every[others["sample"][~is_held_out]] = False
    return some, every


def _choose(group_of: np.ndarray, what: str, seed: list[int], validation: float) -> np.ndarray:
    """The groups that are held out for validation."""
    groups = np.unique(group_of)
    if len(groups) < 2:
        raise DataError(
            f"split by {what}: found {len(groups)}, expected 2 or more, one on each side; "
            "use the split 'random'"
        )
    count = min(max(math.floor(validation * len(groups) + 0.5), 1), len(groups) - 1)
    # A separate stream for each kind of group keeps the two choices independent.
    return np.random.RandomState(seed).permutation(groups)[:count]
