"""How the maps in a folder of `depth --of backgrounds` were made: its file `.depth.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from maskdepth.convert.errors import DataError, reading
from maskdepth.convert.files import read_regular
from maskdepth.convert.schema import Schema, parse_table
from maskdepth.convert.source import DepthScale

ABOUT = ".depth.json"
"""Hidden, as it is no image."""
FORMAT, VERSION = "maskdepth-depth", 1


class About(Schema):
    """The content of the file. depth_model: as in `dataset.json`."""

    format: Literal["maskdepth-depth"]
    version: Literal[1]
    depth_model: dict[str, Any]
    depth_scale: DepthScale | None = None


def read_about(folder: Path) -> About | None:
    """What is said of the maps in a folder; None for maps from elsewhere, DataError if corrupt."""
    path = folder / ABOUT
    try:
        with reading(path):
            if not path.exists():
                return None
            return About.from_json(parse_table(read_regular(path)))
    except ValueError as error:
        raise DataError(f"{path}: {error}; estimate again, or delete it") from None
