"""Publishes a finished folder in a mount point, which no other folder can be renamed to.

The work folder is inside the mount point, on its file system. Its entries are renamed into the
mount point one by one, last the file without which an output is unfinished. What is replaced is
moved into the work folder before, beginning with that file. So a run that is killed leaves the old
output, the new one, or an unfinished one, of which the next run takes everything back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from maskdepth.convert.contents import MOUNTED, Content, is_beside
from maskdepth.convert.errors import DataError
from maskdepth.convert.files import REPLACED, remove_replaced, sync


def entries(mount: Path) -> list[str]:
    """Sorted names in a mount point, but for the work and what the system has put there."""
    return sorted(n for n in os.listdir(mount) if n != REPLACED and not is_beside(mount, n))


def is_publishing(mount: Path, last: str) -> bool:
    """Whether a complete work folder is in a mount point, which is or was being published."""
    return (mount / MOUNTED / last).exists()


def publish_entries(work: Path, mount: Path, content: Callable[[Path], Content], last: str) -> None:
    """Move the files of a finished work folder into its mount point, and remove the work folder.

    A finished output in the mount point is replaced. An error or an interrupt undoes all. Raises
    DataError for anything else that is there.
    """
    made, old = _top(content(work)), entries(mount)
    is_replacing = (work / REPLACED).exists() or (mount / last).exists()
    if old and not is_replacing:
        raise DataError(
            f"{mount / old[0]}: appeared meanwhile; move it away and run again with --resume"
        )
    try:
        if is_replacing:
            (work / REPLACED).mkdir(exist_ok=True)
            _move(mount, work / REPLACED, sorted(old, key=lambda name: name != last))
        _move(work, mount, sorted(made - {last}))
        sync(mount)  # a power failure must not keep only the last rename
        _move(work, mount, [last])
    except BaseException:
        take_back(work, mount, content, last)
        restore_entries(work, mount, last)
        raise
    sync(mount)
    remove_replaced(mount)
    with suppress(OSError):  # that could not be removed, and is reported
        work.rename(mount / REPLACED)  # so that the next run removes it if this one is killed
    remove_replaced(mount)


def take_back(work: Path, mount: Path, content: Callable[[Path], Content], last: str) -> None:
    """Move what `publish_entries` has moved into the mount point back, unless that was all."""
    if (work / last).exists() and not (mount / last).exists():
        moved = _top(content(work)) & set(entries(mount))
        _move(mount, work, [name for name in sorted(moved) if not os.path.lexists(work / name)])


def restore_entries(work: Path, mount: Path, last: str) -> None:
    """Move what `publish_entries` has replaced back, unless the new output is complete."""
    replaced = work / REPLACED
    if replaced.exists() and (work / last).exists():
        _move(replaced, mount, sorted(os.listdir(replaced), key=lambda name: name == last))
        replaced.rmdir()


def _move(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        (source / name).rename(target / name)


def _top(content: Content) -> set[str]:
    """The names of the entries of an output's folder."""
    folders = {Path(folder).parts[0] for folder in content if folder != os.curdir}
    return folders | content[os.curdir]
