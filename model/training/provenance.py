"""What a network was trained on: which data set, and what of a validation split it has seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

BY_BACKGROUND, BY_PERSON = ("bg", "both"), ("fg", "both")
"""Splits that promise backgrounds, or people, that training has not shown."""


def fingerprint(loader: Any, split: str) -> str:
    """Name of the data of a loader by its content: 64 hex digits, the same for every loader.

    Of the image size, the number of samples of each background, and the exact sums of all
    pixels of bg, fg_bg, mask and depth. How many samples show one person counts only where
    the split goes by people: it may be told later, by packing again.
    """
    layout = loader.layout
    content: dict[str, Any] = {
        "size": [layout.height, layout.width],
        "group_starts": np.asarray(layout.group_starts).tolist(),
        "moments": {
            name: [moments.values, list(moments.sums), list(moments.squares)]
            for name, moments in sorted(loader.statistics.items())
        },
    }
    if split in BY_PERSON:
        content["samples_per_fg"] = layout.samples_per_fg
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def seen_in_training(layout: Any, train: np.ndarray, validation: np.ndarray) -> dict[str, int]:
    """How many samples, backgrounds and people of ``validation`` are also in ``train``.

    train, validation: int64, indices of samples. "people" is left out where the data set
    does not say who is in which sample.
    """
    groups = {"samples": (train, validation)}
    groups["backgrounds"] = layout.background_of(train), layout.background_of(validation)
    if layout.samples_per_fg is not None:
        groups["people"] = layout.foreground_of(train), layout.foreground_of(validation)
    return {name: len(np.intersect1d(*both)) for name, both in groups.items()}


def seen_note(split: str, trained_split: str, seen: Mapping[str, int] | None) -> str | None:
    """One line where validation by ``split`` is not as new as its name says; None if it is."""
    if seen is None:
        return (
            "whether the validation samples were seen in training is not known: the checkpoint "
            "was trained on other data, or does not say on which"
        )
    new = {"samples": True, "backgrounds": split in BY_BACKGROUND, "people": split in BY_PERSON}
    broken = [f"{count} of its {name}" for name, count in seen.items() if count and new[name]]
    if not broken:
        return None
    return (
        f"the validation samples of split {split} were seen in training (split {trained_split}): "
        f"{', '.join(broken)}; so these scores are not those of new data"
    )
