"""How each field may be stored: the table of codecs, from which all other modules derive it.

`convert.codecs` has their functions. This module does not import it, because the command line reads
the names for its help, and numba takes long to import.
"""

from __future__ import annotations

from typing import NamedTuple


class Codec(NamedTuple):
    """One way to store a field."""

    field: str  # the field that it stores
    option: str  # its name on the command line, a value of `--FIELD-codec`
    is_jpeg: bool  # whether the stored bytes are a JPEG: FFCV has an image field for them
    suffix: str  # ending of the member in a tar shard


CODECS = {
    "jpeg": Codec("fg_bg", "jpeg", is_jpeg=True, suffix="jpg"),
    "runs": Codec("mask", "runs", is_jpeg=False, suffix="runs"),
    "jpeg-mask": Codec("mask", "jpeg", is_jpeg=True, suffix="jpg"),
    "jpeg-luma": Codec("depth", "luma", is_jpeg=True, suffix="jpg"),
    "jpeg-gray": Codec("depth", "jpeg", is_jpeg=True, suffix="jpg"),
}
"""Each codec by its name in the manifest; the first one of a field is its default."""


def codec_options(field: str) -> dict[str, str]:
    """Name of each codec of a field by its name on the command line, the default first."""
    return {codec.option: name for name, codec in CODECS.items() if codec.field == field}
