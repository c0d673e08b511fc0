"""Writes all files of a file system through to its disk in one call."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)


def sync_file_system(folder: Path) -> None:
    """Wait until what was written to the file system of a folder is on its disk; syncfs(2).

    Faster than to synchronise each of many small files. Raises OSError if the disk lost some.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _libc.syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)
