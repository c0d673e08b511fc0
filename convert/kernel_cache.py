"""Gives numba and matplotlib a folder for their caches where they would find none.

Numba caches kernels beside the code, or else in the user's cache folder. If it can write to
neither, as for a user without a home in an image that root built, no kernel can be imported.
Matplotlib makes a folder for each process then, and says so.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

_SHARED_MEMORY = "/dev/shm"


def provide() -> None:
    """Set NUMBA_CACHE_DIR and MPLCONFIGDIR to a folder of this user alone, if they need one.

    They do not if they are set, or if the folders that are used without them can be written.
    """
    kernels = os.environ.get("NUMBA_CACHE_DIR") or any(map(_is_writable, _folders_of_numba()))
    pictures = os.environ.get("MPLCONFIGDIR") or all(map(_is_writable, _folders_of_matplotlib()))
    if kernels and pictures:
        return
    with suppress(OSError):  # if nothing is writable: `require_folder`
        private = _private_folder()
        if not pictures:
            os.environ["MPLCONFIGDIR"] = os.path.join(private, "matplotlib")
        if not kernels:
            os.environ["NUMBA_CACHE_DIR"] = private
    if "numba" in sys.modules:  # it has read the variable already
        from numba.core import config

        config.reload_config()


def require_folder() -> None:
    """End the program with one line and exit code 2 if kernels could not be imported."""
    folders = [*filter(None, [os.environ.get("NUMBA_CACHE_DIR")]), *_folders_of_numba()]
    if not any(map(_is_writable, folders)):
        found = ", ".join(folders)
        os.write(2, os.fsencode(
            f"Error: kernels are cached in a folder: found none of {found} and the folders for "
            "temporary files writable; set NUMBA_CACHE_DIR to a folder that is\n"
        ))  # fmt: skip
        sys.exit(2)


def _folders_of_numba() -> tuple[str, str]:
    """Where numba looks: beside the code, and in the user's cache folder."""
    return os.path.join(os.path.dirname(__file__), "__pycache__"), f"{_user_cache()}/numba"


def _folders_of_matplotlib() -> tuple[str, str]:
    """What matplotlib needs: a folder for its configuration, and one for its cache."""
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return f"{config}/matplotlib", f"{_user_cache()}/matplotlib"


def _user_cache() -> str:
    return os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")


def _is_writable(folder: str) -> bool:
    """Whether this process may write to a folder, or create it."""
    folder = os.path.abspath(folder)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK, effective_ids=True)


def _private_folder() -> str:
    """A temporary folder that only this user can write to; the same each time if possible."""
    # Imported here because it takes time and is rarely needed.
    import stat
    import tempfile

    try:
        parent = tempfile.gettempdir()
    except FileNotFoundError:  # in a container that is read only, this may be all
        parent = _SHARED_MEMORY
    path = os.path.join(parent, f"maskdepth-kernels-{os.getuid()}")
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    status = os.lstat(path)
    # Kernels are executed, so no other user may be able to write them.
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if is_ours and not status.st_mode & 0o077:
        return path
    return tempfile.mkdtemp(prefix="maskdepth-kernels-", dir=parent)
