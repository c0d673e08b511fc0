"""Which files in an output's folder its command has written, and which somebody else has put there.

Only the former are published or removed; the latter end the run with their name. What file
managers add (`.DS_Store`) is ignored: it stays where it is, and is removed with its folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from maskdepth.convert.errors import DataError, one_line
from maskdepth.convert.files import REPLACED
from maskdepth.convert.found import is_of_mount, is_of_system

Content = Mapping[str, frozenset[str]]
"""The names of all files of a finished output by their folder in it, which is "." for its own."""

PARTS = "parts"
JOB = ".job"  # hidden: no file of an output is, so it is never taken for one
MOUNTED = ".maskdepth-partial"
"""The work folder of an output that is a mount point, in it. Hidden, as `REPLACED`."""

_PREPARED = r"(bg|fg)_\d+\.npy"
_WORKING = re.compile(
    rf"{re.escape(JOB)}|(.*/)?\.[^/]+\.tmp"
    rf"|{PARTS}/(part-\d+\.(json|range\.json|\w+\.bin|\w+\.npy)|{_PREPARED})"
    rf"|{PARTS}/source/(bg/bg_\d+\.jpg|fg/fg_\d+\.png|bg_depth/bg_\d+\.png"
    rf"|placements\.npy|others\.npy|{PARTS}/{_PREPARED})"
)
"""Paths of what `pack`, `compose` and `depth` write in a work folder beside the output."""
_MOUNTED = re.compile(
    rf"{re.escape(MOUNTED)}(\.job)?|\.{re.escape(MOUNTED)}\.removed-[a-z0-9_]{{8}}"
)
_REMOVED = re.compile(r"\.nfs[0-9a-f]{16,}|\.fuse_hidden[0-9a-f]+")
"""What NFS and FUSE make of a file that was removed while it was open, until that is closed."""


def is_beside(folder: Path, name: str) -> bool:
    """Whether an entry of an output's folder is not of it, but the system's or work in a mount."""
    return bool(_MOUNTED.fullmatch(name)) or is_of_system(name) or is_of_mount(folder, name)


def foreign_files(folder: Path, names: re.Pattern[str]) -> Iterator[str]:
    """Paths of the files and links in an output that do not have one of the names of its files."""
    for inside, _, files in _walk(folder):
        for name in files:
            path = name if inside == os.curdir else f"{inside}/{name}"
            if not names.fullmatch(path):
                yield path


def is_own(work: Path, names: re.Pattern[str], command: str) -> bool:
    """Whether a command has written all files in a work folder; if not, that is reported."""
    foreign = _foreign_in_work(work, names)
    if foreign is not None:
        click.echo(
            f"{work}: is kept, because {one_line(foreign)} was not written by `{command}`; move "
            "that to another place and delete the folder",
            err=True,
        )
    return foreign is None


def require_own(work: Path, names: re.Pattern[str], command: str) -> None:
    """Raise DataError if there is a file in a work folder that a command has not written."""
    if foreign := _foreign_in_work(work, names):
        raise _foreign(work, foreign, command)


def require_content(work: Path, content: Content, last: str, command: str) -> None:
    """Raise DataError unless a finished work folder has the files of its output and no others.

    What is in `PARTS` need only have a name of the command's. If a file is missing, ``last`` is
    removed, so that `--resume` does not take the work for complete.
    """
    left = dict(content)
    for inside, folders, files in _walk(work):
        expected = left.pop(inside, frozenset())
        others = sorted(set(files) - expected)
        if not files and not folders and not expected and inside.split(os.sep)[0] != PARTS:
            others = [os.curdir]  # an empty folder
        for name in others:
            path = os.path.normpath(os.path.join(inside, name))
            if path != JOB and not (
                path.startswith(f"{PARTS}{os.sep}") and _WORKING.fullmatch(path)
            ):
                raise _foreign(work, path, command)
        if missing := min(expected - set(files), default=None):
            left[inside] = frozenset({missing})
    for folder, names in left.items():
        (work / last).unlink(missing_ok=True)
        lost = work / folder / min(names)
        raise DataError(f"{lost}: was removed while `{command}` ran; run again with --resume")


def _foreign_in_work(work: Path, names: re.Pattern[str]) -> str | None:
    """The first path in a work folder that has no name of its command; None if there is none."""
    found = foreign_files(work, names)
    return min((path for path in found if not _WORKING.fullmatch(path)), default=None)


def _walk(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`: links to folders are files, and folders are relative to ``top``.

    Leaves out what is being replaced, the work in a mount point, and what the system adds.
    """
    for folder, folders, files in os.walk(top):
        here = Path(folder)
        folders[:] = [n for n in folders if n != REPLACED and not is_beside(here, n)]
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        names = (name for name in (*files, *links) if not _REMOVED.fullmatch(name))
        found = [name for name in names if not is_beside(here, name)]
        yield os.path.relpath(folder, top), folders, found


def _foreign(work: Path, path: str, command: str) -> DataError:
    return DataError(
        f"{work / path}: was not written by `{command}`, which works in this folder; move it to "
        "another place and run again (--resume keeps what is done)"
    )
