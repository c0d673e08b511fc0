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
from maskdepth.convert.destination import Destination
from maskdepth.convert.errors import DataError
from maskdepth.convert.files import REPLACED, remove_replaced, sync
from maskdepth.convert.found import is_mount_point


def destination_of(path: Path) -> Destination:
    """Where an output of this name is written; a link to a mount point is none."""
    is_mount = is_mount_point(path) and not path.is_symlink()
    return MountPoint(path) if is_mount else Destination(path)


class MountPoint(Destination):
    """An output that is a mount point; ``path`` is its folder."""

    @property
    def work(self) -> Path:
        return self.path / MOUNTED

    @property
    def job(self) -> Path:
        return self.path / f"{MOUNTED}.job"

    @property
    def written(self) -> Path:
        return self.path

    def is_vacant(self) -> bool:
        return not self._entries()

    def is_publishing(self, last: str) -> bool:
        return (self.work / last).exists()

    def publish(self, content: Callable[[Path], Content], last: str, *, replace: bool) -> None:
        """Move the files of the finished work folder into the mount point, and remove it.

        A finished output is replaced; `check_target` has allowed that. Raises DataError for
        anything else that is there.
        """
        made, old, replaced = _top(content(self.work)), self._entries(), self.work / REPLACED
        is_replacing = replaced.exists() or (self.path / last).exists()
        if old and not is_replacing:
            raise DataError(
                f"{self.path / old[0]}: appeared meanwhile; move it away and run again with "
                "--resume"
            )
        try:
            if is_replacing:
                replaced.mkdir(exist_ok=True)
                _move(self.path, replaced, sorted(old, key=lambda name: name != last))
            _move(self.work, self.path, sorted(made - {last}))
            sync(self.path)  # a power failure must not keep only the last rename
            _move(self.work, self.path, [last])
        except BaseException:
            self.take_back(content, last)
            self.restore(last)
            raise
        sync(self.path)
        remove_replaced(self.path)
        with suppress(OSError):  # that could not be removed, and is reported
            # So that the next run removes it if this one is killed.
            self.work.rename(self.path / REPLACED)
        remove_replaced(self.path)

    def take_back(self, content: Callable[[Path], Content], last: str) -> None:
        """Move what `publish` has moved into the mount point back, unless that was all."""
        if (self.work / last).exists() and not (self.path / last).exists():
            moved = sorted(_top(content(self.work)) & set(self._entries()))
            left = [name for name in moved if not os.path.lexists(self.work / name)]
            _move(self.path, self.work, left)

    def restore(self, last: str) -> None:
        """Move what `publish` has replaced back, unless the new output is complete."""
        replaced = self.work / REPLACED
        if replaced.exists() and (self.work / last).exists():
            old = sorted(os.listdir(replaced), key=lambda name: name == last)
            _move(replaced, self.path, old)
            replaced.rmdir()

    def _entries(self) -> list[str]:
        """Sorted names in the mount point, but for the work and what the system has put there."""
        found = os.listdir(self.path)
        return sorted(n for n in found if n != REPLACED and not is_beside(self.path, n))


def _move(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        (source / name).rename(target / name)


def _top(content: Content) -> set[str]:
    """The names of the entries of an output's folder."""
    folders = {Path(folder).parts[0] for folder in content if folder != os.curdir}
    return folders | content[os.curdir]
