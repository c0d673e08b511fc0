"""Which data set a network was trained on, and how much of a validation split it has seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping

import numpy as np

from maskdepth.model.checkpoint import NetworkInfo
from maskdepth.model.contract import DataSummary, Layout
from maskdepth.model.errors import ModelError
from maskdepth.model.training.config import DataConfig

SplitIndices = Callable[[str], tuple[np.ndarray, np.ndarray]]

HOLD_OUT_BACKGROUNDS, HOLD_OUT_FOREGROUNDS = ("bg", "both"), ("fg", "both")
"""Splits whose validation samples show backgrounds, or foregrounds, unseen in training."""


def fingerprint(data: DataSummary, split: str) -> str:
    """Identifies a data set by its content: 64 hex digits, the same with every engine.

    Covers the image size, the number of samples of each background, and the exact sums of all
    pixels of bg, fg_bg, mask and depth. Which samples show one foreground counts only if the split
    holds out foregrounds: packing again may set it later.
    """
    layout = data.layout
    content: dict[str, object] = {
        "size": [layout.height, layout.width],
        "group_starts": np.asarray(layout.group_starts).tolist(),
        "moments": {
            name: [moments.values, list(moments.sums), list(moments.squares)]
            for name, moments in sorted(data.statistics.items())
        },
    }
    if split in HOLD_OUT_FOREGROUNDS:
        content["samples_per_fg"] = layout.samples_per_fg
        if layout.samples_per_fg is None and layout.has_foregrounds:
            foregrounds = layout.foreground_of(np.arange(layout.samples))
            content["foregrounds"] = hashlib.sha256(foregrounds.astype("<i8").tobytes()).hexdigest()
        if len(others := layout.other_placements):
            shown = np.stack([others["sample"], others["fg"]]).astype("<i8")
            content["others"] = hashlib.sha256(shown.tobytes()).hexdigest()
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def count_seen(layout: Layout, train: np.ndarray, validation: np.ndarray) -> dict[str, int]:
    """How many samples, backgrounds and foregrounds of ``validation`` are also in ``train``.

    train, validation: int64, indices of samples. "foregrounds" is missing where the data set
    does not say which samples show one foreground.
    """
    groups = {"samples": (train, validation)}
    groups["backgrounds"] = layout.background_of(train), layout.background_of(validation)
    if layout.has_foregrounds:
        groups["foregrounds"] = layout.foregrounds_of(train), layout.foregrounds_of(validation)
    return {name: len(np.intersect1d(*both)) for name, both in groups.items()}


def trained_samples(
    info: NetworkInfo, data: DataSummary, split_indices: SplitIndices
) -> np.ndarray | None:
    """The samples of a data set that a network was trained on; None if it is of other data.

    split_indices: training and validation samples of a split by its name.
    """
    if not info.data or info.data != fingerprint(data, info.split):
        return None
    train, _ = split_indices(info.split)
    return train


def require_fingerprint(config: DataConfig, expected: str, data: DataSummary) -> str:
    """The fingerprint of the data. Raises ModelError unless it is the expected one, if any."""
    found = fingerprint(data, config.split)
    if expected not in ("", found):
        raise ModelError(
            f"{config.shards}: found data with fingerprint {found[:12]}, expected the data that "
            f"the run was started with ({expected[:12]}); give its folder, or a new RUN_DIR"
        )
    return found


def seen_note(split: str, trained_split: str, seen: Mapping[str, int] | None) -> str | None:
    """One line if the validation split holds out less than its name promises, else None.

    seen: from `count_seen`; None if it is unknown.
    """
    if seen is None:
        return (
            "whether the validation samples were seen in training is not known: the checkpoint "
            "was trained on other data, or does not say on which"
        )
    held_out = {
        "samples": True,
        "backgrounds": split in HOLD_OUT_BACKGROUNDS,
        "foregrounds": split in HOLD_OUT_FOREGROUNDS,
    }
    leaked = [f"{count} of its {name}" for name, count in seen.items() if count and held_out[name]]
    if not leaked:
        return None
    return (
        f"the validation samples of split {split} were seen in training (split {trained_split}): "
        f"{', '.join(leaked)}; so these scores are not those of new data"
    )
