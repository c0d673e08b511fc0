"""Where a conversion works until it is done, so that it can be killed and resumed at any time.

For the folder `SHARDS` all work happens in `SHARDS.partial`, which becomes `SHARDS` in one
rename. `.SHARDS.job` beside it says what job that work belongs to, and is locked while one is
running. It is written before the work folder and removed after the rename, so a work folder
always has its job; one without is somebody else's and is never touched.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import click

from convert.errors import DataError, RecordError
from convert.files import sync_folder
from convert.manifest import MANIFEST

Job = Mapping[str, Any]
"""What must be equal for a run to go on where another stopped."""


def check_target(shards: Path, force: bool) -> None:
    """DataError unless a shard folder may be written under this name."""
    if not shards.name or not shards.absolute().parent.is_dir():
        raise DataError(f"{shards}: not a new folder in an existing one; choose another name")
    # One rename can put a folder in the place of neither.
    if shards.is_symlink():
        raise DataError(f"{shards}: is a link; give the name of the folder itself")
    if shards.is_mount():
        raise DataError(f"{shards}: is a mount point; give the name of a folder inside it")
    if not shards.exists():
        return
    if not shards.is_dir() or (any(shards.iterdir()) and not (shards / MANIFEST).exists()):
        raise DataError(
            f"{shards}: exists and is not a finished shard folder; choose another name or remove it"
        )
    if any(shards.iterdir()) and not force:
        raise DataError(f"{shards}: exists already; --force replaces it")


@contextmanager
def work_folder(shards: Path, job: Job, *, resume: bool, force: bool) -> Iterator[Path]:
    """The locked work folder of ``shards``, with what an earlier run of ``job`` left if wanted.

    A block that ends well publishes the folder. After bad input the work is removed, unless
    ``resume`` asks to keep what is done; after any other trouble it stays, if there is any.
    Work with its manifest is all done and always stays.
    Raises DataError where another converter is at work or the work is not of this job.
    """
    work = shards.with_name(f"{shards.name}.partial")
    try:
        with _locked_job_file(shards.with_name(f".{shards.name}.job"), shards) as file:
            _claim(work, file, job, resume=resume, force=force)
            try:
                yield work
            except BaseException as error:
                if _is_worthless(work, error, resume):
                    _remove(work)
                elif isinstance(error, KeyboardInterrupt | SystemExit):
                    click.echo(f"{work}: unfinished; --resume goes on with it", err=True)
                raise
            _publish(work, shards)
    except OSError as error:
        raise DataError(
            f"{error.filename or work}: {error.strerror or error}; mend that and run again with "
            f"--resume, or delete {work}"
        ) from None


def _is_worthless(work: Path, error: BaseException, resume: bool) -> bool:
    """Whether nothing in the work folder is worth going on with after an error."""
    if (work / MANIFEST).exists():  # all is done, though its parts may be gone already
        return False
    bad_input = isinstance(error, RecordError) and not resume
    return bad_input or not any(work.glob("*/*.json"))


@contextmanager
def _locked_job_file(path: Path, shards: Path) -> Iterator[TextIO]:
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one who held the lock before may have removed the file since it was opened.
            if os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            raise DataError(f"{shards}: another converter is writing it; wait for it") from None
        try:
            yield file
        finally:
            if not shards.with_name(f"{shards.name}.partial").exists():
                path.unlink()


def _claim(work: Path, file: TextIO, job: Job, *, resume: bool, force: bool) -> None:
    """Make the work folder ours: new, or taken over from an earlier run of the same job."""
    file.seek(0)
    text = file.read()
    if work.exists():
        if not text:
            raise DataError(f"{work}: is in the way and not ours; move it away")
        if not (resume or force):
            raise DataError(
                f"{work}: an unfinished run left this; --resume goes on with it, --force starts "
                "over"
            )
        if not force and json.loads(text) != job:
            raise DataError(
                f"{work}: was begun with other arguments or another data set; --force starts over"
            )
        if resume and json.loads(text) == job:
            return
        _remove(work)
    file.truncate(0)
    json.dump(job, file)
    file.flush()
    os.fsync(file.fileno())
    work.mkdir()


def _remove(work: Path) -> None:
    """Remove the work folder, even while a worker far away still writes into it."""
    # A name of its own: what a run that was killed right here has left is not in the way.
    removed = work.with_name(f".{work.name}.removed-{os.getpid()}")
    work.rename(removed)
    shutil.rmtree(removed)


def _publish(work: Path, shards: Path) -> None:
    """The finished folder appears under its name in one step."""
    replaced = shards.with_name(f"{shards.name}.replaced")
    if shards.exists() and any(shards.iterdir()):
        if replaced.exists():
            raise DataError(f"{replaced}: is in the way; move it away, then --resume --force")
        shards.rename(replaced)
        work.rename(shards)
        sync_folder(shards.absolute().parent)
        shutil.rmtree(
            replaced, ignore_errors=True
        )  # the new one stands, whatever is left of the old
        if replaced.exists():
            click.echo(f"{replaced}: could not be removed; delete it", err=True)
        return
    if shards.exists():
        shards.rmdir()
    work.rename(shards)
    sync_folder(shards.absolute().parent)
