"""The work folder of a conversion, so that it can be killed and resumed at any time.

The shard folder `SHARDS` is written in `SHARDS.partial` and published by one rename. The file
`.SHARDS.job` beside it records the job of that work, and is locked while a converter runs. It
exists at least as long as the work folder: one without belongs to someone else and is not touched.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from convert.errors import DataError, RecordError, is_users
from convert.files import (
    REPLACED,
    publish_folder,
    remove_replaced,
    replace_folder,
    restore_replaced,
)
from convert.manifest import MANIFEST

_LONGEST_NAME = 220  # of 255 bytes; the names of the work folder and what it leaves are longer

_WRITTEN = re.compile(
    r"manifest\.json|(samples|bases|backgrounds|placements)\b[\w.-]*\.(beton|npy|tar|idx)|"
    + re.escape(REPLACED)
)
"""Names of the files of a shard folder, of any version."""


def check_target(shards: Path, force: bool) -> None:
    """DataError unless a shard folder may be written under this name."""
    if not shards.name or not shards.absolute().parent.is_dir():
        raise DataError(f"{shards}: not a new folder in an existing one; choose another name")
    if (length := len(os.fsencode(shards.name))) > _LONGEST_NAME:
        raise DataError(f"{shards}: found a name of {length} bytes, expected {_LONGEST_NAME}")
    # A rename can replace neither of these with a folder.
    if shards.is_symlink():
        raise DataError(f"{shards}: is a link; give the name of the folder itself")
    if shards.is_mount():
        raise DataError(f"{shards}: is a mount point; give the name of a folder inside it")
    if not shards.exists() or (shards.is_dir() and not any(shards.iterdir())):
        return
    if not (shards / MANIFEST).exists():
        raise DataError(
            f"{shards}: found a folder or file that is no finished shard folder; choose another "
            "name (the order is DATASET SHARDS)"
        )
    remove_replaced(shards)  # a run may have been killed while it did so
    if not force:
        raise DataError(f"{shards}: exists already; --force replaces it")
    if foreign := sorted(p.name for p in shards.iterdir() if not _WRITTEN.fullmatch(p.name)):
        raise DataError(
            f"{shards}: found {foreign[0]}, which `pack` has not written; --force would remove it: "
            "move it away, or choose another name"
        )


@contextmanager
def work_folder(
    shards: Path, job: dict[str, object], *, resume: bool, force: bool
) -> Iterator[Path]:
    """The locked work folder of ``shards``; ``resume`` keeps what an earlier run of ``job`` left.

    A block that succeeds publishes the folder. After corrupt input the work is removed, unless
    ``resume`` asks to keep what is done; after any other error, and if it is complete, it stays.
    Raises DataError if another converter is running or the work belongs to another job.
    """
    work = shards.with_name(f"{shards.name}.partial")
    try:
        with _locked_job_file(shards, work) as file:
            _claim(work, file, job, shards, resume=resume, force=force)
            try:
                yield work
            except BaseException as error:
                is_corrupt = isinstance(error, RecordError) and not resume
                is_complete = (work / MANIFEST).exists()  # its parts may be removed already
                if not is_complete and (is_corrupt or not any(work.glob("*/*.json"))):
                    _remove(work)
                elif isinstance(error, KeyboardInterrupt | SystemExit):
                    click.echo(f"{work}: unfinished; --resume continues it", err=True)
                raise
            _publish(work, shards, force=force)
    except OSError as error:
        if not is_users(error):
            raise
        reason = f"{error.filename or work}: {error.strerror or error}; fix that and run again with"
        if os.path.lexists(work / REPLACED):
            raise DataError(f"{reason} --resume; the old folder is {work / REPLACED}") from None
        raise DataError(f"{reason} --resume, or delete {work}") from None


def _publish(work: Path, shards: Path, *, force: bool) -> None:
    """Give finished shards their name, unless something is there now that must not be replaced."""
    try:
        check_target(shards, force)
    except DataError as error:
        raise DataError(
            f"{error.message}; the finished shards are in {work}: --resume renames them"
        ) from None
    if force:
        replace_folder(work, shards)
    else:
        publish_folder(work, shards)


@contextmanager
def _locked_job_file(shards: Path, work: Path) -> Iterator[BinaryIO]:
    """Open and lock the job file, created if missing; remove it at the end if no work is left."""
    path = shards.with_name(f".{shards.name}.job")
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except (BlockingIOError, FileNotFoundError):
            is_ours = False
        if not is_ours:  # locked, or removed by the previous holder after it was opened here
            raise DataError(f"{shards}: another converter is writing it; wait for it")
        try:
            yield file
        finally:
            if not work.exists() or not os.fstat(file.fileno()).st_size:  # or it is not ours
                path.unlink()


def _claim(
    work: Path, file: BinaryIO, job: dict[str, object], shards: Path, *, resume: bool, force: bool
) -> None:
    """Take the work folder: a new one, or that of an earlier run of the same job.

    Starting over restores the shards that an earlier run was killed in the middle of replacing.
    """
    file.seek(0)
    text, own = file.read(), json.dumps(job).encode()
    if work.exists():
        if not text:
            raise DataError(f"{work}: exists and was not made by a converter; move it away")
        if not (resume or force):
            raise DataError(
                f"{work}: an unfinished run left this; --resume continues it, --force starts over"
            )
        if resume and text == own:
            return
        if not force:
            raise DataError(
                f"{work}: was begun with other arguments or another data set; --force starts over"
            )
        restore_replaced(work, shards)
        _remove(work)
    file.truncate(0)
    file.write(own)
    file.flush()
    os.fsync(file.fileno())
    work.mkdir()


def _remove(work: Path) -> None:
    """Remove the work folder, even while a worker on another machine still writes to it."""
    # The name has the process in it, so that the remains of a killed run do not collide.
    removed = work.with_name(f".{work.name}.removed-{os.getpid()}")
    work.rename(removed)
    shutil.rmtree(removed)
