"""A folder for compiled kernels where numba would find none.

Numba keeps them beside the code, or else in the user's cache folder, and where it can write to
neither no module with a kernel can be imported: in an image that root built, run by a user who
has no home.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

_VARIABLE = "NUMBA_CACHE_DIR"


def provide() -> None:
    """Set NUMBA_CACHE_DIR to a folder of this user alone, unless it is set or not needed."""
    if os.environ.get(_VARIABLE) or any(_is_open(folder) for folder in _folders_of_numba()):
        return
    with suppress(OSError):  # nowhere to write at all: numba says so
        os.environ[_VARIABLE] = _private_folder()
    if "numba" in sys.modules:  # it has read the variable already
        from numba.core import config

        config.reload_config()


def _folders_of_numba() -> tuple[str, str]:
    """Where numba looks: beside the code, and in the user's cache folder."""
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(os.path.dirname(__file__), "__pycache__"), os.path.join(user, "numba")


def _is_open(folder: str) -> bool:
    """Whether we may write to a folder, or make it."""
    while not os.path.lexists(folder) and os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK, effective_ids=True)


def _private_folder() -> str:
    """A folder below that of temporary files, the same each time if nobody else has its name."""
    # Imported here, as it takes time and is hardly ever needed.
    import stat
    import tempfile

    path = os.path.join(tempfile.gettempdir(), f"maskdepth-kernels-{os.getuid()}")
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    facts = os.lstat(path)
    # What lies there is run as code, so nobody else may have put it there.
    ours = stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid()
    if ours and not facts.st_mode & 0o077:
        return path
    return tempfile.mkdtemp(prefix="maskdepth-kernels-")
