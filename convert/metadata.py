"""What `dataset.json` of a data set that `compose` wrote says, compared with what is there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path

from maskdepth.convert.layout import Layout
from maskdepth.convert.names import Problem
from maskdepth.convert.schema import Positive, Schema, shown
from maskdepth.convert.style import Style

DATASET = "dataset.json"
DATASET_FORMAT, DATASET_VERSION = "maskdepth-dataset", 2
"""What `compose` writes; version 1 has no table of samples."""

KNOWN = frozenset({
    "format", "version", "arguments", "style", "seed", "image_size", "backgrounds", "foregrounds",
    "placements", "samples", "samples_per_bg", "samples_per_fg", "depth", "sources", "depth_model",
    "depth_scale", "libraries", "placements_table", "others_table",
})  # fmt: skip
"""Keys of `dataset.json` that `compose` and `depth` write."""
_IN_ANY = (
    "format", "samples_per_fg", "placements_table", "others_table", "depth", "depth_model",
    "depth_scale",
)  # fmt: skip
"""Those that mean something in a user's own file too."""
_SIMILAR = 0.85


class ComposedMetadata(Schema, extra="allow"):
    """What is used of a `dataset.json` that `compose` wrote."""

    samples: Positive | None = None
    samples_per_bg: Positive | None = None
    backgrounds: Positive | None = None
    foregrounds: Positive | None = None
    image_size: Positive | None = None
    style: Style = Style()


def require_spelt(metadata: Mapping[str, object]) -> None:
    """ValueError for a key that is almost one with a meaning: a typing error would be ignored.

    Other unknown keys are allowed: a user's own, and those of later versions (see `unknown_keys`).
    """
    meant: Collection[str] = KNOWN if metadata.get("format") == DATASET_FORMAT else _IN_ANY
    for key in unknown_keys(metadata):
        plain = key.casefold().replace("-", "_").replace(" ", "_")
        if close := get_close_matches(plain, sorted(meant), 1, _SIMILAR):
            raise ValueError(
                f"unknown key {shown(key)}, almost {close[0]!r}; rename it to that, or, if it is "
                "a note of your own, to something else"
            )


def unknown_keys(metadata: Mapping[str, object]) -> list[str]:
    """Keys of `dataset.json` that are kept and have no effect."""
    return [key for key in metadata if key not in KNOWN]


def find_miscounts(folder: Path, metadata: Mapping[str, object], layout: Layout) -> list[Problem]:
    """The problem of a `dataset.json` that does not count what the folders of a data set hold."""
    if metadata.get("format") != DATASET_FORMAT:  # a user's own keys mean anything
        return []
    said = ComposedMetadata.from_json(metadata).model_dump()
    is_square = layout.height == layout.width
    found = {
        "samples": layout.samples,
        "samples_per_bg": layout.samples_per_bg or "unequal numbers",
        "backgrounds": len(layout.group_starts) - 1,
        "image_size": layout.height if is_square else f"{layout.width}x{layout.height}",
    }
    wrong = [name for name, value in found.items() if said[name] not in (None, value)]
    if not wrong:
        return []
    differences = "; ".join(f"{name} is {said[name]}, found {found[name]}" for name in wrong)
    keys = [*wrong, *(key for key in ("placements_table", "others_table") if key in metadata)]
    text = (
        f"{differences}; compose again, or if files were added or removed on purpose, delete "
        f"{', '.join(keys)} in it"
    )
    return [Problem.of(folder / DATASET, text, DATASET)]
