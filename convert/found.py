"""What a path is that a user has named in the place of another, in words for the error."""

from __future__ import annotations

import stat
from os.path import exists, isdir
from pathlib import Path

NOTHING, FILE, FOLDER = "nothing", "a file", "a folder"
SHARDS, DATA_SET, RUN = "a shard folder", "a data set", "the folder of a run"


def found_at(path: Path) -> str:
    """One of the words above; OSError where the path may not be looked at."""
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return NOTHING
    if not is_folder:
        return FILE
    if exists(path / "manifest.json"):
        return SHARDS
    if isdir(path / "bg") or isdir(path / "fg_bg"):
        return DATA_SET
    if exists(path / "config.json") and exists(path / "last.pt"):
        return RUN
    return FOLDER
