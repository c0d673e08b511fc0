"""The job file of a work folder: what work it is, and the lock of the converter that does it.

It is `.job` in the work folder, and beside that while the folder is made or published. A work
folder without one belongs to someone else.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from maskdepth.convert.contents import JOB
from maskdepth.convert.destination import Destination
from maskdepth.convert.errors import DataError
from maskdepth.convert.files import require_regular


@contextmanager
def locked_job_file(destination: Destination) -> Iterator[BinaryIO]:
    """Open and lock the job file, created if missing; in the block it is beside the work folder.

    At the end it is moved into the work folder if there is one of this job, and removed otherwise.
    Raises DataError if another converter holds it.
    """
    target, beside = destination.path, destination.job
    inside = destination.work / JOB
    path = inside if inside.exists() else beside
    try:
        if path.exists():
            require_regular(path)
        # Opening it inside must not create another one if its holder moves it at this moment.
        create = os.O_CREAT if path == beside else 0
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | create, 0o666), "a+b")
    except FileNotFoundError:
        raise _is_busy(target) from None
    with file:
        _lock(file, path, destination)
        # Its holder may have moved or removed it after it was opened, or looked for, here.
        if (path == beside and inside.exists()) or not _is_at(file, path):
            raise _is_busy(target)
        if path == inside:
            inside.rename(beside)
        try:
            yield file
        finally:
            if _is_at(file, beside):
                if destination.work.is_dir() and os.fstat(file.fileno()).st_size:
                    beside.rename(inside)
                else:
                    beside.unlink()


def _lock(file: BinaryIO, path: Path, destination: Destination) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _is_busy(destination.path) from None
    except OSError as error:
        if path == destination.job and not os.fstat(file.fileno()).st_size:
            path.unlink()
        raise DataError(
            f"{destination.path}: its file system cannot lock files ({error.strerror}), so that "
            "two runs could write it at once; write to another disk, and copy the result"
        ) from None


def _is_busy(target: Path) -> DataError:
    return DataError(f"{target}: another converter is writing it; wait for it")


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def write_job(file: BinaryIO, text: bytes) -> None:
    """Replace what a job file records, durably."""
    file.truncate(0)
    file.write(text)
    file.flush()
    os.fsync(file.fileno())


def differing(text: bytes, job: dict[str, object]) -> str:
    """The first names of what differs between the recorded job of a work folder and another."""
    try:
        found, expected = _leaves(json.loads(text)), _leaves(job)
    except (ValueError, AttributeError, RecursionError):
        return "its record cannot be read"
    missing = object()
    names = sorted(found.keys() | expected.keys())
    differ = [name for name in names if found.get(name, missing) != expected.get(name, missing)]
    return ", ".join(differ[:5])


def _leaves(job: dict[str, object]) -> dict[str, object]:
    """The values in nested dictionaries, by their last key."""
    found: dict[str, object] = {}
    for name, value in job.items():
        found |= _leaves(value) if isinstance(value, dict) else {name: value}
    return found
