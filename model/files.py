"""Atomic writes, folder locks, and files of torch read without running code.

Whatever prevents one of them is raised as ModelError.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import torch

from maskdepth.convert.files import replacing, replacing_together, require_regular
from maskdepth.convert.outputs import require_writable_folder
from maskdepth.model.errors import ModelError


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents. Raises ModelError if that fails."""
    with _os_errors(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes; make it first, and remove it if it stays empty.

    The lock is on the folder itself and ends with the process. Raises ModelError if another
    process holds it. Prints a warning where the file system cannot lock folders.
    """
    require_writable_folder(folder)
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    make_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)
        with suppress(OSError):  # not empty
            for made in missing:
                made.rmdir()


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ModelError(
            f"{folder}: another process is using it; wait until it ends, or name another folder"
        ) from None
    except OSError as error:  # some network file systems do not lock folders
        warning = f"{folder}: cannot be locked ({error.strerror}); start no other run in it"
        click.echo(f"Warning: {warning}", err=True)


def replace_bytes(path: Path, content: bytes) -> None:
    """`replace_file` with this content."""
    replace_file(path, lambda temporary: temporary.write_bytes(content))


def replace_together(contents: Mapping[Path, bytes]) -> None:
    """Write several files of one folder; no interrupt leaves some of them.

    See `convert.files.replacing_together`. Raises ModelError as `replace_file`.
    """
    (folder,) = {path.parent for path in contents}
    with _os_errors(folder), replacing_together(list(contents)) as temporaries:
        for temporary, content in zip(temporaries, contents.values(), strict=True):
            temporary.write_bytes(content)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically and durably, see `convert.files.replacing`.

    ``write`` gets a temporary path. Raises ModelError if the operating system reports an error,
    such as a full disk.
    """
    with _os_errors(path), replacing(path) as temporary:
        write(temporary)


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Raise a ModelError that names the path in place of an OSError."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"{path}: cannot be written: {error.strerror or error}") from None


def load_plain(path: Path) -> object:
    """What `torch.save` wrote of tensors and plain values, on the CPU. Raises ModelError."""
    require_regular(path)
    try:
        _check_entries(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the type that torch raises depends on the bytes of the file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch advises to run what is in the file
            reason = "not readable without running code"
        raise ModelError(
            f"{path}: expected a file of tensors and plain values, found a corrupt file or one "
            f"that holds code ({reason}); files that hold code are refused"
        ) from None


def _check_entries(path: Path) -> None:
    """ValueError if an entry differs from its CRC-32, which `torch.load` does not compare."""
    if zipfile.is_zipfile(path):  # not the format before torch 1.6
        with zipfile.ZipFile(path) as archive:
            if (name := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {name} differs")
