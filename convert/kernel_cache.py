"""Gives numba a folder for compiled kernels where it would find none.

Numba caches kernels beside the code, or else in the user's cache folder. If it can write to
neither, as for a user without a home in an image that root built, no kernel can be imported.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def provide() -> None:
    """Set NUMBA_CACHE_DIR to a folder of this user alone, unless it is set or not needed."""
    if os.environ.get("NUMBA_CACHE_DIR") or any(map(_is_writable, _folders_of_numba())):
        return
    with suppress(OSError):  # if nothing is writable, numba reports it
        os.environ["NUMBA_CACHE_DIR"] = _private_folder()
    if "numba" in sys.modules:  # it has read the variable already
        from numba.core import config

        config.reload_config()


def _folders_of_numba() -> tuple[str, str]:
    """Where numba looks: beside the code, and in the user's cache folder."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(os.path.dirname(__file__), "__pycache__"), f"{user_cache}/numba"


def _is_writable(folder: str) -> bool:
    """Whether this process may write to a folder, or create it."""
    while not os.path.lexists(folder) and os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK, effective_ids=True)


def _private_folder() -> str:
    """A temporary folder that only this user can write to; the same each time if possible."""
    # Imported here because it takes time and is rarely needed.
    import stat
    import tempfile

    path = os.path.join(tempfile.gettempdir(), f"maskdepth-kernels-{os.getuid()}")
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    status = os.lstat(path)
    # Kernels are executed, so no other user may be able to write them.
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if is_ours and not status.st_mode & 0o077:
        return path
    return tempfile.mkdtemp(prefix="maskdepth-kernels-")
