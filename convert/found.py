"""What a path is that a user has named in the place of another, in words for the error.

And which entries of a folder are a user's: not those that file managers add.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from os.path import exists, isdir
from pathlib import Path

NOTHING, FILE, FOLDER = "nothing", "a file", "a folder"
SHARDS, DATA_SET, RUN = "a shard folder", "a data set", "the folder of a run"

_IGNORED = frozenset({
    "thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "icon\r", "__macosx", "@eadir",
})  # fmt: skip
"""Files and folders that file managers, archives and network disks add, in lower case."""
_HIDDEN = frozenset({".ds_store", ".localized", ".directory"})
"""Hidden ones of that kind, as are those that begin with `_OF_MACOS`."""
_OF_MACOS = "._"


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


def visible(names: Iterable[str]) -> list[str]:
    """Sorted names, without hidden files and those that no person has put into a folder."""
    return sorted(n for n in names if n[0] != "." and not is_of_system(n))


def is_of_system(name: str) -> bool:
    """Whether a file or folder has a name that no person gives, but a file manager may."""
    plain = name.casefold()
    return plain in _IGNORED or plain in _HIDDEN or plain.startswith(_OF_MACOS)


def is_mount_point(folder: Path) -> bool:
    """Whether a file system is mounted at a folder, which no other folder can be renamed to.

    `Path.is_mount` does not see a folder that is mounted elsewhere on its own file system.
    """
    if folder.is_mount():
        return True
    place = os.fsencode(os.path.realpath(folder))
    for octal in (b"\\134", b"\\040", b"\\011", b"\\012"):  # as the kernel writes these
        place = place.replace(bytes([int(octal[1:], 8)]), octal)
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:  # not mounted, as in some sandboxes
        return False
    return any(line.split()[4] == place for line in mounts)


def is_of_mount(folder: Path, name: str) -> bool:
    """Whether an entry is the folder that a new ext4 file system has."""
    return name == "lost+found" and is_mount_point(folder)


def is_vacant(folder: Path) -> bool:
    """Whether nothing but files of the system are in a folder. Raises OSError."""
    with os.scandir(folder) as entries:
        return all(is_of_system(e.name) and not e.is_dir(follow_symlinks=False) for e in entries)
