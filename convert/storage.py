"""How each field may be stored: the table of codecs, from which all other modules derive it.

`convert.codecs` has their functions. This module does not import it, because the command line reads
the names for its help, and numba takes long to import.
"""

from __future__ import annotations

from typing import NamedTuple


class Codec(NamedTuple):
    """One way to store a field."""

    field: str  # the field that it stores
    is_jpeg: bool  # whether the stored bytes are a JPEG: FFCV has an image field for them
    suffix: str = ""  # ending of the member in a tar shard; empty: for the FFCV file alone
    fallback: str = ""  # for `difference`: the codec of a record that it cannot store


CODECS = {
    "jpeg": Codec("fg_bg", is_jpeg=True, suffix="jpg"),
    "runs": Codec("mask", is_jpeg=False, suffix="runs"),
    "jpeg-mask": Codec("mask", is_jpeg=True, suffix="jpg"),
    "jpeg-luma": Codec("depth", is_jpeg=True, suffix="jpg"),
    "jpeg-gray": Codec("depth", is_jpeg=True, suffix="jpg"),
    "difference": Codec("fg_bg", is_jpeg=False, fallback="jpeg"),
    "difference-luma": Codec("depth", is_jpeg=False, fallback="jpeg-luma"),
}
"""Each codec by its name in the manifest."""

MASK_CODECS = {"runs": "runs", "jpeg": "jpeg-mask"}
"""Codecs of masks by the value of `--mask-codec`."""
DEPTH_CODECS = {"luma": "jpeg-luma", "jpeg": "jpeg-gray"}
"""Codecs of depth JPEGs by the value of `--depth-codec`."""
DIFFERENCE_CODECS = {"fg_bg": "difference", "depth": "difference-luma"}
"""Codecs of the FFCV file with `--codec difference`, by field; the mask has its own."""
