"""The work folder of `pack`, `compose` and `depth`, which can be killed and resumed at any time.

A folder `OUT` is written in `OUT.partial` and published by one rename; a mount point is another
`Destination`. The file `.job` in the work folder says what work it is (`convert.job_file`): a work
folder without one is not touched, and a published one has none. What is only needed until the end
is in `parts`, and finished parts have a JSON file there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click

from maskdepth.convert.contents import (
    JOB,
    PARTS,
    Content,
    foreign_files,
    is_own,
    require_content,
    require_own,
)
from maskdepth.convert.destination import Destination
from maskdepth.convert.errors import DataError, RecordError, is_users
from maskdepth.convert.files import REPLACED, remove_replaced
from maskdepth.convert.job_file import differing, locked_job_file, write_job
from maskdepth.convert.manifest import MANIFEST, read_manifest
from maskdepth.convert.mounted import MountPoint, destination_of
from maskdepth.convert.outputs import require_writable_folder

_LONGEST_NAME = 220  # of 255 bytes; the names of the work folder and what it leaves are longer


@dataclass(frozen=True, kw_only=True)
class Output:
    """A kind of folder that a command writes.

    last: the file that is written last, so that a work folder with it is complete.
    names: paths of all files that the command writes in it, in any version.
    content: of a folder that is complete, which it reads.
    is_finished: whether an existing folder is of this kind, and complete.
    is_slow: whether finished parts are worth keeping after corrupt input.
    may_be_mount: whether no reader takes the folder for complete while ``last`` is missing in it.
    """

    name: str
    command: str
    last: str
    names: re.Pattern[str]
    content: Callable[[Path], Content]
    is_finished: Callable[[Path], bool]
    is_slow: bool = False
    may_be_mount: bool = False


SHARD_FOLDER = Output(
    name="shard folder",
    command="pack",
    last=MANIFEST,
    names=re.compile(
        r"manifest\.json|(samples|bases|backgrounds|placements|others)\b[\w.-]*\.(beton|npy|tar|idx)"
    ),
    content=lambda folder: {".": frozenset({MANIFEST, *read_manifest(folder).files})},
    is_finished=lambda folder: (folder / MANIFEST).exists(),
    may_be_mount=True,
)


def check_target(target: Path, kind: Output, *, force: bool, hint: str = "") -> None:
    """DataError unless a folder of this kind may be written under this name.

    hint: ends the message about a folder that is something else.
    """
    if not target.name or not target.absolute().parent.is_dir():
        raise DataError(f"{target}: not a new folder in an existing one; choose another name")
    destination = destination_of(target)
    is_mount = isinstance(destination, MountPoint)
    require_writable_folder(destination.written)
    if (length := len(os.fsencode(target.name))) > _LONGEST_NAME:
        raise DataError(f"{target}: found a name of {length} bytes, expected {_LONGEST_NAME}")
    # A rename cannot replace it with a folder.
    if target.is_symlink():
        raise DataError(f"{target}: is a link; give the name of the folder itself")
    if is_mount and not (kind.may_be_mount and target.is_dir()):
        raise DataError(f"{target}: is a mount point; give the name of a folder inside it")
    if not target.exists() or (target.is_dir() and destination.is_vacant()):
        return
    is_finished = kind.is_finished(target)
    if not is_finished and not destination.is_publishing(kind.last):
        raise DataError(
            f"{target}: found a folder or file that is no finished {kind.name}; choose another "
            f"name{hint}"
        )
    if is_finished:
        remove_replaced(target)  # a run may have been killed while it did so
    if is_finished and not force:
        raise DataError(f"{target}: exists already; --force replaces it")
    if foreign := min(foreign_files(target, kind.names), default=None):
        raise DataError(
            f"{target}: found {foreign}, which `{kind.command}` has not written; --force would "
            "remove it: move it away, or choose another name"
        )
    require_writable_folder(target)  # otherwise it cannot be moved, at the end of all the work


@contextmanager
def work_folder(
    target: Path,
    kind: Output,
    job: dict[str, object],
    *,
    resume: bool,
    force: bool,
    replace: bool | None = None,
) -> Iterator[Path]:
    """The locked work folder of ``target``; ``resume`` keeps what an earlier run of ``job`` left.

    A block that succeeds publishes the folder, without `PARTS`. After corrupt input the work is
    removed, unless ``resume`` asks to keep what is done, or it is slow; after any other error, and
    if it is complete, it stays. ``replace``: whether a finished folder is replaced, by default with
    ``force``, which also starts over. Raises DataError if another converter is running or the work
    belongs to another job, or if there is a file in it that the command has not written: that is
    neither published nor removed.
    """
    destination = destination_of(target)
    work = destination.work
    replace = force if replace is None else replace
    try:
        with locked_job_file(destination) as file:
            _remove_leftovers(work, kind)
            _claim(destination, file, job, kind, resume=resume, force=force)
            destination.job.rename(work / JOB)
            try:
                yield work
                require_content(work, kind.content(work), kind.last, kind.command)
                # A failed cleanup must not fail finished work.
                shutil.rmtree(work / PARTS, ignore_errors=True)
            except BaseException as error:
                is_corrupt = isinstance(error, RecordError) and not (resume or kind.is_slow)
                is_complete = (work / kind.last).exists()  # its parts may be removed already
                if not is_complete and (is_corrupt or not any(work.glob(f"{PARTS}/*.json"))):
                    with suppress(OSError):  # the folder may be gone, which is what ended the run
                        removed = _remove(work, kind)
                        if removed and isinstance(error, KeyboardInterrupt | SystemExit):
                            click.echo(f"{target}: no part was finished, nothing is kept", err=True)
                elif isinstance(error, KeyboardInterrupt | SystemExit):
                    click.echo(f"{work}: unfinished; --resume continues it", err=True)
                raise
            (work / JOB).rename(destination.job)
            _publish(destination, kind, force=replace)
            if (target / PARTS).exists():
                click.echo(f"{target / PARTS}: could not be removed; delete it", err=True)
    except OSError as error:
        if not is_users(error):
            raise
        reason = f"{error.filename or work}: {error.strerror or error}; fix that and run again with"
        if os.path.lexists(work / REPLACED):
            raise DataError(f"{reason} --resume; the old folder is {work / REPLACED}") from None
        raise DataError(f"{reason} --resume, or delete {work}") from None


def work_of(target: Path) -> Path:
    """The work folder of an output."""
    return destination_of(target).work


def _publish(destination: Destination, kind: Output, *, force: bool) -> None:
    """Give a finished folder its name, unless something is there now that must not be replaced."""
    try:
        check_target(destination.path, kind, force=force)
    except DataError as error:
        raise DataError(
            f"{error.message}; the finished {kind.name} is {destination.work}: --resume renames it"
        ) from None
    destination.publish(kind.content, kind.last, replace=force)


def _claim(
    destination: Destination, file: BinaryIO, job: dict[str, object], kind: Output, *,
    resume: bool, force: bool,
) -> None:  # fmt: skip
    """Take the work folder: a new one, or that of an earlier run of the same job.

    Starting over restores the folder that an earlier run was killed in the middle of replacing.
    """
    work = destination.work
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
            destination.take_back(kind.content, kind.last)
            require_own(work, kind.names, kind.command)
            return
        if not force:
            raise DataError(
                f"{work}: was begun with other arguments or other files ({differing(text, job)}); "
                "give those again, or start over with --force"
            )
        require_own(work, kind.names, kind.command)
        destination.take_back(kind.content, kind.last)
        destination.restore(kind.last)
        _remove(work, kind)
    write_job(file, own)
    work.mkdir()


def _remove(work: Path, kind: Output) -> bool:
    """Remove the work folder, even while a worker on another machine still writes to it.

    Returns whether it did: with a file in it that the command has not written, it stays.
    """
    if not is_own(work, kind.names, kind.command):
        return False
    # A name of its own, so that the remains of a killed run do not collide.
    removed = tempfile.mkdtemp(prefix=f".{work.name}.removed-", dir=work.parent)
    work.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)
    if os.path.exists(removed):  # reported only, because it must not hide another error
        click.echo(f"{removed}: could not be removed; delete it", err=True)
    return True


def _remove_leftovers(work: Path, kind: Output) -> None:
    """Remove what runs for the same output have left that were killed in `_remove`.

    A folder with a file in it that the command has not written stays.
    """
    name = re.compile(re.escape(f".{work.name}.removed-") + r"[a-z0-9_]{8}")
    for folder in filter(name.fullmatch, os.listdir(work.absolute().parent)):
        path = work.with_name(folder)
        if path.is_symlink() or not path.is_dir():
            continue
        if is_own(path, kind.names, kind.command):
            shutil.rmtree(path, ignore_errors=True)
