"""What a folder holds: a data set or shards."""

from __future__ import annotations

from pathlib import Path

from maskdepth.convert.layout import Layout
from maskdepth.convert.manifest import depth_source, read_manifest
from maskdepth.convert.names import FOLDERS
from maskdepth.convert.source import read_source


def is_dataset(path: str | Path) -> bool:
    """Whether a folder is laid out as a data set; if not, it is read as a shard folder."""
    return (Path(path) / FOLDERS["fg_bg"]).is_dir()


def read_depth_source(path: str | Path) -> str:
    """Where the depth maps come from, as `Loader.depth_source`; DataError as in `read_layout`."""
    if is_dataset(path):
        return depth_source(read_source(path).metadata)
    return read_manifest(path).depth_source


def read_layout(path: str | Path) -> Layout:
    """Layout of a shard folder, or of a data set folder; DataError if it is neither."""
    return read_source(path).layout if is_dataset(path) else read_manifest(path).layout
